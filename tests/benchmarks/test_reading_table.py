"""benchmarks/reading.py: from training to the table, small, and once more from what was saved; the table's figures."""

import json
import sys

import pytest

from benchmarks import reading
from postformer.config import UserError

COMMAND = ["reading", "needles", "--methods", "lmm,window", "--seeds", "0", "--threads", "1", "--steps", "2"]
COMMAND += ["--lengths", "160,192", "--rows", "2", "--least", "1"]


def small(monkeypatch, tmp_path, *more: str) -> None:
    monkeypatch.setattr(reading, "VOCAB", 300)
    monkeypatch.setattr(reading, "MADE_OF", [{"kind": "needles", "needle": "word"}])
    short = {"length": 192, "shortest": 160, "start": 160, "wording": "short"}
    monkeypatch.setitem(
        reading.STUDIES,
        "needles",
        reading.Study(
            recipe="needles", words=short, columns={"passkey": {"needle": "passkey"}}, paper={"lmm": {"passkey": "99.8"}}
        ),
    )
    monkeypatch.setattr(sys, "argv", [*COMMAND, "--out", str(tmp_path), *more])


def test_a_study_from_training_to_the_table(tmp_path, monkeypatch, capsys):
    small(monkeypatch, tmp_path)
    monkeypatch.setattr(reading, "MADE_OF", [{"kind": "needles", "needle": "passkey"}])
    assert reading.main() == 0
    first = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "needles.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == [[m, 0, 2, "passkey", n] for m in ("lmm", "window") for n in (160, 192)]
    assert all(row["state_bytes"] > 0 and row["rows"] == 2 for row in rows)
    monkeypatch.setattr(reading, "train_run", None)  # nothing is trained or measured anew
    assert reading.main() == 0
    assert capsys.readouterr().out == first[first.index("|") :]


def cell(method: str, seed: int, length: int, right: int, kept: int = 100) -> str:
    one = {"key": [method, seed, 0, "passkey", length], "parameters": 1, "state_bytes": kept, "right": right, "rows": 20}
    return json.dumps({**one, "s_per_million": 10.0 + seed})


def test_the_table(tmp_path):
    lines = [cell("lmm", 0, 1024, 20), cell("lmm", 1, 1024, 10), cell("lmm", 0, 4096, 5), cell("window", 0, 1024, 0, 7)]
    (tmp_path / "needles.jsonl").write_text("\n".join(lines))
    table = reading.render("needles", tmp_path).splitlines()
    assert table[0] == "| passkey | 1,024 | 4,096 | state bytes | s a million tokens | the paper |"
    assert table[2].startswith("| lmm | 75.0 [0, 100] (100/50) | 25.0 [11, 47] (25) | 100 | 10 |")
    assert any(line.startswith("| window | 0.0 [0, 16] (0) |  | 7 | 10 |") for line in table)


def test_a_study_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reading", "needles", "--render", str(tmp_path)])
    with pytest.raises(UserError, match=r"--render: .* holds no needles.jsonl; give the --out of a study"):
        reading.main()


def test_an_unknown_method(tmp_path, monkeypatch):
    small(monkeypatch, tmp_path, "--methods", "lmm,elephant")
    with pytest.raises(UserError, match="--methods: unknown 'elephant'; choose from lmm, mac"):
        reading.main()
