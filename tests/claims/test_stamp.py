"""The stamp says what made the numbers."""

import subprocess
from pathlib import Path

import pytest

from postformer.claims import stamp as module
from postformer.claims.stamp import closed, code_sha256, git_state, machine, stamp


def test_holds_what_a_rerun_needs():
    opened = stamp(
        command=["postformer", "report", "--text", "my file.txt"], seeds=(0, 1), threads=2, hashes={"data": "ab" * 32}
    )
    assert opened["command"] == "postformer report --text 'my file.txt'"
    assert opened["ended"] is None and opened["seeds"] == [0, 1] and opened["threads"] == 2
    done = closed(opened)
    assert done["ended"] >= done["began"] and isinstance(done["load_at_end"], float)
    assert len(done["torch_build"]["config_sha256"]) == 64


def test_machine_agrees_with_the_kernel():
    here = machine()
    assert here["cores"] >= 1 and here["memory_bytes"] > 1 << 28 and here["cpu"]
    listed = Path("/proc/cpuinfo").read_text()
    assert all(flag in listed for flag in here["flags"])


def test_code_digest_follows_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    digests = set()
    for text in ("x = 1\n", "x = 2\n"):
        (tmp_path / "a.py").write_text(text)
        code_sha256.cache_clear()
        digests.add(code_sha256())
    (tmp_path / "notes.txt").write_text("no code")
    code_sha256.cache_clear()
    assert len(digests) == 2 and code_sha256() in digests
    code_sha256.cache_clear()


def test_git_state_names_the_commit_and_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(module, "PACKAGE", package)
    assert git_state() is None

    def git(*words: str) -> str:
        name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        run = subprocess.run(["git", "-C", str(tmp_path), *name, *words], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    git("init", "-q")
    assert git_state() is None
    (package / "a.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-qm", "one")
    assert git_state() == {"sha": git("rev-parse", "HEAD"), "dirty": False}
    (package / "a.py").write_text("x = 2\n")
    assert git_state() == {"sha": git("rev-parse", "HEAD"), "dirty": True}
