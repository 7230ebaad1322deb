"""One token through a whole Mamba block in one call: the kernel of csrc/mamba_step.cpp.

The formulas, and the reference in operations of torch, are `Mamba.forward` (postformer/mixers/mamba.py).

b rows, d model width, c channels, k taps, r rank of dt, n state size.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from postformer.ops import _cpu

MOST_ROWS = 8
"""Above this many rows the kernel, which multiplies row by row, is slower than matrix products."""
MATRICES = 4


class Weights(NamedTuple):
    """The block's parameters: four matrices of one dtype, fp32 or bf16, and the rest."""

    inp: Float[Tensor, "c2 d"]
    select: Float[Tensor, "r_2n c"]
    dt: Float[Tensor, "c r"]
    out: Float[Tensor, "d c"]
    taps: Float[Tensor, "c k"]
    tap_bias: Float[Tensor, " c"]
    dt_bias: Float[Tensor, " c"]
    A_log: Float[Tensor, "c n"]
    D: Float[Tensor, " c"]


def serves(x: Float[Tensor, "b t d"], state: tuple[Tensor, Tensor], weights: Weights) -> bool:
    """Whether the kernel can take this step: one token of a few rows on a CPU, fp32 or bf16, and no gradient asked for."""
    matrices = {w.dtype for w in weights[:MATRICES]}
    return (
        _cpu.BUILT
        and x.shape[1] == 1
        and 0 < x.shape[0] <= MOST_ROWS
        and x.device.type == "cpu"
        and len(matrices) == 1
        and {x.dtype, *matrices} <= {torch.float32, torch.bfloat16}
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *state, *weights)))
    )


def mamba_step(
    x: Float[Tensor, "b d"], conv: Float[Tensor, "b k_minus_1 c"], ssm: Float[Tensor, "b c n"], weights: Weights
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k_minus_1 c"], Float[Tensor, "b c n"]]:
    """The block's output and its state after the token, computed in fp32; there are no gradients."""
    inputs = x.float(), conv.float(), ssm.float(), [*weights[:MATRICES], *(w.float() for w in weights[MATRICES:])]
    y, past, h = torch.ops.postformer.mamba_step(*inputs)
    return y.to(x.dtype), past.to(x.dtype), h


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

_cpu.LIBRARY.define("mamba_step(Tensor x, Tensor past, Tensor h, Tensor[] weights) -> (Tensor, Tensor, Tensor)")


def _check(x: Tensor, past: Tensor, h: Tensor, w: Weights) -> None:
    (b, d), (c, k), r, n = x.shape, w.taps.shape, w.dt.shape[1], w.A_log.shape[1]
    shapes = Weights((2 * c, d), (r + 2 * n, c), (c, r), (d, c), (c, k), (c,), (c,), (c, n), (c,))  # type: ignore[arg-type]
    named = {name: (getattr(w, name), getattr(shapes, name)) for name in Weights._fields}
    matrices = {name: named.pop(name) for name in Weights._fields[:MATRICES]}
    _cpu.check_half("mamba_step", "inp", w.inp)
    _cpu.check("mamba_step", w.inp.dtype, **matrices)
    _cpu.check("mamba_step", **named, x=(x, (b, d)), past=(past, (b, k - 1, c)), h=(h, (b, c, n)))


@torch.library.impl(_cpu.LIBRARY, "mamba_step", "CPU")
def _step_cpu(x: Tensor, past: Tensor, h: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    w = Weights(*(weight.contiguous() for weight in weights))
    _check(x, past, h, w)
    y, after, state = _step_fake(x, past, h, weights)
    after.copy_(past)
    state.copy_(h)
    (b, d), (c, k) = x.shape, w.taps.shape
    name = "mamba_step_fp32" if w.inp.dtype == torch.float32 else "mamba_step_bf16"
    order = (w.inp, w.taps, w.tap_bias, w.select, w.dt, w.dt_bias, w.A_log, w.D, w.out)
    _cpu.call(name, x.contiguous(), after, state, *order, y, b, d, c, k, w.dt.shape[1], w.A_log.shape[1])
    return y, after, state


@torch.library.register_fake("postformer::mamba_step", lib=_cpu.LIBRARY)
def _step_fake(x: Tensor, past: Tensor, h: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), past.new_empty(past.shape), h.new_empty(h.shape)


torch.library.register_autograd("postformer::mamba_step", _cpu.no_gradient, lib=_cpu.LIBRARY)


@register_flop_formula(torch.ops.postformer.mamba_step)
def _flops(x: torch.Size, past: torch.Size, h: torch.Size, weights: list[Any], **words: Any) -> int:
    """Four projections (a multiply-add is two), the convolution, and the scan as `ops.scan` counts it."""
    w: Any = Weights(*weights)
    projections = sum(2 * rows * columns for rows, columns in (w.inp, w.select, w.dt, w.out))
    (c, k), n = w.taps, w.A_log[1]
    return x[0] * (projections + 2 * c * k + c * (7 * n + 1))
