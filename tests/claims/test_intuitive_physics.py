"""The rule of `intuitive_physics` on made-up evidence, and the claim, small, from end to end."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from postformer.claims import imagining as M
from postformer.claims import intuitive_physics as I
from postformer.claims import intuitive_physics_page as page
from postformer.claims import load_claim
from postformer.claims.page import render
from postformer.claims.report import run_report
from postformer.data.impossible import EASY, KINDS, pair

SCHEMA = json.loads((Path(__file__).parents[2] / "postformer/claims/report.schema.json").read_text())
HARD = [kind for kind in KINDS if kind not in EASY]
N = 200


def evidence(
    easy: dict[str, float] | None = None,
    hard: tuple[float, ...] = (0.97, 0.97, 0.97, 0.97, 0.6, 0.6),
    pixels: float = 0.7,
    untrained: float = 0.5,
    seeds: int = 3,
    share: float = 1.0,
    apart: float = 0.0,
) -> dict[str, Any]:
    """Shares of pairs told apart by each model, those of the embeddings' by kind; seeds of that model are `apart`."""
    of = {**dict.fromkeys(EASY, 1.0), **(easy or {}), **dict(zip(HARD, hard, strict=True))}

    def told(share: float) -> dict[str, Any]:
        return {"apart": [float(i < round(share * N)) for i in range(N)], "auroc": share}

    def by_seed(share: float, apart: float) -> dict[str, Any]:
        return {str(s): told(share + apart * (s - 1)) for s in range(seeds)}

    models = {
        kind: {"embeddings": by_seed(own, apart), "pixels": by_seed(pixels, 0.0), "untrained": by_seed(untrained, 0.0)}
        for kind, own in of.items()
    }
    return {
        "told": models,
        "easy": list(EASY),
        "hard": HARD,
        "pair": {"kind": "turns back", "frame": 2, "possible": [0.1, 0.1, 0.1], "impossible": [0.1, 0.9, 0.3]},
        "seeds": list(range(seeds)),
        "asked": N,
        "frames": 20,
        "side": 32,
        "videos": 320,
        "step_s": {"embeddings": 0.1, "pixels": 0.2},
        "taken": "10 of the recipe's 10 steps",
        "taken_share": share,
    }


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ({}, ["supported"] * 4),
        ({"seeds": 2}, ["inconclusive"] * 4),
        ({"share": 0.9}, ["inconclusive"] * 4),
        ({"easy": {"vanishes": 0.9}}, ["contradicted", "supported", "supported", "supported"]),
        ({"easy": {"jumps": 0.95}}, ["inconclusive", "supported", "supported", "supported"]),
        ({"easy": {"changes colour": 0.5}}, ["supported"] * 4),
        ({"hard": (0.97, 0.97, 0.97, 0.86, 0.6, 0.6)}, ["supported", "inconclusive", "supported", "supported"]),
        ({"hard": (0.97, 0.97, 0.97, 0.6, 0.6, 0.6)}, ["supported", "contradicted", "supported", "supported"]),
        ({"pixels": 0.95}, ["supported", "supported", "contradicted", "supported"]),
        ({"untrained": 0.95}, ["supported", "supported", "supported", "contradicted"]),
        ({"hard": (0.8,) * 6, "pixels": 0.8}, ["supported", "contradicted", "inconclusive", "supported"]),
        ({"easy": dict.fromkeys(EASY, 0.8), "hard": (0.75,) * 6, "apart": 0.2}, ["inconclusive"] * 4),
    ],
)
def test_the_rule(words, found):
    assert [finding.verdict for finding in I.RULE.judge(evidence(**words))] == found


def test_shares_are_of_pairs_and_gains_pair_by_pair():
    e = evidence(hard=(1.0, 1.0, 1.0, 0.5, 0.5, 0.5), pixels=0.5)
    assert (page.share(e, HARD[0]).value, page.share(e, HARD[0]).n) == (100, 3 * N)
    assert page.harder(e).value == pytest.approx(75)
    gain = page.gain(e, "pixels")
    assert (gain.value, gain.n) == (pytest.approx(25), N)
    assert page.area(e, HARD[3], "embeddings").value == 0.5
    for model in M.NAMES:  # another order of the pairs, the same for all, changes no difference
        for seed in e["told"][HARD[0]][model].values():
            seed["apart"].reverse()
    assert page.gain(e, "pixels").value == pytest.approx(25)
    e["told"][HARD[0]]["embeddings"]["0"]["apart"] = [0.5] * N
    assert page.harder(e).value == pytest.approx(75 - 50 / 18)


def test_the_table_has_every_kind_and_what_is_not_easy_in_one_row():
    rows = page.kinds(evidence()).rows
    assert [row[0] for row in rows] == [*(f"{kind} (easy)" for kind in EASY), *HARD, "mean of those that are not easy"]
    assert rows[-1][1] == page.harder(evidence())


def test_what_follows_ranks_by_the_interval():
    assert page.consequences(evidence())[0].endswith(f"{HARD[4]}, 60% (56 to 64).")
    told = page.consequences(evidence(hard=(0.8,) * 6, pixels=0.8, untrained=0.9))[1].split("; by the one that ")
    assert told[1].startswith("predicts pixels: 80") and told[1].endswith("no ranking")
    assert told[2].startswith("learned nothing: 90") and told[2].endswith("more.")


@pytest.mark.parametrize(("recipe", "pictures"), [("embeddings", False), ("pixels", True)])
def test_a_model_is_surprised_by_what_it_was_taught(recipe, pictures, monkeypatch):
    asked = []

    def surprise(model: Any, batch: dict[str, Any], *, pictures: bool) -> torch.Tensor:
        asked.append((len(batch["clips"]), pictures))
        return batch["clips"].mean((1, 3, 4))[:, 1:]

    monkeypatch.setattr("postformer.objectives.surprise.surprise", surprise)
    monkeypatch.setattr(M, "CHUNK", 2)
    run = M.recipes()[recipe]
    told = M.surprises(None, run, "vanishes", 2, 3)
    assert asked == [(2, pictures), (2, pictures), (1, pictures), (1, pictures)]
    last = pair(M.world(run), "vanishes", 2, seed=1002)
    assert told["impossible"][2] == pytest.approx(last.impossible[:, 1:].mean(), rel=1e-5)
    assert told["possible"][2] == pytest.approx(last.possible[:, 1:].mean(), rel=1e-5)


def test_what_any_frame_tells_is_easy_and_what_is_shown_is_not():
    assert set(I.PLAIN) <= set(EASY) and I.SHOWN in HARD


def test_the_claim_small(tmp_path, monkeypatch):
    whole = M.recipes()

    def small(run: Any) -> Any:
        mixers = ({"kind": "gated_delta", "heads": 2},)
        model = {**run.model, "dim": 8, "widths": (4, 4, 8), "width": 16, "depth": 1, "mixers": mixers}
        data = {**run.data, "frames": 16, "size": 16}
        return dataclasses.replace(run, model=model, data=data, train=dataclasses.replace(run.train, batch=2))

    monkeypatch.setattr(M, "recipes", lambda: {name: small(run) for name, run in whole.items()})
    monkeypatch.setattr(M, "ASKED", ((0, 3),))
    out = tmp_path / "out"
    assert run_report([load_claim("intuitive_physics")], out, budget_s=8, threads=1).exit_code == 0
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    (claim,) = report["claims"]
    result = claim["result"]
    assert result["verdict"] == "inconclusive"
    assert [step["step"] for step in claim["steps"]][3:] == [
        *(f"see what cannot be: {kind}" for kind in KINDS),
        "surprise along a pair",
        "pictures",
    ]
    rows = result["tables"][0]["rows"]
    assert len(rows) == len(KINDS) + 1 and {row[1]["n"] for row in rows} == {3}
    (chart,), (film,) = result["charts"], result["films"]
    possible, impossible = chart["series"]
    differ = int(chart["marks"][0]["at"])
    assert possible["x"] == list(range(2, 17)) and len(film["columns"]) == 16
    same = [a == pytest.approx(b) for a, b in zip(possible["y"], impossible["y"], strict=True)]
    assert all(same[: differ - 2]) and not same[differ - 2]
    assert [one["name"] for one in film["strips"]] == ["possible", "impossible"]
    assert len({one["png"] for one in film["strips"]}) == 2
    html = render(report)
    assert html.count('class="plot film"') == 1 and "<image" in html
