"""A model whose experts need not fit in memory: they are read from the model's file as tokens choose them, and kept under a cap.

Everything else of the model is in memory as usual, and what it computes are the same bits: the same kernel and products over the matrices
where they lie. `ExpertStore` puts itself behind every mixture of a model that was built without memory for its experts.

Experts of one shape share a pool of slots. A visit of a layer by more experts than there are slots is computed a few at a time, while the
next are read. With `ahead` the next layer's router is applied to this layer's tokens, and the experts that it names are read while this
layer computes; such a guess never takes the slot of an expert that this layer uses.
"""

import dataclasses
import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from postformer.ffn.moe import MoE
from postformer.models.eviction import LRU, Cache, Count, Keys, LeastStale, Marks, NextUse, Visit
from postformer.models.expert_file import ExpertFile, ExpertsError
from postformer.models.expert_slots import DTYPES, PARTS, Shape, Slots
from postformer.models.routing import mixtures
from postformer.ops.expert_parts import Part, by_parts

POLICIES = {"next-use": NextUse, "least-stale": LeastStale, "lru": LRU}
READERS = 2
"""Threads that read: the caller's and one behind it."""
GUESSED = 0.5
"""Of the experts that the next layer's router names, the share that is read ahead, the likeliest first: the others are wrong too often."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertMemory:
    """How the experts of a model are kept that stay in its file."""

    cap: int
    """Bytes for experts: slots and whatever else is needed to fill and use them."""
    dtype: Literal["own", "int8", "int4"] = "own"
    """int8 and int4 are rounded when they are read, so that four and seven times as many of fp32 fit."""
    ahead: bool = False
    policy: Literal["next-use", "least-stale", "lru"] = "next-use"
    drop: bool = False
    """See `ExpertFile`: for measuring."""


@dataclasses.dataclass(kw_only=True)
class Told:
    """What a store did."""

    count: Count = dataclasses.field(default_factory=Count)
    """Experts asked for, and those that were in memory or on their way."""
    read: int = 0
    read_bytes: int = 0
    guessed: int = 0
    """Of those that were read, ahead of being asked for and without knowing."""
    guessed_right: int = 0
    predicted: int = 0
    """Experts that were guessed, whether they had to be read or not."""
    predicted_right: int = 0


def expert_names(model: nn.Module) -> list[str]:
    """The names, in a model's state_dict, of what its experts hold."""
    wanted = model.state_dict()
    return [f"{name}.{part}" for name in mixtures(model) for part in PARTS if f"{name}.{part}" in wanted]


class Pool:
    """The slots of all mixtures whose experts have one shape."""

    def __init__(self, shape: Shape, memory: ExpertMemory):
        self.shape, self.memory = shape, memory
        self.mixtures: list[tuple[str, MoE]] = []
        self.slots: Slots
        self.cache: Cache
        self.begins: list[int] = []
        self.pending: dict[int, tuple[Future[None], int]] = {}
        """Keys whose slots are being filled, and these."""
        self.torn = False
        """Whether a change was begun and not ended."""

    @property
    def least(self) -> int:
        """Slots that one token needs."""
        return max(m.top for _, m in self.mixtures)

    @property
    def all(self) -> int:
        """Slots for all experts."""
        return sum(len(m.loads) for _, m in self.mixtures)

    def known(self, keys: Keys) -> Marks:
        """Which of the keys lie in a slot or are on their way."""
        return self.cache.held(keys) | np.isin(keys, list(self.pending))

    def settle(self) -> None:
        """Wait for what is being filled."""
        for future in {future for future, _ in self.pending.values()}:
            future.result()
        self.cache.filled((key, slot) for key, (_, slot) in self.pending.items())
        self.pending.clear()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Whatever fails or is interrupted in this, keys that are held lie in their slots, and slots in which none lies are free."""
        if self.torn:
            self._mend()
        self.torn = True
        try:
            yield
        except BaseException:
            self._mend()
            raise
        self.torn = False

    def _mend(self) -> None:
        futures = {future for future, _ in self.pending.values()}
        for future in futures:
            future.cancel()
        wait(futures)
        self.pending.clear()
        self.cache.forget_admitted()
        self.torn = False

    def open(self, slots: int) -> None:
        """Take the memory for so many slots, or for all experts where these are fewer."""
        counts = [len(m.loads) for _, m in self.mixtures]
        self.begins = [sum(counts[:i]) for i in range(len(counts))]
        policy = POLICIES[self.memory.policy](np.repeat(np.arange(len(counts)), counts))
        self.cache = Cache(policy, min(slots, self.all))
        with torch.inference_mode(False):  # the threads that write into them know no inference mode
            self.slots = DTYPES[self.memory.dtype](self.shape, self.cache.slots)


class ExpertStore:
    """The experts of a model, in its file and in memory.

    `told` counts what it does, `trace` the visits of each pool where it is a list. Threads take turns, a layer at a time. Raises
    ExpertsError for a file without the experts, and where the cap is below what one token needs.
    """

    def __init__(self, model: nn.Module, path: str | Path, memory: ExpertMemory):
        found = mixtures(model)
        if not found:
            raise ExpertsError(f"{path}: the model has no experts that could stay on disk")
        self.memory, self.told, self.lock = memory, Told(), threading.Lock()
        self.file = ExpertFile(path, expert_names(model), memory.drop)
        self.trace: list[Visit] | None = None
        self.pools: dict[Shape, Pool] = {}
        self.layers: list[Layer] = []
        for name, mixture in found.items():
            places = {part: self.file.places[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in self.file.places}
            shape = Shape.of(places, mixture.activation)
            pool = self.pools.setdefault(shape, Pool(shape, memory))
            pool.mixtures.append((name, mixture))
            self.layers.append(Layer(self, len(self.layers), pool, len(pool.mixtures) - 1, mixture, name))
        self._share()
        norms = [_norm_before(model, layer.name) for layer in self.layers]
        for layer, norm, after in zip(self.layers, norms, norms[1:], strict=False):
            layer.to_next = None if norm is None or after is None else after / torch.where(norm == 0, 1.0, norm)
        self.readers = ThreadPoolExecutor(READERS - 1, "experts")
        for layer in self.layers:
            layer.mixture.elsewhere = layer
        model.requires_grad_(False)
        model.elsewhere = {name: lambda name=name: self.file.pieces(name) for name in self.file.places}  # type: ignore[assignment]

    def _share(self) -> None:
        """Deal the cap to the pools: to each what one token needs, and the rest by the bytes of all their experts."""
        kind = DTYPES[self.memory.dtype]
        pools = list(self.pools.values())
        if refused := [why for pool in pools if (why := kind.refusal(pool.shape))]:
            raise ExpertsError(f"expert memory: {refused[0]}")
        size = [kind.slot_bytes(pool.shape) for pool in pools]
        fixed = sum(kind.fixed_bytes(pool.shape, READERS) for pool in pools)
        least = fixed + sum(pool.least * one for pool, one in zip(pools, size, strict=True))
        if self.memory.cap < least:
            raise ExpertsError(
                f"expert memory: {self.memory.cap:,} bytes are too few; the experts that one token needs in a layer take {least:,}"
            )
        wanted = [(pool.all - pool.least) * one for pool, one in zip(pools, size, strict=True)]
        for pool, one, want in zip(pools, size, wanted, strict=True):
            pool.open(pool.least + (self.memory.cap - least) * want // max(sum(wanted), 1) // one)
        self.nbytes = fixed + sum(pool.cache.slots * one for pool, one in zip(pools, size, strict=True))
        """Bytes that are taken for experts, whatever is read."""


class Layer:
    """A mixture's experts, as `MoE.elsewhere`."""

    def __init__(self, store: ExpertStore, index: int, pool: Pool, within: int, mixture: MoE, name: str):
        self.store, self.index, self.pool, self.within, self.mixture, self.name = store, index, pool, within, mixture, name
        self.files = {part: f"{name}.{part}" for part in PARTS}
        self.to_next: Tensor | None = None
        self.predicted = self.guessed = np.empty(0, np.int64)

    def __call__(
        self, x: Float[Tensor, "n d"], experts: Int[Tensor, "n k"], weights: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n d"]:
        """Each token through its experts. Raises RuntimeError where gradients are asked for."""
        if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad):
            raise RuntimeError("experts on disk have no gradients: load the model into memory to train it")
        with self.store.lock:
            return by_parts(x, experts, weights, self._groups(x, experts))

    @property
    def begin(self) -> int:
        """The key of the first expert."""
        return self.pool.begins[self.within]

    def _groups(self, x: Tensor, experts: Tensor) -> Iterator[Part]:
        pool, told = self.pool, self.store.told
        counts = torch.bincount(experts.reshape(-1), minlength=len(self.mixture.loads)).numpy()
        hit = counts.nonzero()[0]
        keys = hit + self.begin
        visit = Visit(self.within, keys, counts[hit], len(x))
        if self.store.trace is not None:
            self.store.trace.append(visit)
        if len(self.predicted):
            told.predicted_right += len(np.intersect1d(keys, self.predicted))
            told.guessed_right += len(np.intersect1d(keys, self.guessed))
            self.predicted = self.guessed = keys[:0]
        pool.cache.policy.visited(visit)
        if len(keys) > pool.cache.slots:
            with pool.changing():
                pool.settle()
        groups = pool.cache.groups(keys, pool.least)
        for i, group in enumerate(groups):
            self._bring(group)
            if i + 1 < len(groups):
                self._ahead(groups[i + 1], group)
            elif self.store.memory.ahead and len(groups) == 1 and self.index + 1 < len(self.store.layers):
                self.store.layers[self.index + 1].guess(x if self.to_next is None else x * self.to_next, pool, group)
            yield from pool.slots.groups((group - self.begin).tolist(), pool.cache.slot_of[group].tolist(), len(counts))

    def _bring(self, keys: Keys) -> None:
        """Have these in memory."""
        pool, told = self.pool, self.store.told
        with pool.changing():
            known = pool.known(keys)
            told.count.asked += len(keys)
            told.count.hits += int(known.sum())
            if len(np.union1d(keys, list(pool.pending))) > pool.cache.slots:
                pool.settle()
            read = self._admitted(keys[~known], keys)
            half = 0 if pool.pending else len(read) // 2
            self._behind(read[:half])
            self._fill(read[half:])
            pool.cache.filled(read[half:])
            pool.settle()

    def _ahead(self, keys: Keys, busy: Keys) -> Keys:
        """Begin to read what is not there of these, as far as there are slots besides those of `busy` keys: which are read."""
        pool = self.pool
        with pool.changing():
            known = pool.known(keys)
            read = self._admitted(keys[~known], np.concatenate([busy, keys[known]]))
            self._behind(read)
        return np.array([key for key, _ in read], np.int64)

    def _admitted(self, keys: Keys, busy: Keys) -> list[tuple[int, int]]:
        """The keys that get slots, and these: all of them, or as many as there are slots besides those of `busy` ones."""
        found = self.pool.cache.admit(keys, busy)
        self.store.told.read += len(found)
        self.store.told.read_bytes += len(found) * Slots.slot_bytes(self.pool.shape)
        return found

    def _fill(self, read: list[tuple[int, int]]) -> None:
        experts = [(key - self.begin, slot) for key, slot in read]
        self.pool.slots.fill_all(self.store.file, self.files, experts)

    def _behind(self, read: list[tuple[int, int]]) -> None:
        """Have the other thread fill these slots."""
        if read:
            future = self.store.readers.submit(self._fill, read)
            self.pool.pending |= {key: (future, slot) for key, slot in read}

    def guess(self, x: Float[Tensor, "n d"], pool_in_use: Pool, busy: Keys) -> None:
        """Read ahead what this layer's router says of tokens that are not its own yet, while `busy` keys of a pool are in use."""
        named = self.mixture.route(self.mixture.router(x.float())).experts
        chosen = named[:, : math.ceil(GUESSED * named.shape[1])].unique().numpy()
        self.predicted = chosen + self.begin
        self.guessed = self._ahead(self.predicted, busy if pool_in_use is self.pool else busy[:0])
        self.store.told.predicted += len(chosen)
        self.store.told.guessed += len(self.guessed)


def _norm_before(model: nn.Module, name: str) -> Float[Tensor, " d"] | None:
    """The weight of the norm through which a mixture sees the residual stream, where it is a block's network."""
    if not name.endswith(".ffn"):
        return None
    norm = getattr(model.get_submodule(name.removesuffix(".ffn")), "ffn_norm", None)
    return None if norm is None else norm.weight.detach().float()
