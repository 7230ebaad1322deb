"""Mamba-2: a state space with one decay per head, computed in chunks of matrix products.

Dao & Gu 2024 (arXiv 2405.21060), sections 6 and 7, with the parametrisation of the authors' code.

    z, xBC, dt = in(u);  x, B, C = SiLU(conv(xBC));  dt = softplus(dt + b)
    h_t = exp(dt A) h_{t-1} + dt x B^T;  y = h C + D x;    out(RMSNorm(y * SiLU(z)))

b batch, t time, d model width, c = expand * d channels in h heads of p, g groups that share B and C, n state size, k convolution width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from postformer.ops.conv import causal_conv
from postformer.ops.layers import Linear, checked_eps, checked_word, dt_bias, heads_of
from postformer.ops.norm import rms_norm
from postformer.ops.packing import WHOLE, Packing
from postformer.ops.ssd import Weights, ssd
from postformer.ops.writer import GatesOf, Writer


class Mamba2State(NamedTuple):
    """The last k-1 inputs of the convolution, and the state of the recurrence (fp32 or wider)."""

    conv: Float[Tensor, "b past w"]
    ssm: Float[Tensor, "b h p n"]


class Mamba2(Writer):
    """`head_dim` divides expand * dim, and `groups` the number of heads that this makes. Of dt only what is above `threshold` counts, so
    that a token below it neither writes nor forgets, and `gates="conv"` reads dt off what the convolution made of the token and of those
    before it; the paper has neither."""

    def __init__(
        self,
        dim: int,
        *,
        state: int = 128,
        expand: int = 2,
        head_dim: int = 64,
        groups: int = 1,
        conv: int = 4,
        threshold: float = 0.0,
        gates: GatesOf = "token",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        c = expand * dim
        if min(state, expand, conv, head_dim, groups) < 1:
            raise ValueError(
                f"state={state}, expand={expand}, conv={conv}, head_dim={head_dim} and groups={groups} must be at least 1"
            )
        if threshold < 0:
            raise ValueError(f"threshold={threshold} must be at least 0")
        checked_word("gates", gates, GatesOf)
        self.dim, self.channels, self.n, self.groups, self.threshold = dim, c, state, groups, threshold
        self.heads, self.width, self.eps = heads_of(c, head_dim, groups), head_dim, checked_eps(norm_eps)
        mixed = c + 2 * groups * state
        self.sizes = [c, mixed, *([self.heads] if gates == "token" else [])]
        self.inp = Linear(dim, sum(self.sizes), bias=False)
        self.gates = Linear(mixed, self.heads, bias=False) if gates == "conv" else None
        self.conv_weight = nn.Parameter(torch.empty(mixed, conv).uniform_(-(conv**-0.5), conv**-0.5))
        self.conv_bias = nn.Parameter(torch.empty(mixed).uniform_(-(conv**-0.5), conv**-0.5))
        self.dt_bias = nn.Parameter(dt_bias(self.heads, dt_min, dt_max))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm_weight = nn.Parameter(torch.ones(c))
        self.out = Linear(c, dim, bias=False)
        for parameter in (self.A_log, self.D, self.dt_bias):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def init_state(self, batch: int) -> Mamba2State:
        """Zeros: nothing was read."""
        conv = self.D.new_zeros(batch, self.conv_weight.shape[1] - 1, self.conv_weight.shape[0])
        wide = torch.promote_types(self.D.dtype, torch.float32)
        return Mamba2State(conv, self.D.new_zeros(batch, self.heads, self.width, self.n, dtype=wide))

    def forward(
        self, x: Float[Tensor, "b t d"], state: Mamba2State | None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], Mamba2State | None]:
        """Continue from the state over the new tokens; returns the output and the state after them."""
        past, h = state if state is not None else self.init_state(len(x))
        wide = torch.promote_types(x.dtype, torch.float32)
        c, shared = self.channels, self.groups * self.n
        z, mixed, *dt = self.inp(x).split(self.sizes, -1)
        mixed, past = causal_conv(mixed, self.conv_weight, self.conv_bias, past, packing.starts, packing.lengths, silu=True)
        dt = packing.silence(self._step(dt[0] if self.gates is None else self.gates(mixed)))
        u, B, C = mixed.to(wide).split([c, shared, shared], -1)
        u = u.unflatten(-1, (1, self.heads, self.width))
        B, C = (m.unflatten(-1, (1, self.groups, self.n)) for m in (B, C))
        weights = Weights(now=dt, D=self.D.to(wide))
        y, h = ssd(u, dt * -self.A_log.to(wide).exp(), B, C, h.to(wide), packing.starts, weights)
        y = rms_norm(y.flatten(2), self.norm_weight, self.eps, z, self.groups)
        return self.out(y), None if state is None else Mamba2State(past, h)

    def _step(self, dt: Float[Tensor, "b t h"]) -> Float[Tensor, "b t h"]:
        """dt from its logits, in fp32 or wider; 0 where nothing is written. Its share is what a state with A = -1 gives way by."""
        wide = torch.promote_types(dt.dtype, torch.float32)
        if not self.writes:
            return torch.zeros_like(dt, dtype=wide)
        dt = F.softplus(dt.to(wide) + self.dt_bias.to(wide))
        if self.threshold:
            dt = (dt - self.threshold).relu()
        self.observe(-torch.expm1(-dt))
        return dt

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of `length` new tokens by the recurrence, whatever came before (a multiply-add is two, an exp
        is one). The chunked form does more of them, in matrix products."""
        c, n = self.channels, self.n
        projections = 2 * self.dim * (self.inp.out_features + c) + (0 if self.gates is None else 2 * self.gates.weight.numel())
        return length * (projections + 2 * self.conv_weight.numel() + 5 * c * n + 3 * c)

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """Bytes of one row's state: the same after any number of tokens. The recurrence is kept in fp32 at least."""
        rows, k = self.conv_weight.shape
        return rows * (k - 1) * itemsize + self.channels * self.n * max(itemsize, 4)
