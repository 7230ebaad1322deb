"""Two processes of a gloo group that stay for a whole test module and do what they are told; one that hangs fails the test."""

import itertools
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from jaxtyping import install_import_hook

PROCESSES = 2
PATIENCE = 120
"""Seconds until a job counts as hung."""


class Pair:
    """Runs a function of a test module in both processes."""

    def __init__(self, folder: str):
        self.folder, self.starts = folder, itertools.count()
        self.start()

    def start(self) -> None:
        """Start the processes, or start them anew."""
        context = mp.get_context("spawn")
        self.answers: Any = context.Queue()
        self.jobs: list[Any] = [context.Queue() for _ in range(PROCESSES)]
        words = (f"file://{self.folder}/store-{next(self.starts)}", self.answers)
        self.processes = [context.Process(target=_work, args=(r, jobs, *words)) for r, jobs in enumerate(self.jobs)]
        for process in self.processes:
            process.start()

    def __call__(self, job: Callable[..., None], *words: Any) -> None:
        """Raises AssertionError with what a process raised, or when it takes too long."""
        for jobs in self.jobs:
            jobs.put((job, words))
        failed = []
        for _ in self.processes:
            try:
                rank, told = self.answers.get(timeout=PATIENCE)
            except Exception as e:
                self.stop()
                self.start()
                raise AssertionError("; ".join(["the processes hang", *failed])) from e
            failed += [f"process {rank}: {told}"] if told else []
            if told:
                break  # the other may wait for it
        if failed:
            self.stop()
            self.start()
            raise AssertionError("\n".join(failed))

    def stop(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.join()


@contextmanager
def pair(folder: str) -> Iterator[Pair]:
    """Two processes, as long as the block lasts."""
    both = Pair(folder)
    try:
        yield both
    finally:
        both.stop()


def _work(rank: int, jobs: Any, store: str, answers: Any) -> None:
    warnings.simplefilter("error")
    install_import_hook("postformer", "beartype.beartype")
    torch.set_num_threads(1)
    _poison_new_memory()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    while True:
        job, words = jobs.get()
        try:
            torch.manual_seed(0)
            job(*words)
            dist.barrier()
            answers.put((rank, ""))
        except BaseException:
            answers.put((rank, traceback.format_exc()))


def _poison_new_memory() -> None:
    """As conftest.py does: what was not written is NaN."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)

        def poisoned(*args: Any, make: Any = make, **words: Any) -> torch.Tensor:
            out = make(*args, **words)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        setattr(owner, name, poisoned)
