"""What training asks of its process: a directory of its own, a number of threads, and notice of a stop."""

import ctypes
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from postformer.config import UserError
from postformer.ops.pages import BLOCKS


class TrainingError(UserError):
    """Training that must not go on: a loss or gradient that is not finite, or a directory in use."""


@contextmanager
def lock(out: Path, doing: str = "training") -> Iterator[None]:
    """Hold a directory for this process alone. Raises TrainingError when another one has it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / "lock").open("a+b", buffering=0)
    except OSError as e:
        raise TrainingError(f"{out}: cannot be used: {e.strerror or e}") from e
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        except BlockingIOError as e:
            holder = (out / "lock").read_text()
            raise TrainingError(f"{out}: process {holder} is {doing} there; wait for it, or use another directory") from e
        except OSError as e:
            raise TrainingError(f"{out / 'lock'}: {e.strerror or e}") from e
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with that many intra-op threads (0: as many as before) and put the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


TRIM, MMAP = -1, -3
"""`mallopt`'s numbers of two thresholds: free bytes at the heap's end that go back to the system, and sizes that never lie there."""
KEPT = {MMAP: 1 << 30, TRIM: (1 << 31) - 1}
USUAL = {MMAP: 32 << 20, TRIM: 64 << 20}
"""Where glibc's own adjustment of the thresholds ends; once they are set it no longer adjusts them."""
_keeping = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C library keep what one step frees for the next one, for the whole process until the last such block is left: then it
    goes back to the system, and what `postformer.ops.pages` keeps.

    Else the system maps and zeroes the same pages again at every step: thousands of page faults for a small model. Only glibc is told.
    """
    global _keeping
    libc = ctypes.CDLL(None)
    known = hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version")

    def tell(thresholds: dict[int, int]) -> None:
        """The sizes first: where a glibc refuses so large a one, the other threshold alone would do harm."""
        if known and libc.mallopt(MMAP, thresholds[MMAP]):
            libc.mallopt(TRIM, thresholds[TRIM])

    if not _keeping:
        tell(KEPT)
    _keeping += 1
    try:
        yield
    finally:
        _keeping -= 1
        if not _keeping:
            BLOCKS.release()
            if known:
                tell(USUAL)
                libc.malloc_trim(0)


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Give a list that holds the signal's name once SIGTERM or SIGINT has come; a second SIGINT acts as it did before.

    Python lets only the main thread listen: elsewhere the list stays empty.
    """
    received: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT] or signal.SIG_DFL)

    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    for s in before:
        signal.signal(s, note)
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler or signal.SIG_DFL)
