"""Trains in children that are killed while they save. Usage: crash_driver.py FOLDER KILLS SEED; prints one JSON report."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from toy_training import toy_run, train_toy

from postformer.train import latest

STEPS = 150


def child(run, out: Path, saves: int, pipe: int) -> None:
    """Train for good; tell the parent when the given number of saves begins."""
    seen = []

    def on_step(progress) -> None:
        seen.append(progress.step)
        if len(seen) == saves:
            os.write(pipe, b"x")

    train_toy(run, out, on_step=on_step)


def kill_once(run, out: Path, chance: random.Random, save_s: float) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(run, out, chance.randint(1, 2), write)
        os._exit(1)
    os.read(read, 1)
    time.sleep(chance.uniform(0, save_s))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    os.close(read)
    os.close(write)


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    run, chance = toy_run(steps=STEPS, save_every=1), random.Random(seed)
    began = time.perf_counter()
    straight = train_toy(run, folder / "straight").checkpoint
    save_s = (time.perf_counter() - began) / STEPS
    told: list[str] = []
    half_written = 0
    reached = []
    for _ in range(kills):
        kill_once(run, folder / "killed", chance, save_s)
        half_written += any((folder / "killed" / "checkpoints").glob(".step-*.tmp"))
        found = latest(folder / "killed", told.append)
        reached.append(int(found.name.removeprefix("step-")) if found else 0)
    end = train_toy(run, folder / "killed", warn=told.append).checkpoint
    left = sorted(f.name for f in end.parent.iterdir())
    report = {"straight": str(straight), "killed": str(end), "told": told, "half_written": half_written}
    print(json.dumps({**report, "reached": reached, "left": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
