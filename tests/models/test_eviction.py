"""Which experts a cache keeps: the bookkeeping holds, no policy beats the one that knows the future, and ours beats the plain ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postformer.models.eviction import LRU, Belady, Cache, LeastStale, NextUse, Policy, Visit, replay

LAYERS, EXPERTS, TOP = 4, 8, 2
LAYER_OF = np.repeat(np.arange(LAYERS), EXPERTS)
POLICIES = {"lru": LRU, "least-stale": LeastStale, "next-use": NextUse}


def trace(tokens: int, seed: int = 0, skew: float = 0.0, rows: int = 1) -> list[Visit]:
    """Layers visited in turns; with `skew` above 0 each layer prefers some of its experts."""
    rng = np.random.default_rng(seed)
    taste = rng.normal(size=(LAYERS, EXPERTS)) * skew
    found = []
    for _ in range(tokens):
        for layer in range(LAYERS):
            chosen = np.concatenate([np.argsort(taste[layer] + rng.gumbel(size=EXPERTS))[-TOP:] for _ in range(rows)])
            experts, counts = np.unique(chosen, return_counts=True)
            found.append(Visit(layer, experts + layer * EXPERTS, counts, rows))
    return found


@given(st.sampled_from(sorted(POLICIES)), st.integers(TOP, 40), st.integers(1, 4), st.integers(0, 99))
def test_slots_are_never_shared_and_what_is_used_stays(name, slots, rows, seed):
    policy: Policy = POLICIES[name](LAYER_OF)
    cache = Cache(policy, slots)
    for visit in trace(5, seed, rows=rows):
        policy.visited(visit)
        seen = []
        for group in cache.groups(visit.keys, TOP):
            assert len(group) <= slots
            there, admitted = cache.held(group), cache.admit(group[~cache.held(group)], group)
            assert (cache.held(group) == there).all(), "held is what is filled"
            if rows == 1:
                cache.forget_admitted()
                admitted = cache.admit(group[~there], group)
            cache.filled(admitted)
            assert cache.held(group).all()
            taken = cache.slot_of[cache.slot_of >= 0]
            assert len(set(taken)) == len(taken) <= slots
            assert sorted([*taken, *cache.free]) == list(range(slots))
            seen += group.tolist()
        assert sorted(seen) == visit.keys.tolist()


def test_busy_slots_are_not_given_away():
    cache = Cache(LRU(LAYER_OF), 4)
    cache.filled(cache.admit(np.array([0, 1]), np.array([0, 1])))
    cache.filled(given := cache.admit(np.array([8, 9, 10]), np.array([0, 1])))
    assert [key for key, _ in given] == [8, 9]
    assert cache.held(np.array([0, 1, 8, 9])).all()
    assert cache.admit(np.array([16]), np.array([0, 1, 8, 9])) == []


@given(st.sampled_from(sorted(POLICIES)), st.integers(TOP, 32), st.integers(0, 99))
def test_who_knows_the_future_reads_least(name, slots, seed):
    visits = trace(12, seed, skew=1.0)
    best = replay(visits, Belady(LAYER_OF, visits), slots, TOP)
    assert best.asked == len(visits) * TOP
    assert replay(visits, POLICIES[name](LAYER_OF), slots, TOP).hits <= best.hits


def test_all_of_it_fits():
    visits = trace(50)
    count = replay(visits, LRU(LAYER_OF), LAYERS * EXPERTS, TOP)
    assert count.asked - count.hits == len(np.unique(np.concatenate([v.keys for v in visits])))


@pytest.mark.parametrize("slots", [6, 8, 12, 16])
def test_a_cycle_of_layers_is_what_lru_fails_at(slots):
    """By the time that a layer is visited again, LRU has evicted it."""
    visits = trace(400, seed=1, skew=1.5)
    rates = {name: replay(visits, policy(LAYER_OF), slots, TOP).rate for name, policy in POLICIES.items()}
    assert rates["next-use"] > rates["lru"] + 0.02, rates
    assert rates["next-use"] > rates["least-stale"], rates


def test_of_two_experts_the_one_needed_sooner_stays():
    policy = NextUse(LAYER_OF)
    for layer in range(LAYERS):
        policy.visited(Visit(layer, np.array([layer * EXPERTS]), np.array([1]), 1))
    policy.visited(Visit(0, np.array([0]), np.array([1]), 1))
    evictable = np.zeros(len(LAYER_OF), bool)
    evictable[[EXPERTS, 3 * EXPERTS]] = True
    assert policy.worst(evictable, 1).tolist() == [3 * EXPERTS]
    assert LRU(LAYER_OF).worst(evictable, 5).tolist() == [EXPERTS, 3 * EXPERTS]
