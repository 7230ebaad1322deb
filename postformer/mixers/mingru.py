"""A minimal gated recurrent unit: what is kept and what is new depend on the token alone, so that all are computed at once.

Feng et al. 2024, "Were RNNs all we needed?" (arXiv 2410.01201), section 3.1: the form whose candidate has no activation.

    z = sigmoid(W_z x);  c = W_c x;  h_t = (1 - z_t) h_t-1 + z_t c_t;  out(h)

b batch, t time, d model width, c = expand * d channels.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from postformer.ops.gru import gated_mean
from postformer.ops.layers import Linear
from postformer.ops.packing import WHOLE, Packing


class MinGRUState(NamedTuple):
    """What is remembered (fp32 or wider)."""

    h: Float[Tensor, "b c"]


class MinGRU(nn.Module):
    """The least state of all mixers, `expand` times the width: for searches that keep one for each of many samples.

    Raises ValueError for an `expand` below 1.
    """

    def __init__(self, dim: int, *, expand: int = 1):
        super().__init__()
        if expand < 1:
            raise ValueError(f"expand={expand} must be at least 1")
        self.dim, self.channels = dim, expand * dim
        self.inp = Linear(dim, 2 * self.channels)
        self.out = Linear(self.channels, dim, bias=False)

    def init_state(self, batch: int) -> MinGRUState:
        """Zeros: nothing was read."""
        wide = torch.promote_types(self.out.weight.dtype, torch.float32)
        return MinGRUState(self.out.weight.new_zeros(batch, self.channels, dtype=wide))

    def forward(
        self, x: Float[Tensor, "b t d"], state: MinGRUState | None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], MinGRUState | None]:
        """Continue from the state over the new tokens; returns the output and the state after them."""
        before = (state if state is not None else self.init_state(len(x))).h
        if not x.shape[1]:
            return x.new_zeros(x.shape), state
        gate, candidate = self.inp(x).to(before.dtype).chunk(2, -1)
        z = gate.sigmoid()
        keep, new = 1 - z, z * candidate
        if packing.starts is not None:
            keep = keep.masked_fill(packing.starts[..., None], 0)
        real = packing.real(x.shape[1])
        if real is not None:  # padding keeps what is there
            keep, new = keep.masked_fill(~real[..., None], 1), new.masked_fill(~real[..., None], 0)
        h = gated_mean(keep, new, before)
        out = self.out(h.to(x.dtype))
        return out, None if state is None else MinGRUState(h[:, -1].clone())

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of one row's `length` new tokens; the past costs nothing."""
        return length * (6 * self.dim * self.channels + 6 * self.channels)

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """Bytes of one row's state after any number of tokens."""
        return self.channels * max(itemsize, 4)
