"""The rules of `selective` and `state_tracking` on made-up evidence at each threshold, and both claims, small, from end to end."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from postformer.claims import load_claim, tasks
from postformer.claims import selective as S
from postformer.claims import state_tracking as T
from postformer.claims.ledger import Context
from postformer.claims.report import run_report
from postformer.recipes.tasks import induction, parity

SCHEMA = json.loads((Path(__file__).parents[2] / "postformer/claims/report.schema.json").read_text())


def score(length: int, right: int, rows: int, chance: float = 1 / 15) -> dict[str, Any]:
    one = {"right": right, "asked": rows, "rows_right": right, "rows": rows, "chance": chance}
    return {"length": length, **one, "each": [one]}


def judge(rule: Any, name: str, evidence: Any) -> str:
    criterion = next(c for c in rule.criteria if c.name == name)
    return criterion.judge(evidence, criterion.thresholds).verdict


TAKEN = {"induction": "10 of 10 steps", "induction_share": 1.0, "copying": "9 of 10 steps", "copying_share": 0.9}


@pytest.mark.parametrize(
    ("rights", "verdict"),
    [
        ({64: 256, 256: 256, 4096: 256, 1 << 20: 8}, "supported"),
        ({64: 256, 256: 254, 4096: 256, 1 << 20: 8}, "supported"),
        ({64: 256, 256: 256, 4096: 252, 1 << 20: 8}, "inconclusive"),  # 98.4%, to 99.4%
        ({64: 256, 256: 256, 4096: 250, 1 << 20: 8}, "contradicted"),  # 97.7%, to 98.9%
        ({64: 256, 256: 256, 4096: 256, 1 << 20: 7}, "contradicted"),  # 87.5%, to 97.8%
        ({64: 256, 256: 256, 4096: 20, 1 << 20: 8}, "contradicted"),
        ({64: 256, 256: 256, 4096: 256, 1 << 20: 0}, "contradicted"),
        ({64: 256, 256: 120, 4096: 20, 1 << 20: 0}, "inconclusive"),  # it was not learned: nothing is said of length
        ({64: 256, 256: 256, 4096: 256}, "inconclusive"),
    ],
    ids=str,
)
def test_induction(rights, verdict):
    scores = [score(n, right, 8 if n == 1 << 20 else 256) for n, right in rights.items()]
    assert judge(S.RULE, "induction heads at a million tokens", {"induction": scores, "taken": TAKEN}) == verdict
    short = {"induction": scores, "taken": {**TAKEN, "induction_share": 0.5}}
    after_less = "inconclusive" if verdict == "contradicted" else verdict
    assert judge(S.RULE, "induction heads at a million tokens", short) == after_less


@pytest.mark.parametrize(
    ("right", "share", "verdict"),
    [(998, 0.5, "supported"), (990, 1.0, "inconclusive"), (970, 1.0, "contradicted"), (970, 0.5, "inconclusive")],
)
def test_copying(right, share, verdict):
    evidence = {"copying": score(256, right, 1000), "taken": {**TAKEN, "copying_share": share}}
    assert judge(S.RULE, "selective copying", evidence) == verdict


def along(last: float, noise: float = 0.01, sizes: tuple[int, int] = (100, 100)) -> dict[str, Any]:
    def samples(value: float, seed: int) -> list[float]:
        return (value * (1 + noise * np.random.default_rng(seed).permutation(np.linspace(-1, 1, 41)))).tolist()

    one = {"samples": [samples(1e-3, 0), samples(last * 1e-3, 1)], "control": samples(1e-3, 2)}
    return {"along": {"lengths": [1024, 1 << 20], "state_bytes": list(sizes), "reading": one, "writing": one}}


@pytest.mark.parametrize(
    ("evidence", "verdict"),
    [
        (along(1.0), "supported"),
        (along(1.005), "supported"),
        (along(1.09), "inconclusive"),  # within 10%, but it grows by more than the noise
        (along(0.5), "supported"),
        (along(1.12), "contradicted"),
        (along(1.1, noise=0.5), "inconclusive"),
        (along(1.0, sizes=(100, 101)), "contradicted"),
    ],
)
def test_constant_cost(evidence, verdict):
    assert judge(S.RULE, "the same cost all along", evidence) == verdict


@pytest.mark.parametrize(
    ("rotating", "real", "share", "counts", "does_not"),
    [
        (1000, 500, 1.0, "supported", "supported"),
        (1000, 500, 0.3, "supported", "supported"),
        (600, 500, 1.0, "contradicted", "inconclusive"),
        (600, 500, 0.3, "inconclusive", "inconclusive"),
        (1000, 1000, 1.0, "supported", "contradicted"),
        (1000, 700, 1.0, "supported", "inconclusive"),
        (1000, 560, 1.0, "supported", "inconclusive"),
    ],
)
def test_parity(rotating, real, share, counts, does_not):
    scores = {name: [score(n, right, 1000, 0.5) for n in T.LENGTHS] for name, right in (("rotating", rotating), ("real", real))}
    evidence = {"scores": scores, "share": share, "taken": "some steps"}
    assert judge(T.RULE, "a rotating state counts", evidence) == counts
    assert judge(T.RULE, "a real, positive state does not", evidence) == does_not


def test_seeds_that_differ_widen_the_interval():
    def share(*rights):
        each = [{"right": k, "asked": 100, "rows_right": k, "rows": 100, "chance": 0.5} for k in rights]
        return tasks.scaled_share({"each": each, "chance": 0.5})

    one, alike, apart = share(100), share(100, 100, 100), share(55, 97, 100)
    assert (one.value, one.high) == (100, 100) and (alike.value, alike.high) == (100, 100)
    assert one.low < alike.low
    assert apart.value == pytest.approx(68)
    assert apart.low < 0 and apart.high == 100


def test_steps_are_timed_over_the_whole_run(tmp_path, monkeypatch):
    seen: list[list[int]] = []

    def timed(run, at):
        seen.append(list(at))
        return iter([9.0, 9.0] + [1.0, 3.0] * (tasks.SAMPLED // 2))

    monkeypatch.setattr(tasks.sequences, "training_steps", timed)
    ctx = Context(folder=tmp_path, settings="0" * 64, budget_s=10)
    run = parity()
    fitted = tasks.fitted(ctx, {"parity": run}, 2.0 * run.train.steps / 4)
    assert 0 <= run.train.steps / 4 - fitted["parity"].train.steps <= 2  # the timing has its share of the seconds
    warm, at = seen[0][:2], seen[0][2:]
    assert warm == [run.train.steps - 1] * 2
    assert len(at) == tasks.SAMPLED and at[0] == 0 and at == sorted(at)
    assert at[-1] > run.train.steps * 0.9


def test_a_shortened_run_grows_as_much_faster():
    run = induction()
    short = tasks.shortened(run, 0.25, threads=1)
    assert short.train.steps == run.train.steps // 4
    assert short.data["grow"] == run.data["grow"] // 4
    assert tasks.shortened(run, 1e-9, 1).train.steps == 10


def test_both_claims_small(tmp_path, monkeypatch):
    """From training to the page, with lengths and rows cut down; the same command again measures nothing anew."""
    monkeypatch.setattr(S, "LENGTHS", (64, 256, 1024))
    monkeypatch.setattr(S, "ALONG", (64, 256))
    monkeypatch.setattr(S, "TOKENS", 4096)
    monkeypatch.setattr(T, "LENGTHS", (16, 160, 256))
    claims = [load_claim("selective"), load_claim("state_tracking")]
    outcome = run_report(claims, tmp_path / "out", budget_s=4, threads=1)
    assert outcome.exit_code == 0, outcome.failures
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    for claim in report["claims"]:
        assert claim["status"] == "done"
        assert claim["result"]["verdict"] != "not measurable here"
        assert claim["result"]["tables"] and claim["result"]["charts"] and claim["result"]["limits"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Remembering what matters" in page and "Keeping count" in page
    steps = [s for c in report["claims"] for s in c["steps"]]
    run_report(claims, tmp_path / "out", budget_s=4, threads=1)
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [s for c in again["claims"] for s in c["steps"]] == steps


def test_answers_are_those_of_the_model_at_that_length(tmp_path):
    ctx = Context(folder=tmp_path, settings="0" * 64, budget_s=10)
    run = tasks.shortened(parity(), 0.0, threads=1)
    run = dataclasses.replace(run, data={**run.data, "length": 24, "start": 8})
    tasks.learn(ctx, [run])
    found = tasks.answers(ctx, run, 20, 32, answers="last")
    assert (found["length"], found["asked"], found["rows"], found["chance"]) == (20, 32, 32, 0.5)
    assert tasks.answers(ctx, run, 20, 32)["asked"] == 32 * 20
