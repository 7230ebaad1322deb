"""The rule of `plan_in_latent` on made-up evidence, and the claim, small, from end to end."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from postformer.claims import load_claim
from postformer.claims import plan_in_latent as P
from postformer.claims import plan_in_latent_page as page
from postformer.claims.page import render
from postformer.claims.report import run_report
from postformer.embodied import tasks

pytest.importorskip("gymnasium")

SCHEMA = json.loads((Path(__file__).parents[2] / "postformer/claims/report.schema.json").read_text())
ALL = {"cem": 97, "mppi": 97, "reach": 95, "untrained": 10, "oracle": 98, "straight": 20, "random": 1}


def evidence(seeds: int = 3, share: float = 1.0, moving: dict[str, int] | None = None, apart: int = 0) -> dict[str, Any]:
    """Of 100 problems so many are reached, the first ones; with walls anywhere other numbers where `moving` says so. Seeds are `apart`."""

    def told(count: int) -> dict[str, Any]:
        own = ("1" * count).ljust(100, "0")
        return {"reached": own, "nearer": own, "ever": "1" * 100, "plan_s": 0.5}

    def of(ways: dict[str, int]) -> dict[str, Any]:
        learned = (*page.LEARNED, "untrained")
        return {
            way: {str(s): told(max(n - apart * s, 0)) for s in range(seeds)} if way in learned else {"": told(n)}
            for way, n in ways.items()
        }

    return {
        "reached": {"rooms": of(ALL), "moving": of({**ALL, **(moving or {})})},
        "seeds": list(range(seeds)),
        "asked": 100,
        "walks": 640,
        "taken": "10 of the recipe's 10 steps",
        "taken_share": share,
    }


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ({}, ["supported"] * 4),
        ({"seeds": 2}, ["inconclusive"] * 4),
        ({"share": 0.9}, ["inconclusive"] * 4),
        ({"moving": {"cem": 80}}, ["contradicted", "supported", "contradicted", "supported"]),
        ({"moving": {"cem": 91}}, ["inconclusive", "supported", "inconclusive", "supported"]),
        ({"moving": {"straight": 100}}, ["supported", "inconclusive", "supported", "supported"]),
        ({"moving": {"cem": 15}}, ["contradicted", "contradicted", "contradicted", "supported"]),
        ({"moving": {"reach": 50}}, ["supported", "supported", "supported", "contradicted"]),
        ({"moving": {"untrained": 97}}, ["supported", "inconclusive", "supported", "supported"]),
        ({"apart": 20}, ["inconclusive", "supported", "inconclusive", "supported"]),
    ],
)
def test_the_rule(words, found):
    assert [finding.verdict for finding in P.RULE.judge(evidence(**words))] == found


def test_shares_and_gains_are_over_seeds_and_problems():
    e = evidence(apart=3)
    share, less = page.reached(e, "rooms", "cem"), page.gain(e, "rooms", "cem", "oracle")
    assert (share.value, share.n, share.seeds) == (pytest.approx(94), 300, (0, 1, 2))
    assert (less.value, less.unit) == (pytest.approx(-4), "points")
    alone = page.reached(e, "rooms", "oracle")
    assert (alone.value, alone.n, alone.seeds) == (98, 100, ())
    assert page.reached(e, "rooms", "cem", "ever").value == 100


def test_what_follows_is_said_of_the_best_way():
    first, second = page.consequences(evidence(moving={"cem": 20, "mppi": 10, "reach": 21}))
    assert first.startswith("With walls where they always are, a search in imagination reaches 97")
    assert "more than going straight" in first
    assert second.startswith("With walls anywhere, told at once reaches 21")
    assert "no more than going straight" in second


def test_places_are_drawn_where_their_pixels_are():
    seen = np.zeros((2, 2, 4, 4))
    seen[:, 1, :, 0] = 1
    strip = page.strip_of("own", seen, np.zeros((2, 4, 4)), np.array([[0.0, 3, 9], [1, 1, 9]]), np.array([[9.0, 0], [0, 0]]))
    assert strip.tracks[0].points == ((0.125, 0.875), (0.375, 0.375))
    assert strip.tracks[1].points == ((1.0, 0.125), (0.125, 0.125))


def test_the_claim_small(tmp_path, monkeypatch):
    def small(run: Any) -> Any:
        model = {**run.model, "dim": 8, "widths": (4, 4, 8), "width": 16, "reach": 8}
        return dataclasses.replace(
            run, model=model, data={**run.data, "steps": 4}, train=dataclasses.replace(run.train, batch=2)
        )

    whole = P.recipes()
    monkeypatch.setattr(P, "recipes", lambda: {name: small(run) for name, run in whole.items()})
    for name in page.TASKS:
        search = dataclasses.replace(tasks.TASKS[name].search, horizon=3, samples=4, elites=2, iterations=1)
        monkeypatch.setitem(tasks.TASKS, name, tasks.TASKS[name]._replace(steps=30, search=search))
    out = tmp_path / "out"
    assert run_report([load_claim("plan_in_latent")], out, budget_s=8, threads=1).exit_code == 0
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    (claim,) = report["claims"]
    result = claim["result"]
    assert result["verdict"] == "inconclusive"
    assert [step["step"] for step in claim["steps"]][3:] == [
        *(f"plan to goals: {name}" for name in page.TASKS.values()),
        "effective rank",
        "pictures",
    ]
    assert [[row[0] for row in table["rows"]] for table in result["tables"]] == [list(page.WAYS.values())] * 2
    (chart,) = result["charts"]
    assert [one["name"] for one in chart["series"]] == list(page.TASKS.values())
    assert chart["marks"][0]["at"] == 1.5
    plans, gone = result["films"][:2]
    assert [len(one["tracks"]) for one in plans["strips"]] == [2, 2]
    assert {len(track["points"]) for one in plans["strips"] for track in one["tracks"]} == {3}
    assert [one["name"] for one in gone["strips"]] == [page.WAYS[way] for way in page.FILMED]
    assert len(gone["strips"][0]["tracks"][0]["points"]) == 4
    assert render(report).count('class="plot film"') == 4
