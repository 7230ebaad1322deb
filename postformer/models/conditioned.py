"""A layer that is told something: time, class or text change its norms and open its branches.

Adaptive layer norm with gates that begin at zero: Peebles & Xie 2023 (arXiv 2212.09748, section 3.2, adaLN-Zero).

    x += gate_1 (x) mixer(norm(x) (1 + scale_1) + shift_1)      x += gate_2 (x) ffn(norm(x) (1 + scale_2) + shift_2)
    (shift_1, scale_1, gate_1, shift_2, scale_2, gate_2) = W silu(c) + b,  W = b = 0 at the start

What tokens share is computed once: a clip's, or a frame's where each frame has a time of its own, and only then spread over their tokens.

b rows, t tokens, m conditions, c their width, d model width.
"""

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from postformer.models.backbone import told
from postformer.ops.layers import Linear, Norm, norm_of
from postformer.ops.modulate import modulated_norm
from postformer.ops.packing import Packing

WAVES = 256
"""Sines and cosines of a time."""
FAR = 8.0
"""Frames that a distance in time is told in."""
TIMES = 1000.0
"""A time from 0 to 1 is told to the network as one from 0 to this, as steps are."""


class TimeEmbedding(nn.Module):
    """Cosines and sines of a time, through two layers (Peebles & Xie 2023, its published code)."""

    def __init__(self, dim: int):
        super().__init__()
        self.up, self.out = Linear(WAVES, dim), Linear(dim, dim)

    def forward(self, time: Float[Tensor, " m"]) -> Float[Tensor, "m d"]:
        half = WAVES // 2
        frequency = 1e4 ** (-torch.arange(half, dtype=torch.float64, device=time.device) / half)
        angle = time.double()[:, None] * TIMES * frequency
        waves = torch.cat([angle.cos(), angle.sin()], -1).to(self.up.weight.dtype)
        return self.out(F.silu(self.up(waves)))


def stride_embedding(dim: int) -> TimeEmbedding:
    """Of the length of a step, which has no say at the start: a model that began without one says what it said."""
    made = TimeEmbedding(dim)
    nn.init.zeros_(made.out.weight)
    if made.out.bias is not None:
        nn.init.zeros_(made.out.bias)
    return made


def told_of(
    model: Any, times: Float[Tensor, "b f"], label: Int[Tensor, " b"] | None, stride: Float[Tensor, " b"] | None
) -> Float[Tensor, "b f c"]:
    """What a model with `time`, `stride`, `label` and `classes` is told of each frame: its time, how far a step will go (0 where nothing is
    said), and the class (that of none where nothing is said)."""
    values = model.time(times.flatten()).unflatten(0, times.shape)
    if model.stride is not None:
        values = values + model.stride(times.new_zeros(len(times)) if stride is None else stride)[:, None]
    if model.label is not None:
        label = torch.full((len(times),), model.classes, device=times.device) if label is None else label
        values = values + model.label(label)[:, None]
    return values


def hinted(clips: Float[Tensor, "b c f h w"], time: Float[Tensor, "b *f2"], count: int) -> Float[Tensor, "b c2 f h w"]:
    """Clips with more channels behind their own: for each frame those of the `count` frames nearest to it that are known, which is to be of
    time 1, the earlier of two as near first, and after each a plane that says how many FAR frames later it lies. Zeros where fewer are
    known. So are models of a video told its first frame (Blattmann et al. 2023, Stable Video Diffusion, arXiv 2311.15127)."""
    b, c, f, h, w = clips.shape
    extra = clips.new_zeros(b, count, c + 1, f, h, w)
    if time.ndim > 1 and f > 0:
        place = torch.arange(f, device=clips.device)
        away = place - place[:, None]
        order = (2 * away.abs() + (away > 0)).expand(b, -1, -1)
        order, nearest = order.masked_fill(time[:, None] < 1, 4 * f).sort(-1)
        for i in range(min(count, f)):
            known = (order[:, :, i] < 4 * f)[:, None, :, None, None].to(clips.dtype)
            at = nearest[:, :, i]
            extra[:, i, :c] = known * clips.take_along_dim(at[:, None, :, None, None], 2)
            extra[:, i, c] = (known * ((at - place) / FAR)[:, None, :, None, None].to(clips.dtype))[:, 0]
    return torch.cat([clips, extra.flatten(1, 2)], 1)


class Condition(NamedTuple):
    """What tokens are told: m vectors, and which of them each token has. Without `of` the m / b of each row have equally many of its
    tokens, in their order."""

    values: Float[Tensor, "m c"]
    of: Int[Tensor, "b t"] | None = None

    def parts(self, layer: nn.Module, count: int, b: int) -> tuple[Float[Tensor, "b f 1 d"], ...]:
        """`count` vectors of width d that the layer makes of each condition, for f runs of tokens of each row."""
        made = layer(F.silu(self.values))
        made = made.unflatten(0, (b, -1)) if self.of is None else F.embedding(self.of, made)
        return made[:, :, None].chunk(count, -1)


def gated(x: Float[Tensor, "b t d"], y: Float[Tensor, "b t d"], gate: Float[Tensor, "b f 1 d"]) -> Float[Tensor, "b t d"]:
    """x + gate (x) y."""
    if gate.shape[1] == 1:
        return torch.addcmul(x, gate[:, 0], y)
    runs = (gate.shape[1], -1)
    return torch.addcmul(x.unflatten(1, runs), gate, y.unflatten(1, runs)).flatten(1, 2)


class Modulation(Linear):
    """From a condition to shifts, scales and gates; all zero at the start, so that a layer begins as nothing."""

    def __init__(self, condition: int, dim: int, count: int):
        super().__init__(condition, count * dim)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class ConditionedBlock(nn.Module):
    """A mixer and, where there is one, a per-token network, between norms and gates that the condition sets."""

    mixer: Any
    ffn: Any

    def __init__(self, dim: int, mixer: nn.Module, ffn: nn.Module | None, *, condition: int, norm: Norm, norm_eps: float):
        super().__init__()
        self.norm, self.mixer = norm_of(norm, dim, norm_eps, affine=False), mixer
        self.packs = "packing" in inspect.signature(mixer.forward).parameters
        self.ffn_norm, self.ffn = (norm_of(norm, dim, norm_eps, affine=False), ffn) if ffn is not None else (None, None)
        self.branches = 1 if ffn is None else 2
        self.modulation = Modulation(condition, dim, 3 * self.branches)

    def forward(
        self, x: Float[Tensor, "b t d"], state: Any, packing: Packing, condition: Condition
    ) -> tuple[Float[Tensor, "b t d"], Any]:
        """Residual stream in, residual stream and new state out."""
        shift, scale, gate, *second = condition.parts(self.modulation, 3 * self.branches, len(x))
        y, state = self.mixer(modulated_norm(self.norm, x, shift, scale), state, **told(self, packing))
        x = gated(x, y, gate)
        if self.ffn is not None and self.ffn_norm is not None:
            shift, scale, gate = second
            x = gated(x, self.ffn(modulated_norm(self.ffn_norm, x, shift, scale)), gate)
        return x, state
