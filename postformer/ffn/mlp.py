"""Two- and three-matrix feed-forward networks.

SwiGLU: Shazeer 2020 (arXiv 2002.05202, eq. 6). GELU: Hendrycks & Gimpel 2016 (arXiv 1606.08415), as in Vaswani et al. 2017.
"""

from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from postformer.ops.block_parts import NetworkPart
from postformer.ops.experts import KINDS
from postformer.ops.layers import Linear, RMSNorm, unaltered, watched


class MLP(nn.Module):
    """`hidden` defaults to 8/3 dim for SwiGLU and 4 dim for GELU (equal parameters), rounded up to a multiple of 16."""

    def __init__(self, dim: int, *, hidden: int | None = None, activation: Literal["swiglu", "gelu"] = "swiglu"):
        super().__init__()
        if hidden is not None and hidden < 1:
            raise ValueError(f"hidden={hidden} must be at least 1")
        default = dim * 8 / 3 if activation == "swiglu" else dim * 4
        hidden = hidden or -(-int(default) // 16) * 16
        self.activation = activation
        self.gate = Linear(dim, hidden, bias=False) if activation == "swiglu" else None
        self.up = Linear(dim, hidden, bias=False)
        self.out = Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Each token for itself."""
        hidden = F.gelu(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x)
        return self.out(hidden)

    def step_part(self, norm: RMSNorm) -> NetworkPart | None:
        """What the kernel of one token reads; None where a part was wrapped or is watched."""
        parts: dict[str, Any] = self._modules
        gate, up, out = (parts.get(name) for name in ("gate", "up", "out"))
        linear = [m for m in (gate, up, out) if m is not None]
        own = unaltered(self, MLP) and all(unaltered(m, Linear) and m.bias is None for m in linear)
        if not own or watched(self, *linear) or any(m._parameters.get("weight") is None for m in linear):
            return None
        matrices = {"gate": None if gate is None else gate.weight, "up": parts["up"].weight, "down": parts["out"].weight}
        return NetworkPart(norm.weight, **matrices, eps=norm.eps, activation=KINDS["gelu" if gate is None else "swiglu"])

    def flops(self, length: int) -> int:
        """Floating-point operations of `length` tokens (a multiply-add is two)."""
        return 2 * length * sum(p.numel() for p in self.parameters())

    def active_parameters(self) -> int:
        """Parameters that one token uses: all."""
        return sum(p.numel() for p in self.parameters())
