"""What is written is whole or not there, whatever fails in between."""

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from postformer import files
from postformer.files import durable_directory, durable_file, sha256_bytes, sha256_file, write_durably


def names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()]


def test_a_file_is_written_and_replaced(tmp_path):
    write_durably(tmp_path / "f", "é")
    assert (tmp_path / "f").read_bytes() == "é".encode()
    write_durably(str(tmp_path / "f"), b"\0new")
    assert (tmp_path / "f").read_bytes() == b"\0new"
    assert names(tmp_path) == ["f"]


def test_a_link_is_followed_and_what_is_no_file_is_kept(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_durably(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file") as e:
        write_durably(tmp_path / "pipe", "x")
    assert e.value.filename == str(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("where", ["inside", "sync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(where, tmp_path, monkeypatch):
    write_durably(tmp_path / "f", "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    if where == "sync":
        monkeypatch.setattr(files, "sync", fail)
    if where == "replace":
        monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="No space left") as e, durable_file(tmp_path / "f") as temporary:
        temporary.write_text("half")
        if where == "inside":
            fail()
    assert e.value.filename == str(tmp_path / "f")
    assert (tmp_path / "f").read_text() == "old"
    assert names(tmp_path) == ["f"]


class Unnamed(OSError):
    """As PyAV's errors are: no filename can be set."""

    filename = property(lambda self: None)  # type: ignore[assignment]


@pytest.mark.parametrize(("raised", "says"), [(Unnamed(28, "No space left"), "No space left"), (OSError("refused"), "refused")])
def test_an_error_of_any_library_names_the_file(raised, says, tmp_path):
    with pytest.raises(OSError, match=says) as e, durable_file(tmp_path / "f"):
        raise raised
    assert e.value.filename == str(tmp_path / "f")
    assert (e.value.errno, e.value.strerror) == (raised.errno, says)
    assert names(tmp_path) == []


def test_the_file_is_flushed_before_it_takes_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(files, "sync", lambda path: done.append((path.name, (tmp_path / "f").exists())))
    write_durably(tmp_path / "f", "x")
    assert [(name.endswith(".tmp"), there) for name, there in done] == [(True, False), (False, True)]


def test_a_directory_is_whole_or_not_there(tmp_path):
    with durable_directory(tmp_path / "a" / "d") as temporary:
        (temporary / "in").mkdir()
        (temporary / "in" / "f").write_text("x")
        assert not (tmp_path / "a" / "d").exists()
    assert (tmp_path / "a" / "d" / "in" / "f").read_text() == "x"
    with pytest.raises(RuntimeError), durable_directory(tmp_path / "a" / "e") as temporary:
        (temporary / "f").write_text("x")
        raise RuntimeError
    assert names(tmp_path / "a") == ["d"]


def test_a_directory_is_not_overwritten(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("mine")
    with pytest.raises(OSError), durable_directory(tmp_path / "d") as temporary:
        (temporary / "f").write_text("x")
    assert {p.name for p in tmp_path.rglob("*")} == {"d", "mine"}


def test_digests(tmp_path):
    data = bytes(range(256)) * 1000
    (tmp_path / "f").write_bytes(data)
    assert (
        sha256_file(tmp_path / "f") == sha256_bytes(data) == sha256_bytes(memoryview(data)) == hashlib.sha256(data).hexdigest()
    )


def test_what_a_killed_process_left_is_removed_by_the_next_writing(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".a.txt.{gone.pid}.tmp"
    others = [tmp_path / f".a.txt.{os.getppid()}.tmp", tmp_path / ".b.txt.1.tmp", tmp_path / ".a.txt.mine.tmp"]
    for path in (left, *others):
        path.write_text("x")
        os.utime(path, (1e9, 1e9))
    young = tmp_path / f".a.txt.{gone.pid}0.tmp"
    young.write_text("x")
    write_durably(tmp_path / "a.txt", "new")
    assert not left.exists()
    assert all(path.exists() for path in (young, *others))
