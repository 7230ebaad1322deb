"""Kills, full disks and failing disks while a checkpoint is written: the last good one stays and training goes on from it."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_training import tensors_sha256, toy_run, train_toy

from postformer.train import CheckpointError, latest, verify

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}", "OMP_NUM_THREADS": "1"}


def names(out: Path) -> list[str]:
    return sorted(f.name for f in (out / "checkpoints").iterdir())


def test_thirty_kills_while_saving_leave_the_straight_runs_bits(tmp_path):
    command = [sys.executable, "-W", "ignore", HERE / "crash_driver.py", tmp_path, "30", "7"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["half_written"] >= 5, "too few kills hit a save to mean anything"
    assert report["told"] == [], "a kill must never leave a damaged checkpoint under its final name"
    assert report["reached"] == sorted(report["reached"]) and report["reached"][-1] >= 10
    assert report["left"] == ["step-00000148", "step-00000149", "step-00000150"]
    assert tensors_sha256(Path(report["killed"])) == tensors_sha256(Path(report["straight"]))
    verify(Path(report["killed"]))


# ---------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, which holds four checkpoints of the toy."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_the_last_checkpoint(small_disk, tmp_path):
    run = toy_run(save_every=1, keep=9)
    with pytest.raises(CheckpointError, match=r"could not be saved: .*No space left on device.*; step-0000000. stays") as e:
        train_toy(run, small_disk / "run")
    assert "\n" not in str(e.value)
    last = latest(small_disk / "run", pytest.fail)
    assert last is not None and last.name in str(e.value)
    assert names(small_disk / "run")[-1] == last.name and not any(n.startswith(".") for n in names(small_disk / "run"))
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    resumed, straight = train_toy(run, small_disk / "run", warn=pytest.fail), train_toy(run, tmp_path / "straight")
    assert tensors_sha256(resumed.checkpoint) == tensors_sha256(straight.checkpoint)


def test_a_file_that_may_not_grow_keeps_the_last_checkpoint(tmp_path):
    run = toy_run()
    train_toy(toy_run(steps=4, optim={"schedule": "constant"}), tmp_path)
    run = toy_run(steps=6, optim={"schedule": "constant"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match=r"could not be saved: .*File too large.*; step-00000004 stays"):
            train_toy(run, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000002", "step-00000004"]
    assert train_toy(run, tmp_path, warn=pytest.fail).step == 6


# ---------------------------------------------------------------- what reaches the disk, and in which order


def traced(tmp_path: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Train two steps under strace, with a checkpoint after each; the traced calls in their order."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    code = (
        "import sys, pathlib; from toy_training import *; from postformer.config import UserError\n"
        "try: train_toy(toy_run(steps=2, save_every=1), pathlib.Path(sys.argv[1]))\n"
        "except UserError as e: sys.exit(str(e))"
    )
    log = tmp_path / "trace"
    trace = ["strace", "-f", "-qq", "-y", "--seccomp-bpf", "-o", log, "-e", "trace=fsync,fdatasync,rename,renameat,renameat2"]
    command = [*trace, *options, sys.executable, "-c", code, tmp_path / "run"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    return done, log.read_text().splitlines()


def test_files_are_flushed_before_the_rename_and_the_parent_after_it(tmp_path):
    done, calls = traced(tmp_path)
    assert done.returncode == 0, done.stderr
    for step in ("step-00000001", "step-00000002"):
        rename = next(i for i, c in enumerate(calls) if "rename" in c and re.search(rf'/{step}"', c))
        flushed = [m[1] for c in calls[:rename] if (m := re.search(rf"fsync\(\d+<.*/\.{step}\.\d+\.tmp(.*?)>", c))]
        files = sorted(f"/{f.name}" for f in (tmp_path / "run" / "checkpoints" / step).iterdir())
        assert flushed == [*files, ""], "every file, then their directory"
        assert re.search(r"fsync\(\d+<.*/checkpoints>\)", calls[rename + 1])
        assert any("log.jsonl" in c and "fsync" in c for c in calls[:rename])


def test_a_disk_that_fails_to_flush_is_one_line_and_keeps_the_last_checkpoint(tmp_path):
    """A save flushes the log, eight files, their directory and its parent: the 18th flush is in the second save."""
    done, _ = traced(tmp_path, "-e", "inject=fsync:error=EIO:when=18")
    assert done.returncode == 1
    assert re.search(
        r"step-00000002: could not be saved: Input/output error; step-00000001 stays the last checkpoint\n$", done.stderr
    )
    assert names(tmp_path / "run") == ["step-00000001"]
    assert latest(tmp_path / "run", pytest.fail) is not None
