"""The rule of `patches_see` on made-up evidence, and the claim, small, from end to end."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from postformer.claims import patches_see as P
from postformer.claims import patches_see_page as page
from postformer.claims.progress import reporter
from postformer.claims.report import _context, run_report

SCHEMA = json.loads((Path(__file__).parents[2] / "postformer/claims/report.schema.json").read_text())
N = 1000


def answers(share: float, seed: int = 0) -> str:
    """That share of N answers right, the same images first, but for a few that differ by seed."""
    right = np.arange(N) < round(share * N)
    at = np.random.default_rng(seed).integers(0, N)
    right[[0, at]] = right[[at, 0]]
    return "".join("01"[int(r)] for r in right)


def evidence(
    vit: float = 0.95,
    convnet: float = 0.95,
    few: tuple[float, float] = (0.8, 0.8),
    other: tuple[float, float] = (0.7, 0.7),
    seeds: int = 3,
    share: float = 1.0,
    apart: float = 0.0,
) -> dict[str, Any]:
    named = {}
    for model, most, little, far in (("vit", vit, few[0], other[0]), ("convnet", convnet, few[1], other[1])):
        for count, own in ((10, little), (100, most)):
            named[page.key(model, count)] = {
                str(s): {
                    str(side): answers((own if side == 28 else far) + apart * (s - 1) * (model == "vit"), s)
                    for side in (16, 28, 56)
                }
                for s in range(seeds)
            }
    return {
        "counts": [10, 100],
        "side": 28,
        "sides": [16, 28, 56],
        "named": named,
        "sizes": {model: {"parameters": 10, "flops": 20} for model in page.NAMES},
        "step_s": dict.fromkeys(page.NAMES, 0.1),
        "seeds": list(range(seeds)),
        "asked": N,
        "classes": ["a", "b"],
        "taken": "10 of the recipe's 10 steps",
        "taken_share": share,
    }


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ({}, ["supported"] * 3),
        ({"seeds": 1}, ["inconclusive"] * 3),
        ({"share": 0.9}, ["inconclusive"] * 3),
        ({"vit": 0.9}, ["contradicted", "supported", "supported"]),
        ({"few": (0.5, 0.8)}, ["supported", "contradicted", "supported"]),
        ({"other": (0.5, 0.7)}, ["supported", "supported", "contradicted"]),
        ({"vit": 0.99, "few": (0.9, 0.8)}, ["supported"] * 3),
        ({"vit": 0.94}, ["inconclusive", "supported", "supported"]),
        ({"apart": 0.04}, ["inconclusive"] * 3),
    ],
)
def test_the_rule(words, found):
    assert [finding.verdict for finding in P.RULE.judge(evidence(**words))] == found


def test_shares_and_gains():
    e = evidence(vit=0.9, convnet=0.95, other=(0.6, 0.7))
    assert page.right(e, "vit", 100).value == pytest.approx(90, abs=0.11)
    assert page.gain(e, 100).value == pytest.approx(-5, abs=0.11)
    assert page.elsewhere(e) == [16, 56]
    assert page.gain_elsewhere(e).value == pytest.approx(-10, abs=0.11)
    assert page.right(e, "convnet", 100, 56).value == pytest.approx(70, abs=0.11)


@pytest.fixture
def archive(tmp_path):
    """Two classes of pictures of 20 x 24 pixels, bright above or bright below."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    images = rng.integers(0, 60, (200, 20, 24), np.uint8)
    images[labels == 0, :10] += 150
    images[labels == 1, 10:] += 150
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    return tmp_path / "own.npz"


def test_the_claim_small_on_own_images(tmp_path, archive, monkeypatch):
    whole = P._recipes

    def small(run: Any) -> Any:
        less = {"dim": 24, "depth": 1} if run.model["kind"] == "vit" else {"widths": [8, 8]}
        return dataclasses.replace(run, model={**run.model, **less}, train=dataclasses.replace(run.train, batch=8))

    monkeypatch.setattr(P, "_recipes", lambda *told: {name: small(run) for name, run in whole(*told).items()})
    out = tmp_path / "out"
    assert run_report([P.PatchesSee(str(archive))], out, budget_s=6, threads=1).exit_code == 0
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    (claim,) = report["claims"]
    result = claim["result"]
    assert result["verdict"] == "inconclusive"
    counts, sides = result["heats"]
    assert counts["columns"] == ["9", "37", "150"]
    assert sides["columns"] == ["16", "24", "32", "40", "48", "64"]
    assert all(cell["n"] == 40 for row in counts["cells"] for cell in row)
    assert result["data"]["own"] and result["data"]["option"] == "--images"


def test_named_images_that_are_not_there_are_not_measurable(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTFORMER_DATA", str(tmp_path))
    out = tmp_path / "out"
    assert run_report([P.CLAIM], out, budget_s=5, threads=1).exit_code == 0
    (claim,) = json.loads((out / "report.json").read_text())["claims"]
    assert claim["result"]["verdict"] == "not measurable here"
    assert "POSTFORMER_DATA" in claim["result"]["findings"][0]["because"]


def test_own_images_that_are_not_there_are_a_mistake(tmp_path):
    out = tmp_path / "out"
    assert run_report([P.PatchesSee(str(tmp_path / "none.npz"))], out, budget_s=5, threads=1).exit_code == 2
    (claim,) = json.loads((out / "report.json").read_text())["claims"]
    assert "no such file" in claim["reason"]


def test_other_images_are_not_taken_for_these(tmp_path):
    one, other = P.PatchesSee("digits"), P.PatchesSee("tiles")
    settings = {"budget_s": 1, "seeds": [0], "threads": 1}
    with reporter(None) as show:
        made = [_context(claim, tmp_path, settings, None, show).settings for claim in (one, other)]
    assert made[0] != made[1]
