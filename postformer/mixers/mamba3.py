"""Mamba-3: a state space by the trapezoidal rule, whose state rotates and which may take several inputs at a time (MIMO).

Lahoti et al. 2026 (arXiv 2603.15569), section 3, with the parametrisation of the authors' code.

    z, x, B, C, dt, A, lambda, theta = in(u);  dt = softplus(dt + b);  A = -softplus(A);  angle += pi tanh(theta) dt
    B, C = rotate(RMSNorm(.) + bias, angle);    y = trapezoid(x, B, C) + D x;    out(y * SiLU(z))

There is no convolution and no norm before the output. With rank R > 1, B and C are R vectors a token, x and z are weighed into R and
y is weighed back into one, per head and channel.

b batch, t time, d model width, c = expand * d channels in h heads of p, r rank, g groups that share B and C, n state size, m angles.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from postformer.ops.layers import Linear, RMSNorm, dt_bias, heads_of
from postformer.ops.packing import WHOLE, Packing
from postformer.ops.trapezoid import TrapezoidState, trapezoid

SLOWEST = 1e-4
"""A is at most minus this."""


def _heavy(x: Tensor) -> Tensor:
    """1 + x above 0 and 1 / (1 - x) below: positive, smooth, and heavy in both tails."""
    return x.clamp(min=0) + 1 / (1 - x.clamp(max=0))


DECAYS = {"softplus": F.softplus, "heavy": _heavy}
"""What makes -A of its projection: the paper's, and that of later releases of the authors' code."""


class Mamba3State(NamedTuple):
    """The angles from 0 to 2 pi, the recurrence's state, and the last token's rotated B and its x (all fp32 or wider)."""

    angle: Float[Tensor, "b h m"]
    ssm: Float[Tensor, "b h p n"]
    B: Float[Tensor, "b r h n"]
    x: Float[Tensor, "b h p"]


class Mamba3(nn.Module):
    """`head_dim` divides expand * dim and `groups` the number of heads that this makes; `rank` above 1 is MIMO; `rotated` is the
    share of the state that rotates (0: the state is real-valued, as in Mamba-2); `decay` is what makes -A of its projection."""

    def __init__(
        self,
        dim: int,
        *,
        state: int = 128,
        expand: int = 2,
        head_dim: int = 64,
        groups: int = 1,
        rank: int = 1,
        rotated: float = 0.5,
        decay: Literal["softplus", "heavy"] = "softplus",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        c = expand * dim
        if min(state, expand, head_dim, groups, rank) < 1:
            raise ValueError(
                f"state={state}, expand={expand}, head_dim={head_dim}, groups={groups} and rank={rank} must be at least 1"
            )
        if not 0 <= rotated <= 1:
            raise ValueError(f"rotated={rotated} must be from 0 to 1")
        if decay not in DECAYS:
            raise ValueError(f"decay={decay!r} is not a choice; choose from {', '.join(DECAYS)}")
        self.dim, self.channels, self.n, self.groups, self.rank = dim, c, state, groups, rank
        self.decay = DECAYS[decay]
        self.heads, self.width, self.angles = heads_of(c, head_dim, groups), head_dim, int(state * rotated) // 2
        self.sizes = [c, c, *[groups * rank * state] * 2, *[self.heads] * 3, self.angles]
        self.inp = Linear(dim, sum(self.sizes), bias=False)
        self.dt_bias = nn.Parameter(dt_bias(self.heads, dt_min, dt_max))
        self.B_norm, self.C_norm = RMSNorm(state, norm_eps), RMSNorm(state, norm_eps)
        self.B_bias, self.C_bias = (nn.Parameter(torch.ones(rank, self.heads, state)) for _ in "BC")
        self.D = nn.Parameter(torch.ones(self.heads))
        mixing = {"x": 1 / rank, "z": 1.0, "y": 1 / rank} if rank > 1 else {}
        self.mix = nn.ParameterDict({k: torch.full((rank, self.heads, head_dim), v) for k, v in mixing.items()})
        self.out = Linear(c, dim, bias=False)
        for parameter in (self.D, self.dt_bias):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def init_state(self, batch: int) -> Mamba3State:
        """Zeros: nothing was read."""
        like = {"device": self.D.device, "dtype": torch.promote_types(self.D.dtype, torch.float32)}
        h, p, n = self.heads, self.width, self.n
        sizes = (h, self.angles), (h, p, n), (self.rank, h, n), (h, p)
        return Mamba3State(*(torch.zeros(batch, *size, **like) for size in sizes))

    def forward(
        self, x: Float[Tensor, "b t d"], state: Mamba3State | None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], Mamba3State | None]:
        """Continue from the state over the new tokens; returns the output and the state after them."""
        wide = torch.promote_types(x.dtype, torch.float32)
        angle, h, B_last, x_last = (s.to(wide) for s in (state if state is not None else self.init_state(len(x))))
        z, u, B, C, dt, A, lam, theta = self.inp(x).to(wide).split(self.sizes, -1)
        u, z = (m.unflatten(-1, (1, self.heads, self.width)) for m in (u, z))
        dt = packing.silence(F.softplus(dt + self.dt_bias.to(wide)))
        angles = self._turn(angle, theta, dt, packing)
        turn = angles.cos()[:, :, None], angles.sin()[:, :, None]
        B = rotate(self._spread(B, self.B_norm, self.B_bias), *turn)
        C = rotate(self._spread(C, self.C_norm, self.C_bias), *turn)
        a = -dt * self.decay(A).clamp(min=SLOWEST)
        gamma = dt * lam.sigmoid()
        before = TrapezoidState(h, B_last, self._mixed("x", x_last[:, None]))
        y, after = trapezoid(self._mixed("x", u), a, dt - gamma, gamma, B, C, before, packing, self.D.to(wide))
        y = y * F.silu(self._mixed("z", z))
        y = self.out(self._mixed("y", y).sum(2).flatten(2).to(x.dtype))
        if state is None:
            return y, None
        return y, Mamba3State(packing.last(angles, angle), after.h, after.B, packing.last(u[:, :, 0], x_last))

    def _turn(self, angle: Tensor, theta: Tensor, dt: Tensor, packing: Packing) -> Tensor:
        """The angles [b, t, h, m] after each token, summed in float64: from the state's on, or from a document's start."""
        turns = (math.pi * torch.tanh(theta)[:, :, None] * dt[..., None]).double().cumsum(1)
        total = turns + angle[:, None]
        begun = packing.begun(theta.shape[1])
        if begun is not None:
            before = torch.cat([turns.new_zeros(len(turns), 1, *turns.shape[2:]), turns[:, :-1]], 1)
            base = before.take_along_dim(begun.clamp(min=0)[..., None, None], 1)
            total = torch.where((begun >= 0)[..., None, None], turns - base, total)
        return total.remainder(2 * math.pi).to(dt.dtype)

    def _spread(self, m: Tensor, norm: RMSNorm, bias: Tensor) -> Tensor:
        """B or C as [b, t, r, h, n]: normed, for each head of its group with the head's own bias."""
        m = norm(m.unflatten(-1, (self.rank, self.groups, self.n)))
        each = bias.to(m.dtype).unflatten(1, (self.groups, -1))
        return (m[:, :, :, :, None] + each).flatten(3, 4)

    def _mixed(self, name: str, x: Tensor) -> Tensor:
        """x [..., 1 or r, h, p] weighed for each rank; as it is without MIMO."""
        return x * self.mix[name].to(x.dtype) if self.rank > 1 else x

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of `length` new tokens by the recurrence, whatever came before (a multiply-add is two, an exp
        is one). The chunked form does more of them, in matrix products."""
        c, n, r = self.channels, self.n, self.rank
        projections = 2 * self.dim * (self.inp.out_features + c)
        turning = self.heads * (3 * self.angles + 2 * r * (6 * self.angles + n))
        return length * (projections + turning + c * n * (2 + 6 * r) + 5 * c * r)

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """Bytes of one row's state, the same after any number of tokens; fp32 at least."""
        return self.heads * (self.angles + (self.width + self.rank) * self.n + self.width) * max(itemsize, 4)


def rotate(
    v: Float[Tensor, "b t r h n"], cos: Float[Tensor, "b t 1 h m"], sin: Float[Tensor, "b t 1 h m"]
) -> Float[Tensor, "b t r h n"]:
    """Coordinates i and i + m, for i below m, turned by the i-th angle; the other n - 2m stay (section 3.2)."""
    m = cos.shape[-1]
    if not m:
        return v
    a, b, rest = v.split([m, m, v.shape[-1] - 2 * m], -1)
    return torch.cat([torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(a * sin, b, cos), rest], -1)
