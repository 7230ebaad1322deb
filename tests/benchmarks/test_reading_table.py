"""benchmarks/reading.py: from training to the table, small, and once more from what was saved; the table's figures."""

import json
import sys

import pytest
import study_results as results

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
    assert [(row["method"], row["length"]) for row in rows] == [(m, n) for m in ("lmm", "window") for n in (160, 192)]
    assert all(row["state_bytes"] > 0 and row["rows"] == 2 and row["steps"] == 10 for row in rows)
    with (tmp_path / "needles.jsonl").open("a") as f:
        f.write('{"method": "lmm", ')  # cut by a kill
    monkeypatch.setattr(reading, "train_run", None)  # nothing is trained or measured anew
    assert reading.main() == 0
    assert capsys.readouterr().out == first[first.index("|") :]


def test_what_was_changed_is_measured_anew(tmp_path, monkeypatch, capsys):
    small(monkeypatch, tmp_path, "--methods", "window", "--lengths", "160")
    assert reading.main() == 0
    monkeypatch.setitem(reading.METHODS, "window", {**reading.METHODS["window"], "window": 64})
    assert reading.main() == 0
    lines = results.read(tmp_path / "needles.jsonl")
    assert len({line["of"] for line in lines}) == len(lines) == 2
    assert lines[0]["state_bytes"] > lines[1]["state_bytes"]
    table = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[3] for line in table[-2:] if line.startswith("| window")] == [f"{lines[1]['state_bytes']:,}"]


def test_what_is_set_is_told(tmp_path, monkeypatch, capsys):
    small(monkeypatch, tmp_path, "--methods", "lmm", "--lengths", "160", "--set", "model.mixers.0.threshold=0.3")
    assert reading.main() == 0
    assert "| lmm, threshold=0.3 | 10 |" in capsys.readouterr().out
    small(monkeypatch, tmp_path, "--methods", "lmm", "--set", "model.mixers.0.treshold=0.3")
    with pytest.raises(UserError, match=r"unknown 'treshold' \(did you mean 'threshold'\?\)"):
        reading.main()


def test_time(tmp_path, monkeypatch, capsys):
    small(monkeypatch, tmp_path, "--methods", "window", "--lengths", "160")
    monkeypatch.setattr(reading, "TIMED", 256)
    assert reading.main() == 0
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--time"])
    assert reading.main() == 0
    found = results.read(tmp_path / "needles.jsonl")[-1]
    assert found["question"] == "time" and found["threads"] == 1
    assert f"| {found['seconds']:.0f} |" in capsys.readouterr().out


def cell(method: str, seed: int, length: int, right: int, kept: int = 100, steps: int = 9) -> str:
    one = {
        "method": method,
        "seed": seed,
        "steps": steps,
        "question": "passkey",
        "length": length,
        "of": f"{method}{seed}{length}",
    }
    return json.dumps({**one, "parameters": 1, "state_bytes": kept, "right": right, "rows": 20})


def test_the_table(tmp_path):
    lines = [cell("lmm", 0, 1024, 20), cell("lmm", 1, 1024, 10), cell("lmm", 0, 4096, 5, 101), cell("window", 0, 1024, 0, 7)]
    lines += [
        cell("lmm", 0, 1024, 1, steps=2),
        json.dumps({"method": "lmm", "seed": 0, "steps": 9, "question": "time", "length": 9, "seconds": 7.4}),
    ]
    (tmp_path / "needles.jsonl").write_text("\n".join(lines))
    table = reading.render("needles", tmp_path).splitlines()
    assert table[0] == "| passkey | steps | 1,024 | 4,096 | state bytes at the longest | s a million tokens | the paper |"
    assert table[2].startswith("| lmm | 2 | 5.0 [1, 24] (5) |  | 100 |  | 99.8, 98.4")
    assert table[3].startswith("| lmm | 9 | 75.0 [0, 100] (100/50) | 25.0 [11, 47] (25) | 101 | 7 | 99.8, 98.4")
    assert any(line.startswith("| window | 9 | 0.0 [0, 16] (0) |  | 7 |  |") for line in table)


def test_a_study_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reading", "needles", "--render", str(tmp_path)])
    with pytest.raises(UserError, match=r"--render: .* holds no needles.jsonl; give the --out of a study"):
        reading.main()


def test_an_unknown_method(tmp_path, monkeypatch):
    small(monkeypatch, tmp_path, "--methods", "lmm,elephant")
    with pytest.raises(UserError, match="--methods: unknown 'elephant'; choose from lmm, mac"):
        reading.main()


def test_a_question_that_fits_no_text_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    small(monkeypatch, tmp_path, "--lengths", "160,8")
    monkeypatch.setattr(reading, "train_run", None)
    with pytest.raises(UserError, match=r"data\.length: 8 tokens .bpe. are too few"):
        reading.main()
