"""Memory for large results that is used again: on Linux a large tensor is new memory each time, given page by page and zeroed by the
system, which costs as much as a product that fills it (58 MB: 48 ms, 25 in memory that was used before).

Blocks are given back when the last tensor on them is gone, and kept for the next tensor of that size; in use and kept together are
never more than was in use at once, or since the last `release`. They ask for huge pages, so that even the first time is cheaper.
"""

import contextlib
import math
import mmap
import sys
import threading
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

LEAST = 4 << 20
"""Bytes from which on it is worth it."""


class Blocks:
    """Blocks of memory by their size, the longest unused first; `leased` and `kept` are bytes, `most` the most that were leased at once.

    Threads may share them, and an array may go at any time, even while its own thread is in here: what comes back waits in `returned`
    until nobody is.
    """

    def __init__(self) -> None:
        self.free: deque[mmap.mmap] = deque()
        self.returned: deque[mmap.mmap] = deque()
        self.leased = self.kept = self.most = 0
        self.lock = threading.Lock()

    def lease(self, size: int) -> np.ndarray:
        """Unwritten bytes, which come back when the array is gone. Raises OSError where the system has none."""
        with self.lock:
            block = next((b for b in reversed(self.free) if len(b) == size), None)
            if block is None:
                most = max(self.most, self.leased + size)
                while self.free and self.leased + size + self.kept > most:
                    self.kept -= len(self.free.popleft())
                block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                with contextlib.suppress(OSError):
                    block.madvise(mmap.MADV_HUGEPAGE)
            else:
                self.free.remove(block)
                self.kept -= size
            array = np.frombuffer(block, np.uint8)
            self.leased += size
            self.most = max(self.most, self.leased)
            weakref.finalize(array, self._back, block).atexit = False
        self._take_back()
        return array

    def release(self) -> None:
        """Give what is kept to the system."""
        self._take_back()
        with self.lock:
            self.free.clear()
            self.kept, self.most = 0, self.leased
        self._take_back()

    def _back(self, block: mmap.mmap) -> None:
        self.returned.append(block)
        self._take_back()

    def _take_back(self) -> None:
        """Unless somebody is in here, who then does it at the end."""
        while self.returned and self.lock.acquire(blocking=False):
            with contextlib.suppress(IndexError):
                while True:
                    block = self.returned.popleft()
                    self.leased -= len(block)
                    self.kept += len(block)
                    self.free.append(block)
            self.lock.release()


BLOCKS = Blocks()
HERE = sys.platform == "linux" and hasattr(mmap, "MADV_HUGEPAGE")


def fresh(like: Tensor, *shape: int) -> Tensor:
    """An unwritten tensor of this shape, of the dtype and on the device of `like`."""
    size = math.prod(shape) * like.element_size()
    if not HERE or size < LEAST or not like.is_cpu or type(like) is not Tensor or torch.compiler.is_compiling():
        return like.new_empty(shape)
    try:
        return torch.from_numpy(BLOCKS.lease(size)).view(like.dtype).view(shape)
    except (OSError, OverflowError):  # torch says what is missing, if it is
        BLOCKS.release()
        return like.new_empty(shape)
