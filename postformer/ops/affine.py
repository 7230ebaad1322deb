"""x W^T + b of many rows, and its GELU: torch's own, and where no gradient is asked for one call of oneDNN on a CPU, which adds the bias
to the product and takes GELU of it while it lies in cache. torch's own copies the bias first, and reads the product again for GELU.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from postformer.ops import _cpu

LEAST_ROWS = 32
"""Below this many rows the weights' way into cache takes most of the time, however they are read."""
_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""What torch's compiler calls for a linear layer and the activation after it."""


def affine(x: Float[Tensor, "*r d"], weight: Float[Tensor, "v d"], bias: Float[Tensor, " v"] | None) -> Float[Tensor, "*r v"]:
    """x W^T + b; all of one dtype."""
    if _serves(x, weight, bias):
        return _fused(x, weight, bias, "none", "")
    return F.linear(x, weight, bias)


def gelu_affine(
    x: Float[Tensor, "*r d"], weight: Float[Tensor, "v d"], bias: Float[Tensor, " v"] | None, *, by_tanh: bool
) -> Float[Tensor, "*r v"] | None:
    """GELU of the same, exact or `by_tanh`, in x's dtype; None where it is not to be had in one call."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return _fused(x, weight, bias, "gelu", "tanh" if by_tanh else "none") if _serves(x, weight, bias) else None


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, form: str) -> Tensor:
    """oneDNN's; it takes the numbers of a bias for neighbours in memory."""
    assert _LINEAR is not None
    return _LINEAR(x, weight, None if bias is None else bias.contiguous(), activation, [], form)


def _serves(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN may take the whole: many rows of fp32, or of bf16 where it is multiplied as such; no gradient, nobody between."""
    given = (x, weight) if bias is None else (x, weight, bias)
    return (
        _LINEAR is not None
        and not torch.is_grad_enabled()
        and x.numel() >= LEAST_ROWS * x.shape[-1] > 0
        and all(m.device.type == "cpu" and m.dtype == x.dtype for m in given)
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _cpu.MULTIPLIES_BF16))
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not _cpu.transformed()
        and type(x) is Tensor
    )
