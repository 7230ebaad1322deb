"""A norm and what a condition says of it, in one pass over the rows where no gradient is asked for: the kernel of csrc/modulate.cpp.

    y = n(x) (1 + scale) + shift      n a layer norm or an RMSNorm, computed in fp32 or wider (Peebles & Xie 2023, arXiv 2212.09748, 3.2)

b rows, t tokens, of which t / f together are told the same, d model width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from postformer.ops import _cpu
from postformer.ops.layers import LayerNorm, RMSNorm, unaltered, watched

FEW = 1 << 13
"""Up to so many numbers torch's own operations take less time than the call of a kernel."""


def modulated_norm(
    norm: nn.Module, x: Float[Tensor, "b t d"], shift: Float[Tensor, "b f 1 d"], scale: Float[Tensor, "b f 1 d"]
) -> Float[Tensor, "b t d"]:
    """n(x) (1 + scale) + shift."""
    if _serves(norm, x, shift, scale):
        return _in_one_pass(norm, x, shift, scale)
    return modulated(norm(x), shift, scale)


def modulated(
    x: Float[Tensor, "b t d"], shift: Float[Tensor, "b f 1 d"], scale: Float[Tensor, "b f 1 d"]
) -> Float[Tensor, "b t d"]:
    """x (1 + scale) + shift."""
    if shift.shape[1] == 1:
        return torch.addcmul(shift[:, 0], x, 1 + scale[:, 0])
    return torch.addcmul(shift, x.unflatten(1, (shift.shape[1], -1)), 1 + scale).flatten(1, 2)


def _serves(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> bool:
    """Whether the kernel may take all: no gradient, a norm that is as it was made, and nobody between."""
    return (
        not torch.is_grad_enabled()
        and x.numel() > FEW
        and _cpu.serves_half(x, shift, scale)
        and not torch.compiler.is_compiling()
        and type(x) is Tensor
        and not torch._C._len_torch_dispatch_stack()
        and (unaltered(norm, RMSNorm) or (unaltered(norm, LayerNorm) and not norm.elementwise_affine))
        and not watched(norm)
    )


def _in_one_pass(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    (b, t, d), f = x.shape, shift.shape[1]
    if shift.stride(-1) != 1 or shift.stride() != scale.stride() or (b > 1 and shift.stride(0) != f * shift.stride(1)):
        shift, scale = shift.contiguous(), scale.contiguous()
    weight = norm.weight.float().contiguous() if isinstance(norm, RMSNorm) else None
    x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    apart = shift.stride(1) if f > 1 else shift.stride(0) if b > 1 else d
    numbers = _cpu.bits(norm.eps), b * t, d, t // f, apart  # type: ignore[arg-type]
    _cpu.call("modulate", x, weight, scale, shift, y, x.dtype == torch.bfloat16, weight is None, *numbers)
    return y
