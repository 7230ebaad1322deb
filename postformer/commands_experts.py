"""What the commands about experts do: watch them, and make them of dense models. Imports no torch before they run."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from postformer.commands import progress_bars
from postformer.config import UserError

ROUTER_TOKENS = 8192
"""Of each text from which a router's rows are made."""
MOST_APART = 1e-5
"""Largest difference that upcycling may make."""


def experts(args: argparse.Namespace) -> int:
    from postformer.claims.experts_page import listed, page
    from postformer.files import write_durably
    from postformer.models.telemetry import WINDOW, telemetry
    from postformer.train.session import open_model

    if args.out and not args.out.absolute().parent.is_dir():
        raise UserError(f"--out {args.out}: the folder {args.out.parent} does not exist")
    if args.out and args.out.is_dir():
        raise UserError(f"--out {args.out}: is a folder; name a file such as {args.out}/experts.html")
    if args.tokens < WINDOW:
        raise UserError(f"--tokens {args.tokens}: must be at least {WINDOW}, a window")
    domains = _domains(args.text)
    model = open_model(args.checkpoint)
    with progress_bars() as show:
        texts = {name: _documents(name, path) for name, path in domains.items()}
        found = telemetry(
            model,
            texts,
            tokens=args.tokens,
            seed=args.seed,
            after_window=lambda domain, done, total: show(f"reading {domain}", done, total),
        )
    print(listed(found))
    if args.out:
        write_durably(args.out, page(found, args.checkpoint))
        print(f"\n{args.out}: heat maps, and which expert each token goes to")
    return 0


def upcycle(args: argparse.Namespace) -> int:
    import torch

    from postformer.models import upcycle as of
    from postformer.models.hub import save_model
    from postformer.train.session import open_model

    if args.out.exists():
        raise UserError(f"--out {args.out}: is there already; name a new folder")
    if args.text and len(args.models) == 1:
        raise UserError("--text: is for several models, whose experts take a text each first; leave it out with one")
    if args.text and len(args.text) != len(args.models):
        raise UserError(f"--text: give one file for each of the {len(args.models)} models, got {len(args.text)}")
    models = [open_model(name) for name in args.models]
    dtype = models[0].embed.weight.dtype
    models = [model.to(of.at_least_fp32(models[0])) for model in models]
    texts = []
    for path in args.text:
        if models[0].tokens is None:
            raise UserError(f"{args.models[0]}: this model was saved without a tokenizer; it cannot read text")
        if not path.is_file():
            raise UserError(f"--text {path}: {'is no file' if path.exists() else 'no such file'}")
        ids = models[0].tokens.encode(path.read_bytes()[: 16 * ROUTER_TOKENS])[:ROUTER_TOKENS]
        if not ids:
            raise UserError(f"--text {path}: is empty; a router's row is made of text")
        texts.append(torch.tensor(ids))
    numbers = {"experts": args.experts, "top": args.top, "split": args.split, "seed": args.seed}
    made = of.upcycle(models, **numbers, texts=texts)
    cost = made.cost(1)
    said = f"{args.out}: {cost.parameters:,} parameters, {cost.active_parameters:,} active a token"
    if len(models) == 1:
        apart = of.furthest(models[0], made)
        if not apart <= MOST_APART:
            raise UserError(
                f"{args.models[0]}: its mixture answers otherwise, by {apart:.1e} of the largest logit; nothing is written"
            )
        said += f"; answers as before, to {apart:.0e} of the largest logit"
    save_model(made.to(dtype), args.out)
    print(said)
    return 0


def _domains(words: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise UserError(f"--text {word}: expected a domain and its texts, such as code=DIR")
        if name in found:
            raise UserError(f"--text {word}: the domain {name} is there twice")
        if not Path(path).exists():
            raise UserError(f"--text {word}: no such file or folder")
        found[name] = Path(path)
    if len(found) < 2:
        raise UserError(f"--text: give at least two domains, such as code=DIR prose=DIR, got {', '.join(found)}")
    return found


def _documents(name: str, path: Path) -> Iterator[bytes]:
    from postformer.data.sources import Document, Source

    refused, some = None, False
    for row in Source(path, domain=name, split=False).read():
        if isinstance(row, Document):
            some = True
            yield row.text
        else:
            refused = row
    if refused is not None and not some:
        raise UserError(f"--text {name}={path}: nothing that can be read: {refused.reason}")
