"""A few rows times a large matrix: torch's product, and the kernel of csrc/matvec.cpp, which is bound by reading the weights.

r rows (the leading dimensions), d inputs, v outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from postformer.ops import _cpu

LEAST_WEIGHTS = 1 << 19
"""Below this many weights torch's product takes less time than the call of an operator."""


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel can take this product and is worth it: few rows, a large matrix, and no gradient asked for."""
    few = 0 < x.numel() <= _cpu.MOST_ROWS * x.shape[-1] and weight.numel() >= LEAST_WEIGHTS
    taught = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return few and not taught and _cpu.serves_half(x) and _cpu.serves_half(weight)


def project(x: Float[Tensor, "*r d"], weight: Float[Tensor, "v d"]) -> Float[Tensor, "*r v"]:
    """x weight^T in the dtype of x. Weights are read as they are and sums taken in fp32, but for a processor or device that multiplies
    bf16 itself: torch's product there takes the weights in x's dtype."""
    if serves(x, weight):
        rows = x.reshape(-1, x.shape[-1]).float()
        return torch.ops.postformer.matvec(rows, weight).to(x.dtype).view(*x.shape[:-1], -1)
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not _cpu.MULTIPLIES_BF16:
        return F.linear(x.float(), weight.float()).to(x.dtype)
    return F.linear(x, weight.to(x.dtype))


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

_cpu.LIBRARY.define("matvec(Tensor x, Tensor weight) -> Tensor")


@torch.library.impl(_cpu.LIBRARY, "matvec", "CPU")
def _matvec_cpu(x: Tensor, weight: Tensor) -> Tensor:
    (rows, d), v = x.shape, weight.shape[0]
    _cpu.check_half("matvec", "weight", weight)
    _cpu.check("matvec", x=(x, (rows, d)))
    _cpu.check("matvec", weight.dtype, weight=(weight, (v, d)))
    y = _matvec_fake(x, weight)
    _cpu.call("matvec", x.contiguous(), weight.contiguous(), y, weight.dtype == torch.bfloat16, rows, d, v)
    return y


@torch.library.register_fake("postformer::matvec", lib=_cpu.LIBRARY)
def _matvec_fake(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


torch.library.register_autograd("postformer::matvec", _cpu.no_gradient, lib=_cpu.LIBRARY)


@register_flop_formula(torch.ops.postformer.matvec)
def _flops(x: torch.Size, weight: torch.Size, *rest: Any, **words: Any) -> int:
    """As torch counts its own product: a multiply-add is two."""
    return 2 * x[0] * weight[0] * weight[1]
