"""RMSNorm, of groups and with a gate: torch's own operations, and the kernel of csrc/norm.cpp for fp32 and bf16 on a CPU.

    y = w x / rms(x)        rms(x) = sqrt(mean(x^2) + eps) over each group (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)

With a gate, x SiLU(gate) takes x's place (Dao & Gu 2024, arXiv 2405.21060, section 7), or SiLU(gate) multiplies y where it comes
`after` (Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464, figure 1).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from postformer.ops import _cpu

SHARE = 64
"""At least so many rows are added up in one sum for the weight's gradient, and SPLITS such sums at most: the result does not depend
on the number of threads."""
SPLITS = 32
SMALLEST = 1e-12
FEW = 1 << 13
"""Up to so many numbers torch's own takes less time than the call of an operator."""


def rms_norm(
    x: Float[Tensor, "*b d"],
    weight: Float[Tensor, " d"],
    eps: float,
    gate: Float[Tensor, "*b d"] | None = None,
    groups: int = 1,
    *,
    after: bool = False,
) -> Float[Tensor, "*b d"]:
    """RMSNorm over each of `groups` equal parts of d, computed in fp32 or wider; y has the dtype of the gate, or of x without one.

    Gradients flow to x, weight and gate; on a CPU in fp32 and bf16 they are first-order only.
    """
    if gate is None and groups == 1 and x.numel() <= FEW:
        return rms_norm_reference(x, weight, eps)
    y = x if gate is None else gate
    if (
        _cpu.BUILT
        and not _cpu.transformed()
        and _served(x.dtype, y.dtype)
        and x.device.type == weight.device.type == y.device.type == "cpu"
    ):
        flat = None if gate is None else gate.reshape(-1, gate.shape[-1])
        rows = x.reshape(-1, x.shape[-1])
        return torch.ops.postformer.rms_norm(rows, weight.float(), flat, eps, groups, after).view(x.shape)
    return rms_norm_reference(x, weight, eps, gate, groups, after=after)


def unit(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """x / max(|x|, 1e-12), as torch's `normalize`; for the gradient it keeps the result and |x|, so that x itself can be freed.

    Gradients are first-order only where no transform of torch.func is at work.
    """
    return F.normalize(x, dim=-1) if _cpu.transformed() else _Unit.apply(x)  # type: ignore[no-any-return]


class _Unit(torch.autograd.Function):
    """y = x / n, n = max(|x|, 1e-12); dx = (dy - y <y, dy>) / n, without the projection where n is the bound."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        n = x.norm(dim=-1, keepdim=True)
        y = x / n.clamp(min=SMALLEST)
        ctx.save_for_backward(y, n)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy,), (y, n) = grad_outputs, ctx.saved_tensors
        along = torch.where(n > SMALLEST, (y * dy).sum(-1, keepdim=True), 0.0)
        return torch.addcmul(dy, y, along, value=-1).div_(n.clamp(min=SMALLEST))


def rms_norm_reference(
    x: Float[Tensor, "*b d"],
    weight: Float[Tensor, " d"],
    eps: float,
    gate: Float[Tensor, "*b d"] | None = None,
    groups: int = 1,
    *,
    after: bool = False,
) -> Float[Tensor, "*b d"]:
    """The same by torch's operations."""
    dtype = x.dtype if gate is None else gate.dtype
    wide = torch.promote_types(torch.promote_types(x.dtype, dtype), torch.float32)
    x, weight, opened = x.to(wide), weight.to(wide), None if gate is None else F.silu(gate.to(wide))
    if opened is not None and not after:
        x = x * opened
    if groups == 1:
        y = F.rms_norm(x, weight.shape, weight, eps)
    else:
        parts = x.unflatten(-1, (groups, -1))
        y = F.rms_norm(parts, parts.shape[-1:], eps=eps).flatten(-2) * weight
    return (y * opened if opened is not None and after else y).to(dtype)


def _served(x: torch.dtype, y: torch.dtype) -> bool:
    """Whether the kernel knows these types; only an fp32 x may differ from y."""
    return (x, y) in {
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
    }


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

_cpu.LIBRARY.define("rms_norm(Tensor x, Tensor weight, Tensor? gate, float eps, int groups, bool after) -> Tensor")
_cpu.LIBRARY.define(
    "rms_norm_backward(Tensor x, Tensor weight, Tensor? gate, Tensor dy, float eps, int groups, bool after)"
    " -> (Tensor, Tensor, Tensor)"
)


def _check(x: Tensor, weight: Tensor, gate: Tensor | None, groups: int) -> None:
    rows, d = x.shape
    if groups < 1 or d % groups:
        raise ValueError(f"rms_norm: {d} channels cannot be parted into {groups} equal groups")
    y = x if gate is None else gate
    if not _served(x.dtype, y.dtype):
        raise ValueError(f"rms_norm: x is {x.dtype} and gate {y.dtype}; expected both fp32, both bf16, or fp32 and bf16")
    _cpu.check("rms_norm", weight=(weight, (d,)))
    _cpu.check("rms_norm", y.dtype, gate=(gate, (rows, d)))


def _lines(x: Tensor | None) -> tuple[Tensor | None, int]:
    """x [rows, d] as it is where channels lie side by side, else a copy; and how many elements its rows are apart."""
    if x is None:
        return None, 0
    x, stride = _cpu.rows(x[None])
    return x, stride


def _numbers(x: Tensor, gate: Tensor | None, eps: float, groups: int, after: bool, strides: tuple[int, int]) -> tuple[int, ...]:
    """What the kernels take after their tensors; eps as the bits of a double."""
    half = [m.dtype == torch.bfloat16 for m in (x, x if gate is None else gate)]
    return (*half, _cpu.bits(eps), after, *x.shape, groups, *strides)


@torch.library.impl(_cpu.LIBRARY, "rms_norm", "CPU")
def _norm_cpu(x: Tensor, weight: Tensor, gate: Tensor | None, eps: float, groups: int, after: bool) -> Tensor:
    _check(x, weight, gate, groups)
    y = _norm_fake(x, weight, gate, eps, groups, after)
    (lines, apart), (gates, gate_apart) = _lines(x), _lines(gate)
    numbers = _numbers(x, gate, eps, groups, after, (apart, gate_apart))
    _cpu.call("norm_forward", lines, weight.contiguous(), gates, y, *numbers)
    return y


@torch.library.register_fake("postformer::rms_norm", lib=_cpu.LIBRARY)
def _norm_fake(x: Tensor, weight: Tensor, gate: Tensor | None, eps: float, groups: int, after: bool) -> Tensor:
    return (x if gate is None else gate).new_empty(x.shape)


@torch.library.impl(_cpu.LIBRARY, "rms_norm_backward", "CPU")
def _norm_backward_cpu(
    x: Tensor, weight: Tensor, gate: Tensor | None, dy: Tensor, eps: float, groups: int, after: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, weight, gate, groups)
    _cpu.check("rms_norm_backward", x.dtype if gate is None else gate.dtype, dy=(dy, tuple(x.shape)))
    dx, _, dgate = _norm_backward_fake(x, weight, gate, dy, eps, groups, after)
    splits = min(-(-x.shape[0] // SHARE), SPLITS)
    dw = weight.new_zeros(splits, *weight.shape)
    (lines, apart), (gates, gate_apart) = _lines(x), _lines(gate)
    numbers = _numbers(x, gate, eps, groups, after, (apart, gate_apart))
    if splits:
        _cpu.call("norm_backward", lines, weight.contiguous(), gates, dy.contiguous(), dx, dw, dgate, *numbers, splits)
    return dx, dw.sum(0), dgate


@torch.library.register_fake("postformer::rms_norm_backward", lib=_cpu.LIBRARY)
def _norm_backward_fake(
    x: Tensor, weight: Tensor, gate: Tensor | None, dy: Tensor, eps: float, groups: int, after: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and gate; the last is empty without a gate."""
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dy.new_empty(0 if gate is None else gate.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, gate, *ctx.rest = inputs
    ctx.save_for_backward(x, weight, gate)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, gate = ctx.saved_tensors
    dx, dw, dgate = torch.ops.postformer.rms_norm_backward(x, weight, gate, dy, *ctx.rest)
    return dx, dw, None if gate is None else dgate, None, None, None


torch.library.register_autograd("postformer::rms_norm", _gradients, setup_context=_save, lib=_cpu.LIBRARY)
torch.library.register_autograd("postformer::rms_norm_backward", _cpu.first_order_only, lib=_cpu.LIBRARY)
