"""Causal depthwise convolution along time: torch's own, and the kernel of csrc/conv.cpp for fp32 on a CPU.

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
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b k_minus_1 c"]]:
    """y_t = bias + sum_j weight[:, j] x_{t-k+1+j}, where `past` stands before x.

    `starts` is True at the first token of each document, before which no tap reaches. `lengths` says how many tokens of a row
    are real (0 to t); after them stands padding, for which y is arbitrary. Returns y and the last k-1 inputs, which are the
    `past` of what follows: zeros where they lie before the last document. Gradients are first-order only on a CPU in fp32.
    """
    past = past.to(x.dtype)
    kept = _last_inputs(x, past, starts, lengths)
    if _cpu.serves(x, weight, *(() if bias is None else (bias,))):
        return torch.ops.postformer.causal_conv(x, weight, bias, past, starts), kept
    return _conv(x, weight, bias, past, starts), kept


def causal_conv_reference(
    x: Float[Tensor, "b t c"],
    weight: Float[Tensor, "c k"],
    bias: Float[Tensor, " c"] | None,
    past: Float[Tensor, "b k_minus_1 c"],
    starts: Bool[Tensor, "b t"] | None = None,
    lengths: Int[Tensor, " b"] | None = None,
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b k_minus_1 c"]]:
    """The same by torch's convolution, in the dtype of x."""
    past = past.to(x.dtype)
    return _conv(x, weight, bias, past, starts), _last_inputs(x, past, starts, lengths)


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


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, starts: Tensor | None) -> Tensor:
    k, t = weight.shape[1], x.shape[1]
    x, weight = torch.cat([past, x], 1), weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if starts is None and t > 1:
        return F.conv1d(x.mT, weight[:, None], bias, groups=x.shape[2]).mT
    taps = torch.stack([x[:, j : j + t] for j in range(k)], -1)
    if starts is not None:
        document = F.pad(starts.cumsum(1), (k - 1, 0))  # the past belongs to the document before the first start
        same = torch.stack([document[:, j : j + t] for j in range(k)], -1) == document[:, k - 1 :, None]
        taps = torch.where(same[:, :, None], taps, 0)
    y = torch.einsum("btck,ck->btc", taps, weight)
    return y if bias is None else y + bias


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

_cpu.LIBRARY.define("causal_conv(Tensor x, Tensor weight, Tensor? bias, Tensor past, Tensor? starts) -> Tensor")
_cpu.LIBRARY.define(
    "causal_conv_backward(Tensor x, Tensor weight, Tensor past, Tensor? starts, Tensor dy) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, starts: Tensor | None) -> None:
    b, t, c = x.shape
    k = weight.shape[1]
    shapes = {"x": (x, (b, t, c)), "weight": (weight, (c, k)), "past": (past, (b, k - 1, c))}
    _cpu.check("causal_conv", **shapes, **({} if bias is None else {"bias": (bias, (c,))}))
    _cpu.check_starts("causal_conv", starts, b, t)


@torch.library.impl(_cpu.LIBRARY, "causal_conv", "CPU")
def _conv_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, starts: Tensor | None) -> Tensor:
    _check(x, weight, bias, past, starts)
    y = _conv_fake(x, weight, bias, past, starts)
    x, stride = _cpu.rows(x)
    others = [None if a is None else a.contiguous() for a in (weight, bias, past, starts)]
    _cpu.call("conv_forward", x, *others, y, *x.shape, weight.shape[1], stride)
    return y


@torch.library.register_fake("postformer::causal_conv", lib=_cpu.LIBRARY)
def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, starts: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.impl(_cpu.LIBRARY, "causal_conv_backward", "CPU")
def _conv_backward_cpu(x: Tensor, weight: Tensor, past: Tensor, starts: Tensor | None, dy: Tensor) -> tuple[Tensor, ...]:
    _check(x, weight, None, past, starts)
    _cpu.check("causal_conv_backward", dy=(dy, tuple(x.shape)))
    out = _conv_backward_fake(x, weight, past, starts, dy)
    x, stride = _cpu.rows(x)
    others = [None if a is None else a.contiguous() for a in (weight, past, starts, dy)]
    _cpu.call("conv_backward", x, *others, *out, *x.shape, weight.shape[1], stride)
    return out


@torch.library.register_fake("postformer::causal_conv_backward", lib=_cpu.LIBRARY)
def _conv_backward_fake(x: Tensor, weight: Tensor, past: Tensor, starts: Tensor | None, dy: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(shape) for shape in (x.shape, weight.shape, x.shape[2:], past.shape))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, past, starts = inputs
    ctx.save_for_backward(x, weight, past, starts)
    ctx.biased = bias is not None


def _conv_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, dw, dbias, dpast = torch.ops.postformer.causal_conv_backward(*ctx.saved_tensors, dy)
    return dx, dw, dbias if ctx.biased else None, dpast, None


torch.library.register_autograd("postformer::causal_conv", _conv_gradients, setup_context=_save, lib=_cpu.LIBRARY)
torch.library.register_autograd("postformer::causal_conv_backward", _cpu.first_order_only, lib=_cpu.LIBRARY)


@register_flop_formula(torch.ops.postformer.causal_conv)
def _flops(x: torch.Size, weight: torch.Size, *rest: Any, **words: Any) -> int:
    """As torch counts its own convolution: a multiply-add is two."""
    return 2 * x.numel() * weight[1]
