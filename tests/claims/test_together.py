"""Runs at once in processes of their own: what they find, what stops them, and what is told of a failure."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from postformer.claims import tasks, together
from postformer.claims.ledger import Context
from postformer.claims.together import Job, all_of, workers
from postformer.config import UserError
from postformer.recipes.tasks import parity
from postformer.train import process
from postformer.train.session import train_run


def small(steps: int, seed: int = 0):
    run = tasks.shortened(parity(), 1.0, 1)
    train = dataclasses.replace(run.train, steps=steps)
    return dataclasses.replace(run, seed=seed, name=f"parity-{seed}", data={**run.data, "length": 16, "start": 8}, train=train)


def test_a_job_for_each_thread():
    assert [workers(*n) for n in ((1, 8), (5, 2), (2, 4), (3, 1))] == [1, 2, 2, 1]


def test_runs_at_once_are_what_they_are_alone(tmp_path):
    runs = [small(12), small(20, seed=1), small(12, seed=2)]
    seen = []
    found = all_of([Job(r, tmp_path / r.name) for r in runs], 2, lambda *words: seen.append(words))
    for run, one in zip(runs, found, strict=True):
        alone = train_run(run, tmp_path / f"alone-{run.name}")
        assert (one["loss"], one["steps"], one["tokens"]) == (alone.loss, run.train.steps, alone.tokens)
    steps = sum(run.train.steps for run in runs)
    assert all(total == steps and done <= steps and saying.startswith("training") for saying, done, total in seen)


def test_steps_are_timed_at_once(tmp_path):
    (one, two) = all_of([Job(small(12), tmp_path, [0, 3]), Job(small(12), tmp_path, [1])], 2)
    assert (len(one), len(two)) == (2, 1) and min(*one, *two) > 0


@pytest.mark.parametrize("bad", [0, 1])
def test_a_mistake_in_one_ends_all(tmp_path, bad):
    long, wrong = small(100_000), small(20, seed=1)
    wrong = dataclasses.replace(wrong, data={**wrong.data, "length": 0})
    jobs = [Job(long, tmp_path / "long"), Job(wrong, tmp_path / "wrong")]
    with pytest.raises(UserError, match="length"):
        all_of(jobs[:: 1 - 2 * bad], 2)
    with process.lock(tmp_path / "long"):  # no process trains there any more
        pass


def test_a_mistake_lets_no_waiting_run_begin(tmp_path):
    wrong = small(20, seed=1)
    wrong = dataclasses.replace(wrong, data={**wrong.data, "length": 0}, train=dataclasses.replace(wrong.train, steps=200_000))
    jobs = [Job(wrong, tmp_path / "wrong")] + [Job(small(100_000, seed), tmp_path / str(seed)) for seed in (2, 3)]
    with pytest.raises(UserError, match="length"):
        all_of(jobs, 1)  # those with most steps begin first
    assert not list(tmp_path.glob("*/checkpoints"))


def test_a_process_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(together.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="parity-0: its process ended with 1"):
        all_of([Job(small(12), tmp_path)], 1)


def test_a_signal_lets_all_write_their_checkpoints(tmp_path):
    jobs = [Job(small(100_000, seed), tmp_path / str(seed)) for seed in (0, 1)]
    reached = []

    def on_step(saying, done, total):
        if done and not reached:
            reached.append(done)
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        all_of(jobs, 2, on_step)
    assert reached and all(list((job.folder / "checkpoints").iterdir()) for job in jobs)
    short = dataclasses.replace(jobs[0].run, train=dataclasses.replace(jobs[0].run.train, steps=1))
    with pytest.raises(UserError, match="steps"):
        train_run(short, jobs[0].folder)  # it had gone further


def test_a_child_whose_parent_is_gone_ends(tmp_path):
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from test_together import small; from postformer.claims.together import Job, all_of;"
        "all_of([Job(small(100_000), Path(sys.argv[1]) / 'run')], 1, lambda *words: print(words[1], flush=True))"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        next(line for line in parent.stdout if int(line) > 2)
        child = int((tmp_path / "run/lock").read_text())
        parent.kill()
    until = time.monotonic() + 60
    while (
        time.monotonic() < until
        and Path(f"/proc/{child}").exists()
        and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]
    ):
        time.sleep(0.1)
    assert list((tmp_path / "run/checkpoints").iterdir())


def test_two_threads_train_two_runs_and_the_report_knows_it(tmp_path):
    ctx = Context(folder=tmp_path, settings="0" * 64, budget_s=1000, threads=2, seeds=(0, 1))
    run = dataclasses.replace(small(20), name="parity")
    fitted = tasks.fitted(ctx, {"parity": run}, 1000.0, sampled=2)["parity"]
    assert (fitted.train.steps, fitted.train.threads) == (20, 1)
    assert tasks.fitted(ctx, {"other": dataclasses.replace(run, name="other")}, 0.0, 2)["other"].train.steps == 10
    found = tasks.learn(ctx, [fitted])
    assert list(found) == ["parity, seed 0", "parity, seed 1"] and {one["steps"] for one in found.values()} == {20}
    assert all((tasks.folder(ctx, fitted, seed) / "checkpoints").exists() for seed in (0, 1))
    journal = [json.loads(line)["step"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert journal == ["speed of training: parity", "speed of training: other", "train parity, seed 0; parity, seed 1"]
