"""Two- and three-matrix feed-forward networks.

SwiGLU: Shazeer 2020 (arXiv 2002.05202, eq. 6). GELU: Hendrycks & Gimpel 2016 (arXiv 1606.08415), as in Vaswani et al. 2017.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from postformer.ops.affine import gelu_affine
from postformer.ops.block_parts import NetworkPart
from postformer.ops.experts import KINDS
from postformer.ops.gelu import gelu_tanh
from postformer.ops.layers import Linear, RMSNorm, bare, checked_word, unaltered, watched

Activation = Literal["swiglu", "gelu", "gelu-tanh"]


class MLP(nn.Module):
    """`hidden` defaults to 8/3 dim for SwiGLU and 4 dim for GELU (equal parameters), rounded up to a multiple of 16. "gelu-tanh" is GELU by
    its approximation (the same paper, section 2); `bias` gives every matrix a bias."""

    def __init__(self, dim: int, *, hidden: int | None = None, activation: Activation = "swiglu", bias: bool = False):
        super().__init__()
        if hidden is not None and hidden < 1:
            raise ValueError(f"hidden={hidden} must be at least 1")
        default = dim * 8 / 3 if activation == "swiglu" else dim * 4
        hidden = hidden or -(-int(default) // 16) * 16
        self.activation: Activation = checked_word("activation", activation, Activation)  # type: ignore[assignment]
        self.gate = Linear(dim, hidden, bias=bias) if activation == "swiglu" else None
        self.up = Linear(dim, hidden, bias=bias)
        self.out = Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Each token for itself."""
        if self.gate is not None:
            return self.out(F.silu(self.gate(x)) * self.up(x))
        by_tanh = self.activation == "gelu-tanh"
        y = gelu_affine(x, self.up.weight, self.up.bias, by_tanh=by_tanh) if bare(self.up) else None
        if y is None:
            y = gelu_tanh(self.up(x)) if by_tanh else F.gelu(self.up(x))
        return self.out(y)

    def step_part(self, norm: RMSNorm) -> NetworkPart | None:
        """What the kernel of one token reads; None where a part was wrapped or is watched."""
        linear = self.gate, self.up, self.out
        if (
            not unaltered(self, MLP)
            or watched(self)
            or self.activation == "gelu-tanh"
            or not bare(*linear)
            or any(m is not None and m.bias is not None for m in linear)
        ):
            return None
        gate = None if self.gate is None else self.gate.weight
        activation = KINDS["gelu" if gate is None else "swiglu"]
        return NetworkPart(norm.weight, self.up.weight, self.out.weight, gate, eps=norm.eps, activation=activation)

    def flops(self, length: int) -> int:
        """Floating-point operations of `length` tokens (a multiply-add is two)."""
        return 2 * length * sum(m.weight.numel() for m in (self.gate, self.up, self.out) if m is not None)

    def active_parameters(self) -> int:
        """Parameters that one token uses: all."""
        return sum(p.numel() for p in self.parameters())
