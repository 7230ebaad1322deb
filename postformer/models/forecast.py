"""Forecasters: windows of several channels in, what follows them out. Every channel is forecast from its own past by the same weights.

`Forecaster` is PatchTST (Nie et al. 2023, arXiv 2211.14730) with our stack of blocks in the place of its Transformer encoder: patches of
a window that is normalised by its own mean and deviation (RevIN: Kim et al. 2022, without its affine part), a causal backbone over
them, a linear head over all of them. `DLinear` is Zeng et al. 2023 (arXiv 2205.13504), section 4.

b windows, c channels, t steps of the past, h of the future, n = b c, p patches, d model width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from postformer.config import Spec
from postformer.ffn import FFNS
from postformer.mixers import MIXERS
from postformer.models.backbone import Backbone, Cost, complete_pattern
from postformer.ops.layers import Linear

EPS = 1e-5


def normalised(x: Float[Tensor, "*b t"]) -> tuple[Float[Tensor, "*b t"], Float[Tensor, "*b 1"], Float[Tensor, "*b 1"]]:
    """(x - mean) / deviation of each window, the mean and the deviation."""
    mean = x.mean(-1, keepdim=True)
    deviation = (x.var(-1, keepdim=True, correction=0) + EPS).sqrt()
    return (x - mean) / deviation, mean, deviation


class Forecaster(nn.Module):
    """`patch` steps are a token, and one begins each `stride` steps; `patch=1, stride=1` reads step by step. As in PatchTST the last step
    is repeated `stride` times at the end, so that no step is left out.
    With `returning` a learned share of the window's mean is added back, one for each step of the future: a forecast may then return to 0,
    the mean of the training part. `dropout` falls on the tokens and on what the head reads."""

    tokens: Any = None
    compute_dtype: torch.dtype | None = None

    def __init__(
        self,
        look_back: int,
        horizon: int,
        *,
        dim: int = 64,
        depth: int = 2,
        patch: int = 16,
        stride: int = 8,
        mixers: tuple[Spec, ...] = ({"kind": "lmm"},),
        ffns: tuple[Spec, ...] = ({"kind": "mlp"},),
        returning: bool = False,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        if min(look_back, horizon) < 1:
            raise ValueError(f"look_back={look_back} and horizon={horizon} must be at least 1")
        if not 1 <= stride <= patch <= look_back:
            raise ValueError(
                f"stride={stride}, patch={patch} and look_back={look_back}: expected 1 <= stride <= patch <= look_back"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be at least 0 and below 1")
        self.config: Spec = {
            "kind": "forecast",
            "look_back": look_back,
            "horizon": horizon,
            "dim": dim,
            "depth": depth,
            "patch": patch,
            "stride": stride,
            "mixers": complete_pattern(mixers, MIXERS, "model.mixers"),
            "ffns": complete_pattern(ffns, FFNS, "model.ffns"),
            "returning": returning,
            "dropout": dropout,
            "norm_eps": norm_eps,
        }
        self.look_back, self.horizon, self.patch, self.stride = look_back, horizon, patch, stride
        self.repeated = stride if patch > 1 else 0
        self.patches = (look_back + self.repeated - patch) // stride + 1
        self.backbone = Backbone(dim, depth, mixers, ffns, norm_eps)
        self.embed = Linear(patch, dim)
        self.places = nn.Parameter(torch.randn(self.patches, dim) * 0.02)
        self.places.no_weight_decay = True  # type: ignore[attr-defined]
        self.dropout = nn.Dropout(dropout)
        self.head = Linear(self.patches * dim, horizon)
        self.kept = nn.Parameter(torch.ones(horizon)) if returning else None

    def forward(self, past: Float[Tensor, "b t c"]) -> Float[Tensor, "b h c"]:
        """The forecast, in the units of the past and in its dtype. Raises ValueError for a window of another length than `look_back`."""
        x, mean, deviation = normalised(_by_channel(past, self.look_back))
        x = F.pad(x, (0, self.repeated), mode="replicate").unfold(-1, self.patch, self.stride).flatten(0, 1)
        x = self.embed(x if self.compute_dtype is None else x.to(self.compute_dtype))
        x, _ = self.backbone(self.dropout(x + self.places.to(x.dtype)))
        y = self.head(self.dropout(x.flatten(1))).to(past.dtype)
        y = y.unflatten(0, mean.shape[:2]) * deviation
        return (y + (mean if self.kept is None else mean * self.kept)).mT

    def cost(self, length: int) -> Cost:
        """Cost formulas of one channel's window of `length` patches, for each of them: the head reads a patch once."""
        parameters = sum(p.numel() for p in self.parameters())
        ends = 2 * (self.embed.weight.numel() + self.head.weight.numel() // self.patches)
        return Cost(
            parameters=parameters,
            active_parameters=parameters - self.backbone.idle_parameters(),
            prefill_flops=self.backbone.flops(length) / length + ends,
            decode_flops=float(self.backbone.flops(1, length) + ends),
            state_bytes=self.backbone.state_bytes(length, self.head.weight.element_size()),
        )


class DLinear(nn.Module):
    """A linear layer from the trend, a moving average over `window` steps, to the forecast, and one from what is left.

    Both begin as the mean of what they read, as in the authors' program."""

    tokens: Any = None
    compute_dtype: torch.dtype | None = None

    def __init__(self, look_back: int, horizon: int, *, window: int = 25):
        super().__init__()
        if min(look_back, horizon) < 1:
            raise ValueError(f"look_back={look_back} and horizon={horizon} must be at least 1")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window={window} must be an odd number of at least 1")
        self.config: Spec = {"kind": "dlinear", "look_back": look_back, "horizon": horizon, "window": window}
        self.look_back, self.horizon, self.window = look_back, horizon, window
        self.trend, self.season = Linear(look_back, horizon), Linear(look_back, horizon)
        for layer in (self.trend, self.season):
            nn.init.constant_(layer.weight, 1 / look_back)

    def forward(self, past: Float[Tensor, "b t c"]) -> Float[Tensor, "b h c"]:
        """The forecast, in the dtype of the past. Raises ValueError for a window of another length than `look_back`."""
        x = _by_channel(past, self.look_back)
        x = x if self.compute_dtype is None else x.to(self.compute_dtype)
        half = self.window // 2
        trend = F.pad(x, (half, half), mode="replicate").unfold(-1, self.window, 1).mean(-1)
        return (self.trend(trend) + self.season(x - trend)).mT.to(past.dtype)

    def cost(self, length: int) -> Cost:
        """Cost formulas of one channel, for each of its steps: both layers read a step once, and there is no state to go on from."""
        parameters = sum(p.numel() for p in self.parameters())
        step = 4 * self.horizon + self.window
        return Cost(
            parameters=parameters,
            active_parameters=parameters,
            prefill_flops=float(step),
            decode_flops=float(step * self.look_back),
            state_bytes=0,
        )


def _by_channel(past: Tensor, look_back: int) -> Float[Tensor, "b c t"]:
    if past.ndim != 3 or past.shape[1] != look_back:
        raise ValueError(f"past: expected [windows, {look_back} steps, channels], got {tuple(past.shape)}")
    return past.mT
