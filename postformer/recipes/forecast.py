"""Forecasts of a multivariate series from its last 96 steps: our mixers over patches, and a linear peer.

`docs/forecasting.md` says how far each of them comes. `data.path` is ETTh1, ETTh2 or a CSV of your own.
"""

from typing import Any

from postformer.config import OptimConfig, Run, Spec, TrainConfig

MEMORY: Spec = {"kind": "lmm", "heads": 2, "chunk": 12, "damping": 1e-5}


def _forecast(name: str, model: Spec, *, lr: float, steps: int, every: int) -> Run:
    return Run(
        name=name,
        model=model,
        objective={"kind": "forecast"},
        data={"kind": "series", "path": "ETTh1", "look_back": 96, "horizon": 96},
        optim=OptimConfig(lr=lr, weight_decay=0.0, warmup=50, final=0.02),
        train=TrainConfig(steps=steps, batch=32, eval_every=every, eval_batches=87, save_every=every, log_every=50),
    )


def _patches(name: str, mixer: Spec, **more: Any) -> Run:
    model = {
        "kind": "forecast",
        "dim": 16,
        "depth": 1,
        "mixers": (mixer,),
        "ffns": ({"kind": "mlp", "hidden": 32},),
        "dropout": 0.3,
        **more,
    }
    return _forecast(name, model, lr=2e-3, steps=400, every=50)


def forecast_lmm() -> Run:
    """Titans' neural memory over patches of each channel, as in Behrouz et al. 2024, table 3, in PatchTST's frame."""
    return _patches("forecast-lmm", MEMORY)


def forecast_lmm_returning() -> Run:
    """The same, free to return from the window's mean to that of the training part."""
    return _patches("forecast-lmm-returning", MEMORY, returning=True)


def forecast_mamba2() -> Run:
    """The same with Mamba-2 in the memory's place."""
    return _patches("forecast-mamba2", {"kind": "mamba2", "state": 16, "head_dim": 8})


def forecast_dlinear() -> Run:
    """DLinear (Zeng et al. 2023): two linear layers, the peer."""
    return _forecast("forecast-dlinear", {"kind": "dlinear"}, lr=1e-3, steps=2600, every=260)
