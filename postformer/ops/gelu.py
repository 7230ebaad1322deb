"""GELU by its tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2), as DiT has it: torch's own, and the kernel of
csrc/gelu.cpp for fp32 and bf16 on a CPU.

    y = x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from postformer.ops import _cpu

FEW = 1 << 13
"""Up to so many numbers torch's own takes less time than the call of an operator."""


def gelu_tanh(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """GELU of each number. On a CPU in fp32 and bf16 gradients are first-order only."""
    if x.numel() > FEW and _cpu.serves_half(x):
        return torch.ops.postformer.gelu_tanh(x)
    return F.gelu(x, approximate="tanh")


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

_cpu.LIBRARY.define("gelu_tanh(Tensor x) -> Tensor")
_cpu.LIBRARY.define("gelu_tanh_backward(Tensor x, Tensor dy) -> Tensor")


@torch.library.impl(_cpu.LIBRARY, "gelu_tanh", "CPU")
def _gelu_cpu(x: Tensor) -> Tensor:
    _cpu.check_half("gelu_tanh", "x", x)
    y = _gelu_fake(x)
    _cpu.call("gelu_tanh", x.contiguous(), None, y, x.dtype == torch.bfloat16, x.numel())
    return y


@torch.library.register_fake("postformer::gelu_tanh", lib=_cpu.LIBRARY)
def _gelu_fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.impl(_cpu.LIBRARY, "gelu_tanh_backward", "CPU")
def _gelu_backward_cpu(x: Tensor, dy: Tensor) -> Tensor:
    _cpu.check_half("gelu_tanh_backward", "x", x)
    _cpu.check("gelu_tanh_backward", x.dtype, dy=(dy, tuple(x.shape)))
    dx = _gelu_backward_fake(x, dy)
    _cpu.call("gelu_tanh", x.contiguous(), dy.contiguous(), dx, x.dtype == torch.bfloat16, x.numel())
    return dx


@torch.library.register_fake("postformer::gelu_tanh_backward", lib=_cpu.LIBRARY)
def _gelu_backward_fake(x: Tensor, dy: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, dy: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return torch.ops.postformer.gelu_tanh_backward(x, dy)


torch.library.register_autograd("postformer::gelu_tanh", _gradient, setup_context=_save, lib=_cpu.LIBRARY)
torch.library.register_autograd("postformer::gelu_tanh_backward", _cpu.first_order_only, lib=_cpu.LIBRARY)
