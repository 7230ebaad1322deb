"""The rule of `spacetime_patches` on made-up evidence, and the claim, small, from end to end."""

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jsonschema
import numpy as np
import pytest

from postformer.claims import load_claim, tasks
from postformer.claims import spacetime_patches as S
from postformer.claims import spacetime_patches_page as page
from postformer.claims.ledger import Context
from postformer.claims.page import render
from postformer.claims.report import run_report
from postformer.data.bodies import SIZE
from postformer.data.physics import Physics
from postformer.objectives.continued import FIGURES, KNOWN

SCHEMA = json.loads((Path(__file__).parents[2] / "postformer/claims/report.schema.json").read_text())
GOOD = {"dit": 0.05, "frames": 0.2, "unet": 0.3, "timed": 0.4}


def evidence(
    errors: dict[str, float] = GOOD,
    there: dict[str, float] | None = None,
    seeds: int = 3,
    share: float = 1.0,
    apart: float = 0.0,
    alone: float = 1.0,
    last: float = 2.5,
    clips: int = 400,
) -> dict[str, Any]:
    there = {"dit": 1.0, "frames": 1.0, "unet": 0.9, "timed": 0.8} if there is None else there
    apart_by = np.linspace(-0.01, 0.01, clips)

    def figures(error: float, kept: float) -> dict[str, Any]:
        told = {name: [None] * clips for name in FIGURES}
        many = {"place": 0.1, "radius": 0.1, "there": kept, "whole": 1.0, "alone": alone}
        return {**told, **{k: [v] * clips for k, v in many.items()}, "velocity": (error + apart_by).tolist()}

    own = {
        name: {str(s): figures(error + apart * (s - 1) * (name != "dit"), there[name]) for s in range(seeds)}
        for name, error in errors.items()
    }
    own |= {name: {"": figures(last if name == "last frame" else 0.01, 1.0)} for name in page.ANYONE}
    return {
        "figures": {"test": own, "slow": own},
        "clips": clips,
        "sizes": {name: {"parameters": 100, "flops": 200.0} for name in errors},
        "step_s": dict.fromkeys(page.NAMES, 0.1),
        "steps": dict.fromkeys(page.NAMES, 10),
        "seeds": list(range(seeds)),
        "batch": 16,
        "taken": "10 of the recipe's 10 steps",
        "taken_share": share,
    }


ALL = dict.fromkeys(("dit", "frames", "unet", "timed"), 1.0)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ({}, ["supported"] * 4),
        ({"seeds": 1}, ["inconclusive"] * 4),
        ({"share": 0.5}, ["inconclusive"] * 4),
        ({"errors": {**GOOD, "dit": 0.35}}, ["contradicted", "contradicted", "supported", "contradicted"]),
        ({"errors": {**GOOD, "timed": 0.01}}, ["supported", "contradicted", "supported", "supported"]),
        ({"errors": {**GOOD, "unet": 0.05}}, ["supported", "inconclusive", "supported", "supported"]),
        ({"there": ALL}, ["supported", "supported", "contradicted", "supported"]),
        ({"there": {**ALL, "timed": 0.9}}, ["supported", "supported", "inconclusive", "supported"]),
        ({"alone": 0.9}, ["supported", "supported", "contradicted", "supported"]),
        ({"there": {**ALL, "dit": 0.9}}, ["supported", "supported", "contradicted", "supported"]),
        ({"apart": 0.5}, ["supported", "inconclusive", "supported", "inconclusive"]),
        ({"clips": 100}, ["supported", "supported", "inconclusive", "supported"]),
        ({"clips": 100, "there": ALL}, ["supported", "supported", "inconclusive", "supported"]),
        ({"last": 0.05}, ["supported", "supported", "inconclusive", "supported"]),
        ({"last": 0.2, "there": ALL}, ["supported", "supported", "inconclusive", "supported"]),
    ],
)
def test_the_rule(words, found):
    assert [finding.verdict for finding in S.RULE.judge(evidence(**words))] == found


def test_what_all_clips_keep_has_an_interval():
    """100 of 100 is no proof of 99%."""
    few, many = (page.kept(evidence(clips=n), "dit") for n in (100, 400))
    assert few.value == few.high == many.value == many.high == 100
    assert few.low == pytest.approx(96.3, abs=0.01) and many.low == pytest.approx(99.05, abs=0.01)
    e = evidence(clips=100, seeds=1)
    e["figures"]["test"]["dit"]["0"]["there"] = [0.0] * 50 + [1.0] * 50
    halved = page.kept(e, "dit")
    assert [halved.low, halved.value, halved.high] == pytest.approx([40.03, 50, 59.97], abs=0.01)


def test_clips_that_lose_their_disc_are_left_out_of_pairs():
    e = evidence(clips=20)
    e["figures"]["test"]["unet"]["0"]["velocity"][3] = None
    more = page.more(e, "unet", "velocity")
    assert more.value == pytest.approx(0.25)
    assert page.figure(e, "unet", "velocity").n == 20
    e["figures"]["test"]["unet"]["0"] = {name: [None] * 20 for name in FIGURES}
    assert page.kept(e, "unet").n == 20 and page.figure(e, "unet", "velocity").value == pytest.approx(0.3)


def test_what_no_clip_tells_is_not_ranked():
    e = evidence()
    for name in ALL:
        for seed in e["figures"]["test"][name].values():
            seed["velocity"] = [None] * e["clips"]
    assert page.figure(e, "dit", "velocity").value is None
    verdicts = [finding.verdict for finding in S.RULE.judge(e)]
    assert verdicts == ["inconclusive"] * 4
    assert page.consequences(e) == ("No model has learned enough to draw a disc at all: give more time.",)


def test_the_page_knows_the_world_that_is_drawn():
    assert (KNOWN, SIZE, Physics().dt) == (page.KNOWN, page.SIZE, page.DT)


def test_equal_time_is_a_run_of_its_own_where_steps_differ():
    whole = S._recipes()
    assert "timed" not in S._as_long(whole, {"dit": 1.0, "unet": 1.05})
    runs = S._as_long(whole, {"dit": 1.0, "unet": 2.0})
    assert runs["timed"].train.steps == whole["unet"].train.steps // 2
    assert runs["timed"].model == whole["unet"].model


def test_a_run_that_is_not_wanted_takes_no_time_from_the_others():
    step_s = {"dit": 1.0, "frames": 0.5, "unet": 1.05, "timed": 1.0}
    ctx = Mock(Context, seeds=(0,), threads=1, steps=[{"seconds": 0.0}], step=lambda name, run: step_s)
    runs = tasks.fitted(ctx, S._recipes(), 1275.0, 4, S._as_long)
    assert {name: run.train.steps for name, run in runs.items()} == {"dit": 500, "frames": 500, "unet": 500}


def test_the_claim_small(tmp_path, monkeypatch):
    whole = S._recipes

    def small(run: Any) -> Any:
        model = {**run.model, "dim": 24, "depth": 2} if run.model["kind"] == "dit" else {**run.model, "widths": [8, 8]}
        data = {**run.data, "frames": 8, "size": 16}
        return dataclasses.replace(run, model=model, data=data, train=dataclasses.replace(run.train, batch=2))

    monkeypatch.setattr(S, "_recipes", lambda: {name: small(run) for name, run in whole().items()})
    monkeypatch.setattr(S, "SPLITS", ("test", "fast"))
    monkeypatch.setattr(S, "CLIPS", ((0, 3),))
    out = tmp_path / "out"
    assert run_report([load_claim("spacetime_patches")], out, budget_s=8, threads=1).exit_code == 0
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    (claim,) = report["claims"]
    result = claim["result"]
    assert result["verdict"] == "inconclusive"
    names = [row[0] for row in result["tables"][0]["rows"]]
    assert set(names) <= {*page.NAMES.values(), *page.ANYONE} and names[-1] == "true clips"
    floor = result["tables"][0]["rows"][-1][1]["value"]
    assert 0 < floor < 0.2
    assert [film["known"] for film in result["films"]] == [4, 4]
    assert all(len(one["tracks"]) == 2 for film in result["films"] for one in film["strips"])
    html = render(report)
    assert html.count('class="plot film"') == 2 and "<image" in html
