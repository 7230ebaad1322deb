"""A memory's file without its model: copies that go their own way, and the way back, to the byte."""

import re

import pytest
import small

from postformer.models.memory import Memory, MemoryFileError
from postformer.models.snapshots import folder, fork, rollback, snapshot, snapshots
from postformer.state import StateError, header


@pytest.fixture
def kept(tmp_path):
    model, memory = small.model(), None
    memory = Memory.fresh(model)
    memory.read(model, list(b"the sea was calm"))
    memory.save(tmp_path / "m", model)
    return model, memory, tmp_path / "m"


def test_forks_are_the_memory_under_another_name(kept):
    model, memory, path = kept
    before = path.read_bytes()
    fork(path, path.with_name("a"), path.with_name("b"))
    assert path.read_bytes() == before
    for name in "ab":
        copy = Memory.load(path.with_name(name), model)
        assert copy.parent == header(path).sha256
        assert (copy.last, copy.tokens, copy.nbytes) == (memory.last, memory.tokens, memory.nbytes)
    copy.read(model, list(b"and so on"))
    copy.save(path.with_name("b"), model)
    assert path.read_bytes() == before
    assert header(path.with_name("a")).note["tokens"] == 16


def test_a_fork_writes_over_nothing(kept):
    _, _, path = kept
    path.with_name("b").write_text("mine")
    with pytest.raises(MemoryFileError, match="b: is there already"):
        fork(path, path.with_name("a"), path.with_name("b"))
    assert not path.with_name("a").exists()
    with pytest.raises(MemoryFileError, match=r"the folder .*no does not exist"):
        fork(path, path.with_name("no") / "a")


def test_a_fork_is_named_once(kept):
    _, _, path = kept
    for names in (("a", "a"), ("a", "b", "./a")):
        with pytest.raises(MemoryFileError, match="a: is named twice; name a file of its own for each copy"):
            fork(path, *(f"{path.parent}/{name}" for name in names))
    assert not path.with_name("a").exists() and not path.with_name("b").exists()


def test_a_rollback_is_exact(kept):
    model, memory, path = kept
    states = []
    for number in range(1, 4):
        states.append(path.read_bytes())
        assert snapshot(path).number == number
        memory.read(model, list(b"and more"))
        memory.save(path, model)
    assert [s.number for s in snapshots(path)] == [1, 2, 3]
    assert [s.header.note["tokens"] for s in snapshots(path)] == [16, 24, 32]
    rollback(path)
    assert path.read_bytes() == states[2]
    rollback(path, 1)
    assert path.read_bytes() == states[0]
    assert [s.path.read_bytes() for s in snapshots(path)] == states, "the snapshots stay"
    with pytest.raises(MemoryFileError, match=re.escape("has no snapshot 7; choose from 1, 2, 3")):
        rollback(path, 7)


def test_the_oldest_snapshots_go(kept):
    _, _, path = kept
    for _ in range(5):
        snapshot(path, keep=2)
    assert [s.number for s in snapshots(path)] == [4, 5]
    snapshot(path)
    assert [s.number for s in snapshots(path)] == [4, 5, 6]


def test_what_was_taken_by_hand_stays(kept):
    """Older snapshots, of which it is not known, too."""
    _, _, path = kept
    assert not snapshot(path).automatic
    for _ in range(3):
        assert snapshot(path, keep=2).automatic
    snapshot(path)
    for _ in range(3):
        snapshot(path, keep=2)
    assert [(s.number, s.automatic) for s in snapshots(path)] == [(1, False), (5, False), (7, True), (8, True)]
    assert rollback(path, 1).number == 1 and rollback(path).number == 8


def test_none_goes_before_there_are_as_many_as_are_kept(kept):
    _, _, path = kept
    for count in range(1, 9):
        snapshot(path, keep=8)
        assert [s.number for s in snapshots(path)] == [*range(1, count + 1)]


def test_a_damaged_snapshot_leaves_the_others(kept, capsys):
    from postformer.cli import main

    _, _, path = kept
    states = [path.read_bytes() for _ in (snapshot(path), snapshot(path))]
    (folder(path) / "0001").write_bytes(b"x")
    assert rollback(path).number == 2 and path.read_bytes() == states[1]
    assert rollback(path, 2).number == 2 and snapshot(path).number == 3
    with pytest.raises(SystemExit) as end:
        main(["memory", "snapshots", str(path)])
    assert end.value.code == 0
    assert [line.split(",")[0][:19] for line in capsys.readouterr().out.splitlines()] == [
        "snapshot 1: damaged",
        "snapshot 2",
        "snapshot 3",
    ]


def test_what_is_damaged_is_refused(kept):
    _, _, path = kept
    with pytest.raises(MemoryFileError, match="has no snapshot"):
        rollback(path)
    snapshot(path)
    file = folder(path) / "0001"
    file.write_bytes(file.read_bytes()[:-3])
    before = path.read_bytes()
    with pytest.raises(StateError):
        rollback(path)
    assert path.read_bytes() == before
