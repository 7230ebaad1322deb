"""Experts where they lie in a safetensors file: read one at a time, at their place, into memory that is already there.

Positioned reads and no mapping of the file: what is read is this process's own memory and nothing else is.
"""

import json
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from postformer.config import UserError

PIECE = 1 << 20
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class ExpertsError(UserError):
    """A file without the experts that are asked for, or a memory that does not fit them."""


class Place(NamedTuple):
    """A tensor of all experts [e, ...] in a file."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Of all experts."""
        return self.shape[0] * self.one

    @property
    def one(self) -> int:
        """Bytes of one expert."""
        return torch.Size(self.shape[1:]).numel() * self.dtype.itemsize


class ExpertFile:
    """The tensors of a safetensors file that are named, by their places. Raises ExpertsError when the file is not whole.

    With `drop` the system is told after each read to forget what it keeps of the file: what a machine does whose memory is full.
    """

    def __init__(self, path: str | Path, names: Sequence[str], drop: bool = False):
        self.path, self.drop = Path(path), drop
        try:
            self.fd = os.open(self.path, os.O_RDONLY)
        except OSError as e:
            raise ExpertsError(f"{path}: {e.strerror or e}") from e
        weakref.finalize(self, os.close, self.fd)
        start = 8 + int.from_bytes(os.pread(self.fd, 8, 0), "little")
        size = os.fstat(self.fd).st_size
        try:
            header = json.loads(os.pread(self.fd, start - 8, 8)) if start <= size else {}
            self.places = {name: _place(header[name], start) for name in names}
        except (ValueError, KeyError, TypeError) as e:
            raise ExpertsError(f"{path}: not a readable safetensors file with these experts: {e}") from e
        for name, place in self.places.items():
            if place.offset + place.nbytes > size:
                raise ExpertsError(f"{path}: damaged: '{name}' ends at byte {place.offset + place.nbytes:,} of {size:,}")
        if drop:
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, name: str, expert: int, into: Tensor) -> None:
        """One expert's part of a tensor into a contiguous one of its shape and dtype. Raises ExpertsError where the file ends too early."""
        place = self.places[name]
        self._read(into.reshape(-1).view(torch.uint8).numpy().data, place.offset + expert * place.one, name)

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The bytes of a whole tensor, a piece at a time."""
        place, buffer = self.places[name], memoryview(bytearray(PIECE))
        for at in range(0, place.nbytes, PIECE):
            piece = buffer[: min(PIECE, place.nbytes - at)]
            self._read(piece, place.offset + at, name)
            yield piece

    def _read(self, into: memoryview, offset: int, name: str) -> None:
        done = 0
        while done < len(into):
            try:
                got = os.preadv(self.fd, [into[done:]], offset + done)
            except OSError as e:
                raise ExpertsError(f"{self.path}: '{name}' cannot be read: {e.strerror or e}") from e
            if not got:
                raise ExpertsError(f"{self.path}: damaged: it ends inside of '{name}'")
            done += got
        if self.drop:
            os.posix_fadvise(self.fd, offset, len(into), os.POSIX_FADV_DONTNEED)


def _place(entry: dict[str, object], start: int) -> Place:
    begin, end = (int(n) for n in entry["data_offsets"])  # type: ignore[attr-defined]
    place = Place(start + begin, tuple(entry["shape"]), DTYPES[str(entry["dtype"])])  # type: ignore[arg-type]
    if len(place.shape) < 2 or end - begin != place.nbytes:
        raise ValueError(f"{place.shape} is not {end - begin} bytes")
    return place
