"""Gated DeltaNet: a matrix memory written by the delta rule, with a gate that forgets.

Yang, Kautz & Hatamizadeh 2024 (arXiv 2412.06464), section 3.4 and figure 1, with the parametrisation of the authors' code; eigenvalues
down to -1 as in Grazzi et al. 2024 (arXiv 2411.12537).

    q, k, v = SiLU(conv(in(x)));  q, k = q / |q|, k / |k|;  alpha = exp(-exp(A) softplus(a + b));  beta = sigmoid(beta)
    S_t = alpha S_{t-1} (I - beta k k^T) + beta v k^T;  y = S q / sqrt(n);    out(RMSNorm(y) * SiLU(z))

b batch, t time, d model width, h heads, n key width, p value width, c = h (2n + p) channels of the convolution.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from postformer.ops.conv import causal_conv
from postformer.ops.delta import gated_delta
from postformer.ops.layers import Linear, RMSNorm, checked_word, dt_bias
from postformer.ops.norm import rms_norm
from postformer.ops.packing import WHOLE, Packing
from postformer.ops.writer import GatesOf, Writer, above, checked_threshold


class DeltaState(NamedTuple):
    """The last inputs of the convolution, and the memory (fp32 or wider)."""

    conv: Float[Tensor, "b past c"]
    memory: Float[Tensor, "b h p n"]


class GatedDelta(Writer):
    """`head_dim` is the keys' width (default: three quarters of dim / heads), the values are `value_expand` times as wide;
    `negative` lets beta reach 2, so that what is held under a key can change its sign. As in the neural memory (`LMM`), a token of which
    beta's share is at most `threshold` neither writes nor forgets, and `gates` are read off the `token` or off what the convolution made
    of it; the paper has neither."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        head_dim: int | None = None,
        value_expand: int = 2,
        conv: int = 4,
        negative: bool = True,
        threshold: float = 0.0,
        gates: GatesOf = "token",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        n = max(1, 3 * dim // (4 * max(heads, 1))) if head_dim is None else head_dim
        if min(heads, n, value_expand, conv) < 1:
            raise ValueError(
                f"heads={heads}, head_dim={head_dim}, value_expand={value_expand} and conv={conv} must be at least 1"
            )
        self.dim, self.heads, self.n, self.p, self.negative = dim, heads, n, value_expand * n, negative
        self.threshold = checked_threshold(threshold)
        checked_word("gates", gates, GatesOf)
        self.sizes = [heads * (2 * n + self.p), heads * self.p, *([heads, heads] if gates == "token" else [])]
        self.inp = Linear(dim, sum(self.sizes), bias=False)
        self.gates = Linear(self.sizes[0], 2 * heads, bias=False) if gates == "conv" else None
        self.conv_weight = nn.Parameter(torch.empty(self.sizes[0], conv).uniform_(-(conv**-0.5), conv**-0.5))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(dt_bias(heads, dt_min, dt_max))
        self.norm = RMSNorm(self.p, norm_eps)
        self.out = Linear(heads * self.p, dim, bias=False)
        for parameter in (self.A_log, self.dt_bias):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def init_state(self, batch: int) -> DeltaState:
        """Zeros: nothing was read."""
        conv = self.A_log.new_zeros(batch, self.conv_weight.shape[1] - 1, self.sizes[0])
        wide = torch.promote_types(self.A_log.dtype, torch.float32)
        return DeltaState(conv, self.A_log.new_zeros(batch, self.heads, self.p, self.n, dtype=wide))

    def forward(
        self, x: Float[Tensor, "b t d"], state: DeltaState | None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], DeltaState | None]:
        """Continue from the state over the new tokens; returns the output and the state after them."""
        past, memory = state if state is not None else self.init_state(len(x))
        wide = torch.promote_types(x.dtype, torch.float32)
        mixed, z, *gates = self.inp(x).split(self.sizes, -1)
        mixed, past = causal_conv(mixed, self.conv_weight, None, past, packing.starts, packing.lengths, silu=True)
        a, beta = gates if self.gates is None else self.gates(mixed).chunk(2, -1)
        a, beta = self._written(a, beta, packing)
        q, k, v = mixed.to(wide).unflatten(-1, (self.heads, -1)).split([self.n, self.n, self.p], -1)
        q, k = F.normalize(q, dim=-1) * self.n**-0.5, F.normalize(k, dim=-1)
        y, memory = gated_delta(q, k, v, a, beta, memory.to(wide), packing.starts)
        y = rms_norm(y.flatten(2), self.norm.weight.repeat(self.heads), self.norm.eps, z, self.heads, after=True)
        return self.out(y), None if state is None else DeltaState(past, memory)

    def _written(
        self, a: Float[Tensor, "b t h"], beta: Float[Tensor, "b t h"], packing: Packing
    ) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "b t h"]]:
        """log alpha and beta from their logits, in fp32 or wider; both 0 where nothing is written."""
        wide = torch.promote_types(a.dtype, torch.float32)
        if not self.writes:
            return torch.zeros_like(a, dtype=wide), torch.zeros_like(beta, dtype=wide)
        share = above(beta.to(wide).sigmoid(), self.threshold)
        self.observe(share)
        a = -self.A_log.to(wide).exp() * F.softplus(a.to(wide) + self.dt_bias.to(wide))
        if self.threshold:
            a = a * share
        return packing.silence(a), packing.silence(share * (2 if self.negative else 1))

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of `length` new tokens by the recurrence, whatever came before (a multiply-add is two, an exp
        is one). The chunked form does more of them, in matrix products."""
        projections = 2 * self.dim * (self.inp.out_features + self.heads * self.p)
        projections += 0 if self.gates is None else 2 * self.gates.weight.numel()
        rule = self.heads * self.p * (7 * self.n + 2)
        return length * (projections + 2 * self.conv_weight.numel() + rule)

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """Bytes of one row's state, the same after any number of tokens. The memory is kept in fp32 at least."""
        channels, k = self.conv_weight.shape
        return channels * (k - 1) * itemsize + self.heads * self.p * self.n * max(itemsize, 4)
