"""A recurrence with one decay per head: state space duality (Dao & Gu 2024, arXiv 2405.21060,
sections 3 and 6), with the several inputs and outputs a token of Mamba-3's MIMO (arXiv 2603.15569, section 3.3).

Three implementations: the recurrence as written (the truth), the same in chunks of matrix products, and the kernel of csrc/ssd.cpp, which
steps through time, for fp32 on a CPU.

    h_t = exp(a_t) h_{t-1} + sum_r x_{t,r} B_{t,r}^T        y_{t,r} = h_t C_{t,r}

b batch, t time, r rank, h heads, p head width, g groups of heads that share B and C (h a multiple of g), n state size; a is the
paper's dt A, and x its dt x.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from postformer.ops import _cpu

CHUNK = 64
"""Rows, of r a token, whose influence on each other is one matrix product; between chunks the state is carried."""
KERNEL_CHUNK = 16
"""Steps between the states that the kernel keeps for its backward pass."""
SPLITS = 8
"""At least so many shares of dB and dC are added up apart, so that no result depends on the number of threads."""
LANES = 16
"""Of csrc/blocks.h."""


def ssd_reference(
    x: Float[Tensor, "b t r h p"],
    a: Float[Tensor, "b t h"],
    B: Float[Tensor, "b t r g n"],
    C: Float[Tensor, "b t r g n"],
    state: Float[Tensor, "b h p n"],
    starts: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b t r h p"], Float[Tensor, "b h p n"]]:
    """The recurrence as it is written, one step after the other; the state is zero before a token where `starts` is true."""
    B, C = (m.repeat_interleave(x.shape[3] // m.shape[3], 3) for m in (B, C))
    y = []
    for t in range(x.shape[1]):
        decay = a[:, t].exp() if starts is None else a[:, t].exp().masked_fill(starts[:, t, None], 0)
        state = decay[..., None, None] * state + torch.einsum("brhp,brhn->bhpn", x[:, t], B[:, t])
        y.append(torch.einsum("bhpn,brhn->brhp", state, C[:, t]))
    return torch.stack(y, 1), state


def ssd(
    x: Float[Tensor, "b t r h p"],
    a: Float[Tensor, "b t h"],
    B: Float[Tensor, "b t r g n"],
    C: Float[Tensor, "b t r g n"],
    state: Float[Tensor, "b h p n"],
    starts: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b t r h p"], Float[Tensor, "b h p n"]]:
    """The same in the fastest way that there is here. Returns y and the state after the last step.

    Gradients flow to every argument; on a CPU in fp32 they are first-order only.
    """
    if _cpu.serves(x, a, B, C, state):
        trained = torch.is_grad_enabled() and any(m.requires_grad for m in (x, a, B, C, state))
        decay = a.exp() if starts is None else a.exp().masked_fill(starts[..., None], 0)
        y, last, _ = torch.ops.postformer.ssd(x, decay, B, C, state, trained)
        return y, last
    return ssd_in_chunks(x, a, B, C, state, starts)


def ssd_in_chunks(
    x: Float[Tensor, "b t r h p"],
    a: Float[Tensor, "b t h"],
    B: Float[Tensor, "b t r g n"],
    C: Float[Tensor, "b t r g n"],
    state: Float[Tensor, "b h p n"],
    starts: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b t r h p"], Float[Tensor, "b h p n"]]:
    """The same in chunks of matrix products (section 6; listing 1), for any device and dtype."""
    if x.shape[1] == 1:
        return ssd_reference(x, a, B, C, state, starts)
    y, size = [], max(1, CHUNK // x.shape[2])
    for i in range(0, x.shape[1], size):
        at = slice(i, i + size)
        part, state = _chunk(x[:, at], a[:, at], B[:, at], C[:, at], state, None if starts is None else starts[:, at])
        y.append(part)
    return torch.cat(y, 1) if len(y) != 1 else y[0], state


def _chunk(x: Tensor, a: Tensor, B: Tensor, C: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """y = (L o C B^T) x + exp(s) C h and h = exp(s_q) h + (exp(s_q - s) x)^T B, where s is the running sum of a and
    L_ij = exp(s_i - s_j) for j <= i."""
    b, q, r, h, p = x.shape
    g, n = B.shape[3:]
    L, arrived, leaving, kept = (m.repeat_interleave(r, -1) if r > 1 else m for m in decays(a, starts))
    L = L.repeat_interleave(r, -2) if r > 1 else L
    x = x.permute(0, 3, 1, 2, 4).reshape(b, h, q * r, p)
    B, C = (m.permute(0, 3, 1, 2, 4).reshape(b, g, q * r, n) for m in (B, C))
    weights = ((C @ B.mT)[:, :, None] * L.view(b, g, -1, q * r, q * r)).view(b, h, q * r, q * r)
    carried = (C @ state.reshape(b, g, -1, n).mT).view(b, g, q * r, -1, p).transpose(2, 3).reshape(b, h, q * r, p)
    y = weights @ x + arrived[..., None] * carried
    added = ((x * leaving[..., None]).mT.reshape(b, g, -1, q * r) @ B).view(b, h, p, n)
    y = y.view(b, h, q, r, p).permute(0, 2, 3, 1, 4)
    return y, kept[..., :1, None] * state + added


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

_cpu.LIBRARY.define("ssd(Tensor x, Tensor decay, Tensor B, Tensor C, Tensor state, bool keep) -> (Tensor, Tensor, Tensor)")
_cpu.LIBRARY.define(
    "ssd_backward(Tensor x, Tensor decay, Tensor B, Tensor C, Tensor kept, Tensor dy, Tensor dstate)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _check(x: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor) -> None:
    (b, t, r, h, p), (g, n) = x.shape, B.shape[3:]
    if not g or h % g:
        raise ValueError(f"ssd: {h} heads cannot share B and C in {g} groups")
    shared = b, t, r, g, n
    _cpu.check(
        "ssd", decay=(decay, (b, t, h)), B=(B, shared), C=(C, shared), state=(state, (b, h, p, n)), x=(x, (b, t, r, h, p))
    )


def _sizes(x: Tensor, B: Tensor) -> tuple[int, ...]:
    return (*x.shape, *B.shape[3:], KERNEL_CHUNK)


@torch.library.impl(_cpu.LIBRARY, "ssd", "CPU")
def _ssd_cpu(x: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, decay, B, C, state)
    y, last, kept = _ssd_fake(x, decay, B, C, state, keep)
    last.copy_(state)
    inputs = (m.contiguous() for m in (x, decay, B, C))
    _cpu.call("ssd_forward", *inputs, last, y, kept if keep else None, *_sizes(x, B))
    return y, last, kept


@torch.library.register_fake("postformer::ssd", lib=_cpu.LIBRARY)
def _ssd_fake(x: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    b, t, _, h, p = x.shape
    chunks = (t + KERNEL_CHUNK - 1) // KERNEL_CHUNK if keep else 0
    kept = x.new_empty(b, h, (p + LANES - 1) // LANES, chunks, B.shape[4], LANES)
    return x.new_empty(x.shape), state.new_empty(state.shape), kept


@torch.library.impl(_cpu.LIBRARY, "ssd_backward", "CPU")
def _ssd_backward_cpu(
    x: Tensor, decay: Tensor, B: Tensor, C: Tensor, kept: Tensor, dy: Tensor, dstate: Tensor
) -> tuple[Tensor, ...]:
    _check(x, decay, B, C, dstate)
    b, t, _, h, p = x.shape
    blocks, splits = -(-p // LANES), max(1, SPLITS // B.shape[3])
    wanted = b, h, blocks, -(-t // KERNEL_CHUNK), B.shape[4], LANES
    _cpu.check("ssd_backward", kept=(kept, wanted), dy=(dy, tuple(x.shape)))
    g = dstate.clone(memory_format=torch.contiguous_format)
    dx, dd = x.new_empty(x.shape), x.new_empty(blocks, b, t, h)
    dB, dC = (B.new_zeros(splits, *B.shape) for _ in "BC")
    inputs = (m.contiguous() for m in (x, decay, B, C, kept, dy))
    _cpu.call("ssd_backward", *inputs, g, dx, dd, dB, dC, splits, *_sizes(x, B))
    return dx, dd.sum(0), dB.sum(0), dC.sum(0), g


@torch.library.register_fake("postformer::ssd_backward", lib=_cpu.LIBRARY)
def _ssd_backward_fake(
    x: Tensor, decay: Tensor, B: Tensor, C: Tensor, kept: Tensor, dy: Tensor, dstate: Tensor
) -> tuple[Tensor, ...]:
    return tuple(m.new_empty(m.shape) for m in (x, decay, B, C, dstate))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(True)


def _ssd_gradients(ctx: Any, dy: Tensor, dstate: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*torch.ops.postformer.ssd_backward(*ctx.saved_tensors, dy, dstate), None)


torch.library.register_autograd("postformer::ssd", _ssd_gradients, setup_context=_save, lib=_cpu.LIBRARY)
torch.library.register_autograd("postformer::ssd_backward", _cpu.first_order_only, lib=_cpu.LIBRARY)


@register_flop_formula(torch.ops.postformer.ssd)
def _flops(x: torch.Size, decay: torch.Size, B: torch.Size, *rest: Any, **words: Any) -> int:
    """For an element of a head's state: the decay, and for each rank (x B) and its sum, and (h C) and its sum."""
    b, t, r, h, p = x
    return b * t * h * p * B[4] * (1 + 4 * r)
