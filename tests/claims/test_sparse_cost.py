"""The rule of `sparse_cost` on made-up evidence, what its page computes, and the claim, small, from end to end."""

import json
from typing import Any

import numpy as np
import pytest

from postformer.claims import load_claim, mixtures
from postformer.claims import sparse_cost as S
from postformer.claims import sparse_cost_page as page
from postformer.claims.report import run_report

SMALL = mixtures.Shape(dim=32, depth=2, experts=8, top=2, hidden=16)


def samples(value: float, seed: int = 0, n: int = 21) -> list[float]:
    return (value * (1 + 0.01 * np.random.default_rng(seed).permutation(np.linspace(-1, 1, n)))).tolist()


def step(ratio: float, n: int) -> dict[str, Any]:
    each = {"sparse": samples(1, 0, n), "total": samples(ratio, 1, n), "active": samples(0.9, 2, n)}
    return {"samples": each, "control": samples(1, 3, n)}


def evidence(
    alone: float = 8.0, together: float = 1.2, reading: float = 7.9, held: Any = (800, 800, 100), rounds: int = 21
) -> Any:
    batches = list(S.BATCHES)
    steps = [step(alone if b == 1 else together, rounds) for b in batches]
    sizes = {"parameters": 800, "active": 100, "flops": 200}
    dense = {"parameters": 800, "active": 800, "flops": 1600}
    return {
        "experts": 64,
        "counted": {"sparse": sizes, "total": dense, "active": {**sizes, "parameters": 100}},
        "resident": held and dict(zip(("sparse", "total", "active"), held, strict=True)),
        "times": {
            "batches": batches,
            "steps": steps,
            "touched": [6.0 * b**0.5 for b in batches],
            "formula": [6.0 * b**0.5 for b in batches],
            "reading": {"tokens": 512, **step(reading, rounds)},
        },
    }


def verdicts(e: Any) -> list[str]:
    return [finding.verdict for finding in S.RULE.judge(e)]


def test_the_rule():
    assert verdicts(evidence()) == ["supported", "supported", "contradicted", "supported"]
    assert verdicts(evidence(alone=6.0, reading=3.0)) == ["supported", "contradicted", "contradicted", "contradicted"]
    assert verdicts(evidence(alone=6.4))[1] == "inconclusive"
    assert verdicts(evidence(rounds=4)) == ["supported", "inconclusive", "inconclusive", "inconclusive"]
    assert "the budget ended after 4 rounds" in S.RULE.judge(evidence(rounds=4))[1].because
    for criterion in S.RULE.criteria:
        assert "0.8 times 8 times" in criterion.sentence and "{" not in criterion.sentence


def test_eighty_billion_are_counted():
    assert page.EIGHTY.parameters / 1e9 == pytest.approx(79.3, abs=0.05)
    assert page.EIGHTY.active_parameters / 1e9 == pytest.approx(9.95, abs=0.05)
    rows = page._eighty().rows
    ratios = [row[3].value for row in rows]
    assert ratios[0] > 6 and min(ratios) < 1.5  # a batch that touches every expert
    assert [row[-1] for row in rows] == ["", "", "", "", "more than its memory"]
    assert page.charts(evidence())[0].series[-1].x == (1, 8, 32, 128)


def test_what_is_not_told_is_left_out():
    for held in (None, (-5, 800, 100)):
        assert page._sizes(evidence(held=held)).rows[0][-1] == "not told"


def test_a_model_of_each_kind():
    counted = mixtures.counted(SMALL)
    assert counted["total"]["parameters"] == pytest.approx(counted["sparse"]["parameters"], rel=0.05)
    assert counted["active"]["parameters"] == pytest.approx(counted["sparse"]["active"], rel=0.05)
    assert counted["total"]["flops"] > 1.5 * counted["sparse"]["flops"]
    own = S.DIM, S.DEPTH, S.EXPERTS, S.TOP, S.HIDDEN
    whole = mixtures.counted(mixtures.Shape(**dict(zip(("dim", "depth", "experts", "top", "hidden"), own, strict=True))))
    assert whole["sparse"]["parameters"] / whole["sparse"]["active"] == pytest.approx(8, rel=0.01)
    assert whole["total"]["parameters"] == pytest.approx(whole["sparse"]["parameters"], rel=0.01)


def test_the_claim_small(tmp_path, monkeypatch):
    for name, value in {"DIM": 32, "DEPTH": 1, "EXPERTS": 8, "TOP": 1, "HIDDEN": 16, "READING": 32, "ROUNDS": 3}.items():
        monkeypatch.setattr(S, name, value)
    assert run_report([load_claim("sparse_cost")], tmp_path / "out", budget_s=10, threads=1).exit_code == 0
    (claim,) = json.loads((tmp_path / "out" / "report.json").read_text())["claims"]
    result = claim["result"]
    assert [f["criterion"] for f in result["findings"]] == [c.name for c in S.RULE.criteria]
    assert [len(table["rows"]) for table in result["tables"]] == [len(S.BATCHES) + 1, 3, 4, len(page.COMPUTED)]
    touched = [row[6]["value"] for row in result["tables"][0]["rows"][:-1]]
    assert touched[0] == 1 and touched == sorted(touched) and touched[-1] <= 8
    assert not list((tmp_path / "out").rglob("model-*"))
