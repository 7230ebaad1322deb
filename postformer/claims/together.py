"""Runs that are trained, or timed, at once, each in a process of its own: a small model gains less from a second thread than from leaving
it to another model."""

import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from postformer.config import Run, UserError, plain
from postformer.train import process

WAIT_S = 0.2
"""Between two looks for a stop signal."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to train in a folder, or with `at` the steps of it that are timed."""

    run: Run
    folder: Path
    at: Sequence[int] | None = None


def workers(jobs: int, threads: int) -> int:
    """How many jobs go on at once; each has `threads` over so many."""
    return max(1, min(jobs, threads))


def all_of(
    jobs: Sequence[Job], threads: int, on_step: Callable[[str, int, int], None] = lambda saying, done, total: None
) -> list[Any]:
    """What each job found: a training's summary as plain data, or the seconds of its steps. Those with most steps begin first.

    `on_step` takes what is done, the steps done of all jobs, and all. Raises KeyboardInterrupt after a stop signal, when every run has
    written its checkpoint, UserError for a mistake in a run, and RuntimeError when a process fails.
    """
    children: list[_Child] = []
    count = workers(len(jobs), threads)
    order = sorted(range(len(jobs)), key=lambda i: -jobs[i].run.train.steps)
    total = sum(job.run.train.steps for job in jobs)
    with process.stop_signals() as stop, ThreadPoolExecutor(count) as pool:
        futures: dict[int, Future[Any]] = {}
        for i in order:
            children.append(_Child(jobs[i], threads // count))
            futures[i] = pool.submit(children[-1].work)
        try:
            while True:
                done, waiting = wait(futures.values(), WAIT_S, FIRST_EXCEPTION)
                failed = next((f for f in done if f.exception()), None)
                if stop or failed or not waiting:
                    break
                on_step(
                    "training " + ", ".join(c.job.run.name for c in children if c.going), sum(c.step for c in children), total
                )
        finally:
            for child in children:
                child.stop()
    if failed:
        raise failed.exception()  # type: ignore[misc]
    if stop or any(child.stopped for child in children):
        raise KeyboardInterrupt
    return [futures[i].result() for i in range(len(jobs))]


class _Child:
    """A process that does one job, once a thread has come to it."""

    def __init__(self, job: Job, threads: int):
        train = dataclasses.replace(job.run.train, threads=threads)
        self.job = dataclasses.replace(job, run=dataclasses.replace(job.run, train=train))
        self.step, self.stopped = 0, False
        self._process: subprocess.Popen[str] | None = None
        self._starting = threading.Lock()

    @property
    def going(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def work(self) -> Any:
        """Start it, follow it to its end, and return what it found; None where it was stopped."""
        with tempfile.TemporaryFile("w+") as errors:
            with self._starting:
                if self.stopped:
                    return None
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "postformer.claims.trainee"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    start_new_session=True,  # a Ctrl-C reaches it through `stop` alone
                )
            with self._process as child:
                found = self._followed(child)
            if found is None and not self.stopped:
                errors.seek(0)
                last = (errors.read().strip().splitlines() or [f"its process ended with {child.returncode}"])[-1]
                raise RuntimeError(f"{self.job.run.name}: {last}")
            return found

    def _followed(self, child: subprocess.Popen[str]) -> Any:
        assert child.stdin and child.stdout
        found, asked = None, {"run": plain(self.job.run), "folder": str(self.job.folder), "at": self.job.at}
        with suppress(BrokenPipeError), child.stdin as stdin:  # it may have ended
            json.dump(asked, stdin)
        for line in child.stdout:
            said = json.loads(line)
            self.step = said.get("step", self.step)
            if "mistake" in said:
                raise UserError(said["mistake"])
            self.stopped |= said.get("stopped", False)
            found = said.get("done", found)
        return found

    def stop(self) -> None:
        """Let it end at its next step, or never begin."""
        with self._starting:
            if self.going or self._process is None:
                self.stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGINT)
