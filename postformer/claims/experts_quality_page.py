"""What the page shows of `experts_quality`: gains, a table and words from the evidence."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from postformer.claims.ledger import Number, Table
from postformer.claims.reads_better_page import over_bytes, said
from postformer.claims.words import TIMES, value
from postformer.config import Run

NAMES = {"experts": "mixture", "active": "dense, equal active size", "total": "dense, equal size"}
Evidence = Mapping[str, Any]


def bits(e: Evidence, model: str) -> Number:
    """Bits per byte."""
    return over_bytes(e, {seed: of[model] for seed, of in e["bits"].items()})


def gain(e: Evidence, dense: str) -> Number:
    """Bits per byte of a dense model less the mixture's; above 0 where the mixture is better."""
    less = {seed: (np.asarray(of[dense]) - np.asarray(of["experts"])).tolist() for seed, of in e["bits"].items()}
    return over_bytes(e, less)


def width(e: Evidence) -> Number:
    """What the dense model of equal size saves against that of equal active size."""
    less = {seed: (np.asarray(of["active"]) - np.asarray(of["total"])).tolist() for seed, of in e["bits"].items()}
    return over_bytes(e, less)


def sparsity(e: Evidence) -> Number:
    """Parameters of the mixture, all / active."""
    own = e["sizes"]["experts"]
    return Number(own["parameters"] / own["active"], TIMES, "counted")


def quality(e: Evidence) -> Table:
    rows = []
    for model, name in NAMES.items():
        own = e["sizes"][model]
        counted = (
            Number(own[what], "FLOP" if what == "flops" else "", "counted") for what in ("parameters", "active", "flops")
        )
        each = ", ".join(f"{sum(of[model]) / sum(e['units']['bytes']):.4f}" for of in e["bits"].values())
        less = "" if model == "experts" else gain(e, model)
        rows.append((name, bits(e, model), each, less, *counted, Number(e["step_s"][model], "s", "measured")))
    return Table(
        "Held-out text, in bits per byte",
        (
            "model",
            "bits per byte",
            "each seed",
            "less the mixture's",
            "parameters",
            "active",
            "operations of a token",
            "a step of training, about",
        ),
        tuple(rows),
        note=f"After {e['taken']} and {e['tokens']:,} tokens each. n documents. "
        "What a step takes is from a few of them, timed before training beside the other models.",
    )


def limits(e: Evidence, about: Mapping[str, Any], run: Run, seeds: int) -> tuple[str, ...]:
    return (
        f"Models of width {run.model['dim']} and two layers after {e['tokens']:,} tokens ({about['train']['bytes']:,} bytes of text are "
        "there): what experts are worth grows with what there is to learn, and these learn spelling and grammar.",
        "One learning rate, schedule and number of steps for all, found with dense models and Mamba; a router learns at a tenth of it, "
        "since at all of it most tokens went to two experts.",
        "Equal operations are not equal time: what a step takes stands in the table.",
        f"{seeds} seed{'s' * (seeds > 1)}; "
        + ("the interval is over documents alone." if seeds == 1 else "Student's interval over so few is wide."),
    )


def consequences(e: Evidence) -> tuple[str, ...]:
    narrow, wide = gain(e, "active"), gain(e, "total")
    better = narrow.low is not None and narrow.low > 0
    slower = e["step_s"]["experts"] / e["step_s"]["active"]
    return (
        f"At the same operations a token the mixture saves {said(narrow)}, for {value(sparsity(e))} the parameters to hold and about "
        f"{slower:.1f}{TIMES} the time of a training step" + ("." if better else ": not shown to be worth it here."),
        f"Against a dense model of all these parameters it saves {said(wide)}; that model's step takes about "
        f"{e['step_s']['total'] / e['step_s']['experts']:.1f}{TIMES} the mixture's.",
    )
