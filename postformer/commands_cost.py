"""What the command about costs does: parameters, operations and bytes by formula. Imports no torch before it needs a model of ours."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from postformer.commands import load_run
from postformer.config import UserError
from postformer.devices import device, step
from postformer.published import PUBLISHED


def _model(recipe: str, overrides: Sequence[str], vocab: int | None) -> tuple[str, Any]:
    """A trained model, or a recipe's without its weights, and its name."""
    if Path(recipe).is_dir():
        from postformer.train.session import open_model

        if overrides:
            raise UserError(f"{recipe}: a trained model takes no overrides such as '{overrides[0]}'; give a recipe or a file")
        if vocab:
            raise UserError(f"--vocab: {recipe} has its own vocabulary; give --vocab with a recipe or a file")
        return recipe, open_model(recipe)
    run = load_run(recipe, overrides)
    import torch

    from postformer.config import build
    from postformer.data import DATA
    from postformer.models import MODELS
    from postformer.train.session import sizes_of

    sizes = {"vocab": vocab or 4096}
    if run.data.get("kind") != "text":
        if vocab:
            raise UserError(f"--vocab: the data of {recipe} has its own sizes")
        sizes = sizes_of(run, build(run.data, DATA, "data"))
    with torch.device("meta"):
        return run.name, build({k: v for k, v in run.model.items() if k not in sizes}, MODELS, "model", **sizes)


def cost(args: argparse.Namespace) -> int:
    if args.device and not args.batch:
        raise UserError("--device: says how long a step of a batch takes; give --batch too, such as 1,8,32")
    if args.recipe in PUBLISHED and (args.overrides or args.vocab):
        raise UserError(
            f"{args.recipe}: a published model's shape is fixed; leave out {args.overrides[0] if args.overrides else '--vocab'}"
        )
    if args.device:
        device(args.device)
    name, model = (args.recipe, None) if args.recipe in PUBLISHED else _model(args.recipe, args.overrides, args.vocab)
    shape: Any = PUBLISHED[name] if model is None else model
    first = shape if model is None else model.cost(args.length[0])
    ratio = first.parameters / first.active_parameters
    print(
        f"{name}: {first.parameters:,} parameters, {first.active_parameters:,} active a token"
        + (f", 1/{ratio:.1f}" if ratio > 1.05 else "")
    )
    if args.batch and model is not None and not hasattr(model, "touched_parameters"):
        raise UserError(f"--batch: counts what a step of writing text touches, and {name} writes none; leave it out")
    if args.batch:
        _step_costs(args, shape, published=model is None)
        return 0
    print(f"{'length':>12} {'prefill FLOP/token':>20} {'decode FLOP/token':>20} {'state bytes':>16}")
    for n in args.length:
        prefill, decode, state = _costs(shape, n, model is None)
        print(f"{n:>12,} {prefill:>20,.0f} {decode:>20,.0f} {state:>16,}")
    return 0


ITEM = 2
"""Bytes of a number of a published model, and of our own where a device is given: bf16."""


def _costs(shape: Any, length: int, published: bool) -> tuple[float, float, int]:
    """Operations of a token while reading so many and after them, and bytes of the state; a published model's in bf16."""
    if published:
        return (shape.flops(0) + shape.flops(length)) / 2, float(shape.flops(length)), ITEM * shape.state_numbers(length)
    c = shape.cost(length)
    return c.prefill_flops, c.decode_flops, c.state_bytes


def _step_costs(args: argparse.Namespace, shape: Any, published: bool) -> None:
    """A line for each length and batch: weights that a step reads, and the least time on a device."""
    of = device(args.device) if args.device else None
    whole = shape.parameters if published else sum(p.numel() for p in shape.parameters())
    head = f"{'length':>12} {'batch':>6} {'weights touched':>18} {'of all':>7} {'FLOP/step':>20} {'state bytes':>18}"
    print(head + (f" {'read ms':>10} {'multiply ms':>12} {'tokens/s at most':>17}" if of else ""))
    for n in args.length:
        for batch in args.batch:
            _, decode, state = _costs(shape, n, published)
            touched = (shape.touched if published else shape.touched_parameters)(batch)
            line = (
                f"{n:>12,} {batch:>6,} {touched:>18,.0f} {touched / whole:>7.1%} {batch * decode:>20,.0f} {batch * state:>18,}"
            )
            if of:
                taken = step(of, weights=ITEM * touched, resident=ITEM * whole, state=state, operations=decode, batch=batch)
                line += f" {1e3 * taken.read_s:>10.3f} {1e3 * taken.multiply_s:>12.3f} {batch / taken.seconds:>17,.0f}"
                line += "" if taken.fits else "  (more than its memory)"
            print(line)
    if of:
        print(
            f"weights in bf16; {args.device}: {of.bandwidth / 1e9:,.0f} GB/s, {of.operations / 1e12:,.1f} TFLOP/s, {of.source}"
        )
