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


class Stepper:
    """`mamba_step` of one block. Under inference it calls the kernel itself, past torch's dispatcher, with weights that it checks
    and converts once and again when one of them has changed. Copies and pickles begin anew."""

    def __init__(self) -> None:
        self._stamp: list[tuple[int, int, torch.dtype]] | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Stepper, ()

    def __call__(
        self, x: Float[Tensor, "b d"], conv: Float[Tensor, "b k_minus_1 c"], ssm: Float[Tensor, "b c n"], weights: Weights
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k_minus_1 c"], Float[Tensor, "b c n"]]:
        if not torch.is_inference_mode_enabled() or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            return mamba_step(x, conv, ssm, weights)
        stamp = [(w.data_ptr(), 0 if w.is_inference() else w._version, w.dtype) for w in weights]
        if stamp != self._stamp:
            self._prepare(weights)
            unseen = any(
                w.is_inference() for w in weights[MATRICES:]
            )  # tensors made under inference do not tell that they change
            self._stamp = None if unseen else stamp
        d, c, k, _, n = self._sizes
        b = len(x)
        if (x.shape, conv.shape, ssm.shape) != ((b, d), (b, k - 1, c), (b, c, n)):
            return mamba_step(x, conv, ssm, weights)  # which says what does not fit
        token = x.contiguous().float()
        past, h = (s.to(torch.float32, copy=True, memory_format=torch.contiguous_format) for s in (conv, ssm))
        y = torch.empty(b, d)
        _cpu.run(self._name, token.data_ptr(), past.data_ptr(), h.data_ptr(), *self._pointers, y.data_ptr(), b, *self._sizes)
        return y.to(x.dtype), past.to(x.dtype), h

    def _prepare(self, weights: Weights) -> None:
        w = Weights(*_plain(weights))
        self._sizes = w.inp.shape[1], *w.taps.shape, w.dt.shape[1], w.A_log.shape[1]
        d, c, k, _, n = self._sizes
        _check(w.A_log.new_empty(1, d), w.A_log.new_empty(1, k - 1, c), w.A_log.new_empty(1, c, n), w)
        self._name, order = _order(w)
        self._pointers = [x.data_ptr() for x in order]
        self._kept = w, [x.detach() for x in weights[MATRICES:]]  # while the originals live, their addresses are no others'


def _plain(weights: Weights) -> list[Tensor]:
    """The weights as the kernel reads them."""
    return [w.contiguous() for w in (*weights[:MATRICES], *(w.float() for w in weights[MATRICES:]))]


def _order(w: Weights) -> tuple[str, tuple[Tensor, ...]]:
    """The kernel for these weights, and the order in which it takes them."""
    name = "mamba_step_fp32" if w.inp.dtype == torch.float32 else "mamba_step_bf16"
    return name, (w.inp, w.taps, w.tap_bias, w.select, w.dt, w.dt_bias, w.A_log, w.D, w.out)


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
    name, order = _order(w)
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
