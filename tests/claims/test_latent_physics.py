"""The rule of `latent_physics` on made-up evidence, and the claim, small, from end to end."""

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jsonschema
import numpy as np
import pytest
import torch

from postformer.claims import imagining as M
from postformer.claims import latent_physics as L
from postformer.claims import latent_physics_page as page
from postformer.claims import load_claim, tasks
from postformer.claims.film import describe_film
from postformer.claims.ledger import Context, Number
from postformer.claims.page import render
from postformer.claims.report import run_report
from postformer.data.bodies import SIZE
from postformer.objectives import foreseen as foreseen_module
from postformer.ops.isotropy import Watch
from postformer.recipes.worlds import world_physics

SCHEMA = json.loads((Path(__file__).parents[2] / "postformer/claims/report.schema.json").read_text())
SPREAD = np.linspace(-0.05, 0.05, 20)


def evidence(
    place: tuple[float, float, float] = (0.3, 0.2, 1.0),
    velocity: tuple[float, float, float] = (0.5, 0.4, 0.9),
    pixels: float = 0.6,
    seeds: int = 3,
    share: float = 1.0,
    apart: float = 0.0,
    collision: float = 0.0,
) -> dict[str, Any]:
    """Errors of what is imagined, truly there and seen last. The pixels' model has `pixels` more, the scene of two discs `collision`
    more in all that is imagined, and seeds are `apart`."""

    def told(scene: str, model: str, seed: int) -> dict[str, Any]:
        groups = {"place": place, "velocity": velocity} | ({"mass ratio": (0.1, 0.1, 0.2)} if scene == "collision" else {})
        more = (pixels if model == "pixels" else 0.0) + apart * (seed - 1) + collision * (scene == "collision")
        return {
            group: {
                way: (value + SPREAD + more * (way == "imagined")).tolist()
                for way, value in zip(page.WAYS, values, strict=True)
            }
            for group, values in groups.items()
        }

    return {
        "errors": {scene: {m: {str(s): told(scene, m, s) for s in range(seeds)} for m in M.NAMES} for scene in M.SCENES},
        "seeds": list(range(seeds)),
        "asked": 20,
        "dt": 0.1,
        "known": 6,
        "frames": 20,
        "side": 32,
        "videos": 320,
        "step_s": {"embeddings": 0.1, "pixels": 0.2},
        "taken": "10 of the recipe's 10 steps",
        "taken_share": share,
    }


def value(cell: Any) -> Any:
    assert isinstance(cell, Number)
    return cell.value


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ({}, ["supported"] * 3),
        ({"seeds": 2}, ["inconclusive"] * 3),
        ({"share": 0.9}, ["inconclusive"] * 3),
        ({"place": (0.5, 0.2, 1.0)}, ["contradicted", "supported", "supported"]),
        ({"place": (0.4, 0.2, 1.0)}, ["inconclusive", "supported", "supported"]),
        ({"place": (1.2, 0.7, 1.0)}, ["supported", "contradicted", "supported"]),
        ({"velocity": (1.0, 0.4, 0.9)}, ["supported", "contradicted", "supported"]),
        ({"velocity": (0.9, 0.4, 0.9)}, ["supported", "inconclusive", "supported"]),
        ({"pixels": -0.1}, ["supported", "supported", "contradicted"]),
        ({"pixels": 0.0}, ["supported", "supported", "inconclusive"]),
        ({"collision": 1.0}, ["contradicted", "supported", "supported"]),
        ({"apart": 0.5}, ["inconclusive", "inconclusive", "supported"]),
    ],
)
def test_the_rule(words, found):
    assert [finding.verdict for finding in L.RULE.judge(evidence(**words))] == found


def test_errors_are_means_over_scenes_clips_and_seeds():
    e = evidence(collision=0.4, apart=0.1)
    error = page.error(e, "embeddings", "place")
    assert (error.value, error.n, error.unit, error.seeds) == (pytest.approx(0.4), 20, "units", (0, 1, 2))
    assert page.error(e, "pixels", "place", scenes=("uniform",)).value == pytest.approx(0.9)
    assert page.excess(e, 2).value == pytest.approx(0.0)
    assert page.before(e, "velocity").value == pytest.approx(0.3)
    assert page.beyond(e, "pixels").value == pytest.approx(0.6)
    assert [row[0] for row in page.scenes(e).rows][2:5] == [f"collision: {group}" for group in M.GROUPS]
    assert value(page.scenes(e).rows[4][1]) == pytest.approx(0.5)
    assert [value(row[1]) for row in page.models(e).rows] == [pytest.approx(v) for v in (0.4, 1.0, 0.4)]


def test_what_follows_names_the_model_that_is_least_off():
    assert "predicts pixels" in page.consequences(evidence(pixels=-0.1))[0]
    assert "it foresees more" in page.consequences(evidence())[1]
    assert "no ranking" in page.consequences(evidence(place=(1.0, 0.7, 1.0)))[1]
    assert "no model here is worth" in page.consequences(evidence(place=(1.2, 0.7, 1.0)))[1]


@pytest.mark.parametrize(("budget_s", "seeds", "asked"), [(60, (0,), 20), (600, (0,), 200), (600, (0, 1, 2), 50)])
def test_how_many_are_asked_is_by_the_budget_of_a_seed(budget_s, seeds, asked, monkeypatch):
    monkeypatch.setattr(
        tasks, "fitted", lambda ctx, whole, *told: {name: tasks.shortened(run, 0.5, 1) for name, run in whole.items()}
    )
    monkeypatch.setattr(tasks, "learn", lambda ctx, runs: None)
    runs, told = M.learned(Mock(Context, seeds=seeds, budget_s=budget_s, steps=[{"result": {}}]))
    assert (told["asked"], told["taken"], told["taken_share"]) == (asked, "1,500 of the recipe's 3,000 steps", 0.5)
    assert told["videos"] == 1500 * 32 and list(runs) == ["embeddings", "pixels"]


def test_errors_are_distances_a_second_ahead(monkeypatch):
    ahead = torch.zeros(2, 14, 4, dtype=torch.float64)
    ahead[:, M.AHEAD - 1] = torch.tensor([3.0, 4.0, -6.0, 8.0], dtype=torch.float64)
    ahead[:, -1] = 100.0
    names = ("place x1", "place y1", "velocity x1", "velocity y1")
    found = foreseen_module.Foreseen(names, ahead, ahead / 2, ahead * 2)
    asked = []
    monkeypatch.setattr(foreseen_module, "foreseen", lambda *told, **words: asked.append((told[1].scene, words)) or found)
    told = M.errors(None, world_physics(), "parabola", 2, 2)
    assert asked == [("parabola", {"seed": 1002, "clips": 2})]
    assert told == {
        "place": {"imagined": [5.0, 5.0], "floor": [2.5, 2.5], "last": [10.0, 10.0]},
        "velocity": {"imagined": [10.0, 10.0], "floor": [5.0, 5.0], "last": [20.0, 20.0]},
    }


def test_before_a_clip_goes_on_the_places_read_are_the_true_ones():
    true = np.array([[[1.0, 2.0]], [[2.0, 2.0]], [[3.0, 2.0]]])
    strip = page.strip_of("own", np.zeros((3, 3, 8, 8)), true, np.array([[[12.0, 5.0]]]), SIZE)
    assert strip.tracks[0].points == ((0.1, 0.8), (0.2, 0.8), (0.3, 0.8))
    assert strip.tracks[1].points == ((0.1, 0.8), (0.2, 0.8), (1.0, 0.5))
    (film,) = page.films({**evidence(), "frames": 3, "known": 2}, {"uniform": [dataclasses.asdict(strip)]})
    assert "76% of its side away" in describe_film(film)


def test_ranks_are_those_of_the_log(tmp_path):
    """With the first seed; a run that logged none has no curve, and without any there is no chart."""
    run = world_physics()
    ctx = Mock(Context, seeds=(3, 4), files=tmp_path)
    for name, lines in (
        ("a-3", [{"step": 50, "rank": 7.0}, {"step": 99, "rank": 8.5}, {"step": 99, "valid_loss": 1}]),
        ("b-3", []),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = M.ranks(ctx, {name: dataclasses.replace(run, name=name) for name in "ab"})
    assert found == {"a": [[50, 7.0], [99, 8.5]], "b": []}
    (chart,) = M.rank_charts(found, {"a": "own", "b": "other"})
    assert [(s.name, s.x, s.y) for s in chart.series] == [("own", (50.0, 99.0), (7.0, 8.5))]
    assert M.rank_charts({"b": []}, {"b": "other"}) == ()


def test_the_rank_that_ends_training_is_the_watch_s():
    assert Watch().rank == M.COLLAPSED


def small(run: Any) -> Any:
    mixers = ({"kind": "gated_delta", "heads": 2},)
    model = {**run.model, "dim": 8, "widths": (4, 4, 8), "width": 16, "depth": 1, "mixers": mixers}
    data = {**run.data, "frames": 16, "size": 16}
    return dataclasses.replace(run, model=model, data=data, train=dataclasses.replace(run.train, batch=2))


def test_the_claim_small(tmp_path, monkeypatch):
    whole = M.recipes()
    monkeypatch.setattr(M, "recipes", lambda: {name: small(run) for name, run in whole.items()})
    monkeypatch.setattr(M, "ASKED", ((0, 4),))
    out = tmp_path / "out"
    assert run_report([load_claim("latent_physics")], out, budget_s=8, threads=1).exit_code == 0
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    (claim,) = report["claims"]
    result = claim["result"]
    assert result["verdict"] == "inconclusive"
    assert [step["step"] for step in claim["steps"]][3:] == [
        *(f"imagine a second: {scene}" for scene in M.SCENES),
        "effective rank",
        "pictures",
    ]
    assert len(result["tables"][0]["rows"]) == 9
    assert [row[0] for row in result["tables"][1]["rows"]] == list(M.NAMES.values())
    assert result["headline"]["number"]["n"] == 4
    films = result["films"]
    assert [film["known"] for film in films] == [6, 6]
    assert [[one["name"] for one in film["strips"]] for film in films] == [
        ["what truly comes", *list(M.NAMES.values())[:2]]
    ] * 2
    assert [{len(one["tracks"]) for one in film["strips"]} for film in films] == [{4}, {2}]
    assert {len(track["points"]) for film in films for one in film["strips"] for track in one["tracks"]} == {16}
    html = render(report)
    assert html.count('class="plot film"') == 2 and "<image" in html
