"""read, ask and memory from end to end: a model of diaries, its memory on several days, and what it is asked."""

import contextlib
import json
import re
from pathlib import Path

import pytest
import small
from test_cli import say

from postformer import state as states
from postformer.cli import main
from postformer.config import plain
from postformer.data import Diary
from postformer.models.hub import save_model
from postformer.models.memory import Memory
from postformer.models.readers import StateReader
from postformer.train.session import open_model, train_run


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    run = small.run("none")
    data = {"kind": "diary", "length": 400, "facts": 2}
    run = type(run)(**{**run.__dict__, "data": data, "objective": {"kind": "answers"}})
    with contextlib.chdir(folder):
        train_run(run, Path("run"))
    (folder / "run.json").write_text(json.dumps(plain(run)))
    diary = Diary(words=400, facts=6, kinds=("single", "combined"))
    (folder / "diary.txt").write_text("".join(f"\n\n{entry.text}" for entry in diary.entries()))
    (folder / "questions.txt").write_text("".join(f"{q.text}\n\n" for q in diary.questions()))
    save_model(small.model("attention"), folder / "model")
    return folder


@pytest.fixture
def here(ground, tmp_path, monkeypatch) -> Path:
    for name in ("diary.txt", "questions.txt"):
        (tmp_path / name).write_bytes((ground / name).read_bytes())
    (tmp_path / "run").symlink_to(ground / "run")
    (tmp_path / "model").symlink_to(ground / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_diary_on_two_days_and_back(here, capsys):
    size = Path("diary.txt").stat().st_size
    said = say(capsys, "read", "run", "diary.txt", "--memory", "m")
    assert re.fullmatch(rf"m: {size:,} tokens read, {size:,} of them now; a state of [\d,]+ bytes\n", said)
    day_one = Path("m").read_bytes()
    assert say(capsys, "read", "run", "diary.txt", "--memory", "m") == f"m: has read all of this already, {size:,} tokens\n"
    assert Path("m").read_bytes() == day_one
    with Path("diary.txt").open("a") as f:
        f.write(" More.")
    assert f"{size + 6:,} tokens read, 6 of them now" in say(capsys, "read", "run", "diary.txt", "--memory", "m")
    assert "snapshot 1, " in say(capsys, "memory", "snapshots", "m")
    shown = say(capsys, "memory", "show", "m")
    assert f"read     {size + 6:,} tokens\n" in shown
    assert f"text     diary.txt: {size + 6:,} bytes\n" in shown
    assert "parent   none\n" in shown
    say(capsys, "memory", "fork", "m", "a", "b")
    say(capsys, "memory", "rollback", "m")
    assert Path("m").read_bytes() == day_one
    assert Memory.load("a", open_model("run")).tokens == size + 6
    assert f"parent   {states.header('a').note['parent'][:12]}" in say(capsys, "memory", "show", "b")
    assert "snapshot 2, " in say(capsys, "memory", "snapshot", "m")
    assert "snapshot 1, " in say(capsys, "memory", "rollback", "m", "1")
    Path("new.txt").write_text("Another text.")
    say(capsys, "read", "run", "new.txt", "--memory", "c", "--from", "m")
    say(capsys, "read", "run", "diary.txt", "--memory", "c", "--from", "m")
    assert states.header("c").note["tokens"] == size + 13 + 6
    assert Path("m").read_bytes() == day_one


def test_a_reading_that_is_stopped_goes_on(here, monkeypatch, capsys):
    whole = say(capsys, "read", "run", "diary.txt", "--memory", "whole")
    assert "tokens read" in whole
    monkeypatch.setattr("postformer.models.memory.CHUNK", 200)
    count, read = [], Memory.read

    def stopped(self, model, ids):
        import os
        import signal

        count.append(1)
        if len(count) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return read(self, model, ids)

    with monkeypatch.context() as m:
        m.setattr(Memory, "read", stopped)
        said = say(capsys, "read", "run", "diary.txt", "--memory", "m", code=130)
    assert said.startswith("m: 400 tokens read")
    assert "of them half read" in say(capsys, "memory", "show", "m")
    say(capsys, "read", "run", "diary.txt", "--memory", "m")
    assert states.header("m").note["sources"] == states.header("whole").note["sources"]
    assert say(capsys, "memory", "snapshots", "m") == "m: has no snapshot\n", "an interrupted reading is one reading"
    with monkeypatch.context() as m:
        count.clear()
        m.setattr(Memory, "read", stopped)
        say(capsys, "read", "run", "diary.txt", "--memory", "other", code=130)
    Path("more.txt").write_text("Another text.")
    say(capsys, "read", "run", "more.txt", "--memory", "other")
    assert "snapshot 1, " in say(capsys, "memory", "snapshots", "other"), "of what is half read, before another text"


def test_reading_again_is_stopped_and_goes_on(here, monkeypatch, capsys):
    """Over two texts, the second not begun: what the same command reads in all is each of them once more."""
    Path("more.txt").write_text("Another text.")
    say(capsys, "read", "run", "diary.txt", "more.txt", "--memory", "m")
    monkeypatch.setattr("postformer.models.memory.CHUNK", 200)
    before, read = states.header("m").note["tokens"], Memory.read

    def stopped(self, model, ids):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGINT)
        return read(self, model, ids)

    words = ("read", "run", "diary.txt", "more.txt", "--memory", "m", "--again")
    with monkeypatch.context() as m:
        m.setattr(Memory, "read", stopped)
        for _ in range(2):
            assert "200 of them now" in say(capsys, *words, code=130)
    shown = say(capsys, "memory", "show", "m")
    assert "text     more.txt: 0 bytes, not yet to its end\n" in shown
    say(capsys, *words)
    assert states.header("m").note["tokens"] == 2 * before
    assert "snapshot 2" not in say(capsys, "memory", "snapshots", "m"), "an interrupted reading is one reading"
    say(capsys, *words)
    assert states.header("m").note["tokens"] == 3 * before


def test_a_reader_writes_over_nothing_of_others(here, monkeypatch, capsys):
    Path("more.txt").write_text("Another text.")
    read, told = Memory.read, []

    def meanwhile(self, model, ids):
        if not told:
            told.append(None)
            say(capsys, "read", "run", "more.txt", "--memory", "m")
            told.append(Path("m").read_bytes())
        return read(self, model, ids)

    for _ in range(2):  # of a file that is not there yet, and of one that is
        told.clear()
        with monkeypatch.context() as m, pytest.raises(SystemExit) as end:
            m.setattr(Memory, "read", meanwhile)
            main(["read", "run", "diary.txt", "--memory", "m", "--keep", "0"])
        error = capsys.readouterr().err.partition("postformer: ")[2]
        assert end.value.code == 2 and error.count("\n") == 1
        assert (
            "m: not written: it was changed by another command meanwhile, and what it holds now stays; the same command again"
            in error
        )
        assert Path("m").read_bytes() == told[1]
        with Path("more.txt").open("a") as f:
            f.write(" More.")
    assert "19 tokens read" not in say(capsys, "read", "run", "diary.txt", "--memory", "m")


def test_snapshots_by_hand_stay(here, capsys):
    Path("t").write_text("One.")
    say(capsys, "read", "run", "t", "--memory", "m")
    assert say(capsys, "memory", "snapshot", "m").endswith(", 4 tokens read\n")
    for _ in range(4):
        with Path("t").open("a") as f:
            f.write(" More.")
        say(capsys, "read", "run", "t", "--memory", "m", "--keep", 2)
    found = say(capsys, "memory", "snapshots", "m").splitlines()
    assert [line.split(",")[0] for line in found] == ["snapshot 1", "snapshot 4", "snapshot 5"]
    assert [line.endswith(", from before a reading") for line in found] == [False, True, True]


@pytest.mark.parametrize("note", [{"tokens": "many"}, {"sources": ["book"]}, {"parent": 7}])
def test_a_state_with_a_note_of_its_own_is_told_apart(here, capsys, note):
    model = open_model(Path("run"))
    states.save(model.init_state(1), "m", model, note)
    for action in ("show", "snapshot"):
        with pytest.raises(SystemExit) as end:
            main(["memory", action, "m"])
        assert end.value.code == 2 or action == "snapshot"
        out, err = capsys.readouterr()
        assert "holds a state, but its note is not that of a memory" in out + err
        assert (out + err).count("\n") == 1


def test_ask_leaves_the_memory_as_it_is(here, capsys):
    say(capsys, "read", "run", "diary.txt", "--memory", "m")
    before = Path("m").read_bytes()
    questions = Path("questions.txt").read_text().split("\n\n")[:-1]
    answer, rate = say(capsys, "ask", "run", "--memory", "m", questions[0]).rsplit("\n", 2)[:2]
    size = Path("diary.txt").stat().st_size
    assert rate.startswith("right: not measured on questions of this kind (")
    assert rate.endswith(f" after {size:,} tokens")
    model = open_model("run")
    from postformer.data import Diaries

    assert StateReader.load("m", model, ask=Diaries().asked).answer(questions[0]) == answer
    measured = say(capsys, "evaluate", "run", "--questions", 12, "--length", "400,5000")
    assert len([line for line in measured.splitlines() if " tokens  " in line]) == 4
    assert say(capsys, "evaluate", "run", "--questions", 12, "--length", "400,5000") == measured
    assert Path("run/checkpoints/step-00000002/rates.json").exists()
    table = [
        line.split("\t") for line in say(capsys, "ask", "run", "--memory", "m", "--questions", "questions.txt").splitlines()
    ]
    assert [row[0] for row in table] == questions
    for row in table:
        assert re.fullmatch(
            r"right: \d+\.\d% \(95% interval [\d.]+ to [\d.]+, \d+ of \d+\) on questions of this kind \((direct|combined)\) "
            r"after 5,000 tokens of generated texts \(diary with at most \d+ facts\), not of yours",
            row[2],
        )
    assert Path("m").read_bytes() == before


def test_a_text_model_begins_a_document(here, capsys):
    Path("t.txt").write_text("the day has a new name")
    say(capsys, "read", "model", "t.txt", "--memory", "m")
    words = ["generate", "model", "--max-tokens", 12, "--seed", 2]
    went_on = say(capsys, *words, "--load-state", "m")
    assert say(capsys, *words, "--prompt", "the day has a new name") == went_on
