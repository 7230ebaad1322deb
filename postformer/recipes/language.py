"""Small language models of different mixers: what the report compares (text-mamba and text-attention, of one size; text-memory and
text-window, of another), and starting points for one's own."""

import dataclasses
from typing import Any

from postformer.config import OptimConfig, Run, Spec, TrainConfig

DIM = 192
_HEADS: tuple[Spec, ...] = ({"kind": "attention", "heads": 6},)


def _text(name: str, **model: Any) -> Run:
    return Run(
        name=name,
        model={"kind": "language", "dim": DIM, **model},
        data={"kind": "text", "path": "corpora/default", "length": 256},
        optim=OptimConfig(
            kind="muon", lr=2e-2, matrix_lr=0.1, weight_decay=0.0, warmup=30, schedule="wsd", decay=0.5, final=0.02
        ),
        train=TrainConfig(steps=2000, batch=4),
    )


def text_mamba() -> Run:
    """Mamba blocks only, as in Gu & Dao 2023."""
    return _text("text-mamba", depth=3, mixers=({"kind": "mamba"},), ffns=({"kind": "none"},))


def text_attention() -> Run:
    """A Transformer as Llama is built: rotary positions, SwiGLU."""
    return _text("text-attention", depth=2, mixers=_HEADS, ffns=({"kind": "mlp", "hidden": 384},))


def text_experts() -> Run:
    """text-attention with eight experts in place of each MLP, of which a token uses two that are together as wide."""
    return _text("text-experts", depth=2, mixers=_HEADS, ffns=({"kind": "moe", "experts": 8, "top": 2, "hidden": 192},))


def text_wide() -> Run:
    """text-attention with MLPs as wide as all of text-experts' experts: about as many parameters as that has."""
    return _text("text-wide", depth=2, mixers=_HEADS, ffns=({"kind": "mlp", "hidden": 8 * 192},))


def text_hybrid() -> Run:
    """Three Mamba layers for each sliding-window attention layer: a state of fixed size."""
    window = {"kind": "attention", "heads": 6, "kv_heads": 2, "window": 128, "qk_norm": True}
    return _text("text-hybrid", depth=4, mixers=({"kind": "mamba"},) * 3 + (window,), ffns=({"kind": "mlp", "hidden": 256},))


def text_memory() -> Run:
    """Titans' memory, then a narrow window: what lies further back is in weights that are written while reading."""
    return _reading("text-memory", ({"kind": "lmm", "heads": 4, "retention": "initial"}, _NARROW), 384)


def text_window() -> Run:
    """The same with a second window for the memory, and as many parameters in wider layers: it knows the last tokens only."""
    return _reading("text-window", (_NARROW, _NARROW), 429)


_NARROW: Spec = {"kind": "attention", "heads": 4, "window": 64, "conv": 4}


def _reading(name: str, mixers: tuple[Spec, ...], hidden: int) -> Run:
    run = _text(name, depth=2, mixers=mixers, ffns=({"kind": "mlp", "hidden": hidden},))
    optim, train = dataclasses.replace(run.optim, lr=1e-2, matrix_lr=0.2), dataclasses.replace(run.train, batch=2)
    model, data = {**run.model, "dim": 128}, {**run.data, "length": 1024}
    return dataclasses.replace(run, model=model, data=data, optim=optim, train=train)
