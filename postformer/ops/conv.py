"""Causal depthwise convolution along time: torch's own, and the kernel of csrc/conv.cpp for fp32 and bf16 on a CPU.

b batch, t time, c channels, k taps.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from postformer.ops import _cpu


def causal_conv(
    x: Float[Tensor, "b t c"],
    weight: Float[Tensor, "c k"],
    bias: Float[Tensor, " c"] | None,
    past: Float[Tensor, "b k_minus_1 c"],
    starts: Bool[Tensor, "b t"] | None = None,
    lengths: Int[Tensor, " b"] | None = None,
    *,
    silu: bool = False,
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b k_minus_1 c"]]:
    """y_t = bias + sum_j weight[:, j] x_{t-k+1+j}, where `past` stands before x; with `silu`, SiLU of that.

    `starts` is True at the first token of each document, before which no tap reaches. `lengths` says how many tokens of a row
    are real (0 to t); after them stands padding, for which y is arbitrary. Returns y and the last k-1 inputs, which are the
    `past` of what follows: zeros where they lie before the last document. Sums are in fp32 or wider. Gradients are first-order
    only on a CPU in fp32 and bf16.
    """
    past = past.to(x.dtype)
    kept = _last_inputs(x, past, starts, lengths)
    if _cpu.serves_half(x) and weight.device == x.device:
        bias = None if bias is None else bias.float()
        return torch.ops.postformer.causal_conv(x, weight.float(), bias, past, starts, silu), kept
    return _conv(x, weight, bias, past, starts, silu), kept


def causal_conv_reference(
    x: Float[Tensor, "b t c"],
    weight: Float[Tensor, "c k"],
    bias: Float[Tensor, " c"] | None,
    past: Float[Tensor, "b k_minus_1 c"],
    starts: Bool[Tensor, "b t"] | None = None,
    lengths: Int[Tensor, " b"] | None = None,
    *,
    silu: bool = False,
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b k_minus_1 c"]]:
    """The same by torch's convolution."""
    past = past.to(x.dtype)
    return _conv(x, weight, bias, past, starts, silu), _last_inputs(x, past, starts, lengths)


def _last_inputs(x: Tensor, past: Tensor, starts: Tensor | None, lengths: Tensor | None) -> Tensor:
    """The last k-1 real inputs of each row [b, k-1, c], with zeros for those before its last document."""
    (b, t, _), before = x.shape, past.shape[1]
    if lengths is None:
        recent = torch.cat([past, x[:, max(0, t - before) :]], 1)
        recent = recent[:, recent.shape[1] - before :]
        time = torch.arange(t - before, t, device=x.device).expand(b, -1)
    else:
        time = lengths[:, None] + torch.arange(-before, 0, device=x.device)
        recent = torch.cat([past, x], 1).take_along_dim((time + before)[..., None], 1)
    if starts is None:
        return recent
    now = torch.arange(t, device=x.device)
    begun = starts if lengths is None else starts & (now < lengths[:, None])
    last = torch.where(begun, now, -before).amax(1, keepdim=True) if t else -before
    return recent.masked_fill((time < last)[..., None], 0)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, starts: Tensor | None, silu: bool) -> Tensor:
    k, t, dtype = weight.shape[1], x.shape[1], x.dtype
    wide = torch.promote_types(dtype, torch.float32)
    x, weight, bias = torch.cat([past, x], 1).to(wide), weight.to(wide), None if bias is None else bias.to(wide)
    if starts is None and t > 1:
        y = F.conv1d(x.mT, weight[:, None], bias, groups=x.shape[2]).mT
        return (F.silu(y) if silu else y).to(dtype)
    taps = torch.stack([x[:, j : j + t] for j in range(k)], -1)
    if starts is not None:
        document = F.pad(starts.cumsum(1), (k - 1, 0))  # the past belongs to the document before the first start
        same = torch.stack([document[:, j : j + t] for j in range(k)], -1) == document[:, k - 1 :, None]
        taps = torch.where(same[:, :, None], taps, 0)
    y = torch.einsum("btck,ck->btc", taps, weight)
    y = y if bias is None else y + bias
    return (F.silu(y) if silu else y).to(dtype)


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

_cpu.LIBRARY.define("causal_conv(Tensor x, Tensor weight, Tensor? bias, Tensor past, Tensor? starts, bool silu) -> Tensor")
_cpu.LIBRARY.define(
    "causal_conv_backward(Tensor x, Tensor weight, Tensor? bias, Tensor past, Tensor? starts, Tensor dy, bool silu)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, starts: Tensor | None) -> None:
    (b, t, c), k = x.shape, weight.shape[1]
    _cpu.check_half("causal_conv", "x", x)
    _cpu.check("causal_conv", weight=(weight, (c, k)), bias=(bias, (c,)))
    _cpu.check("causal_conv", x.dtype, past=(past, (b, k - 1, c)))
    _cpu.check("causal_conv", torch.bool, starts=(starts, (b, t)))


@torch.library.impl(_cpu.LIBRARY, "causal_conv", "CPU")
def _conv_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, starts: Tensor | None, silu: bool) -> Tensor:
    _check(x, weight, bias, past, starts)
    y = _conv_fake(x, weight, bias, past, starts, silu)
    x, stride = _cpu.rows(x)
    others = _cpu.contiguous(weight, bias, past, starts)
    _cpu.call("conv_forward", x, *others, y, x.dtype == torch.bfloat16, silu, *x.shape, weight.shape[1], stride)
    return y


@torch.library.register_fake("postformer::causal_conv", lib=_cpu.LIBRARY)
def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, starts: Tensor | None, silu: bool) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.impl(_cpu.LIBRARY, "causal_conv_backward", "CPU")
def _conv_backward_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, starts: Tensor | None, dy: Tensor, silu: bool
) -> tuple[Tensor, ...]:
    _check(x, weight, bias, past, starts)
    _cpu.check("causal_conv_backward", x.dtype, dy=(dy, tuple(x.shape)))
    out = _conv_backward_fake(x, weight, bias, past, starts, dy, silu)
    x, stride = _cpu.rows(x)
    others = _cpu.contiguous(weight, bias, past, starts, dy)
    _cpu.call("conv_backward", x, *others, *out, x.dtype == torch.bfloat16, silu, *x.shape, weight.shape[1], stride)
    return out


@torch.library.register_fake("postformer::causal_conv_backward", lib=_cpu.LIBRARY)
def _conv_backward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, starts: Tensor | None, dy: Tensor, silu: bool
) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(x.shape[2:]), past.new_empty(past.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _conv_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, dw, dbias, dpast = torch.ops.postformer.causal_conv_backward(*ctx.saved_tensors, dy, ctx.silu)
    return dx, dw, None if ctx.saved_tensors[2] is None else dbias, dpast, None, None


torch.library.register_autograd("postformer::causal_conv", _conv_gradients, setup_context=_save, lib=_cpu.LIBRARY)
torch.library.register_autograd("postformer::causal_conv_backward", _cpu.first_order_only, lib=_cpu.LIBRARY)


@register_flop_formula(torch.ops.postformer.causal_conv)
def _flops(x: torch.Size, weight: torch.Size, *rest: Any, **words: Any) -> int:
    """As torch counts its own convolution: a multiply-add is two."""
    return 2 * x.numel() * weight[1]
