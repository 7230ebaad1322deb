"""The papers' small synthetic tasks, as runs: what a selective state remembers, and what a rotating one can track.

`docs/tasks.md` says how far each of them comes.
"""

from typing import Any

from postformer.config import OptimConfig, Run, Spec, TrainConfig


def _task(
    name: str, mixer: Spec, data: Spec, *, optim: OptimConfig, steps: int, batch: int, smoothing: float = 0.0, **model: Any
) -> Run:
    return Run(
        name=name,
        model={"kind": "language", "mixers": (mixer,), "ffns": ({"kind": "none"},), "tied": False} | model,
        objective={"kind": "answers", "smoothing": smoothing},
        data=data,
        optim=optim,
        train=TrainConfig(steps=steps, batch=batch, eval_every=500, save_every=500, log_every=50),
    )


def induction() -> Run:
    """Induction heads as in Gu & Dao 2023, table 11, learned on up to 256 tokens.

    The steps of time start near 0, so that the layers learn when to write instead of when not to: what is written then stays. The
    first gradients are as small as those steps, and so is Adam's eps.
    """
    return _task(
        "induction",
        {"kind": "mamba", "dt_min": 1e-12, "dt_max": 1e-11},
        {"kind": "induction", "length": 256, "shortest": 4, "start": 8, "grow": 1600},
        optim=OptimConfig(lr=3e-3, eps=1e-18, weight_decay=0.0, schedule="wsd", decay=0.5, final=0.02),
        steps=4000,
        batch=8,
        smoothing=0.1,
        dim=64,
        depth=2,
    )


def selective_copying() -> Run:
    """Selective copying as in Gu & Dao 2023, table 1, at length 256: two Mamba layers."""
    return _task(
        "selective-copying",
        {"kind": "mamba"},
        {"kind": "selective_copying", "length": 256, "shortest": 16, "start": 16, "grow": 1500},
        optim=OptimConfig(lr=3e-3, weight_decay=0.0, schedule="wsd", decay=0.5, final=0.02),
        steps=8000,
        batch=32,
        dim=64,
        depth=2,
    )


def _parity(name: str, **mixer: Any) -> Run:
    return _task(
        name,
        {"kind": "mamba3", "state": 32, "head_dim": 32, "dt_min": 0.1, "dt_max": 1.0, **mixer},
        {"kind": "parity", "length": 160, "start": 4, "grow": 6000, "ones": "varied"},
        optim=OptimConfig(lr=1e-3, weight_decay=0.1, clip=0.2, final=0.01),
        steps=10000,
        batch=32,
        dim=64,
        depth=1,
    )


def parity() -> Run:
    """Parity as in Lahoti et al. 2026, table 5b: one Mamba-3 layer, learned on up to 160 bits.

    Half a turn takes dt = 1, so dt starts near it. The angle must be exact to within one part of the length, and a step of Adam moves it
    by the learning rate: lengths grow while that falls. The share of ones varies, so that some sequences hold as many of a bit as longer
    ones do: else what turns too far is right to 160 and not beyond.
    """
    return _parity("parity")


def parity_real() -> Run:
    """The same without rotation: what a state of positive real eigenvalues makes of parity."""
    return _parity("parity-real", rotated=0.0)


def modular_arithmetic() -> Run:
    """Arithmetic modulo 5 without brackets as in Lahoti et al. 2026, table 5b: three Mamba-3 layers, learned on up to 160 places.

    Products and sums stand in layers of their own, each with a network that reads off a digit.
    """
    return _task(
        "modular-arithmetic",
        {"kind": "mamba3", "state": 32, "head_dim": 16, "dt_min": 0.1, "dt_max": 1.0},
        {"kind": "modular_arithmetic", "length": 160, "start": 3, "grow": 3500, "power": 1.4, "spread": 0.5, "fill": 4096},
        optim=OptimConfig(lr=3e-3, weight_decay=0.1, clip=0.2, final=0.01),
        steps=8000,
        batch=25,
        smoothing=0.1,
        ffns=({"kind": "mlp", "hidden": 128},),
        dim=64,
        depth=3,
    )
