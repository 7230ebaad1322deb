"""Published models by their shapes: parameters, and what a token of a batch touches, by formula. Nothing is loaded.

Shapes are those of each model's `config.json` on the hub; `tests/test_published.py` holds the counts against the published ones.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable


@runtime_checkable
class Mixing(Protocol):
    """What stands between tokens, in one layer of width `dim`."""

    def parameters(self, dim: int) -> int: ...

    def cached(self) -> int:
        """Numbers that are kept for each token read."""
        ...

    def kept(self, dim: int) -> int:
        """Numbers that are kept whatever was read."""
        ...

    def flops(self, length: int) -> int:
        """Operations of a token after `length` others, beside those of its matrices."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grouped:
    """Grouped-query attention (arXiv 2305.13245)."""

    heads: int
    kv_heads: int
    head_dim: int
    biases: int = 0
    """Of all projections."""
    norms: int = 0
    """Of queries and keys, and sinks."""

    def parameters(self, dim: int) -> int:
        return 2 * dim * self.head_dim * (self.heads + self.kv_heads) + self.biases + self.norms

    def cached(self) -> int:
        return 2 * self.kv_heads * self.head_dim

    def kept(self, dim: int) -> int:
        return 0

    def flops(self, length: int) -> int:
        return 4 * self.heads * self.head_dim * length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): the latent of keys and values is kept, and a rotary key."""

    heads: int
    q_rank: int | None
    kv_rank: int
    plain: int
    rotary: int
    value: int

    def parameters(self, dim: int) -> int:
        asked = self.heads * (self.plain + self.rotary)
        queries = dim * asked if self.q_rank is None else self.q_rank * (dim + asked) + self.q_rank
        keys = dim * (self.kv_rank + self.rotary) + self.kv_rank + self.kv_rank * self.heads * (self.plain + self.value)
        return queries + keys + self.heads * self.value * dim

    def cached(self) -> int:
        return self.kv_rank + self.rotary

    def kept(self, dim: int) -> int:
        return 0

    def flops(self, length: int) -> int:
        return 2 * self.heads * (2 * self.kv_rank + self.rotary) * length


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateSpace:
    """Mamba-1 (arXiv 2312.00752), which has no network beside it."""

    state: int = 16
    expand: int = 2
    conv: int = 4
    rank: int

    def parameters(self, dim: int) -> int:
        c = self.expand * dim
        return (
            2 * dim * c
            + c * (self.conv + 1)
            + c * (self.rank + 2 * self.state)
            + c * (self.rank + 1)
            + c * (self.state + 1)
            + c * dim
        )

    def cached(self) -> int:
        return 0

    def kept(self, dim: int) -> int:
        return self.expand * dim * (self.state + self.conv - 1)

    def flops(self, length: int) -> int:
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """A layer's experts: `hidden` wide each, with three matrices; a network `shared` wide for all; `rest`: its gate, corrections."""

    count: int
    top: int
    hidden: int
    shared: int = 0
    rest: int = 0
    biases: bool = False

    def one(self, dim: int) -> int:
        """Parameters of one expert."""
        return 3 * dim * self.hidden + (2 * self.hidden + dim if self.biases else 0)

    def common(self, dim: int) -> int:
        """Parameters that every token uses: the router and the shared network."""
        return self.count * (dim + self.biases) + 3 * dim * self.shared + self.rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A language model: `dense` layers with a network `hidden` wide come first, layers of experts follow."""

    dim: int
    depth: int
    vocab: int
    mixing: Mixing
    hidden: int = 0
    experts: Experts | None = None
    dense: int = 0
    tied: bool = False
    norms: int = 2
    """Of width `dim`, in a layer."""

    @property
    def parameters(self) -> int:
        """All of them."""
        return self._used(1 if self.experts is None else self.experts.count) + self.vocab * self.dim

    @property
    def active_parameters(self) -> int:
        """Those that one token uses, with the whole embedding."""
        return self._used(1 if self.experts is None else self.experts.top) + self.vocab * self.dim

    def touched(self, batch: int) -> int:
        """Weights that a step of one token in each of `batch` rows reads, if tokens choose experts evenly and apart:
        1 - (1 - k/E)^batch of the experts. Without an untied embedding, of which a row a token is read."""
        e = self.experts
        used = 1 if e is None else e.count * (1 - (1 - e.top / e.count) ** batch)
        return self._used(used) + (self.vocab * self.dim if self.tied else 0)

    def flops(self, length: int) -> int:
        """Operations of one token after `length` others: two for each weight that it uses, and attention's."""
        weights = self._used(1 if self.experts is None else self.experts.top) + (self.vocab * self.dim if self.tied else 0)
        return 2 * weights + self.depth * self.mixing.flops(length)

    def state_numbers(self, length: int) -> int:
        """Numbers of one row's state after `length` tokens."""
        return self.depth * (self.mixing.cached() * length + self.mixing.kept(self.dim))

    def _used(self, experts: int | float) -> int:
        """Parameters with so many of each layer's experts, without the embedding (with an untied head)."""
        sparse = 0 if self.experts is None else self.depth - self.dense
        own = self.depth * (self.mixing.parameters(self.dim) + self.norms * self.dim) + self.dim
        own += (self.depth - sparse) * 3 * self.dim * self.hidden
        own += 0 if self.tied else self.vocab * self.dim
        if self.experts is None:
            return own
        return own + round(sparse * (self.experts.common(self.dim) + experts * self.experts.one(self.dim)))


def _gqa(heads: int, kv_heads: int, head_dim: int, **more: int) -> Grouped:
    return Grouped(heads=heads, kv_heads=kv_heads, head_dim=head_dim, **more)


def _gpt_oss(depth: int, experts: int) -> Published:
    mixing = _gqa(64, 8, 64, biases=64 * 64 + 2 * 8 * 64 + 2880, norms=64)
    of = Experts(count=experts, top=4, hidden=2880, biases=True)
    return Published(dim=2880, depth=depth, vocab=201088, mixing=mixing, experts=of)


def _deepseek(heads: int, q_rank: int | None) -> Latent:
    return Latent(heads=heads, q_rank=q_rank, kv_rank=512, plain=128, rotary=64, value=128)


PUBLISHED: Mapping[str, Published] = {
    "llama-2-7b": Published(dim=4096, depth=32, vocab=32000, mixing=_gqa(32, 32, 128), hidden=11008),
    "llama-2-70b": Published(dim=8192, depth=80, vocab=32000, mixing=_gqa(64, 8, 128), hidden=28672),
    "llama-3-8b": Published(dim=4096, depth=32, vocab=128256, mixing=_gqa(32, 8, 128), hidden=14336),
    "llama-3-70b": Published(dim=8192, depth=80, vocab=128256, mixing=_gqa(64, 8, 128), hidden=28672),
    "mamba-2.8b": Published(dim=2560, depth=64, vocab=50280, mixing=StateSpace(rank=160), tied=True, norms=1),
    "mixtral-8x7b": Published(
        dim=4096, depth=32, vocab=32000, mixing=_gqa(32, 8, 128), experts=Experts(count=8, top=2, hidden=14336)
    ),
    "mixtral-8x22b": Published(
        dim=6144, depth=56, vocab=32768, mixing=_gqa(48, 8, 128), experts=Experts(count=8, top=2, hidden=16384)
    ),
    "qwen1.5-moe-a2.7b": Published(
        dim=2048,
        depth=24,
        vocab=151936,
        mixing=_gqa(16, 16, 128, biases=3 * 2048),
        experts=Experts(count=60, top=4, hidden=1408, shared=5632, rest=2048),
    ),
    "qwen2-57b-a14b": Published(
        dim=3584,
        depth=28,
        vocab=151936,
        mixing=_gqa(28, 4, 128, biases=3584 + 2 * 512),
        experts=Experts(count=64, top=8, hidden=2560, shared=20480, rest=3584),
    ),
    "qwen3-30b-a3b": Published(
        dim=2048, depth=48, vocab=151936, mixing=_gqa(32, 4, 128, norms=256), experts=Experts(count=128, top=8, hidden=768)
    ),
    "qwen3-235b-a22b": Published(
        dim=4096, depth=94, vocab=151936, mixing=_gqa(64, 4, 128, norms=256), experts=Experts(count=128, top=8, hidden=1536)
    ),
    "olmoe-1b-7b": Published(
        dim=2048, depth=16, vocab=50304, mixing=_gqa(16, 16, 128, norms=4096), experts=Experts(count=64, top=8, hidden=1024)
    ),
    "deepseek-v2-lite": Published(
        dim=2048,
        depth=27,
        vocab=102400,
        mixing=_deepseek(16, None),
        hidden=10944,
        experts=Experts(count=64, top=6, hidden=1408, shared=2 * 1408),
        dense=1,
    ),
    "deepseek-v3": Published(
        dim=7168,
        depth=61,
        vocab=129280,
        mixing=_deepseek(128, 1536),
        hidden=18432,
        experts=Experts(count=256, top=8, hidden=2048, shared=2048, rest=256),
        dense=3,
    ),
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
}
"""Text models alone: of DeepSeek-V3 without the module that predicts further tokens."""
