"""The JSONL log, the trackio adapter, and progress for people."""

import io
import json
import sys
import types

import pytest
from rich.console import Console
from toy_training import toy_run

from postformer.train.log import JsonLog, LogError, Progress, TrackioLog, console_progress, finite


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_after_a_step_are_rolled_back_and_a_torn_line_goes(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLog(path)
    for step in (1, 2, 2, 3):
        log.write({"step": step})
    log.close()
    with path.open("a") as f:
        f.write('{"step": 4, "lo')
    log = JsonLog(path, after=2)
    log.write({"step": 9})
    log.close()
    assert [r["step"] for r in rows(path)] == [1, 2, 2, 9]


def test_a_torn_line_alone_is_cut(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"st')
    JsonLog(path, after=5).close()
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("line", ["no json", "[1]", '{"loss": 2}', '{"step": "x"}'])
def test_a_foreign_line_is_named_and_nothing_is_lost(tmp_path, line):
    path = tmp_path / "log.jsonl"
    text = f'{{"step": 1}}\n{line}\n{{"step": 2}}\n'
    path.write_text(text)
    with pytest.raises(LogError, match=r"log\.jsonl, line 2: not a row"):
        JsonLog(path, after=9)
    assert path.read_text() == text


def test_numbers_that_are_not_finite_become_null():
    assert finite({"a": float("nan"), "b": float("inf"), "c": 1.5, "d": "x"}) == {"a": None, "b": None, "c": 1.5, "d": "x"}


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(LogError, match="No such file or directory"):
        JsonLog(tmp_path / "absent" / "log.jsonl")


def test_a_device_that_fails_is_one_line():
    log = JsonLog.__new__(JsonLog)
    log.path = "/dev/full"
    log._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115, PTH123
    with pytest.raises(LogError, match="/dev/full: No space left on device"):
        log.write({"step": 1})
    with pytest.raises(LogError, match="/dev/full: Invalid argument"):
        log.sync()
    log.close()


def test_trackio_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(LogError, match=r"pip install 'postformer\[track\]'"):
        TrackioLog(toy_run())


def test_trackio_receives_rows_with_their_step(monkeypatch):
    calls = []
    names = ("init", "log", "finish")
    fake = types.SimpleNamespace(**{n: (lambda *a, n=n, **k: calls.append((n, a, k))) for n in names})
    monkeypatch.setitem(sys.modules, "trackio", fake)
    log = TrackioLog(toy_run())
    log.write({"step": 3, "loss": 1.0})
    log.close()
    assert calls[0][0] == "init" and calls[0][2]["name"] == "toy" and calls[0][2]["config"]["seed"] == 3
    assert calls[1:] == [("log", ({"loss": 1.0},), {"step": 3}), ("finish", (), {})]


def progress(step: int) -> Progress:
    return Progress(step=step, steps=6, loss=2.5, lr=1e-3, grad_norm=0.5, tokens=100, tokens_per_s=12345.6, eta_s=83.4)


def test_plain_lines_elsewhere():
    out = io.StringIO()
    with console_progress(toy_run(log_every=4), Console(file=out, width=40)) as on_step:
        for step in range(1, 7):
            on_step(progress(step))
    assert out.getvalue().splitlines() == [
        "step 4/6  loss 2.5000  lr 1.00e-03  |g| 0.50  12,346 tokens/s  ETA 0:01:23",
        "step 6/6  loss 2.5000  lr 1.00e-03  |g| 0.50  12,346 tokens/s  ETA 0:01:23",
    ]


def test_a_bar_on_a_terminal():
    out = io.StringIO()
    with console_progress(toy_run(), Console(file=out, width=120, force_terminal=True)) as on_step:
        on_step(progress(6))
    assert "6/6" in out.getvalue() and "12,346 tokens/s" in out.getvalue() and "ETA 0:01:23" in out.getvalue()
