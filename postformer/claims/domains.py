"""Experiments on a mixture of experts that learns texts of several domains: code, prose, and the user's text or an old diary."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from postformer.claims.ledger import Context, NotMeasurable
from postformer.claims.long_text_page import SHORT_S
from postformer.claims.sequences import SHORT_BYTES, VOCAB
from postformer.claims.tasks import folder
from postformer.config import Run, UserError
from postformer.data import open_corpus
from postformer.data.build import build_corpus
from postformer.data.embedded import embedded_sources
from postformer.data.prose import PEPYS_FILE, data_folder
from postformer.data.sources import Source
from postformer.models.telemetry import WINDOW, Layer, Specialist, information, telemetry
from postformer.ops.routing import max_violation
from postformer.recipes.language import text_experts
from postformer.train import process
from postformer.train.session import open_model

HELD_OUT = 0.1
"""Of the documents: what experts do is measured over them."""
LEAST = 2
"""Documents, or windows of few documents, that each half of a domain's text takes."""
OWN, DIARY = "yours", "diary"
"""The third domain: the user's text, or Pepys' diary where the real data is; none else."""


def recipe(ctx: Context) -> Run:
    """What is trained."""
    run = text_experts()
    return dataclasses.replace(run, data={**run.data, "path": str(ctx.files / "corpus")})


def make_corpus(ctx: Context) -> dict[str, Any]:
    """Build it, and describe it. Raises DataError for text that cannot be read and NotMeasurable for a domain of which too little is held
    out."""
    third = ctx.text or data_folder(PEPYS_FILE)
    sources: list[Source] = [*embedded_sources(SHORT_BYTES if ctx.budget_s < SHORT_S else None)]
    if third is not None:
        sources.append(Source(Path(third), OWN if ctx.text else DIARY))
    build_corpus(sources, ctx.files / "corpus", VOCAB, valid=HELD_OUT, progress=ctx.progress)
    corpus = open_corpus(ctx.files / "corpus", verify=False)
    counts = {d: corpus.count("valid", d) for d in corpus.manifest.domains}
    if few := [d for d, count in counts.items() if count.tokens < 2 * WINDOW]:
        raise NotMeasurable(
            f"{few[0]}: too little text: {counts[few[0]].tokens:,} tokens are held out, {2 * WINDOW} are needed"
        )
    if few := [d for d, count in counts.items() if count.documents < 2]:
        raise NotMeasurable(f"{few[0]}: too little text: one document is held out, two are needed")
    return {
        "text": "Python's library (code and its prose)" + ("" if third is None else f" and {third}"),
        "sha256": corpus.sha256,
        "bytes": corpus.count("train").bytes + corpus.count("valid").bytes,
        "domains": list(counts),
        "learned": {d: corpus.count("train", d).bytes for d in counts},
    }


def watched(ctx: Context, run: Run, seed: int, tokens: int) -> list[dict[str, Any]]:
    """Of each mixture of the seed's model, the first layer's first: what its experts tell of held-out text, and the untrained router's."""
    corpus = open_corpus(ctx.files / "corpus", verify=False)
    texts = {d: (text for _, _, text in corpus.text("valid", d)) for d in corpus.manifest.domains}
    each = max(1, tokens // WINDOW // min(corpus.count("valid", d).documents for d in texts))
    with process.threads(ctx.threads), process.freed_memory_kept():
        try:
            found = telemetry(
                open_model(folder(ctx, run, seed)), texts, tokens=tokens, each=each, seed=seed, after_window=ctx.progress
            )
        except UserError as e:
            raise NotMeasurable(str(e)) from None
    return told(found.layers, seed)


def told(layers: Sequence[Layer], seed: int) -> list[dict[str, Any]]:
    """What each layer's experts tell. Raises NotMeasurable for a domain of which too little was read."""
    _check_halves(layers[0])
    takes = 1 / layers[0].loads.shape[1]
    return [_told(layer, takes, seed) for layer in layers]


def _check_halves(layer: Layer) -> None:
    """Raises NotMeasurable where a half of a domain's text is too little for an interval."""
    for number in (0, 1):
        half = layer.half(number)
        for domain in half.windows:
            if (count := len(set(half.units(domain).tolist()))) < LEAST:
                held_out = f"{len(layer.windows[domain])} windows of held-out text"
                raise NotMeasurable(f"{domain}: too little text: of {held_out} a half has {count}, {LEAST} are needed")


def _told(layer: Layer, takes: float, seed: int) -> dict[str, Any]:
    """The layer is chosen by one half of the text, and what is judged is measured on the other."""
    loads, rest = layer.loads.sum(0), layer.half(1)
    return {
        "name": layer.name,
        "loads": layer.loads.tolist(),
        "documents": {d: len(set(of.tolist())) for d, of in layer.documents.items()},
        "chosen by": layer.half(0).excess_interval(seed=seed)[0],
        "purity": list(rest.purity_interval(seed=seed)),
        "untrained": list(rest.purity_interval(control=True, seed=seed)),
        "excess": list(rest.excess_interval(seed=seed)),
        "information": information(layer.loads),
        "max_violation": float(max_violation(torch.from_numpy(loads))),
        "idle": int((loads == 0).sum()),
        "specialist": _specialist(layer.specialist("code", takes, seed=seed)),
        "untrained specialist": _specialist(_first_control(layer).specialist("code", takes, seed=seed)),
    }


def _first_control(layer: Layer) -> Layer:
    """The first untrained router as if it were the model's."""
    return Layer(layer.name, {d: of[0] for d, of in layer.control.items()}, layer.control, layer.documents)


def _specialist(found: Specialist | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"expert": found.expert, "share": list(found.share), "takes": found.takes, "chosen by": found.chosen_by}
