"""What benchmarks/papers.py makes of scores, and which sequences it asks for."""

import pytest

from benchmarks import papers
from postformer.objectives.accuracy import Score

PLAIN = papers.Figure(recipe="induction", length=64, rows=100, paper=100.0, source="")
SCALED = papers.Figure(recipe="parity", length=64, rows=100, paper=100.0, source="", scaled=True)


def score(right: int, chance: float = 0.5) -> Score:
    return Score(right, 100, right, 100, chance)


def test_one_seed_has_wilsons_interval():
    line = papers.summary(PLAIN, {0: score(50)})
    assert (line["value"], round(line["low"], 1), round(line["high"], 1)) == (50, 40.4, 59.6)


def test_seeds_that_differ_have_students_within_what_is_possible():
    line = papers.summary(PLAIN, {0: score(10), 1: score(90)})
    assert (line["value"], line["low"], line["high"]) == (50, 0, 100)


def test_a_scaled_figure_is_0_for_a_guesser_and_100_for_a_perfect_one():
    assert papers.summary(SCALED, {0: score(50)})["value"] == 0
    assert papers.summary(SCALED, {0: score(100)})["value"] == 100
    assert papers.summary(SCALED, {0: score(75)})["low"] == pytest.approx(2 * 65.7 - 100, abs=0.2)


def test_each_seed_is_asked_sequences_of_its_own(monkeypatch):
    asked = []
    monkeypatch.setattr(
        papers, "accuracy", lambda model, task, **words: asked.append((task.length, words["rows"], words["seed"]))
    )
    for seed in (3, 4):
        papers.measure(None, PLAIN, seed)
    assert asked == [(64, 100, 3), (64, 100, 4)]


def test_a_line_says_where_training_was_cut_short():
    line = papers.summary(PLAIN, {0: score(100)})
    assert papers.show(line, 10, 20).endswith("after 10 of the recipe's 20 steps")
    assert "after" not in papers.show(line, 20, 20)
