"""The rule of `experts_specialise` on made-up evidence, the expert of one domain, and the claim, small, from end to end."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from postformer.claims import domains, load_claim
from postformer.claims import experts_specialise as E
from postformer.claims import experts_specialise_page as page
from postformer.claims.ledger import NotMeasurable
from postformer.claims.report import run_report
from postformer.models.telemetry import Layer
from postformer.recipes.language import text_experts

SCHEMA = json.loads((Path(__file__).parents[2] / "postformer/claims/report.schema.json").read_text())


def around(value: float, by: float = 0.02) -> list[float]:
    return [value, value - by, value + by]


def layer(excess: float = 0.2, code: float | None = 0.95, **words: Any) -> dict[str, Any]:
    expert = None if code is None else {"expert": 3, "share": around(code), "takes": 0.3, "chosen by": code}
    return {
        "name": "layer 1",
        "loads": [[8, 2], [1, 9], [5, 5]],
        "documents": {"code": 40, "prose": 40, "diary": 40},
        "chosen by": excess,
        "purity": around(0.4 + excess),
        "untrained": around(0.4),
        "excess": around(excess),
        "information": 0.3,
        "max_violation": 0.2,
        "idle": 0,
        "specialist": expert,
        "untrained specialist": {"expert": 0, "share": around(0.4), "takes": 0.2, "chosen by": 0.4},
        **words,
    }


def evidence(*layers: dict[str, Any], share: float = 1.0) -> dict[str, Any]:
    each = {str(seed): [one] for seed, one in enumerate(layers)}
    return {"domains": ["code", "prose", "diary"], "layers": each, "taken": "10 of 10 steps", "taken_share": share}


def verdicts(e: dict[str, Any]) -> list[str]:
    return [finding.verdict for finding in E.RULE.judge(e)]


@pytest.mark.parametrize(
    ("layers", "share", "found"),
    [
        ([layer()], 0.1, ["supported", "supported"]),
        ([layer(), layer(0.06, 0.91)], 1.0, ["inconclusive", "inconclusive"]),
        ([layer(0.01, 0.5)], 1.0, ["contradicted", "contradicted"]),
        ([layer(0.01, 0.5)], 0.9, ["inconclusive", "inconclusive"]),
        ([layer(0.01, None)], 1.0, ["contradicted", "contradicted"]),
        ([layer(0.01, 0.5), layer()], 1.0, ["inconclusive", "inconclusive"]),
    ],
)
def test_the_rule(layers, share, found):
    assert verdicts(evidence(*layers, share=share)) == found


def test_the_expert_is_measured_apart():
    """Chosen on every other window; what it has in those between is told."""
    even, odd = [[6, 2], [0, 8]], [[1, 7], [0, 8]]
    windows = {"code": np.array([even[0], odd[0]] * 5), "prose": np.array([even[1], odd[1]] * 5)}
    layer = Layer("1", windows, {d: of[None] for d, of in windows.items()})
    one = layer.specialist("code", 0.1)
    assert one is not None and one.expert == 0
    assert one.share.value == 1.0 and one.takes == pytest.approx(1 / 8) and one.chosen_by == 1.0
    assert layer.specialist("code", 0.9) is None
    assert domains._first_control(layer).specialist("code", 0.1) == one


def test_the_layer_is_chosen_by_the_half_that_is_not_told():
    """Of two layers whose halves disagree, the one that is best where it is chosen is told, as it is in the other half."""
    lucky = {"expert": 1, "share": around(0.97), "takes": 0.2, "chosen by": 0.6}
    steady = {"expert": 2, "share": around(0.8), "takes": 0.2, "chosen by": 0.9}
    two = [layer(name="layer 0", specialist=lucky), layer(name="layer 1", specialist=steady)]
    e = {**evidence(), "layers": {"0": two}}
    found = page.specialist(two, "specialist")
    assert found is not None and (found["layer"], found["expert"]) == ("layer 1", 2)
    head = page.headline(e)
    assert head is not None and head.number.value == pytest.approx(80)
    assert verdicts(e)[1] == "contradicted"


def sparse(windows: int, documents: int) -> Layer:
    """A layer of so many windows of so many documents in each domain."""
    rng = np.random.default_rng(0)
    own = {d: rng.multinomial(64, [0.5, 0.5], windows) for d in ("code", "prose")}
    numbers = {d: np.arange(windows) * documents // windows for d in own}
    return Layer("1", own, {d: of[None] for d, of in own.items()}, numbers)


@pytest.mark.parametrize(("windows", "documents"), [(1, 1), (9, 1), (2, 2), (3, 3)])
def test_a_half_that_is_too_little_is_said(windows, documents):
    with pytest.raises(NotMeasurable, match=r"^code: too little text: of \d windows .* a half has [01], 2 are needed$"):
        domains.told([sparse(windows, documents)], 0)


@pytest.mark.parametrize(("windows", "documents"), [(4, 2), (7, 3), (9, 9)])
def test_a_few_documents_are_measured(windows, documents):
    (one,) = domains.told([sparse(windows, documents)], 0)
    assert one["documents"] == {"code": documents, "prose": documents}
    assert set(one["specialist"]) == {"expert", "share", "takes", "chosen by"}


def test_without_such_an_expert_the_page_stands():
    e = evidence(layer(code=None))
    assert page.headline(e) is None and len(page.specialists(e).rows) == 1
    assert page.heats(e)[0].cells[0][0].value == pytest.approx(100 * 0.8 / (0.8 + 0.1 + 0.5))


def test_the_claim_small(tmp_path, monkeypatch):
    text = tmp_path / "letters"
    text.mkdir()
    for i in range(300):
        (text / f"{i}.txt").write_text(f"Dear friend, letter {i}. " + "The weather is fair, and we are well. " * 20)
    small = text_experts()
    small = dataclasses.replace(small, model={**small.model, "dim": 48}, data={**small.data, "length": 64})
    monkeypatch.setattr(domains, "text_experts", lambda: small)
    monkeypatch.setattr(domains, "SHORT_BYTES", 1 << 20)
    out = tmp_path / "out"
    assert run_report([load_claim("experts_specialise")], out, budget_s=20, text=text, threads=1).exit_code == 0
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    (claim,) = report["claims"]
    result = claim["result"]
    assert result["heats"][0]["rows"] == ["code", "prose", "yours"]
    assert len(result["tables"][0]["rows"]) == 2 and str(text) in result["data"]["text"]
    assert all(0 <= cell["value"] <= 100 for row in result["heats"][0]["cells"] for cell in row if not isinstance(cell, str))


def test_too_little_text_is_said(tmp_path, monkeypatch):
    (tmp_path / "few.txt").write_text("A few words.\n" * 3)
    monkeypatch.setattr(domains, "SHORT_BYTES", 1 << 20)
    run_report([load_claim("experts_specialise")], tmp_path / "out", budget_s=20, text=tmp_path / "few.txt", threads=1)
    (claim,) = json.loads((tmp_path / "out" / "report.json").read_text())["claims"]
    assert claim["result"]["verdict"] == "not measurable here"
    assert "yours: too little text" in json.dumps(claim)
