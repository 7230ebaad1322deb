"""Episodes written to a file, one after the other; see `postformer.data.episode_file` for its form."""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from postformer.data.episode_file import ARRAYS, BY_STEP, FORMAT, About, Contents, blocks, h5py_library, opened, read_contents
from postformer.data.sources import DataError
from postformer.files import durable_file, sync

CHUNK, CHUNK_BYTES = 8, 1 << 18
"""Pictures of a chunk, and bytes that they have at most where there is more than one."""
VERSION = ("v110", "v110")
"""Of HDF5 that can read a file, 1.10 or later."""


class EpisodeWriter:
    """Adds episodes to a file, of which memory holds a few pictures; used as a context, at whose end the file is closed.

    With `again` a file that is there is gone on with. After each `add` it is whole on the disk as far as the process may be killed (not the
    machine); where a writer was killed the whole episodes are copied once. Raises DataError for a file that is there without `again`,
    that says other things of itself than `about`, or that is being written to.
    """

    def __init__(self, path: str | Path, about: About | None = None, *, again: bool = False):
        self.path, self.about = Path(path), about or About()
        self.episodes, self._end = 0, 0
        self._file: Any = None
        self._lock: Any = None
        if self.path.exists():
            if not again:
                raise DataError(f"{self.path}: is there already; go on with it, or choose another file")
            try:
                self._go_on()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> "EpisodeWriter":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close()
        if kind is None and not self.episodes:
            raise DataError(f"{self.path}: no episode was written")

    def close(self) -> None:
        """Whole on the disk, and others may write; without an episode nothing stays."""
        if self._file is not None:
            self._file.close()
            self._file = None
            if self.episodes:
                sync(self.path)
            else:
                self.path.unlink()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def add(
        self,
        observations: Iterable[np.ndarray],
        actions: np.ndarray,
        states: np.ndarray | None = None,
        *,
        seed: int = -1,
        task: int = -1,
    ) -> None:
        """An episode: uint8 [c, h, w] for t + 1 observations, in an array or one after the other, actions [t, k] and states [t + 1, s].

        Raises DataError for what does not fit together or to the episodes before, and for numbers that are not finite; nothing of the
        episode is kept then.
        """
        values = self._checked(actions, states)
        seen = iter(observations)
        first = next(seen, None)
        if first is None:
            self._refuse("there are no observations")
        if self._file is None:
            self._file = self._begun(first, {name: array.shape[1] for name, array in values.items()})
        count = len(values["actions"])
        values |= {"digests": self._observed(chain([first], seen), count)}
        values |= {"seeds": np.array([seed], np.int64), "tasks": np.array([task], np.int64)}
        for name, rows in values.items():
            self._put(name, self._end if name in BY_STEP else self.episodes, rows)
        for name in values.keys() | {"observations"}:
            self._file[name].flush()
        self._put("ends", self.episodes, np.array([self._end + count], np.int64))
        self._file["ends"].flush()
        self.episodes, self._end = self.episodes + 1, self._end + count

    def _observed(self, seen: Iterator[np.ndarray], count: int) -> np.ndarray:
        """Writes the pictures, of which there must be so many; their digest uint8 [1, 32]."""
        array, digest, done = self._file["observations"], hashlib.sha256(), 0
        while pictures := list(islice(seen, array.chunks[0])):
            for picture in pictures:
                if picture.dtype != np.uint8 or picture.shape != array.shape[1:]:
                    self._refuse(
                        f"an observation is {picture.dtype} of shape {picture.shape}; expected uint8 of {array.shape[1:]}"
                    )
            block = np.stack(pictures)
            if done + len(block) <= count:
                self._put("observations", self._end + done, block)
                digest.update(block.tobytes())
            done += len(block)
        if done != count:
            self._refuse(f"{done} observations and {count - 1} actions; expected one observation more than actions")
        return np.frombuffer(digest.digest(), np.uint8)[None]

    def _checked(self, actions: np.ndarray, states: np.ndarray | None) -> dict[str, np.ndarray]:
        """As they are written: the last observation's action is 0."""
        done = np.asarray(actions, np.float32)
        if done.ndim != 2 or not done.size:
            self._refuse(f"actions are of shape {done.shape}; expected [t, k] with at least one of each")
        values = {"actions": np.concatenate([done, np.zeros((1, done.shape[1]), np.float32)])}
        if states is not None:
            values["states"] = np.asarray(states, np.float32)
            if values["states"].ndim != 2 or len(values["states"]) != len(done) + 1 or not values["states"].size:
                self._refuse(f"states are of shape {values['states'].shape}; expected [{len(done) + 1}, s]")
        for name, rows in values.items():
            if not np.isfinite(rows).all():
                self._refuse(f"{name} are not finite")
        if self._file is not None:
            has = {name: self._file[name].shape[1] for name in ("actions", "states") if name in self._file}
            if has != (given := {name: rows.shape[1] for name, rows in values.items()}):
                self._refuse(f"it has {_numbers(given)}, where the file has {_numbers(has)}")
        return values

    def _refuse(self, why: str) -> NoReturn:
        raise DataError(f"{self.path}: episode {self.episodes}: {why}")

    def _put(self, name: str, at: int, rows: np.ndarray) -> None:
        array = self._file[name]
        if len(array) < at + len(rows):
            array.resize(at + len(rows), axis=0)
        array[at : at + len(rows)] = rows

    def _begun(self, picture: np.ndarray, numbers: dict[str, int]) -> Any:
        """A new file without episodes, open."""
        if picture.dtype != np.uint8 or picture.ndim != 3 or not picture.size:
            self._refuse(
                f"an observation is {picture.dtype} of shape {picture.shape}; expected uint8 of (channels, rows, columns)"
            )
        if self._lock is None and self.path.exists():
            self._refuse("another process has begun the file")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with durable_file(self.path) as temporary:
            _create(temporary, self.about, picture.shape, numbers)
        self._take()
        return _writable(self.path)

    def _go_on(self) -> None:
        """Opens the file that is there, unless it holds no episode yet."""
        self._take()
        found = read_contents(self.path)
        if not len(found.ends):
            return
        if found.about.text != self.about.text:
            old, new = (json.loads(about.text) for about in (found.about, self.about))
            key = next(key for key in new if old[key] != new[key])
            raise DataError(f"{self.path}: holds episodes with {key} {old[key]}, not {new[key]}; choose another file")
        if not found.closed:
            _copy_whole(self.path, found)
            self._take()
        self.episodes, self._end = len(found.ends), int(found.ends[-1])
        self._file = _writable(self.path)

    def _take(self) -> None:
        """Keep others from writing. Raises DataError where another does."""
        lock = self.path.open("rb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            lock.close()
            raise DataError(f"{self.path}: another process is writing to it") from e
        if self._lock is not None:
            self._lock.close()
        self._lock = lock


def _numbers(sizes: dict[str, int]) -> str:
    return " and ".join(f"{name} of {size} numbers" for name, size in sizes.items())


def _create(path: Path, about: About, shape: tuple[int, ...], numbers: dict[str, int]) -> None:
    """An empty file for pictures of a shape, and for actions and states of so many numbers."""
    pictures = max(1, min(CHUNK, CHUNK_BYTES // math.prod(shape)))
    rows = {"observations": shape, **{name: (size,) for name, size in numbers.items()}, "digests": (32,)}
    with h5py_library().File(path, "w", libver=VERSION, locking=False) as file:
        file.attrs["format"], file.attrs["about"] = FORMAT, about.text
        for name, row in {**rows, "ends": (), "seeds": (), "tasks": ()}.items():
            packed = {"compression": "gzip", "compression_opts": 1, "fletcher32": True} if name == "observations" else {}
            chunks = (pictures if packed else 1024, *row)
            file.create_dataset(name, (0, *row), ARRAYS[name][0], maxshape=(None, *row), chunks=chunks, **packed)


def _writable(path: Path) -> Any:
    """A file to add to while others read."""
    h5py = h5py_library()
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_file_locking(False, False)
    mode = h5py.h5f.ACC_RDWR | h5py.h5f.ACC_SWMR_WRITE
    return h5py.File(h5py.h5f.open(os.fsencode(path), mode, fapl=access))


def _copy_whole(path: Path, found: Contents) -> None:
    """In place of a file that was not closed one with its whole episodes."""
    with opened(path) as old, durable_file(path) as temporary:
        names = [name for name in ARRAYS if name in old]
        _create(temporary, found.about, found.shape, {n: old[n].shape[1] for n in ("actions", "states") if n in old})
        with h5py_library().File(temporary, "r+", libver=VERSION, locking=False) as new:
            for name in names:
                rows = int(found.ends[-1]) if name in BY_STEP else len(found.ends)
                new[name].resize(rows, axis=0)
                for first, block in blocks(old[name], rows):
                    new[name][first : first + len(block)] = block
