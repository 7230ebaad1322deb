"""Decoded frames that wait on the disk."""

import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator

import numpy as np

from postformer.data.sources import DataError

MOST_BYTES = 1 << 36


class Frames:
    """Decoded frames of many files, in one file on the disk that has no name."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this does
        weakref.finalize(self, self.file.close)
        self.places: dict[int, tuple[int, tuple[int, ...]]] = {}
        self.used = 0

    def count(self, number: int, name: object, frames: Callable[[], Iterator[np.ndarray]]) -> int:
        """How many frames a file of this number and name has; they are written when it is first asked for. Raises DataError for frames of
        several sizes, and where all together are more than MOST_BYTES."""
        if number not in self.places:
            shape, count, end = (), 0, self.used
            self.file.seek(end)
            for frame in frames():
                if count and frame.shape != shape:
                    raise DataError(f"{name}: frames of several sizes")
                shape, count, end = frame.shape, count + 1, end + frame.nbytes
                if end > MOST_BYTES:
                    raise DataError(
                        f"{name}: more than {MOST_BYTES:,} bytes of frames; give a smaller data.size or a larger data.every"
                    )
                self.file.write(frame.tobytes())
            self.file.flush()
            self.places[number], self.used = (self.used, (count, *shape)), end
        return self.places[number][1][0]

    def read(self, number: int, first: int, count: int) -> np.ndarray:
        """uint8 [count, h, w, 3] of a file that has been asked for."""
        begin, (_, *shape) = self.places[number]
        each = math.prod(shape)
        found = os.pread(self.file.fileno(), count * each, begin + first * each)
        return np.frombuffer(found, np.uint8).reshape(count, *shape)
