"""The CPU kernel of the memory in weights, as the operator `postformer::memory` (postformer/ops/memory.py is the truth).

It takes perceptrons with SiLU that learn by gradient descent with momentum. Each row has pieces of its own, so rows whose chunks do not
begin together cost nothing more. Backward reads runs of pieces again, each from the memory before it: of the text's memories it keeps
the square root of their number.

b batch, t time, h heads, d width of keys and values; a memory is [b, h, parts, weights], its parts the start of the chunk, now and, with
momentum, the surprise.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from postformer.ops import _cpu
from postformer.ops.fast_weights import BIASES, MLP, Bias, Net
from postformer.ops.rules import LINEAR, Gates, Rule

KINDS = [BIASES[name] for name in ("l2", "dot", "huber")]
"""In the order of csrc/memory.h."""
DEEPEST = 8
LONGEST_CHUNK = 1024
"""Its pairs of tokens are computed at once."""
LEAST_RUN = 8
"""Pieces between two memories that are kept."""


def serves(net: Net, bias: Bias, rule: Rule, gates: Gates, begins: Tensor, *tensors: Tensor) -> TypeGuard[MLP]:
    """Whether the kernel can take this memory, its gates and chunks."""
    known = isinstance(net, MLP) and net.silu and len(net.shapes) <= DEEPEST and type(bias) in KINDS
    known = known and rule._replace(anchored=False) == LINEAR
    return known and gates.step is None and _cpu.serves(*tensors) and _longest(begins) <= LONGEST_CHUNK


def _longest(begins: Tensor) -> int:
    """Tokens of the longest piece in which no chunk begins."""
    t = begins.shape[1]
    if t <= LONGEST_CHUNK:
        return t
    at = torch.arange(t, device=begins.device)
    return int((at - torch.where(begins, at, 0).cummax(1).values).max()) + 1


def read(
    net: MLP,
    bias: Bias,
    rule: Rule,
    vectors: Sequence[Tensor],
    gates: Gates,
    held: Tensor,
    fresh: Tensor | None,
    begins: Tensor,
    starts: Tensor | None,
    real: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The answers [b, t, h, d] to the queries, and the memory after the text. `vectors`: queries, keys and values, [b, t, h, d]."""
    inputs = *vectors, gates.rate, gates.keep, gates.carry, gates.limit, held, fresh
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    sizes = [
        net.hidden,
        len(net.shapes),
        KINDS.index(type(bias)),
        int(net.residual),
        _cpu.bits(net.damping),
        int(rule.anchored),
    ]
    pieces = int((begins if starts is None else begins | starts).sum(1).max()) + 1
    run = max(LEAST_RUN, math.isqrt(pieces))
    y, after, _ = torch.ops.postformer.memory(*inputs, begins, starts, real, [*sizes, pieces // run + 1, run], keep)
    return y, after


_cpu.LIBRARY.define(
    "memory(Tensor q, Tensor k, Tensor v, Tensor rate, Tensor keep, Tensor? carry, Tensor? limit, Tensor held, Tensor? fresh, "
    "Tensor begins, Tensor? starts, Tensor? real, int[] sizes, bool grad) -> (Tensor, Tensor, Tensor)"
)
_cpu.LIBRARY.define(
    "memory_backward(Tensor q, Tensor k, Tensor v, Tensor rate, Tensor keep, Tensor? carry, Tensor? limit, Tensor held, Tensor? fresh, "
    "Tensor begins, Tensor? starts, Tensor? real, int[] sizes, Tensor kept, Tensor dy, Tensor dafter) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _shapes(d: Any, sizes: Sequence[int]) -> list[tuple[Any, Any]]:
    """(outputs, inputs) of each matrix; d may be symbolic."""
    hidden, depth = sizes[:2]
    widths = [d, *[hidden] * (depth - 1), d]
    return list(zip(widths[1:], widths[:-1], strict=True))


def _kept_floats(d: Any, sizes: Sequence[int]) -> Any:
    """Of a memory as the kernel keeps it: rows of weights are filled up to lines of the cache."""
    return 2 * sum(o * (-(-i // 16) * 16) for o, i in _shapes(d, sizes))


def _check(operator: str, inputs: Sequence[Any]) -> None:
    q, k, v, rate, keep, carry, limit, held, fresh, begins, starts, real, sizes = inputs
    b, t, h, d = q.shape
    memory = b, h, 2 if carry is None else 3, sum(o * i for o, i in _shapes(d, sizes))
    _cpu.check(operator, q=(q, (b, t, h, d)), k=(k, (b, t, h, d)), v=(v, (b, t, h, d)))
    gate = b, t, h
    _cpu.check(operator, rate=(rate, gate), keep=(keep, gate), carry=(carry, gate), limit=(limit, gate))
    _cpu.check(operator, held=(held, memory), fresh=(fresh, memory))
    _cpu.check(operator, torch.bool, begins=(begins, (b, t)), starts=(starts, (b, t)), real=(real, (b, t)))
    if fresh is None and (starts is not None or sizes[5]):
        raise ValueError(f"{operator}: documents begin or the memory is anchored, and no fresh memory was given")


@torch.library.impl(_cpu.LIBRARY, "memory", "CPU")
def _memory_cpu(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, sizes, grad = inputs
    _check("memory", inputs[:-1])
    y, after, kept = _memory_fake(*inputs)
    if not y.numel():  # addresses of nothing are null, as are those of what was not given
        return y, tensors[7].clone(memory_format=torch.contiguous_format), kept.zero_()
    kept.zero_()  # rows have different numbers of runs
    if tensors[-1] is not None:
        y.zero_()  # padding is not answered
    _cpu.call("memory_forward", *_cpu.contiguous(*tensors), y, after, kept if grad else None, *tensors[0].shape, *sizes)
    return y, after, kept


@torch.library.register_fake("postformer::memory", lib=_cpu.LIBRARY)
def _memory_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The answers, the memory after the text, and the memories from which backward goes on."""
    q, held, sizes, grad = inputs[0], inputs[7], inputs[-2], inputs[-1]
    b, _, h, d = q.shape
    kept = q.new_empty(b, h, sizes[6] if grad else 0, _kept_floats(d, sizes))
    return q.new_empty(q.shape), held.new_empty(held.shape), kept


@torch.library.impl(_cpu.LIBRARY, "memory_backward", "CPU")
def _memory_backward_cpu(*inputs: Any) -> tuple[Tensor, ...]:
    *tensors, sizes, kept, dy, dafter = inputs
    _check("memory_backward", inputs[:-3])
    q, held = tensors[0], tensors[7]
    _cpu.check("memory_backward", dy=(dy, tuple(q.shape)), dafter=(dafter, tuple(held.shape)))
    _cpu.check("memory_backward", kept=(kept, (*held.shape[:2], sizes[6], _kept_floats(q.shape[3], sizes))))
    grads = [m.zero_() for m in _memory_backward_fake(*inputs)]
    if not q.numel():
        grads[7].copy_(dafter)
        return tuple(grads)
    given = [None if x is None else g for x, g in zip(tensors[:9], grads, strict=True)]
    arguments = _cpu.contiguous(*tensors, dy, dafter, kept)
    _cpu.call("memory_backward", *arguments, *given, *q.shape, *sizes)
    return tuple(grads)


@torch.library.register_fake("postformer::memory_backward", lib=_cpu.LIBRARY)
def _memory_backward_fake(*inputs: Any) -> tuple[Tensor, ...]:
    """The gradients of the first nine inputs; empty where there was none."""
    q = inputs[0]
    return tuple(q.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs[:9])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:12], output[2])
    ctx.sizes = inputs[12]
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(True)


def _gradients(ctx: Any, dy: Tensor, dafter: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, kept = ctx.saved_tensors
    grads = torch.ops.postformer.memory_backward(*inputs, ctx.sizes, kept, dy, dafter)
    given = (None if x is None else g for x, g in zip(inputs[:9], grads, strict=True))
    return *given, None, None, None, None, None


torch.library.register_autograd("postformer::memory", _gradients, setup_context=_save, lib=_cpu.LIBRARY)
torch.library.register_autograd("postformer::memory_backward", _cpu.first_order_only, lib=_cpu.LIBRARY)


@register_flop_formula(torch.ops.postformer.memory)
def _flops(
    q: torch.Size, k: Any, v: Any, rate: Any, keep: Any, carry: Any, limit: Any, held: torch.Size, *rest: Any, **words: Any
) -> int:
    """Of matrix products as if token by token: the answers to key and query, and of the first weights, the gradient by activations and the
    outer products."""
    b, t, h, d = q
    *_, sizes, _ = rest
    weights = held[3]
    first = math.prod(_shapes(d, sizes)[0])
    return b * t * h * ((8 + 2 * sizes[5]) * weights - 2 * first)
