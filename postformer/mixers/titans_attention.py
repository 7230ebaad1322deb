"""Titans' three ways of joining a memory with attention: as context (MAC), as gate (MAG), as layer (MAL).

Behrouz et al. 2024 (arXiv 2501.00663), section 4, equations 21 to 31; P are the persistent tokens, M the memory.

    MAC, of each segment S   h = M_{t-1}(q(S))    y = Attn(P || h || S)    M_t learns y    o = y (x) M_t(y)
    the same with `residual`                      y = S + Attn(P || h || S)
    MAG                      y = SWA(P || x)      o = y (x) M(P || x)
    MAL                      y = M(P || x)        o = SWA(y)

What the paper leaves open is an option here; docs/titans.md gives the reasons for the defaults.

b batch, t time, d model width, h query heads, g key/value heads, e head width, s tokens of a segment, n tokens of a piece.
"""

import itertools
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from postformer import mixers
from postformer.config import ConfigError, Spec, amended, build
from postformer.ops.layers import Linear, RMSNorm, checked_word
from postformer.ops.packing import WHOLE, Packing

MEMORY: Spec = {"kind": "lmm"}
ATTENTION: Spec = {"kind": "attention"}
WINDOWED: Spec = {"kind": "attention", "window": 128}
Gate = Literal["memory", "both", "product"]
GATES = {
    "memory": lambda y, m: y * m.sigmoid(),
    "both": lambda y, m: y.sigmoid() * m.sigmoid(),
    "product": lambda y, m: (y * m).sigmoid(),
}
"""Readings of y (x) m, "normalised with learnable vectors, followed by a non-linearity"."""


class JoinedState(NamedTuple):
    """The states of both parts."""

    memory: Any
    attention: Any


class MACState(NamedTuple):
    """The memory of what attention answered; what is recalled from, the weights with which the segment began; and of each of the
    segment's tokens so far the keys (rotated) and values of what was recalled, and of itself: slot j holds the segment's token j. With a
    convolution in attention its last inputs, of what was recalled and of the tokens."""

    memory: Any
    recall: Any
    k: Float[Tensor, "b s 2 g e"]
    v: Float[Tensor, "b s 2 g e"]
    recalled: tuple[Tensor, ...] = ()
    conv: tuple[Tensor, ...] = ()


class MAC(nn.Module):
    """Memory as context: attention inside a segment of `segment` tokens also sees what the memory, as it was when the segment began,
    answers to each token; the memory then learns what attention answered, with `residual` added to the token, and gates it. `persistent`
    tokens are attention's. `memory` must be one that can be recalled from."""

    def __init__(
        self,
        dim: int,
        *,
        memory: Spec = MEMORY,
        attention: Spec = ATTENTION,
        segment: int = 128,
        persistent: int = 0,
        gate: Gate = "memory",
        residual: bool = False,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        if segment < 1:
            raise ValueError(f"segment={segment} must be at least 1")
        self.segment, self.gate, self.residual = segment, GATES[checked_word("gate", gate, Gate)], residual
        self.memory = _part("memory", memory, MEMORY, dim)
        self.attention = _part("attention", attention, ATTENTION, dim, persistent)
        if not hasattr(self.memory, "recall"):
            raise ConfigError(".memory: mac needs a memory that can be recalled from; choose lmm")
        if self.memory.rule.at_ends:
            raise ConfigError(
                ".memory: mac needs a memory that writes tokens; write='chunks' would be recalled from a chunk late"
            )
        if getattr(self.attention, "window", 0) is not None:
            raise ConfigError(".attention: mac needs attention without a window; it has segments")
        self.norm, self.memory_norm = RMSNorm(dim, norm_eps), RMSNorm(dim, norm_eps)
        self.out = Linear(dim, dim, bias=False)

    def init_state(self, batch: int) -> MACState:
        """Zeros: nothing was read."""
        a = self.attention
        k, v = (a.out.weight.new_zeros(batch, self.segment, 2, a.groups, a.width) for _ in "kv")
        pasts = a.init_past(batch, queries=False), a.init_past(batch)
        return MACState(self.memory.init_state(batch), self.memory.init_recall(batch), k, v, *pasts)

    def forward(
        self, x: Float[Tensor, "b t d"], state: MACState | None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], MACState | None]:
        """Continue from the state over the new tokens; returns the output and the state after them."""
        b, t, _ = x.shape
        if not b * t:
            return x, state
        held = state if state is not None else self.init_state(b)
        place = packing.positions(held.memory.seen, t) % self.segment
        real = packing.real(t)
        begins = place == 0 if real is None else (place == 0) & real
        cuts = begins.any(0)
        cuts[0] = True
        out = []
        for i, j in itertools.pairwise([*cuts.nonzero()[:, 0].tolist(), t]):
            y, held = self._read(x[:, i:j], held, place[:, i], begins[:, i], packing.between(i, j))
            out.append(y)
        return self.out(torch.cat(out, 1)), None if state is None else held

    def _read(
        self, x: Float[Tensor, "b n d"], held: MACState, place: Int[Tensor, " b"], begins: Bool[Tensor, " b"], packing: Packing
    ) -> tuple[Float[Tensor, "b n d"], MACState]:
        """A piece with which a segment begins in the rows `begins`, and in none later. `place`: of the first token in its segment."""
        recall = held.recall
        if bool(begins.any()):
            found = self.memory.standing(held.memory, None if packing.starts is None else packing.starts[:, 0], x.dtype)
            found = tuple(torch.where(begins[:, None, None, None], a, w) for a, w in zip(found, recall.weights, strict=True))
            recall = recall._replace(weights=found)
        h, recall = self.memory.recall(x, recall, packing)
        y, held = self._attend(x, h, held, place, packing)
        y = self.norm(x + y if self.residual else y)
        m, memory = self.memory(y, held.memory, packing)
        return self.gate(y, self.memory_norm(m)), held._replace(memory=memory, recall=recall)

    def _attend(
        self, x: Float[Tensor, "b n d"], h: Float[Tensor, "b n d"], held: MACState, place: Int[Tensor, " b"], packing: Packing
    ) -> tuple[Float[Tensor, "b n d"], MACState]:
        """Attention's answers, and the state with the segment's keys and values. A token shares its position with what it recalled."""
        a, now = self.attention, place[:, None] + torch.arange(x.shape[1], device=x.device)
        q, k, v, conv = a.project(x, held.conv, packing)
        _, found_k, found_v, recalled = a.project(h, held.recalled, packing, queries=False)
        keys = a.rotated(torch.cat((found_k, k), 2), now).unflatten(2, (2, -1))
        values = torch.stack((found_v, v), 2)
        k, v = (_kept(old.to(m.dtype), m, place, packing) for old, m in ((held.k, keys), (held.v, values)))
        most = min(int(place.max()) + x.shape[1], self.segment)
        slots = torch.arange(most, device=x.device).repeat_interleave(2).expand(len(x), -1)
        y = a.attend(a.rotated(q, now), k[:, :most].flatten(1, 2), v[:, :most].flatten(1, 2), now, slots)
        return a.out(y.flatten(2)), held._replace(k=k, v=v, recalled=recalled, conv=conv)

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of `length` new tokens after `past` others (a multiply-add is two): the memory's two readings and its
        update, queries, keys and values of a token and of what it recalled, pairs inside of segments, and the projection."""
        a, dim = self.attention, self.out.in_features
        inner = a.heads * a.width
        projections = 2 * dim * (2 * inner + 4 * a.groups * a.width + dim) + a.conv_flops() + a.conv_flops(queries=False)
        keys = 2 * (self._pairs(past + length) - self._pairs(past)) + length * a.persistent
        return self.memory.flops(length, past) + self.memory.recall_flops(length) + length * projections + 4 * inner * keys

    def _pairs(self, n: int) -> int:
        """Pairs of a token and one at or before it in its segment, over the first n tokens."""
        whole, rest = divmod(n, self.segment)
        return (whole * self.segment * (self.segment + 1) + rest * (rest + 1)) // 2

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """Bytes of one row's state, the same after any number of tokens."""
        a = self.attention
        kept = 4 * self.segment * a.groups * a.width * itemsize + a.conv_bytes(itemsize) + a.conv_bytes(itemsize, queries=False)
        return self.memory.state_bytes(length, itemsize) + self.memory.recall_bytes(itemsize) + kept


class _Joined(nn.Module):
    """Two mixers, `memory` and `attention`, any that the tables name. `persistent` is set in both."""

    def __init__(self, dim: int, memory: Spec, attention: Spec, persistent: int, norm_eps: float):
        super().__init__()
        self.memory = _part("memory", memory, MEMORY, dim, persistent)
        self.attention = _part("attention", attention, WINDOWED, dim, persistent)
        self.norm = RMSNorm(dim, norm_eps)

    def init_state(self, batch: int) -> JoinedState:
        """Fresh states of both parts."""
        return JoinedState(self.memory.init_state(batch), self.attention.init_state(batch))

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of `length` new tokens after `past` others."""
        return self.memory.flops(length, past) + self.attention.flops(length, past)

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """Bytes of one row's state after `length` tokens."""
        return self.memory.state_bytes(length, itemsize) + self.attention.state_bytes(length, itemsize)


class MAG(_Joined):
    """Memory as gate: both parts read the same tokens side by side."""

    def __init__(
        self,
        dim: int,
        *,
        memory: Spec = MEMORY,
        attention: Spec = WINDOWED,
        persistent: int = 0,
        gate: Gate = "memory",
        norm_eps: float = 1e-5,
    ):
        super().__init__(dim, memory, attention, persistent, norm_eps)
        self.gate, self.memory_norm = GATES[checked_word("gate", gate, Gate)], RMSNorm(dim, norm_eps)
        self.out = Linear(dim, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "b t d"], state: JoinedState | None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], JoinedState | None]:
        """Continue from the state over the new tokens; returns the output and the state after them."""
        m, memory = _read(self.memory, x, None if state is None else state.memory, packing)
        y, attention = _read(self.attention, x, None if state is None else state.attention, packing)
        y = self.out(self.gate(self.norm(y), self.memory_norm(m)))
        return y, None if state is None else JoinedState(memory, attention)

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of `length` new tokens after `past` others: both parts and the projection."""
        return super().flops(length, past) + 2 * length * self.out.weight.numel()


class MAL(_Joined):
    """Memory as layer: attention reads what the memory answers, normed."""

    def __init__(
        self, dim: int, *, memory: Spec = MEMORY, attention: Spec = WINDOWED, persistent: int = 0, norm_eps: float = 1e-5
    ):
        super().__init__(dim, memory, attention, persistent, norm_eps)

    @property
    def out(self) -> Any:
        """The layer's last matrix, if it has one."""
        return getattr(self.attention, "out", None)

    def forward(
        self, x: Float[Tensor, "b t d"], state: JoinedState | None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], JoinedState | None]:
        """Continue from the state over the new tokens; returns the output and the state after them."""
        m, memory = _read(self.memory, x, None if state is None else state.memory, packing)
        y, attention = _read(self.attention, self.norm(m), None if state is None else state.attention, packing)
        return y, None if state is None else JoinedState(memory, attention)


def _part(name: str, spec: Spec, default: Spec, dim: int, persistent: int = 0) -> Any:
    """The mixer of a spec, which errors place after the name of the whole."""
    words = {"persistent": persistent} if persistent else {}
    return build({**amended(spec, default), **words}, mixers.MIXERS, f".{name}", dim=dim)


def _read(part: Any, x: Tensor, state: Any, packing: Packing) -> tuple[Tensor, Any]:
    """A mixer of another package may know nothing of packed rows."""
    return part(x, state) if packing.whole else part(x, state, packing)


def _kept(
    old: Float[Tensor, "b s 2 g e"], new: Float[Tensor, "b n 2 g e"], place: Int[Tensor, " b"], packing: Packing
) -> Float[Tensor, "b s 2 g e"]:
    """The slots of the segment, of which a row's real tokens take those from its place on: the earlier ones stay, the later are emptied.
    A row without any keeps all."""
    (b, s), n = old.shape[:2], new.shape[1]
    first = int(place[0])
    if packing.lengths is None and bool((place == first).all()):
        return torch.cat([old[:, :first], new, torch.zeros_like(old[:, first + n :])], 1)
    slots = torch.arange(s, device=old.device)
    count = torch.full_like(place, n) if packing.lengths is None else packing.lengths
    written = slots - place[:, None]
    stays = (written < 0) | (count == 0)[:, None]
    source = torch.where(stays, slots, s + written.clamp(0, n - 1))
    found = torch.cat([old, new], 1)[torch.arange(b, device=old.device)[:, None], source]
    return found.masked_fill(~(stays | (written < count[:, None]))[..., None, None, None], 0)
