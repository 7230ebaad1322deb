"""A recurrence with one decay per head: state space duality (Dao & Gu 2024, arXiv 2405.21060,
sections 3 and 6), with the several inputs and outputs a token of Mamba-3's MIMO (arXiv 2603.15569, section 3.3).

Three implementations: the recurrence as written (the truth), the same in chunks of matrix products, and the kernel of csrc/ssd.cpp, which
steps through time, for fp32 on a CPU.

    H_t = exp(a_t) h_{t-1} + w_t sum_r x_{t,r} B_{t,r}^T        y_{t,r} = H_t C_{t,r} + D x_{t,r}
    h_t = H_t + v_t sum_r x_{t,r} B_{t,r}^T

b batch, t time, r rank, h heads, p head width, g groups of heads that share B and C (h a multiple of g), n state size; a is the
paper's dt A, and w its dt (1 when not given); v weighs what a token leaves to later ones and does not see itself (0 when not given).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from postformer.ops import _cpu

CHUNK = 64
"""Rows, of r a token, whose influence on each other is one matrix product; between chunks the state is carried."""
KERNEL_CHUNK = 64
"""Steps between the states that the kernel keeps for its backward pass."""
SPLITS = 8
"""So many shares of dB and dC, over all rows and groups, are added up apart: no result depends on the number of threads."""
LANES = 16
"""Of csrc/blocks.h."""


class Weights(NamedTuple):
    """How much of x enters the state and is seen `now`, how much enters `later`, and how much `D` of it skips the state."""

    now: Float[Tensor, "b t h"] | None = None
    later: Float[Tensor, "b t h"] | None = None
    D: Float[Tensor, " h"] | None = None


PLAIN = Weights()
"""x enters as it is, and is seen at once."""


def ssd_reference(
    x: Float[Tensor, "b t r h p"],
    a: Float[Tensor, "b t h"],
    B: Float[Tensor, "b t r g n"],
    C: Float[Tensor, "b t r g n"],
    state: Float[Tensor, "b h p n"],
    starts: Bool[Tensor, "b t"] | None = None,
    weights: Weights = PLAIN,
) -> tuple[Float[Tensor, "b t r h p"], Float[Tensor, "b h p n"]]:
    """The recurrence as it is written, one step after the other; the state is zero before a token where `starts` is true."""
    B, C = (m.repeat_interleave(x.shape[3] // m.shape[3], 3) for m in (B, C))
    y = []
    for t in range(x.shape[1]):
        state = state if starts is None else state.masked_fill(starts[:, t, None, None, None], 0)
        now = torch.einsum("brhp,brhn->bhpn", x[:, t], B[:, t])
        w, v = (None if m is None else m[:, t, :, None, None] for m in (weights.now, weights.later))
        state = a[:, t].exp()[..., None, None] * state + (now if w is None else w * now)
        y.append(torch.einsum("bhpn,brhn->brhp", state, C[:, t]))
        state = state if v is None else state + v * now
    return _skip(torch.stack(y, 1) if y else x, x, weights.D), state


def ssd(
    x: Float[Tensor, "b t r h p"],
    a: Float[Tensor, "b t h"],
    B: Float[Tensor, "b t r g n"],
    C: Float[Tensor, "b t r g n"],
    state: Float[Tensor, "b h p n"],
    starts: Bool[Tensor, "b t"] | None = None,
    weights: Weights = PLAIN,
) -> tuple[Float[Tensor, "b t r h p"], Float[Tensor, "b h p n"]]:
    """The same in the fastest way that there is here. Returns y and the state after the last step.

    Gradients flow to every argument; on a CPU in fp32 they are first-order only.
    """
    given = [m for m in (x, a, B, C, state, *weights) if m is not None]
    if _cpu.serves(*given):
        trained = torch.is_grad_enabled() and any(m.requires_grad for m in given)
        decay = a.exp() if starts is None else a.exp().masked_fill(starts[..., None], 0)
        y, last, _ = torch.ops.postformer.ssd(x, decay, B, C, state, *weights, trained)
        return y, last
    return ssd_in_chunks(x, a, B, C, state, starts, weights)


def ssd_in_chunks(
    x: Float[Tensor, "b t r h p"],
    a: Float[Tensor, "b t h"],
    B: Float[Tensor, "b t r g n"],
    C: Float[Tensor, "b t r g n"],
    state: Float[Tensor, "b h p n"],
    starts: Bool[Tensor, "b t"] | None = None,
    weights: Weights = PLAIN,
) -> tuple[Float[Tensor, "b t r h p"], Float[Tensor, "b h p n"]]:
    """The same in chunks of matrix products (section 6; listing 1), for any device and dtype."""
    if not x.shape[1]:
        return x, state
    if x.shape[1] == 1:
        return ssd_reference(x, a, B, C, state, starts, weights)
    y, size = [], max(1, CHUNK // x.shape[2])
    for i in range(0, x.shape[1], size):
        at = slice(i, i + size)
        rest = [None if m is None else m[:, at] for m in (starts, weights.now, weights.later)]
        part, state = _chunk(state, x[:, at], a[:, at], B[:, at], C[:, at], *rest)
        y.append(part)
    return _skip(torch.cat(y, 1) if len(y) != 1 else y[0], x, weights.D), state


def _skip(y: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    return y if D is None else torch.addcmul(y, D[:, None], x)


def _chunk(
    state: Tensor, x: Tensor, a: Tensor, B: Tensor, C: Tensor, starts: Tensor | None, w: Tensor | None, v: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y = (L o C B^T) x + exp(s) C h and h = exp(s_q) h + (exp(s_q - s) x)^T B, where s is the running sum of a and
    L_ij = exp(s_i - s_j) (w_j + v_j) for j < i and L_ii = w_i; x in h is weighed by w + v, too."""
    b, q, r, h, p = x.shape
    g, n = B.shape[3:]
    L, arrived, leaving, kept = decays(a, starts)
    if w is not None or v is not None:
        w = torch.ones_like(a) if w is None else w
        all_in = (w if v is None else w + v).mT
        L, leaving = L * all_in[..., None, :], leaving * all_in
        L = L if v is None else L - v.mT.diag_embed()
    if r > 1:
        L, arrived, leaving = (m.repeat_interleave(r, -1) for m in (L.repeat_interleave(r, -2), arrived, leaving))
    x = x.permute(0, 3, 1, 2, 4).reshape(b, h, q * r, p)
    B, C = (m.permute(0, 3, 1, 2, 4).reshape(b, g, q * r, n) for m in (B, C))
    weights = ((C @ B.mT)[:, :, None] * L.view(b, g, -1, q * r, q * r)).view(b, h, q * r, q * r)
    carried = (C @ state.reshape(b, g, -1, n).mT).view(b, g, q * r, -1, p).transpose(2, 3).reshape(b, h, q * r, p)
    y = weights @ x + weighed(arrived, carried)
    added = ((x * leaving[..., None]).mT.reshape(b, g, -1, q * r) @ B).view(b, h, p, n)
    y = y.view(b, h, q, r, p).permute(0, 2, 3, 1, 4)
    return y, weighed(kept, state) + added


def weighed(weight: Tensor, x: Tensor) -> Tensor:
    """weight [..., 1 or q] times x [..., q, n]; 0 where the weight is 0, whatever x is: nothing passes a document's start."""
    return torch.where(weight[..., None] == 0, 0, weight[..., None] * x)


def decays(a: Float[Tensor, "b q h"], starts: Bool[Tensor, "b q"] | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is left in a chunk of q tokens: of token j at token i [b, h, q, q], of the state before the chunk at token i [b, h, q],
    of token j at the chunk's end [b, h, q], and of the state before at the end [b, h, 1]; nothing across a start.

    Sums are in float64, since their differences are what counts.
    """
    s = a.mT.double().cumsum(-1)
    seen = torch.ones(s.shape[-1], s.shape[-1], dtype=torch.bool, device=a.device).tril()
    between = s[..., None] - s[..., None, :]
    if starts is None:
        between = between.to(a.dtype).masked_fill(~seen, -torch.inf)
        return between.exp(), s.to(a.dtype).exp(), (s[..., -1:] - s).to(a.dtype).exp(), s[..., -1:].to(a.dtype).exp()
    document = starts.cumsum(1)[:, None]
    seen = seen & (document[..., None] == document[..., None, :])
    first, last = document == 0, document == document[..., -1:]
    L = between.to(a.dtype).masked_fill(~seen, -torch.inf).exp()
    arrived = s.to(a.dtype).exp() * first
    leaving = (s[..., -1:] - s).to(a.dtype).exp() * last
    return L, arrived, leaving, s[..., -1:].to(a.dtype).exp() * first[..., -1:]


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

_cpu.LIBRARY.define(
    "ssd(Tensor x, Tensor decay, Tensor B, Tensor C, Tensor state, Tensor? now, Tensor? later, Tensor? D, bool keep)"
    " -> (Tensor, Tensor, Tensor)"
)
_cpu.LIBRARY.define(
    "ssd_backward(Tensor x, Tensor decay, Tensor B, Tensor C, Tensor? now, Tensor? later, Tensor? D, Tensor kept, Tensor dy,"
    " Tensor dstate) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _check(x: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor, weights: Weights) -> None:
    (b, t, r, h, p), (g, n) = x.shape, B.shape[3:]
    if not g or h % g:
        raise ValueError(f"ssd: {h} heads cannot share B and C in {g} groups")
    shared, each = (b, t, r, g, n), (b, t, h)
    _cpu.check("ssd", x=(x, (b, t, r, h, p)), decay=(decay, each), B=(B, shared), C=(C, shared), state=(state, (b, h, p, n)))
    _cpu.check("ssd", now=(weights.now, each), later=(weights.later, each), D=(weights.D, (h,)))


def _lines(*tensors: Tensor) -> tuple[list[Tensor], list[int]]:
    """Tensors [b, t, ...] as they are where tokens lie evenly in memory, else copies; and how many elements tokens are apart."""
    found = [_cpu.rows(m.flatten(2)) for m in tensors]
    return [m for m, _ in found], [apart for _, apart in found]


@torch.library.impl(_cpu.LIBRARY, "ssd", "CPU")
def _ssd_cpu(
    x: Tensor,
    decay: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    now: Tensor | None,
    later: Tensor | None,
    D: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, decay, B, C, state, Weights(now, later, D))
    y, last, kept = _ssd_fake(x, decay, B, C, state, now, later, D, keep)
    last.copy_(state)
    inputs, apart = _lines(x, B, C)
    others = _cpu.contiguous(decay, now, later, D)
    sizes = *x.shape, *B.shape[3:], *apart, KERNEL_CHUNK
    _cpu.call("ssd_forward", *inputs, *others, last, y, kept if keep else None, *sizes)
    return y, last, kept


@torch.library.register_fake("postformer::ssd", lib=_cpu.LIBRARY)
def _ssd_fake(
    x: Tensor,
    decay: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    now: Tensor | None,
    later: Tensor | None,
    D: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    b, t, _, h, p = x.shape
    chunks = (t + KERNEL_CHUNK - 1) // KERNEL_CHUNK if keep else 0
    kept = x.new_empty(b, h, (p + LANES - 1) // LANES, chunks, B.shape[4], LANES)
    return x.new_empty(x.shape), state.new_empty(state.shape), kept


@torch.library.impl(_cpu.LIBRARY, "ssd_backward", "CPU")
def _ssd_backward_cpu(
    x: Tensor,
    decay: Tensor,
    B: Tensor,
    C: Tensor,
    now: Tensor | None,
    later: Tensor | None,
    D: Tensor | None,
    kept: Tensor,
    dy: Tensor,
    dstate: Tensor,
) -> tuple[Tensor, ...]:
    _check(x, decay, B, C, dstate, Weights(now, later, D))
    b, t, _, h, p = x.shape
    blocks, groups = -(-p // LANES), B.shape[3]
    splits = max(1, min(SPLITS // max(1, b * groups), h // groups * blocks))
    wanted = b, h, blocks, -(-t // KERNEL_CHUNK), B.shape[4], LANES
    _cpu.check("ssd_backward", kept=(kept, wanted), dy=(dy, tuple(x.shape)))
    g = dstate.clone(memory_format=torch.contiguous_format)
    dx = x.new_empty(x.shape)
    scalars = x.new_empty(4, blocks, b, t, h)  # of the decay, now and later, and x dy
    dB, dC = (B.new_zeros(splits, *B.shape) for _ in "BC")
    inputs, apart = _lines(x, B, C)
    others = _cpu.contiguous(decay, now, later, D, kept, dy)
    sizes = splits, *x.shape, *B.shape[3:], *apart, KERNEL_CHUNK
    _cpu.call("ssd_backward", *inputs, *others, g, dx, scalars, dB, dC, *sizes)
    dd, dnow, dlater, dB, dC = (m.sum(0) if len(m) > 1 else m[0] for m in (*scalars[:3], dB, dC))
    return dx, dd, dB, dC, g, dnow, dlater, scalars[3].sum((0, 1, 2))


@torch.library.register_fake("postformer::ssd_backward", lib=_cpu.LIBRARY)
def _ssd_backward_fake(
    x: Tensor,
    decay: Tensor,
    B: Tensor,
    C: Tensor,
    now: Tensor | None,
    later: Tensor | None,
    D: Tensor | None,
    kept: Tensor,
    dy: Tensor,
    dstate: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of x, decay, B, C, the state, now, later and D, the last three whether they were given or not."""
    return (*(m.new_empty(m.shape) for m in (x, decay, B, C, dstate, decay, decay)), x.new_empty(x.shape[3]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], *inputs[5:8], output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(True)


def _ssd_gradients(ctx: Any, dy: Tensor, dstate: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *grads, now, later, D = torch.ops.postformer.ssd_backward(*ctx.saved_tensors, dy, dstate)
    given = ctx.saved_tensors[4:7]
    weights = (None if m is None else grad for m, grad in zip(given, (now, later, D), strict=True))
    return *grads, *weights, None


torch.library.register_autograd("postformer::ssd", _ssd_gradients, setup_context=_save, lib=_cpu.LIBRARY)
torch.library.register_autograd("postformer::ssd_backward", _cpu.first_order_only, lib=_cpu.LIBRARY)


@register_flop_formula(torch.ops.postformer.ssd)
def _flops(
    x: torch.Size,
    decay: torch.Size,
    B: torch.Size,
    C: torch.Size,
    state: torch.Size,
    now: Any,
    later: Any,
    *rest: Any,
    **words: Any,
) -> int:
    """For an element of a head's state: the decay, and for each rank (x B) and its sum, once more where it is added later, and (h C)
    and its sum."""
    b, t, r, h, p = x
    return b * t * h * p * B[4] * (1 + 4 * r + (0 if later is None else 2 * r))
