"""Causal depthwise convolution along time: torch's own, and the kernel of csrc/conv.cpp for fp32 on a CPU.

b batch, t time, c channels, k taps.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from postformer.ops import _cpu


def causal_conv(
    x: Float[Tensor, "b t c"],
    weight: Float[Tensor, "c k"],
    bias: Float[Tensor, " c"] | None,
    past: Float[Tensor, "b k_minus_1 c"],
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b k_minus_1 c"]]:
    """y_t = bias + sum_j weight[:, j] x_{t-k+1+j}, where `past` stands before x.

    Returns y and the last k-1 inputs, which are the `past` of what follows. Gradients are first-order only on a CPU in fp32.
    """
    if _cpu.serves(x, weight, *(() if bias is None else (bias,))):
        before = weight.shape[1] - 1
        recent = torch.cat([past.to(x.dtype), x[:, max(0, x.shape[1] - before) :]], 1)
        y = torch.ops.postformer.causal_conv(x, weight, bias, past.to(x.dtype))
        return y, recent[:, recent.shape[1] - before :]
    return causal_conv_reference(x, weight, bias, past)


def causal_conv_reference(
    x: Float[Tensor, "b t c"],
    weight: Float[Tensor, "c k"],
    bias: Float[Tensor, " c"] | None,
    past: Float[Tensor, "b k_minus_1 c"],
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b k_minus_1 c"]]:
    """The same by torch's convolution, in the dtype of x."""
    k = weight.shape[1]
    x = torch.cat([past.to(x.dtype), x], 1)
    kept = x[:, x.shape[1] - k + 1 :]
    bias = None if bias is None else bias.to(x.dtype)
    if x.shape[1] == k:
        y = torch.einsum("bkc,ck->bc", x, weight.to(x.dtype))[:, None]
        return (y if bias is None else y + bias), kept
    y = F.conv1d(x.mT, weight.to(x.dtype)[:, None], bias, groups=x.shape[2])
    return y.mT, kept


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

_cpu.LIBRARY.define("causal_conv(Tensor x, Tensor weight, Tensor? bias, Tensor past) -> Tensor")
_cpu.LIBRARY.define("causal_conv_backward(Tensor x, Tensor weight, Tensor past, Tensor dy) -> (Tensor, Tensor, Tensor, Tensor)")


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor) -> None:
    b, t, c = x.shape
    k = weight.shape[1]
    shapes = {"x": (x, (b, t, c)), "weight": (weight, (c, k)), "past": (past, (b, k - 1, c))}
    _cpu.check("causal_conv", **shapes, **({} if bias is None else {"bias": (bias, (c,))}))


@torch.library.impl(_cpu.LIBRARY, "causal_conv", "CPU")
def _conv_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor) -> Tensor:
    _check(x, weight, bias, past)
    y = _conv_fake(x, weight, bias, past)
    x, stride = _cpu.rows(x)
    bias = None if bias is None else bias.contiguous()
    _cpu.call("conv_forward", x, weight.contiguous(), bias, past.contiguous(), y, *x.shape, weight.shape[1], stride)
    return y


@torch.library.register_fake("postformer::causal_conv", lib=_cpu.LIBRARY)
def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.impl(_cpu.LIBRARY, "causal_conv_backward", "CPU")
def _conv_backward_cpu(x: Tensor, weight: Tensor, past: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    _check(x, weight, None, past)
    _cpu.check("causal_conv_backward", dy=(dy, tuple(x.shape)))
    out = _conv_backward_fake(x, weight, past, dy)
    x, stride = _cpu.rows(x)
    inputs = x, weight.contiguous(), past.contiguous(), dy.contiguous()
    _cpu.call("conv_backward", *inputs, *out, *x.shape, weight.shape[1], stride)
    return out


@torch.library.register_fake("postformer::causal_conv_backward", lib=_cpu.LIBRARY)
def _conv_backward_fake(x: Tensor, weight: Tensor, past: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(shape) for shape in (x.shape, weight.shape, x.shape[2:], past.shape))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, past = inputs
    ctx.save_for_backward(x, weight, past)
    ctx.biased = bias is not None


def _conv_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, dw, dbias, dpast = torch.ops.postformer.causal_conv_backward(*ctx.saved_tensors, dy)
    return dx, dw, dbias if ctx.biased else None, dpast


torch.library.register_autograd("postformer::causal_conv", _conv_gradients, setup_context=_save, lib=_cpu.LIBRARY)
torch.library.register_autograd("postformer::causal_conv_backward", _cpu.first_order_only, lib=_cpu.LIBRARY)


@register_flop_formula(torch.ops.postformer.causal_conv)
def _flops(x: torch.Size, weight: torch.Size, *rest: Any, **words: Any) -> int:
    """As torch counts its own convolution: a multiply-add is two."""
    return 2 * x.numel() * weight[1]
