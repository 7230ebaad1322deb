"""The report: it keeps what is done, goes on where it was, and overwrites nobody's files."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console
from sample import SampleClaim, entry, sample_report

from postformer.claims import report as module
from postformer.claims.ledger import Context, Criterion, Finding, Headline, NotMeasurable, Number, Result, Rule, Step, conclude
from postformer.claims.report import Outcome, read_report, render_file, run_report
from postformer.config import UserError

REPO = Path(__file__).parents[2]
SCHEMA = json.loads((REPO / "postformer/claims/report.schema.json").read_text())


def judge(evidence: Any, thresholds: Any) -> Finding:
    return Finding("supported" if evidence["x"] >= thresholds["least"] else "contradicted", "it was counted")


class Counting:
    """A claim of three steps, each of which is noted when it is really taken; `act` may do anything in the middle one."""

    title, sentence, sources = "Counting works", "Counting works.", ()
    weight = 1.0
    rule = Rule("Three is enough.", (Criterion("count", "x at least {least}", judge, {"least": 3}),))

    def __init__(self, name: str = "counting", act: Callable[[], object] = lambda: None) -> None:
        self.id, self.act, self.taken = name, act, []

    def plan(self, budget_s: float, seeds: int) -> list[Step]:
        return [Step("count", 3)]

    def run(self, ctx: Context) -> Result:
        total = 0
        for i in range(3):
            total += ctx.step(f"step {i}", lambda i=i: self.count(i))
        return conclude(self, {"x": total})

    def count(self, i: int) -> int:
        if i == 1:
            self.act()
        self.taken.append(i)
        return 1


def run(out: Path, *claims: Any, **words: Any) -> tuple[Outcome, str]:
    heard = io.StringIO()
    console = Console(file=heard, width=200)
    words = {"budget_s": 60, "command": ["postformer", "report"], "console": console, **words}
    return run_report(list(claims), out, **words), heard.getvalue()


def saved(out: Path) -> dict[str, Any]:
    report = read_report(out / "report.json")
    jsonschema.validate(report, SCHEMA)
    return report


def stop() -> None:
    raise KeyboardInterrupt


def test_schema_is_a_schema_and_fits_the_sample():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(sample_report(entry(SampleClaim(), "failed", "why"), entry(SampleClaim(), "pending")), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "postformer-report-2"),
        (("claims", 0, "result", "verdict"), "proven"),
        (("claims", 0, "result", "headline", "number", "tag"), "guessed"),
        (("claims", 0, "result"), None),
        (("claims", 0, "result", "findings", 0, "mood"), "good"),
        (("stamp", "began"), "yesterday"),
        (("stamp", "code_sha256"), "abc"),
    ],
)
def test_schema_refuses(path: tuple[str | int, ...], value: Any):
    report: Any = sample_report()
    at = report
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, SCHEMA)


def test_a_folder_takes_one_report_at_a_time(tmp_path: Path):
    refused: list[str] = []

    def second() -> None:
        with pytest.raises(UserError) as e:
            run(tmp_path / "out", Counting())
        refused.append(str(e.value))

    first, _ = run(tmp_path / "out", Counting(act=second))
    assert first.exit_code == 0
    assert refused == [
        f"{tmp_path / 'out'}: process {os.getpid()} is writing a report there; wait for it, or use another directory"
    ]


def test_why_a_claim_failed_is_given_back(tmp_path: Path):
    def mistake() -> None:
        raise UserError("notes.txt: no text in it")

    outcome, _ = run(tmp_path / "out", Counting(act=mistake))
    assert outcome[1:] == (2, ("counting: notes.txt: no text in it",))
    again, heard = run(tmp_path / "out", Counting("other"))
    assert again.exit_code == 0
    assert "is kept" not in heard  # nothing was finished there


def test_a_run_writes_the_report_and_its_page(tmp_path: Path):
    outcome, heard = run(tmp_path / "out", SampleClaim(), Counting(), seeds=(0, 1), threads=1)
    report = saved(tmp_path / "out")
    assert outcome == (tmp_path / "out/index.html", 0, ()) and report["complete"]
    assert [c["status"] for c in report["claims"]] == ["done", "done"]
    assert report["claims"][1]["result"]["rule_sha256"] == Counting.rule.sha256
    assert [s["step"] for s in report["claims"][1]["steps"]] == ["the rule of judgement", "step 0", "step 1", "step 2"]
    assert "2 claims, about" in heard and "counting: step 1" in heard and "counting: supported" in heard
    assert "Counting works" in outcome.page.read_text()
    page = outcome.page.read_bytes()
    outcome.page.unlink()
    assert render_file(tmp_path / "out/report.json").read_bytes() == page


def test_interrupt_leaves_a_page_and_the_same_command_goes_on(tmp_path: Path):
    first, last = Counting("first"), Counting("last", stop)
    outcome, heard = run(tmp_path, first, last)
    report = saved(tmp_path)
    assert outcome.exit_code == 130 and not report["complete"]
    assert [c["status"] for c in report["claims"]] == ["done", "pending"]
    assert "The same command continues: postformer report" in heard and "Not run yet" in outcome.page.read_text()
    again = [Counting("first"), Counting("last")]
    outcome, _ = run(tmp_path, *again)
    assert outcome.exit_code == 0 and saved(tmp_path)["complete"]
    assert [c.taken for c in again] == [[], [1, 2]]


@pytest.mark.parametrize("change", [{"budget_s": 61}, {"seeds": (1,)}, {"threads": 2}, {"text": True}])
def test_other_settings_never_reuse_a_step(tmp_path: Path, change: dict[str, Any]):
    words = {"threads": 1, "seeds": (0,)}
    run(tmp_path / "out", Counting(), **words)
    if "text" in change:
        (tmp_path / "text").write_text("hello")
        change = {"text": tmp_path / "text"}
    other, same = Counting(), Counting()
    run(tmp_path / "out", other, **{**words, **change})
    run(tmp_path / "out", same, **words)
    assert other.taken == [0, 1, 2] and same.taken == []


def test_changed_text_or_code_or_rule_never_reuses_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("one")
    run(tmp_path / "out", Counting(), text=text)
    (text / "a.txt").write_text("three")
    run(tmp_path / "out", changed := Counting(), text=text)
    monkeypatch.setattr(module, "code_sha256", lambda: "0" * 64)
    run(tmp_path / "out", coded := Counting(), text=text)
    ruled = Counting()
    ruled.rule = Rule("Four is needed.", (Criterion("count", "x at least {least}", judge, {"least": 4}),))
    run(tmp_path / "out", ruled, text=text)
    assert changed.taken == coded.taken == ruled.taken == [0, 1, 2]
    assert saved(tmp_path / "out")["claims"][0]["result"]["verdict"] == "contradicted"


def test_what_cannot_be_measured_a_crash_and_a_mistake_are_told_apart(tmp_path: Path):
    def refuse() -> None:
        raise NotMeasurable("text: 12 bytes are too few; it needs 100 kB")

    def mistaken() -> None:
        raise UserError("rows.jsonl: 9 of 10 rows are bad")

    outcome, heard = run(tmp_path, Counting("small", refuse), Counting("broken", lambda: [].pop()), Counting("good"))
    small, broken, good = saved(tmp_path)["claims"]
    assert outcome.exit_code == 1
    mistake, told = run(tmp_path / "bad", Counting("rows", mistaken), Counting("broken", lambda: [].pop()), Counting("good"))
    rows, _, after = saved(tmp_path / "bad")["claims"]
    assert mistake.exit_code == 2 and rows["status"] == "failed" and after["status"] == "done"
    assert rows["reason"] == "rows.jsonl: 9 of 10 rows are bad" and "rows: failed: rows.jsonl: 9 of 10 rows are bad" in told
    assert not (tmp_path / "bad/work/rows/error.txt").exists()
    assert small["result"]["verdict"] == "not measurable here" and "12 bytes" in small["result"]["findings"][0]["because"]
    assert broken["status"] == "failed" and broken["reason"].startswith("IndexError: pop from empty list")
    assert "IndexError" in (tmp_path / "work/broken/error.txt").read_text() and "broken: failed: IndexError" in heard
    assert good["result"]["verdict"] == "supported"


def test_a_finished_report_of_other_settings_is_kept(tmp_path: Path):
    run(tmp_path, Counting(), threads=1)
    _, heard = run(tmp_path, Counting(), threads=1)
    assert "is kept" not in heard and not (tmp_path / "earlier").exists()
    page, report = ((tmp_path / name).read_bytes() for name in ("index.html", "report.json"))
    _, heard = run(tmp_path, Counting(act=stop), threads=2)
    (kept,) = (tmp_path / "earlier").iterdir()
    assert f"is kept: {kept / 'index.html'}" in heard
    assert (kept / "index.html").read_bytes() == page and (kept / "report.json").read_bytes() == report
    run(tmp_path, Counting(), threads=2)
    assert [kept] == list((tmp_path / "earlier").iterdir()), "an unfinished report is gone on with"
    run(tmp_path, Counting(), threads=3)
    run(tmp_path, Counting("other"), threads=3)
    assert len(list((tmp_path / "earlier").iterdir())) == 3


def test_a_budget_that_cannot_be_kept_is_told_before(tmp_path: Path):
    assert "The budget of 2 s is less than what every run needs" in run(tmp_path / "a", Counting(), budget_s=2)[1]
    assert "is less than" not in run(tmp_path / "b", Counting(), budget_s=3)[1]


def test_a_claim_judged_by_another_rule_fails(tmp_path: Path):
    claim = Counting()
    other = Rule("Anything goes.", (Criterion("count", "x at least {least}", judge, {"least": 0}),))
    claim.act = lambda: setattr(claim, "rule", other)
    outcome, _ = run(tmp_path, claim)
    assert outcome.exit_code == 1 and "another rule" in saved(tmp_path)["claims"][0]["reason"]


@pytest.mark.parametrize("name", ["index.html", "report.json", "thesis.txt"])
def test_nobody_elses_folder_is_touched(tmp_path: Path, name: str):
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"^--out .*name a new folder or the folder of an earlier report$") as error:
        run(tmp_path, Counting())
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == '{"mine": 1}'


def test_wrong_paths_are_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"is a file; name a new folder"):
        run(tmp_path / "file", Counting())
    with pytest.raises(UserError, match=r"--text .*nowhere: no such file or folder"):
        run(tmp_path / "out", Counting(), text=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", [None, "", "[1]", "{", '{"schema": "other"}', '{"schema": "postformer-report-1"}', "\xff"])
def test_render_of_no_report_is_one_line(tmp_path: Path, text: str | None):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"report\.json") as error:
        render_file(path)
    assert "\n" not in str(error.value) and not (tmp_path / "index.html").exists()


def test_render_without_any_one_key_is_a_page_or_one_line(tmp_path: Path):
    path = tmp_path / "report.json"

    def places(at: Any) -> list[tuple[Any, Any]]:
        inside = at.items() if isinstance(at, dict) else enumerate(at) if isinstance(at, list) else ()
        return [p for k, v in inside for p in [(at, k), *places(v)]]

    report = sample_report()
    report["claims"][0]["result"]["charts"] = []
    for at, key in places(report):
        if isinstance(at, dict):
            value = at.pop(key)
            path.write_text(json.dumps(report))
            try:
                render_file(path)
            except UserError as e:
                assert str(path) in str(e) and "\n" not in str(e)
            at[key] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_fails_its_claim_alone(tmp_path: Path, value: float):
    claim = Counting("odd")
    claim.run = lambda ctx: conclude(claim, {"x": 3}, headline=Headline(Number(value, "s", "measured"), "odd"))
    outcome, _ = run(tmp_path, claim, Counting("good"))
    odd, good = saved(tmp_path)["claims"]
    assert outcome.exit_code == 1 and "result.headline" in odd["reason"] and good["status"] == "done"


def test_kill_at_any_time_leaves_a_whole_report_and_a_run_that_goes_on(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import test_report as t\n"
        "t.run(Path(sys.argv[1]), t.Counting('a', lambda: time.sleep(0.3)), t.Counting('b', lambda: time.sleep(0.3)))\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "out"), str(Path(__file__).parent)]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    ended = None
    for attempt in range(30):
        child = subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL)
        try:
            ended = child.wait(1.0 + 0.5 * attempt)
            break
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        if (tmp_path / "out/report.json").exists():
            saved(tmp_path / "out")
    assert ended == 0 and saved(tmp_path / "out")["complete"]
