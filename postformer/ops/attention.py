"""Softmax attention with grouped queries over keys that carry their positions, and rotary position embedding.

b batch, t queries, s keys, h query heads, g key/value heads (h a multiple of g), e head width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from postformer.ops import _cpu

QUERY_BLOCK = 256
MASK_ELEMENTS = 1 << 25
BLOCK = 64
"""A growing cache grows by this many slots."""
SHORT = 128
"""Up to so many keys the gradient of torch's fused attention takes longer in bf16 on a CPU than the products it is made of, at 64 three
times."""
HIDDEN = torch.iinfo(torch.long).max // 2
"""The key position that no query reaches."""


def rotate(x: Float[Tensor, "b t h e"], position: Int[Tensor, "b t"], base: float = 1e4) -> Float[Tensor, "b t h e"]:
    """Rotary embedding (Su et al. 2021, arXiv 2104.09864, eq. 34), pairing coordinate i with i + e/2 as Llama does.

    Angles are computed in float64, so that they are exact at any position.
    """
    e = x.shape[-1]
    frequency = base ** (-torch.arange(0, e, 2, device=x.device, dtype=torch.float64) / e)
    angle = position[..., None, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def causal_attention(
    q: Float[Tensor, "b t h e"], k: Float[Tensor, "b t g e"], v: Float[Tensor, "b t g e"]
) -> Float[Tensor, "b t h e"]:
    """softmax(q k^T / sqrt(e)) v, where each query sees the keys at or before itself."""
    return _softmax_attention(q, k, v, None, causal=True)


def attention(
    q: Float[Tensor, "b t h e"],
    k: Float[Tensor, "b s g e"],
    v: Float[Tensor, "b s g e"],
    position: Int[Tensor, "b t"],
    key_position: Int[Tensor, "b s"],
    *,
    window: int | None = None,
    prefix: int = 0,
    fresh: int = 0,
) -> Float[Tensor, "b t h e"]:
    """Attention among positions: a query at p sees the keys at p - window + 1 ... p, and the first `prefix` keys always.

    The last `fresh` keys are the queries' own (0 or t); with a window they let each block of queries read only the keys
    near it, so that the cost is linear in t. Memory for the masks is bounded by the block.
    """
    t, past = q.shape[1], k.shape[1] - fresh
    block = t if window is None else max(window, QUERY_BLOCK)
    block = min(block, MASK_ELEMENTS // k.shape[1] + 1)
    out = []
    for i in range(0, t, block):
        j = min(i + block, t)
        seen = slice(past + j if fresh else None)
        k_, v_, at = k[:, seen], v[:, seen], key_position[:, seen]
        if fresh and window is not None:
            before, near = slice(past if i < window - 1 else prefix), slice(past + max(0, i - window + 1), past + j)
            k_, v_, at = (torch.cat([x[:, before], x[:, near]], 1) for x in (k, v, key_position))
        to = position[:, i:j, None]
        mask = at[:, None] <= to if window is None else (at[:, None] <= to) & (at[:, None] > to - window)
        mask[..., :prefix] = True
        out.append(_softmax_attention(q[:, i:j], k_, v_, mask))
    return out[0] if len(out) == 1 else torch.cat(out, 1)


def read_all(q: Float[Tensor, "b 1 h e"], k: Float[Tensor, "b s g e"], v: Float[Tensor, "b s g e"]) -> Float[Tensor, "b 1 h e"]:
    """One query that sees every key."""
    return _softmax_attention(q, k, v, None)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    b, t, h, e = q.shape
    g = k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    mask = None if mask is None else mask[:, None]
    if t == 1 and h != g:  # the queries of one group become queries of one head, so that a long cache is not copied
        y = F.scaled_dot_product_attention(q.reshape(b, g, h // g, e), k, v, attn_mask=mask)
        return y.reshape(b, h, 1, e).transpose(1, 2)
    if h != g:
        k, v = k.repeat_interleave(h // g, 1), v.repeat_interleave(h // g, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and t > 1).transpose(1, 2)


def read_whole(
    q: Float[Tensor, "b t h e"], k: Float[Tensor, "b s h e"], v: Float[Tensor, "b s h e"], mask: Bool[Tensor, "b2 t s"] | None
) -> Float[Tensor, "b t h e"]:
    """softmax(q k^T / sqrt(e)) v over the keys that the mask lets be seen, all without one."""
    q, k, v = (m.transpose(1, 2) for m in (q, k, v))
    if mask is None and 0 < k.shape[2] <= SHORT and _taught_short(q, k, v):
        return _Short.apply(q, k, v).transpose(1, 2)  # type: ignore[no-any-return]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None]).transpose(1, 2)


def _taught_short(*given: Tensor) -> bool:
    """Whether a gradient is wanted, in bf16 on a CPU that multiplies it, and of first order."""
    return (
        torch.is_grad_enabled()
        and any(m.requires_grad for m in given)
        and _cpu.MULTIPLIES_BF16
        and all(m.dtype == torch.bfloat16 and m.device.type == "cpu" for m in given)
        and not torch.compiler.is_compiling()
        and not _cpu.transformed()
    )


class _Short(torch.autograd.Function):
    """Attention by products over [b, h, t, e]: scores and their softmax in fp32, shares of bf16 kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, *qkv: Tensor) -> Tensor:
        ctx.rows = qkv[0].shape[:2]
        q, k, v = (m.flatten(0, 1) for m in qkv)
        ctx.scale = q.shape[-1] ** -0.5
        shares = (torch.bmm(q.float(), k.float().transpose(1, 2)) * ctx.scale).softmax(-1).to(q.dtype)
        ctx.save_for_backward(q, k, v, shares)
        return torch.bmm(shares, v).unflatten(0, ctx.rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, shares = ctx.saved_tensors
        dy, wide = grad_outputs[0].flatten(0, 1), shares.float()
        dshares = torch.bmm(dy, v.transpose(1, 2)).float()
        dscores = (wide * (dshares - (wide * dshares).sum(-1, keepdim=True)) * ctx.scale).to(q.dtype)
        gradients = torch.bmm(dscores, k), torch.bmm(dscores.transpose(1, 2), q), torch.bmm(shares.transpose(1, 2), dy)
        return tuple(m.unflatten(0, ctx.rows) for m in gradients)


def grown(cache: Float[Tensor, "b g s e"], length: int) -> Float[Tensor, "b g s2 e"]:
    """The cache with room for `length` slots."""
    b, g, slots, e = cache.shape
    room = -(-length // BLOCK) * BLOCK
    return cache if room <= slots else torch.cat([cache, cache.new_zeros(b, g, room - slots, e)], 2)


def written(cache: Tensor, new: Tensor, slot: Tensor, aligned: bool) -> Tensor:
    """Write new [b, t, g, e] at slot [b, t]: in place, since a state belongs to the call, unless autograd needs the old one."""
    if torch.is_grad_enabled():
        cache = cache.clone()
    by_slot = cache.transpose(1, 2)
    if aligned:
        start = int(slot[0, 0])
        by_slot[:, start : start + new.shape[1]] = new
    else:
        by_slot[torch.arange(len(cache), device=cache.device)[:, None], slot] = new
    return cache


def gathered(x: Tensor, source: Tensor, held: Tensor) -> Tensor:
    """A cache [b, g, s, e] of the rows' tokens x [b, t, g, e] at source [b, s], with zeros where nothing is held."""
    if not source.shape[1]:
        return x[:, :0].transpose(1, 2)
    taken = x[torch.arange(len(x), device=x.device)[:, None], source]
    return taken.masked_fill(~held[..., None, None], 0).transpose(1, 2)


def ring_positions(seen: Tensor, w: int) -> Tensor:
    """The position in each slot of a ring that holds the last w of `seen` tokens; HIDDEN where there is none yet."""
    last = seen[:, None] - 1
    position = last - (last - torch.arange(w, device=seen.device)) % w
    return torch.where((position >= 0) & (last >= 0), position, HIDDEN)
