"""Tasks against answers worked out one sequence at a time, and batches as a pure function of seed, split and step."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.config import ConfigError, build, plain
from postformer.data import DATA
from postformer.data.task import IGNORED, SPLITS
from postformer.data.tasks import (
    TASKS,
    ModularArithmetic,
    Parity,
    SelectiveCopying,
    drawn_without_repeat,
    prefix_values,
)


def make(kind: str, **words):
    return build({"kind": kind, **words}, DATA, "data")


def sequences(kind: str, count: int = 200, **words):
    """(ids, targets) of many sequences, as lists."""
    batches = make(kind, **words).batches(batch=20, seed=3)
    for step in range(count // 20):
        drawn = batches.batch(step)
        yield from zip(drawn["ids"].tolist(), drawn["targets"].tolist(), strict=True)


# ---------------------------------------------------------------- the answers


def test_induction():
    firsts = []
    for ids, targets in sequences("induction", 400, length=24, symbols=7):
        assert ids.count(6) == 2
        assert ids[-1] == 6
        firsts.append(ids.index(6))
        assert targets == [IGNORED] * 23 + [ids[firsts[-1] + 1]]
    assert set(firsts) == set(range(22))


def test_selective_copying():
    places = np.zeros(12)
    for ids, targets in sequences("selective_copying", 400, length=12, copies=4, symbols=6):
        kept = [i for i in ids[:12] if i]
        assert len(kept) == 4
        assert set(kept) <= {1, 2, 3, 4}
        assert ids[12:] == [5] * 4
        assert targets == [IGNORED] * 12 + kept
        places += np.array(ids[:12]) > 0
    assert abs(places / 400 - 1 / 3).max() < 0.12  # five standard deviations


def test_as_many_copies_as_places():
    ids, targets = next(sequences("selective_copying", 20, length=5, copies=5))
    assert ids[:5] == targets[5:]
    assert 0 not in ids


@pytest.mark.parametrize("noise", [True, False])
def test_mqar(noise):
    places = []
    for ids, targets in sequences("mqar", 400, length=21, pairs=3, symbols=12, alpha=1.0, noise=noise):
        keys, values = ids[:6:2], ids[1:6:2]
        assert len(set(keys)) == len(set(values)) == 3
        assert set(keys) <= set(range(1, 6))
        assert set(values) <= set(range(6, 12))
        assert len(ids) == 20
        asked = [i for i, t in enumerate(targets) if t != IGNORED]
        assert {ids[i]: targets[i] for i in asked} == dict(zip(keys, values, strict=True))
        assert all(i >= 6 and i % 2 == 0 for i in asked)
        if not noise:
            assert {i for i in range(6, 20) if ids[i]} == set(asked)
        places += asked
    counts = np.bincount(places, minlength=20)[6::2]
    assert abs(counts - 1200 / 7).max() < 60  # five standard deviations


def test_queries_of_mqar_come_soon():
    """Of one pair, place g has the share that its weight has."""
    task = make("mqar", length=34, pairs=1, symbols=8)
    rows = np.concatenate([task.batches(500, 0).batch(i)["targets"].numpy() for i in range(8)])
    counts = np.bincount((rows != IGNORED).argmax(1) // 2 - 1, minlength=16)
    weights = np.arange(1, 17) ** -0.99
    expected = 4000 * weights / weights.sum()
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_drawn_without_repeat_is_one_draw_after_another():
    """All orders of two of three, against their probabilities."""
    weights = np.array([1.0, 2.0, 5.0])
    got = drawn_without_repeat(np.random.default_rng(0), weights, 20_000, 2)
    for a, b in itertools.permutations(range(3), 2):
        expected = 20_000 * weights[a] / 8 * weights[b] / (8 - weights[a])
        assert abs(((got[:, 0] == a) & (got[:, 1] == b)).sum() - expected) < 5 * np.sqrt(expected)


def test_parity():
    for ids, targets in sequences("parity", length=30):
        assert 3 <= len(ids) <= 30
        assert targets == [sum(ids[: i + 1]) % 2 for i in range(len(ids))]


def test_the_ones_of_parity():
    even, varied = (
        [sum(ids) for ids, _ in sequences("parity", 400, length=50, shortest=50, ones=o)] for o in ("even", "varied")
    )
    assert 8 < min(even) <= max(even) < 42
    assert min(varied) < 5
    assert max(varied) > 45
    assert all(abs(np.mean(counts) - 25) < 4 for counts in (even, varied))


def test_modular_arithmetic_is_pythons_own_arithmetic():
    for ids, targets in sequences("modular_arithmetic", length=25):
        words = ["01234+-*"[i] for i in ids]
        assert len(words) % 2
        for i, target in enumerate(targets):
            assert target == (eval("".join(words[: i + 1])) % 5 if i % 2 == 0 else IGNORED)


@pytest.mark.parametrize(("text", "value"), [("1+2*3", 2), ("1-1-1", 4), ("0*1+4*3-2", 0)])
def test_the_examples_of_the_authors_code(text, value):
    """Its docstring's, which say that products come first."""
    ids = np.array([["01234+-*".index(c) for c in text]])
    assert prefix_values(ids, 5)[0, -1] == value


@pytest.mark.parametrize("kind", ["parity", "modular_arithmetic"])
def test_the_last_answer_alone(kind):
    every, last = (list(sequences(kind, length=20, answers=a)) for a in ("every", "last"))
    for (ids, targets), (same, few) in zip(every, last, strict=True):
        assert ids == same
        assert few == [IGNORED] * (len(ids) - 1) + targets[-1:]


def test_answers_are_as_likely_as_a_guesser_is_right():
    """Also those of arithmetic, but for the 0 that products favour."""
    for kind in ("induction", "selective_copying", "parity"):
        asked = [t for _, targets in sequences(kind, 600, length=32) for t in targets if t != IGNORED]
        shares = np.bincount(asked) / len(asked)
        task = make(kind)
        assert (shares > 0).sum() == task.choices
        assert shares.max() < 1.6 / task.choices


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("kind", TASKS)
def test_batches_are_a_pure_function_of_seed_split_and_step(kind):
    task = make(kind)
    drawn = {}
    for seed, split, step in itertools.product((0, 1, -5, 1 << 62), SPLITS, (0, 1, 7)):
        drawn[seed, split, step] = task.batches(batch=4, seed=seed, split=split).batch(step)
    for (seed, split, step), batch in reversed(drawn.items()):
        again = make(kind).batches(batch=4, seed=seed, split=split).batch(step)
        assert torch.equal(again["ids"], batch["ids"])
        assert torch.equal(again["targets"], batch["targets"])
        assert again["ids"].dtype == again["targets"].dtype == torch.int64
        assert again["ids"].shape == again["targets"].shape
        assert len(again["rows"]) == 4
    for a, b in itertools.combinations(drawn.values(), 2):
        n = min(a["ids"].shape[1], b["ids"].shape[1])
        assert not torch.equal(a["ids"][:, :n], b["ids"][:, :n])


@pytest.mark.parametrize("kind", TASKS)
def test_ids_are_in_the_vocabulary_and_targets_too(kind):
    task = make(kind, length=40)
    assert task.tokens.vocab == task.vocab
    for ids, targets in sequences(kind, length=40):
        assert 0 <= min(ids) <= max(ids) < task.vocab
        assert {t for t in targets if t != IGNORED} <= set(range(task.vocab))


def test_a_split_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="split: unknown 'dev'; choose from train, valid, test"):
        Parity().batches(4, 0, "dev")


def test_lengths_grow_by_a_power():
    task = Parity(shortest=3, start=10, length=110, grow=100, power=2.0)
    assert [task.lengths(step)[1] for step in (0, 10, 50, 99, 100)] == [10, 11, 35, 108, 110]
    assert task.lengths(50, "valid") == (3, 110)


def test_lengths_stay_near_the_longest():
    task = Parity(shortest=3, start=4, length=104, grow=100, spread=0.5)
    assert [task.lengths(step) for step in (0, 1, 50, 100)] == [(3, 4), (3, 5), (27, 54), (52, 104)]
    assert task.lengths(100, "test") == (3, 104)
    assert Parity(length=9, spread=0.0).lengths(0) == (9, 9)


def test_a_batch_for_training_is_filled_up_to_tokens():
    task = Parity(shortest=2, length=100, fill=1000)
    seen = {split: [len(b["ids"]) for b in map(task.batches(5, 0, split).batch, range(40))] for split in ("train", "valid")}
    lengths = [b["ids"].shape[1] for b in map(task.batches(5, 0).batch, range(40))]
    assert seen["train"] == [max(5, min(80, 1000 // n)) for n in lengths]
    assert seen["valid"] == [5] * 40
    drawn = task.batches(5, 0).batch(0)
    assert len(drawn["rows"]) == len(drawn["targets"]) == len(drawn["ids"])
    assert 80 in seen["train"] and min(seen["train"]) < 20


@given(shortest=st.integers(1, 20), more=st.integers(0, 20), most=st.integers(0, 40), grow=st.integers(0, 60))
def test_the_lengths_grow_as_they_are_told(shortest, more, most, grow):
    task = Parity(shortest=shortest, start=shortest + more, length=shortest + more + most, grow=grow)
    reach = [task.lengths(step)[1] for step in range(grow + 2)]
    assert reach[0] == (task.start if grow else task.length)
    assert reach == sorted(reach)
    assert reach[grow:] == [task.length] * 2
    if grow > 1 and most:
        assert abs(reach[grow // 2] - (task.start + most * (grow // 2) / grow)) < 1
    for step in range(0, grow + 2, 7):
        assert shortest <= task.batches(1, 0).batch(step)["ids"].shape[1] <= reach[step]
        assert task.lengths(step, "valid") == (shortest, task.length)


def test_every_length_is_drawn():
    batches = Parity(length=12).batches(batch=1, seed=0)
    assert {batches.batch(i)["ids"].shape[1] for i in range(200)} == set(range(3, 13))
    assert {make("induction", length=12).batches(1, 0).batch(i)["ids"].shape[1] for i in range(20)} == {12}


def test_an_even_expression_loses_its_last_place():
    drawn = ModularArithmetic(length=8, shortest=8).batches(2, 0).batch(0)
    assert drawn["ids"].shape == (2, 7)


# ---------------------------------------------------------------- the run's table


@pytest.mark.parametrize("kind", TASKS)
def test_the_identity_is_the_task(kind):
    task = make(kind, length=20)
    words = json.loads(json.dumps(plain(task.identity)))
    assert make(kind, **words) == task
    assert words != make(kind, length=21).identity


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"kind": "induction", "length": 2}, r"data: shortest=2, start=2 and length=2 must satisfy 3 <= shortest"),
        ({"kind": "parity", "length": 2}, r"data: shortest=3, start=3 and length=2 must satisfy 1 <= shortest"),
        ({"kind": "parity", "start": 2}, r"data: shortest=3, start=2 and length=160 must satisfy"),
        ({"kind": "parity", "grow": -1}, r"data: grow: expected 0 or more batches, got -1"),
        ({"kind": "parity", "power": 0.0}, r"data: power: expected a number above 0, at most 10, got 0.0"),
        ({"kind": "parity", "spread": 2.0}, r"data: spread: expected a share from 0 to 1, got 2.0"),
        ({"kind": "parity", "fill": -1}, r"data: fill: expected 0 or more tokens, got -1"),
        ({"kind": "parity", "answers": "some"}, r"data.answers: 'some' is not a choice; choose from every, last"),
        ({"kind": "parity", "lenght": 3}, r"data: unknown 'lenght' \(did you mean 'length'\?\); parity takes length, shortest"),
        ({"kind": "induction", "symbols": 2}, r"data: symbols: expected 3 or more, got 2"),
        ({"kind": "selective_copying", "symbols": 2}, r"data: symbols: expected 3 or more, got 2"),
        ({"kind": "selective_copying", "copies": 300}, r"data: copies: expected 1 to 256, the shortest length, got 300"),
        ({"kind": "selective_copying", "copies": 9, "shortest": 8}, r"data: copies: expected 1 to 8"),
        ({"kind": "mqar", "length": 15}, r"data: pairs: expected 1 to 3, a quarter of the shortest length, got 4"),
        ({"kind": "mqar", "symbols": 9}, r"data: symbols: expected 10 or more for 4 pairs, got 9"),
        ({"kind": "mqar", "alpha": 0.0}, r"data: alpha: expected a number above 0, at most 1, got 0.0"),
        ({"kind": "paritty"}, r"data.kind: unknown 'paritty' \(did you mean 'parity'\?\); choose from text, induction"),
    ],
)
def test_a_task_that_cannot_be(words, says):
    with pytest.raises(ConfigError, match=says):
        build(words, DATA, "data")


def test_copies_fit_the_shortest_length():
    task = SelectiveCopying(length=40, shortest=5, copies=5)
    assert all(5 + 5 <= task.batches(1, 0).batch(i)["ids"].shape[1] <= 45 for i in range(50))
