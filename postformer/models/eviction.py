"""Which experts a cache of few slots keeps: policies, the bookkeeping that follows them, and its replay on a recorded trace.

An expert of a layer is a key, a whole number; layers count from 0 in the order in which a pass of the model visits them, again and again.
A policy sees every visit and names what to evict; it holds no weights, so a trace tells exactly what another policy would have read.

- `LRU` evicts what was used longest ago.
- `LeastStale` evicts what lies in layers that this pass has left, the oldest first, before that of layers still to come (Least-Stale, arXiv
  2602.03921).
- `NextUse` evicts what is expected to be needed last: the way to its layer in the cycle, and a cycle more for each time that it is expected
  to be passed over, 1 / p - 1 times where a running average says that a token of its layer chooses it with probability p.
- `Belady` knows the future (Belady 1966): no policy reads less. For replays.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

Keys = np.ndarray[Any, np.dtype[np.int64]]
Marks = np.ndarray[Any, np.dtype[np.bool_]]
Values = np.ndarray[Any, np.dtype[np.float64]]


class Visit(NamedTuple):
    """What the tokens of one call asked of one layer."""

    layer: int
    keys: Keys
    """Different ones, in rising order."""
    counts: Keys
    """How many tokens asked for each."""
    tokens: int


class Policy:
    """What is evicted. `layer_of` tells the layer of each key."""

    def __init__(self, layer_of: Sequence[int] | Keys):
        self.layer_of = np.asarray(layer_of, np.int64)
        self.layers = int(self.layer_of.max(initial=0)) + 1
        self.clock = 0

    def visited(self, visit: Visit) -> None:
        """A layer asks for its experts; called before anything is evicted for them."""
        self.clock += 1

    def regret(self) -> Values:
        """How much each key is wanted [keys]; the least is evicted first."""
        raise NotImplementedError

    def worst(self, evictable: Marks, count: int) -> Keys:
        """The `count` keys to evict, of those that may be."""
        found = np.flatnonzero(evictable)
        if count >= len(found):
            return found
        return found[np.argpartition(self.regret()[found], count)[:count]]


class LRU(Policy):
    """See the module's table."""

    def __init__(self, layer_of: Sequence[int] | Keys):
        super().__init__(layer_of)
        self.last = np.zeros(len(self.layer_of))

    def visited(self, visit: Visit) -> None:
        super().visited(visit)
        self.last[visit.keys] = self.clock

    def regret(self) -> Values:
        return self.last


class LeastStale(LRU):
    """See the module's table. Of the layers to come the last one goes first."""

    def __init__(self, layer_of: Sequence[int] | Keys):
        super().__init__(layer_of)
        self.layer = 0

    def visited(self, visit: Visit) -> None:
        super().visited(visit)
        self.layer = visit.layer

    def regret(self) -> Values:
        to_come = self.layer_of > self.layer
        return np.where(to_come, self.clock + self.layers - self.layer_of, self.last - self.clock - self.layers)


class NextUse(Policy):
    """See the module's table. p is the mean of a fast and a slow average, which forget a token by `rates`: of what was just used, and of
    what is often used."""

    def __init__(self, layer_of: Sequence[int] | Keys, rates: tuple[float, float] = (0.5, 0.05)):
        super().__init__(layer_of)
        self.rates, self.layer = np.array(rates)[:, None], 0
        self.shares = np.zeros((2, len(self.layer_of)))
        self.of_layer = [np.flatnonzero(self.layer_of == layer) for layer in range(self.layers)]

    def visited(self, visit: Visit) -> None:
        super().visited(visit)
        self.layer = visit.layer
        kept = (1 - self.rates) ** visit.tokens
        self.shares[:, self.of_layer[visit.layer]] *= kept
        self.shares[:, visit.keys] += (1 - kept) * visit.counts / visit.tokens

    def regret(self) -> Values:
        way = (self.layer_of - self.layer - 1) % self.layers + 1
        return -(way + self.layers * (1 / np.maximum(self.shares.mean(0), 1e-4) - 1))


class Belady(Policy):
    """See the module's table."""

    def __init__(self, layer_of: Sequence[int] | Keys, trace: Sequence[Visit]):
        super().__init__(layer_of)
        self.uses: list[list[int]] = [[] for _ in self.layer_of]
        for at, visit in reversed(list(enumerate(trace, 1))):
            for key in visit.keys:
                self.uses[key].append(at)
        self.next = np.array([float(at[-1]) if at else np.inf for at in self.uses])

    def visited(self, visit: Visit) -> None:
        super().visited(visit)
        for key in visit.keys:
            self.uses[key].pop()
            self.next[key] = self.uses[key][-1] if self.uses[key] else np.inf

    def regret(self) -> Values:
        return -self.next


# ---------------------------------------------------------------- slots


class Cache:
    """Which key lies in which of `slots` slots. Whoever holds weights reads and writes them as it says: into the slots that `admit` gives,
    and then the keys are `filled`."""

    def __init__(self, policy: Policy, slots: int):
        self.policy, self.slots = policy, slots
        self.slot_of = np.full(len(policy.layer_of), -1)
        self.free = list(range(slots))[::-1]

    def held(self, keys: Keys) -> Marks:
        """Which of the keys lie in a slot."""
        return self.slot_of[keys] >= 0

    def admit(self, keys: Keys, busy: Keys) -> list[tuple[int, int]]:
        """A slot for each of the keys, which have none yet, as far as there are any besides those of `busy` keys: (key, slot). A key is
        held once it is `filled`."""
        if (short := len(keys) - len(self.free)) > 0:
            evictable = self.slot_of >= 0
            evictable[busy] = False
            for key in self.policy.worst(evictable, short):
                slot, self.slot_of[key] = int(self.slot_of[key]), -1
                self.free.append(slot)
        return [(int(key), self.free.pop()) for key in keys[: len(self.free)]]

    def filled(self, admitted: Iterable[tuple[int, int]]) -> None:
        """These keys lie in the slots that they were given."""
        for key, slot in admitted:
            self.slot_of[key] = slot

    def forget_admitted(self) -> None:
        """Take back every slot in which no key lies."""
        taken = set(self.slot_of.tolist())
        self.free = [slot for slot in reversed(range(self.slots)) if slot not in taken]

    def groups(self, keys: Keys, least: int) -> list[Keys]:
        """The keys of a visit in groups that fit at once: all, or else those that are held and then the rest, `least` at a time."""
        if len(keys) <= self.slots:
            return [keys]
        held = self.held(keys)
        rest = keys[~held]
        return [*([keys[held]] if held.any() else []), *(rest[i : i + least] for i in range(0, len(rest), least))]


@dataclasses.dataclass(kw_only=True)
class Count:
    """Experts that were asked for, and of them those that were there."""

    asked: int = 0
    hits: int = 0

    @property
    def rate(self) -> float:
        """The share of hits; 0 before anything was asked for."""
        return self.hits / max(self.asked, 1)


def replay(trace: Sequence[Visit], policy: Policy, slots: int, least: int) -> Count:
    """What a cache that begins empty and reads nothing ahead would have held."""
    cache, count = Cache(policy, slots), Count()
    for visit in trace:
        policy.visited(visit)
        for group in cache.groups(visit.keys, least):
            held = cache.held(group)
            count.asked += len(group)
            count.hits += int(held.sum())
            cache.filled(cache.admit(group[~held], group))
    return count
