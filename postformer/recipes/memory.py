"""Small models that must remember while they read: one needle in a haystack, bAbI's facts in books, and what a diary
tells.

`METHODS` are the ways of remembering that are compared (benchmarks/reading.py, claims/neural_memory.py), each in a model of the same
width and depth.
"""

import dataclasses
from typing import Any

from postformer.config import OptimConfig, Run, Spec, TrainConfig

WINDOW = 128
"""Tokens of a segment or a window, where there is attention."""
WRITE_COST = 1.0
"""What a row whose answers are right pays for writing; docs/titans.md tells what it is worth."""
DEAR = 200.0
"""The same of rows of full length, and less of shorter ones, where a text is to be known after a million tokens."""
CONV = 8
"""Taps of every convolution: a fact's person and what is said of it stand further apart than the usual four."""
_INSIDE: Spec = {"kind": "lmm", "heads": 4, "conv": CONV, "threshold": 0.1, "rate": 0.125, "gates": "conv", "damping": 1e-5}
_LMM: Spec = {**_INSIDE, "persistent": 4}
_ATTENTION: Spec = {"kind": "attention", "heads": 4, "conv": CONV}
_WINDOWED: Spec = {**_ATTENTION, "window": WINDOW}
METHODS: dict[str, Spec] = {
    "lmm": _LMM,
    "mac": {
        "kind": "mac",
        "segment": WINDOW,
        "persistent": 4,
        "memory": _INSIDE,
        "attention": _ATTENTION,
    },
    "mag": {"kind": "mag", "persistent": 4, "memory": _INSIDE, "attention": _WINDOWED},
    "mal": {"kind": "mal", "persistent": 4, "memory": _INSIDE, "attention": _WINDOWED},
    "mamba2": {"kind": "mamba2", "state": 192, "head_dim": 32, "conv": CONV, "threshold": 0.01, "dt_min": 0.02},
    "gated_delta": {"kind": "gated_delta", "heads": 2, "head_dim": 109, "conv": CONV, "threshold": 0.1, "gates": "conv"},
    "window": {**_ATTENTION, "window": 192},
    "attention": _ATTENTION,
}
"""By the name of a table's column. All have a convolution over the last tokens before they remember, and the rivals
of the memory alone a state of as many bytes as its own, at width 128 within 4%. The gated delta rule and Mamba-2 can learn not to write
as the memory does; Mamba-2's gates are its tokens', since it learned less with those of the convolution (docs/neural_memory.md)."""


def _reading(name: str, data: Spec, *, steps: int, **objective: Any) -> Run:
    return Run(
        name=name,
        model={
            "kind": "language",
            "dim": 128,
            "depth": 2,
            "mixers": (METHODS["lmm"],),
            "ffns": ({"kind": "mlp", "hidden": 512},),
        },
        objective={"kind": "answers", "write_cost": WRITE_COST, **objective},
        data=data,
        optim=OptimConfig(kind="muon", lr=2e-3, weight_decay=0.01, schedule="wsd", decay=0.4, final=0.02),
        train=TrainConfig(steps=steps, batch=4, eval_every=500, save_every=250, log_every=50),
    )


def needles() -> Run:
    """A pass-key, number or word in a haystack as in RULER, learned on up to 1,024 tokens."""
    data = {"kind": "needles", "needle": "mixed", "wording": "short", "length": 1024, "shortest": 128, "start": 160}
    return _reading("needles", {**data, "grow": 1100, "fill": 4096}, steps=2000)


def babilong() -> Run:
    """bAbI's first question, its facts lying in a book, learned on up to 1,024 tokens (Kuratov et al. 2024)."""
    data = {"kind": "babilong", "task": 1, "length": 1024, "shortest": 128, "start": 160, "power": 3.0, "fill": 4096}
    return _reading("babilong", {**data, "grow": 1600}, steps=2000, write_cost=DEAR, write_length=data["length"])


def diaries() -> Run:
    """Three to eight names of people's dogs in a short diary, some changed or struck out, and questions: learned on up to 1,024 tokens."""
    data = {
        "kind": "diary",
        "kinds": ("single", "updated", "deleted"),
        "topics": ("dog",),
        "reach": 3,
        "facts": 8,
        "fewest": 3,
        "questions": 8,
        "gaps": 0.25,
        "plain": 448,
        "length": 1024,
        "shortest": 400,
        "start": 400,
        "grow": 2000,
        "power": 4.0,
        "fill": 4096,
    }
    return _reading("diaries", data, steps=2500, write_cost=DEAR, write_length=data["length"])


def remembering_by(run: Run, method: str) -> Run:
    """The run with another of METHODS."""
    return dataclasses.replace(run, name=f"{run.name}-{method}", model={**run.model, "mixers": (METHODS[method],)})
