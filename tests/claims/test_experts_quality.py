"""The rule of `experts_quality` on made-up evidence, and the claim, small, from end to end."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from postformer.claims import experts_quality as Q
from postformer.claims import experts_quality_page as page
from postformer.claims import load_claim
from postformer.claims.report import run_report
from postformer.recipes.language import text_attention, text_experts, text_wide

SCHEMA = json.loads((Path(__file__).parents[2] / "postformer/claims/report.schema.json").read_text())


def evidence(
    active: float = 0.05, total: float = -0.005, seeds: int = 3, share: float = 1.0, apart: float = 0.0
) -> dict[str, Any]:
    sizes = np.linspace(900, 1100, 20)
    bits = {}
    for seed in range(seeds):
        base = 1.5 * sizes * (1 + 0.01 * np.random.default_rng(seed).standard_normal(20))
        more = apart * (seed - 1)
        bits[str(seed)] = {
            "experts": base.tolist(),
            "active": (base + (active + more) * sizes).tolist(),
            "total": (base + (total + more) * sizes).tolist(),
        }
    own = {"parameters": 400, "active": 100, "flops": 200.0}
    return {
        "units": {"bytes": sizes.tolist()},
        "bits": bits,
        "sizes": {"experts": own, "active": {**own, "parameters": 100}, "total": {**own, "active": 400}},
        "step_s": {"experts": 0.3, "active": 0.2, "total": 0.4},
        "tokens": 1000,
        "taken": "10 of 10 steps",
        "taken_share": share,
    }


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ({}, ["supported", "supported"]),
        ({"active": -0.05, "total": -0.05}, ["contradicted", "contradicted"]),
        ({"seeds": 1}, ["inconclusive", "inconclusive"]),
        ({"share": 0.5}, ["inconclusive", "inconclusive"]),
        ({"apart": 0.1}, ["inconclusive", "inconclusive"]),
        ({"active": 0.0, "total": 0.0}, ["inconclusive", "inconclusive"]),
        ({"active": -0.05, "total": 0.0}, ["contradicted", "inconclusive"]),
    ],
)
def test_the_rule(words, found):
    judged = Q.RULE.judge(evidence(**words))
    assert [finding.verdict for finding in judged] == found
    assert ("3 seeds are needed" in judged[0].because) == (words.get("seeds") == 1)


def test_gains_are_paired():
    gain = page.gain(evidence(active=0.05), "active")
    assert gain.value == pytest.approx(0.05) and gain.high - gain.low < 1e-3


def test_the_three_are_of_one_size():
    """By parameters, all and active, to 2%: the router is the mixture's own."""
    sizes = {}
    import torch

    from postformer.config import build
    from postformer.models import MODELS

    for name, recipe in (("experts", text_experts), ("active", text_attention), ("total", text_wide)):
        with torch.device("meta"):
            sizes[name] = build(recipe().model, MODELS, "model", vocab=4096).cost(256)
    assert sizes["experts"].active_parameters == pytest.approx(sizes["active"].parameters, rel=0.02)
    assert sizes["experts"].parameters == pytest.approx(sizes["total"].parameters, rel=0.02)
    assert sizes["experts"].prefill_flops == pytest.approx(sizes["active"].prefill_flops, rel=0.02)


def test_the_claim_small(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Day {i}. The wind was from the west, and we made {i * 7 % 50} miles." for i in range(4000)))

    def small(run: Any) -> Any:
        ffn = {**run.model["ffns"][0], "hidden": 32}
        model = {**run.model, "dim": 48, "ffns": (ffn,)}
        return dataclasses.replace(run, model=model, data={**run.data, "length": 64})

    whole = Q._recipes
    monkeypatch.setattr(Q, "_recipes", lambda ctx: {name: small(run) for name, run in whole(ctx).items()})
    out = tmp_path / "out"
    assert run_report([load_claim("experts_quality")], out, budget_s=12, text=text, threads=1).exit_code == 0
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    (claim,) = report["claims"]
    assert claim["result"]["verdict"] == "inconclusive"
    (table,) = claim["result"]["tables"]
    assert [row[0] for row in table["rows"]] == list(page.NAMES.values())
    assert all(0 < row[1]["value"] < 20 for row in table["rows"])
