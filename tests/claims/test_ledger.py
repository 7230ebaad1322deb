"""Claims, rules and results; and the journal that lets a killed run go on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sample import SampleClaim

from postformer.claims.ledger import Chart, Context, Criterion, Finding, Number, Result, Rule, Series, Table, combine, digest
from postformer.config import ConfigError, parse, plain

REPO = Path(__file__).parents[2]


def findings(*verdicts: str) -> list[Finding]:
    return [Finding(v, "") for v in verdicts]


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "contradicted"], "contradicted"),
        (["not measurable here", "contradicted", "inconclusive"], "contradicted"),
        (["supported", "inconclusive"], "inconclusive"),
        (["supported", "not measurable here"], "inconclusive"),
        (["inconclusive", "not measurable here"], "inconclusive"),
        (["not measurable here", "not measurable here"], "not measurable here"),
        ([], "not measurable here"),
    ],
)
def test_combine(parts: list[str], whole: str):
    assert combine(findings(*parts)) == whole


def test_result_goes_to_json_and_back():
    result = SampleClaim().run(None)
    again = parse(Result, json.loads(json.dumps(plain(result))))
    assert again == result
    assert isinstance(again.findings[0].numbers["Mamba's exponent"], Number)


def test_a_wrong_number_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"tag: 'guessed' is not a choice; choose from measured"):
        parse(Number, {"value": 1.0, "unit": "s", "tag": "guessed"})
    with pytest.raises(ConfigError, match=r"numbers\.speed"):
        Finding("supported", "", {"speed": {"value": 1.0, "unit": "s", "tag": "measured", "colour": "red"}})


def test_malformed_tables_and_charts_are_refused_where_they_are_made():
    with pytest.raises(ValueError, match="table 't': every row needs 2 cells"):
        Table("t", ("a", "b"), (("only",),))
    with pytest.raises(ValueError, match="series 's': x, y, low and high need equally many"):
        Series("s", (1, 2), (1,), "measured")
    with pytest.raises(ValueError, match="chart 'c': needs a series"):
        Chart(title="c", x_label="x", y_label="y", series=())
    with pytest.raises(ValueError, match="chart 'c': a logarithmic y axis takes positive values only"):
        Chart(title="c", x_label="x", y_label="y", series=(Series("s", (0,), (0,), "measured"),), log_y=True)


def test_rule_judges_by_its_own_thresholds_and_hashes_them():
    def judge(evidence, thresholds):
        return Finding("supported" if evidence["x"] > thresholds["least"] else "contradicted", "")

    rules = [Rule("x is large", (Criterion("size", "x above {least}", judge, {"least": least}),)) for least in (3, 4)]
    (three,), (four,) = (rule.judge({"x": 3.5}) for rule in rules)
    assert (three.verdict, three.criterion, three.rule) == ("supported", "size", "x above 3")
    assert (four.verdict, four.rule) == ("contradicted", "x above 4")
    assert rules[0].sha256 != rules[1].sha256 and rules[0].sha256 == digest(rules[0].written())


# ---------------------------------------------------------------- steps


def context(folder: Path, settings: str = "a" * 64) -> Context:
    return Context(folder, settings, budget_s=10)


def test_a_step_is_taken_once_per_settings(tmp_path: Path):
    taken = []

    def fn():
        taken.append(1)
        return {"median": 0.1 + 0.2, "pair": (1, 2), "number": Number(1.5, "s", "measured")}

    first, second = (context(tmp_path).step("time", fn) for _ in range(2))
    assert first == second and len(taken) == 1
    assert first["pair"] == [1, 2] and parse(Number, first["number"]) == Number(1.5, "s", "measured")
    context(tmp_path, "b" * 64).step("time", fn)
    assert len(taken) == 2


def test_budget_left_is_the_same_on_a_resumed_run(tmp_path: Path):
    left = []
    for _ in range(2):
        ctx = context(tmp_path)
        for name in ("a", "b"):
            ctx.step(name, lambda: sum(range(100_000)))
            left.append(ctx.left_s)
    assert left[:2] == left[2:] and 10 > left[0] > left[1]


def test_a_name_twice_or_a_number_that_is_none_is_refused(tmp_path: Path):
    ctx = context(tmp_path)
    ctx.step("a", lambda: 1)
    with pytest.raises(ValueError, match="the step 'a' is taken twice"):
        ctx.step("a", lambda: 2)
    with pytest.raises(ValueError, match="not JSON compliant"):
        ctx.step("b", lambda: float("nan"))
    assert context(tmp_path).step("b", lambda: 3) == 3


def test_a_line_cut_short_costs_only_its_own_step(tmp_path: Path):
    ctx = context(tmp_path)
    for i in range(3):
        ctx.step(str(i), lambda i=i: i)
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    for cut in range(1, 60, 7):
        path.write_bytes(whole[:-cut])
        again = context(tmp_path)
        assert [again.step(str(i), lambda: "anew") for i in range(3)] == [0, 1, 2 if cut == 1 else "anew"]
        assert [context(tmp_path).step(str(i), lambda: "lost") for i in range(3)][:2] == [0, 1]
        assert context(tmp_path).step("2", lambda: "lost") != "lost"


def test_killed_runs_go_on_and_end_with_the_same_results(tmp_path: Path):
    code = (
        "import os, signal, sys; from pathlib import Path; from postformer.claims.ledger import Context\n"
        "ctx = Context(Path(sys.argv[1]), 'a' * 64, budget_s=10)\n"
        "for i in range(6):\n"
        "    print(i, ctx.step(f'step {i}', lambda: i * i if i < int(sys.argv[2]) else os.kill(os.getpid(), signal.SIGKILL)))\n"
    )
    for reach in (2, 5, 6):
        run = [sys.executable, "-c", code, str(tmp_path), str(reach)]
        done = subprocess.run(run, capture_output=True, text=True, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)})
        assert done.returncode == (0 if reach == 6 else -signal.SIGKILL)
    assert done.stdout.split() == [word for i in range(6) for word in (str(i), str(i * i))]
    records = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [f"step {i}" for i in range(6)]


def test_importing_the_ledger_imports_no_torch():
    code = (
        "import sys, postformer.claims.report, postformer.claims.stats; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)})
