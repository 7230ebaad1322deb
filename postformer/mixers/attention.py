"""Causal softmax attention with grouped queries and rotary positions.

Vaswani et al. 2017 (arXiv 1706.03762, section 3.2); grouped queries: Ainslie et al. 2023 (arXiv 2305.13245); rotary
positions: Su et al. 2021 (arXiv 2104.09864); sliding window: Beltagy et al. 2020 (arXiv 2004.05150); query/key norm: Dehghani et al. 2023
(arXiv 2302.05442); persistent tokens: Behrouz et al. 2024 (arXiv 2501.00663, eq. 19); convolution of queries, keys and values: So et al.
2021 (arXiv 2109.08668, Primer's multi-DConv-head attention); norm over all heads at once: Muennighoff et al. 2024 (arXiv 2409.02060,
OLMoE); biases: Qwen team 2024 (arXiv 2407.10671). With the defaults it is Llama's attention.

b batch, t new tokens, h query heads, g key/value heads, e head width, s slots of the cache, c channels of the convolution.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from postformer.ops.attention import (
    BLOCK,
    HIDDEN,
    attention,
    causal_attention,
    gathered,
    grown,
    read_all,
    ring_positions,
    rotate,
    written,
)
from postformer.ops.block_parts import AttentionPart
from postformer.ops.block_step import BlockSteps
from postformer.ops.conv import causal_conv
from postformer.ops.layers import Linear, RMSNorm, bare, checked_eps, head_width, unaltered, watched
from postformer.ops.packing import WHOLE, Packing

LARGEST_WINDOW = 1 << 20
APART = 1 << 40
"""Documents in one row are set this far apart, further than any window reaches."""


class AttentionState(NamedTuple):
    """Keys (rotated) and values: slot j holds position j; the convolution's last inputs [b, past, c], if there is one."""

    k: Float[Tensor, "b g s e"]
    v: Float[Tensor, "b g s e"]
    seen: Int[Tensor, " b"]
    conv: tuple[Tensor, ...] = ()
    grows = (("k", 2), ("v", 2))

    def with_room(self) -> "AttentionState":
        """With a slot for one more token at least."""
        length = int(self.seen.max()) + 1
        return self._replace(k=grown(self.k, length), v=grown(self.v, length))


class RingState(NamedTuple):
    """With a window of w slots: slot j holds the last position p with p mod w = j."""

    k: Float[Tensor, "b g w e"]
    v: Float[Tensor, "b g w e"]
    seen: Int[Tensor, " b"]
    conv: tuple[Tensor, ...] = ()

    def with_room(self) -> "RingState":
        """As it is: there is a slot for every token."""
        return self


class Attention(nn.Module):
    """`kv_heads` divides `heads`; `window` bounds what is seen and the state; `persistent` learned tokens are seen by all; with `conv` taps
    each channel of queries, keys and values is convolved over the last tokens, first by what leaves it as it is. `qk_norm` normalises
    queries and keys of each head, or "whole" those of all heads at once, with `norm_eps`; `bias` gives both and the values biases."""

    Steps = BlockSteps

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        window: int | None = None,
        persistent: int = 0,
        conv: int = 0,
        qk_norm: bool | Literal["whole"] = False,
        norm_eps: float = 1e-5,
        bias: bool = False,
        rope_base: float = 1e4,
    ):
        super().__init__()
        self.heads, self.groups = heads, kv_heads or heads
        self.width = head_width(dim, heads, kv_heads, head_dim)
        if self.width < 2 or self.width % 2:
            raise ValueError(f"the head width must be even for rotary positions; it is {self.width}")
        if (window is not None and not 1 <= window <= LARGEST_WINDOW) or persistent < 0:
            raise ValueError(f"window={window} must be 1 to {LARGEST_WINDOW} and persistent={persistent} at least 0")
        if conv < 0:
            raise ValueError(f"conv={conv} must be at least 0")
        if rope_base <= 0:
            raise ValueError(f"rope_base={rope_base} must be above 0")
        self.dim, self.window, self.persistent, self.rope_base = dim, window, persistent, rope_base
        self.q = Linear(dim, heads * self.width, bias=bias)
        self.k = Linear(dim, self.groups * self.width, bias=bias)
        self.v = Linear(dim, self.groups * self.width, bias=bias)
        self.out = Linear(heads * self.width, dim, bias=False)
        self.whole = qk_norm == "whole"
        norm_eps = checked_eps(norm_eps)
        q_width, k_width = (self.width * (count if self.whole else 1) for count in (heads, self.groups))
        self.q_norm = RMSNorm(q_width, norm_eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(k_width, norm_eps) if qk_norm else nn.Identity()
        self.prefix = nn.Parameter(torch.randn(persistent, dim) * 0.02) if persistent else None
        self.conv_weight = None
        if conv:
            self.conv_weight = nn.Parameter(torch.eye(conv)[-1].repeat((heads + 2 * self.groups) * self.width, 1))

    def init_state(self, batch: int) -> AttentionState | RingState:
        """An empty cache, or a ring of `window` slots."""
        like = {"device": self.out.weight.device, "dtype": self.out.weight.dtype}
        k, v = (torch.zeros(batch, self.groups, self.window or 0, self.width, **like) for _ in "kv")
        kind = RingState if self.window else AttentionState
        return kind(k, v, torch.zeros(batch, dtype=torch.long, device=like["device"]), self.init_past(batch))

    def forward(
        self, x: Float[Tensor, "b t d"], state: AttentionState | RingState | None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], AttentionState | RingState | None]:
        """Attend over the state and the new tokens; returns the output and the state after them."""
        b, t, _ = x.shape
        if not b * t:
            return x, state
        held = state if state is not None else self.init_state(b)
        q, k, v, past = self.project(x, held.conv, packing)
        position = packing.positions(held.seen, t)
        q, k = rotate(torch.cat([q, k], 2), position, self.rope_base).split([self.heads, self.groups], 2)
        if not packing.whole:
            y, after = self._read_packed(q, k, v, position, held, packing)
            return self.out(y.flatten(2)), None if state is None else after._replace(conv=past)
        if state is None:
            return self.out(self._fresh(q, k, v, position).flatten(2)), None
        read = self._read_cache if self.window is None else self._read_ring
        y, keys, values = read(q, k, v, position, state)
        return self.out(y.flatten(2)), type(state)(keys, values, state.seen + t, past)

    def init_past(self, batch: int, queries: bool = True) -> tuple[Tensor, ...]:
        """The convolution's inputs [b, past, c] before the first token, for `project`: zeros."""
        if self.conv_weight is None:
            return ()
        channels, taps = self.conv_weight[self._first(queries) :].shape
        return (self.conv_weight.new_zeros(batch, taps - 1, channels),)

    def project(
        self, x: Float[Tensor, "b t d"], past: tuple[Tensor, ...], packing: Packing = WHOLE, queries: bool = True
    ) -> tuple[Float[Tensor, "b t h e"], Float[Tensor, "b t g e"], Float[Tensor, "b t g e"], tuple[Tensor, ...]]:
        """The tokens' queries (none without `queries`) and keys, to be rotated, their values, and the convolution's past after them."""
        parts = [m(x) for m in ((self.q, self.k, self.v) if queries else (self.k, self.v))]
        if self.conv_weight is not None:
            weight = self.conv_weight[self._first(queries) :]
            mixed, last = causal_conv(torch.cat(parts, -1), weight, None, past[0], packing.starts, packing.lengths)
            parts, past = list(mixed.split([m.shape[-1] for m in parts], -1)), (last,)
        q, k, v = (m.unflatten(-1, (-1, self.width)) for m in (parts if queries else [x[..., :0], *parts]))
        return self._normed(q, self.q_norm) if queries else q, self._normed(k, self.k_norm), v, past

    def _normed(self, x: Float[Tensor, "*b n e"], norm: nn.Module) -> Float[Tensor, "*b n e"]:
        """Queries or keys, each head by itself or all at once."""
        return norm(x.flatten(-2)).view_as(x) if self.whole else norm(x)

    def _first(self, queries: bool) -> int:
        """The first channel of the convolution that is used."""
        return 0 if queries else self.heads * self.width

    def step_part(self, norm: RMSNorm) -> AttentionPart | None:
        """What the kernel of one token reads; None for forms that it has not, and where a part was wrapped or is watched."""
        norms = self.q_norm, self.k_norm
        plain = unaltered(self, Attention) and self.conv_weight is None and self.prefix is None
        alike = all(unaltered(m, RMSNorm) for m in norms) or all(type(m) is nn.Identity for m in norms)
        if not plain or not alike or watched(*norms) or not bare(self.q, self.k, self.v, self.out) or self.out.bias is not None:
            return None
        eps, k_eps = (getattr(m, "eps", 0.0) for m in norms)
        if eps != k_eps:
            return None
        return AttentionPart(
            norm.weight,
            q=self.q.weight,
            k=self.k.weight,
            v=self.v.weight,
            out=self.out.weight,
            q_bias=self.q.bias,
            k_bias=self.k.bias,
            v_bias=self.v.bias,
            q_norm=getattr(self.q_norm, "weight", None),
            k_norm=getattr(self.k_norm, "weight", None),
            eps=norm.eps,
            head_eps=eps,
            base=self.rope_base,
            heads=self.heads,
            groups=self.groups,
            width=self.width,
            window=self.window or 0,
            whole=self.whole,
        )

    def rotated(self, x: Float[Tensor, "b t n e"], position: Int[Tensor, "b t"]) -> Float[Tensor, "b t n e"]:
        """Queries or keys at their positions."""
        return rotate(x, position, self.rope_base)

    def _fresh(self, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        if self.prefix is None and (self.window is None or k.shape[1] <= self.window):
            return causal_attention(q, k, v)
        return self.attend(q, k, v, position, position, fresh=k.shape[1])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, position: Tensor, key_position: Tensor, fresh: int = 0, window: int | None = None
    ) -> Float[Tensor, "b t h e"]:
        """What the queries read from the persistent tokens and the keys that they see; see `postformer.ops.attention`."""
        if self.prefix is not None:
            b = k.shape[0]
            x = self.prefix.to(k.dtype)
            pk, pv = self._normed(self.k(x).view(-1, *k.shape[2:]), self.k_norm), self.v(x).view(-1, *v.shape[2:])
            k, v = torch.cat([pk.expand(b, *pk.shape), k], 1), torch.cat([pv.expand(b, *pv.shape), v], 1)
            key_position = torch.cat([key_position.new_zeros(b, self.persistent), key_position], 1)
        window = window or self.window
        return attention(q, k, v, position, key_position, window=window, prefix=self.persistent, fresh=fresh)

    def _read_cache(
        self, q: Tensor, k: Tensor, v: Tensor, position: Tensor, state: AttentionState | RingState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Write the new keys at their positions, then read."""
        t = k.shape[1]
        least, most = (int(n) for n in state.seen.aminmax())
        aligned = least == most
        keys = written(grown(state.k.to(k.dtype), most + t), k, position, aligned)
        values = written(grown(state.v.to(v.dtype), most + t), v, position, aligned)
        if most == 0:
            return self._fresh(q, k, v, position), keys, values
        k, v = keys.transpose(1, 2)[:, : most + t], values.transpose(1, 2)[:, : most + t]
        if t == 1 and aligned and self.prefix is None:
            return read_all(q, k, v), keys, values
        slots = torch.arange(most + t, device=k.device).expand(len(k), -1)
        return self.attend(q, k, v, position, slots), keys, values

    def _read_ring(
        self, q: Tensor, k: Tensor, v: Tensor, position: Tensor, state: AttentionState | RingState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token is written first and reads the ring; more tokens read the old ring and themselves, then are written."""
        w, t = state.k.shape[2], k.shape[1]
        slot = position[:, -w:] % w
        old_k, old_v = state.k.to(k.dtype), state.v.to(v.dtype)
        if t == 1:
            keys, values = written(old_k, k, slot, False), written(old_v, v, slot, False)
            ring = ring_positions(state.seen + 1, w)
            return self.attend(q, keys.transpose(1, 2), values.transpose(1, 2), position, ring), keys, values
        both_k, both_v = torch.cat([old_k.transpose(1, 2), k], 1), torch.cat([old_v.transpose(1, 2), v], 1)
        key_position = torch.cat([ring_positions(state.seen, w), position], 1)
        y = self.attend(q, both_k, both_v, position, key_position, fresh=t)
        return y, written(old_k, k[:, -w:], slot, False), written(old_v, v[:, -w:], slot, False)

    def _read_packed(
        self, q: Tensor, k: Tensor, v: Tensor, position: Tensor, state: AttentionState | RingState, packing: Packing
    ) -> tuple[Tensor, AttentionState | RingState]:
        """Read the state and the new keys, each query those of its document; then keep the last documents' real tokens."""
        t = k.shape[1]
        most = state.k.shape[2] if self.window else int(state.seen.max())
        old_k, old_v = (c[:, :, :most].to(k.dtype).transpose(1, 2) for c in (state.k, state.v))
        slots = torch.arange(most, device=k.device).expand(len(k), -1)
        old = ring_positions(state.seen, most) if self.window else torch.where(slots < state.seen[:, None], slots, HIDDEN)
        document = packing.documents(t)
        both_k, both_v = torch.cat([old_k, k], 1), torch.cat([old_v, v], 1)
        apart = position + document * APART, torch.cat([old, position + document * APART], 1)
        y = self.attend(q, both_k, both_v, *apart, fresh=t, window=self.window or APART // 2)

        first = packing.last(position - torch.arange(t, device=k.device), state.seen)  # the position that the row's token 0 has
        seen = packing.last(position + 1, state.seen)
        room = most if self.window else -(-max(int(seen.max()), state.k.shape[2]) // BLOCK) * BLOCK
        held = torch.arange(room, device=k.device).expand(len(k), -1)
        held = ring_positions(seen, room) if self.window else torch.where(held < seen[:, None], held, HIDDEN)
        source = torch.where(held - first[:, None] >= 0, held - first[:, None] + most, held % max(room, 1))
        source = source.masked_fill(held == HIDDEN, 0)
        keys, values = (gathered(m, source, held != HIDDEN) for m in (both_k, both_v))
        return y, type(state)(keys, values, seen)

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of `length` new tokens after `past` others (a multiply-add is two)."""
        inner = self.heads * self.width
        pairs = self._pairs(past + length) - self._pairs(past)
        projections = 2 * self.dim * (2 * inner + 2 * self.groups * self.width) + self.conv_flops()
        return length * projections + 4 * inner * (pairs + length * self.persistent)

    def conv_flops(self, queries: bool = True) -> int:
        """Floating-point operations of a token's convolution."""
        return 0 if self.conv_weight is None else 2 * self.conv_weight[self._first(queries) :].numel()

    def conv_bytes(self, itemsize: int = 4, queries: bool = True) -> int:
        """Bytes of one row's past of the convolution."""
        return 0 if self.conv_weight is None else self.conv_weight[self._first(queries) :, 1:].numel() * itemsize

    def _pairs(self, n: int) -> int:
        """Pairs of a query and a key that it sees, over the first n tokens."""
        w = n if self.window is None else min(n, self.window)
        return w * (w + 1) // 2 + (n - w) * w

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """Bytes of one row's state after `length` tokens."""
        slots = self.window if self.window is not None else -(-length // BLOCK) * BLOCK
        return 2 * slots * self.groups * self.width * itemsize + self.conv_bytes(itemsize) + 8
