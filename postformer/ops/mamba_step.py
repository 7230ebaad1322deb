"""One token through whole Mamba blocks in one call: the kernel of csrc/mamba_step.cpp.

The formulas, and the reference in operations of torch, are `Mamba.forward` (postformer/mixers/mamba.py) and `Block.forward`
(postformer/models/backbone.py).

b rows, d model width, c channels, k taps, r rank of dt, n state size.
"""

import itertools
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from postformer.ops import _cpu

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
        and not _cpu.transformed()
        and x.shape[1] == 1
        and 0 < x.shape[0] <= _cpu.MOST_ROWS
        and x.device.type == "cpu"
        and len(matrices) == 1
        and {x.dtype, *matrices} <= _cpu.HALF_OR_SINGLE
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
    """One token through layers that follow each other, past torch's dispatcher. Weights are read where they lie, and checked once
    and again when one of them was replaced. Copies and pickles begin anew."""

    def __init__(self) -> None:
        self._seen: tuple[tuple[list[Any], ...], Plan | None] | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Stepper, ()

    def __call__(
        self,
        x: Float[Tensor, "b d"],
        states: Sequence[tuple[Tensor, Tensor]],
        layers: Sequence[Weights],
        norms: Sequence[Float[Tensor, " d"]] = (),
        eps: float = 0.0,
    ) -> tuple[Float[Tensor, "b d"], list[tuple[Tensor, Tensor]]] | None:
        """What the layers make of a token, x = x + layer(norm(x)) each, and their states after it; without norms, layer(x) of the one
        layer. x stays in fp32 between layers. None outside of inference and where the kernel cannot take it. Raises ValueError for
        another number of states than layers."""
        if not _cpu.direct(x):
            return None
        b = len(x)
        seen = _cpu.lying([*itertools.chain(*layers), *norms])
        before = self._seen
        if before is None or before[0] != seen:
            before = self._seen = seen, plan(layers, norms)
        known = before[1]
        if known is None:
            return None
        d, c, k, _, n = known.sizes
        if x.shape != (b, d):
            return None
        if len(states) != len(layers):
            raise ValueError(f"mamba_step: {len(states)} states for {len(layers)} layers")
        kept = []  # what the kernel reads, held until it has
        for conv, ssm in states:
            if (
                type(conv) is not Tensor
                or type(ssm) is not Tensor
                or conv.shape != (b, k - 1, c)
                or ssm.shape != (b, c, n)
                or not (conv.is_cpu and ssm.is_cpu)
            ):
                return None
            kept += conv.to(x.dtype).contiguous(), ssm.float().contiguous()
        past = torch.empty(len(layers), b, k - 1, c, dtype=x.dtype).unbind()
        h = torch.empty(len(layers), b, c, n).unbind()
        table = known.table[:]
        for column, addressed in enumerate((kept[0::2], kept[1::2], past, h), COLUMNS - 4):
            table[column::COLUMNS] = array("q", map(Tensor.data_ptr, addressed))
        y = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        halves = *known.halves, x.dtype == torch.bfloat16
        _cpu.run("mamba_steps", table.buffer_info()[0], y.data_ptr(), len(layers), *halves, _cpu.bits(eps), b, *known.sizes)
        return y.to(x.dtype), list(zip(past, h, strict=True))


class Plan(NamedTuple):
    """Layers as the kernel reads them."""

    sizes: tuple[int, int, int, int, int]
    """d, c, k, r, n."""
    halves: tuple[bool, bool]
    """Whether matrices are bf16, and whether all else is."""
    table: array
    """COLUMNS addresses of each layer, 0 for its states."""


COLUMNS = 14
"""Addresses of one layer."""


def plan(layers: Sequence[Weights], norms: Sequence[Tensor]) -> Plan | None:
    """None where the kernel cannot read the weights as they lie. Raises ValueError for shapes that do not belong together."""
    small = [w for weights in layers for w in weights[MATRICES:]] + list(norms)
    groups = [w for weights in layers for w in weights[:MATRICES]], small
    dtypes = [{w.dtype for w in group} for group in groups]
    readable = all(type(w) in (Tensor, nn.Parameter) and w.is_contiguous() and w.is_cpu for group in groups for w in group)
    if not (_cpu.BUILT and readable and all(len(found) == 1 and found <= _cpu.HALF_OR_SINGLE for found in dtypes)):
        return None
    (c, k), d, r, n = layers[0].taps.shape, layers[0].inp.shape[1], layers[0].dt.shape[1], layers[0].A_log.shape[1]
    for w in layers:
        for name, wanted in shapes(d, c, k, r, n)._asdict().items():
            if getattr(w, name).shape != wanted:
                raise ValueError(f"mamba_step: {name} is {tuple(getattr(w, name).shape)}; expected {wanted}")
    if wrong := [tuple(norm.shape) for norm in norms if norm.shape != (d,)]:
        raise ValueError(f"mamba_step: a norm is {wrong[0]}; expected {(d,)}")
    rows = [_pointers(w, norm) for w, norm in zip(layers, norms or [None] * len(layers), strict=True)]
    half, half_small = (found == {torch.bfloat16} for found in dtypes)
    return Plan((d, c, k, r, n), (half, half_small), array("q", [p for row in rows for p in row]))


def shapes(d: int, c: int, k: int, r: int, n: int) -> Weights:
    """The shape of each weight."""
    return Weights((2 * c, d), (r + 2 * n, c), (c, r), (d, c), (c, k), (c,), (c,), (c, n), (c,))  # type: ignore[arg-type]


def _pointers(w: Weights, norm: Tensor | None, *states: Tensor) -> list[int]:
    """A layer as csrc/mamba_step.cpp takes it; `states` are the past and h before the token, and those after it."""
    order = w.inp, w.taps, w.tap_bias, w.select, w.dt, w.dt_bias, w.A_log, w.D, w.out
    addresses = [0 if norm is None else norm.data_ptr(), *(x.data_ptr() for x in (*order, *states))]
    return addresses + [0] * (COLUMNS - len(addresses))


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

_cpu.LIBRARY.define("mamba_step(Tensor x, Tensor past, Tensor h, Tensor[] weights) -> (Tensor, Tensor, Tensor)")


def _check(x: Tensor, past: Tensor, h: Tensor, w: Weights) -> None:
    (b, d), (c, k), r, n = x.shape, w.taps.shape, w.dt.shape[1], w.A_log.shape[1]
    if b > _cpu.MOST_ROWS:
        raise ValueError(f"mamba_step: {b} rows; expected {_cpu.MOST_ROWS} at most")
    wanted = shapes(d, c, k, r, n)
    named = {name: (getattr(w, name), getattr(wanted, name)) for name in Weights._fields}
    matrices = {name: named.pop(name) for name in Weights._fields[:MATRICES]}
    _cpu.check_half("mamba_step", "inp", w.inp)
    _cpu.check("mamba_step", w.inp.dtype, **matrices)
    _cpu.check("mamba_step", **named, x=(x, (b, d)), past=(past, (b, k - 1, c)), h=(h, (b, c, n)))


@torch.library.impl(_cpu.LIBRARY, "mamba_step", "CPU")
def _step_cpu(x: Tensor, past: Tensor, h: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    w = Weights(*(weight.contiguous() for weight in weights))
    _check(x, past, h, w)
    y, after, state = _step_fake(x, past, h, weights)
    x, past, h = x.contiguous(), past.contiguous(), h.contiguous()
    y.copy_(x)
    table = torch.tensor(_pointers(w, None, past, h, after, state))
    (b, d), (c, k) = x.shape, w.taps.shape
    _cpu.call("mamba_steps", table, y, 1, w.inp.dtype == torch.bfloat16, 0, 0, 0, b, d, c, k, w.dt.shape[1], w.A_log.shape[1])
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
