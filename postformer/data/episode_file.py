"""Files of episodes: what was seen, done and true at each step, in one HDF5 file that is whole up to its last episode at any time.

In the rows of its arrays the episodes follow each other:

- `observations`, uint8 [n, c, h, w], in compressed chunks of a few pictures, each with a checksum;
- `actions`, float32 [n, k]: row i is what was done after observation i; that of an episode's last observation is 0 and never read;
- `states`, float32 [n, s], where there are any;
- `ends`, int64 [e]: the row behind each episode;
- `digests`, uint8 [e, 32]: the sha256 of each episode's observations; `seeds` and `tasks`, int64 [e], -1 where there is none.

Its attributes are `format` and, as JSON, `about`. An episode is written before its end is, in the mode of HDF5 in which others may read
meanwhile (single writer, multiple readers): where a writer was killed, what it had begun lies behind the last end.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from postformer.config import ConfigError, parse, plain
from postformer.data.sources import DataError

FORMAT = "postformer-episodes-1"
BLOCK_BYTES = 1 << 24
"""Bytes that are read at once where a whole array is."""
ARRAYS = {
    "observations": ("uint8", 4),
    "actions": ("float32", 2),
    "states": ("float32", 2),
    "ends": ("int64", 1),
    "digests": ("uint8", 2),
    "seeds": ("int64", 1),
    "tasks": ("int64", 1),
}
"""What the arrays hold, and how many axes they have."""
NEEDED, BY_STEP = ("observations", "actions", "ends", "digests"), ("observations", "actions", "states")


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What a file says of all its episodes; 0 frames a second and empty names where it is not known."""

    frames_per_second: float = 0.0
    action_names: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()
    environment: str = ""
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    tasks: tuple[str, ...] = ()
    """Their texts, by number."""

    @property
    def text(self) -> str:
        """As JSON."""
        return json.dumps(plain(self), sort_keys=True, default=str)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds: pictures of a `shape` (channels, rows, columns), the numbers of an action and of a state, the row behind each
    episode int64 [e], the digest of it all, and whether it was `closed` by its writer."""

    about: About
    shape: tuple[int, int, int]
    actions: int
    states: int
    ends: np.ndarray
    digest: str
    closed: bool

    @property
    def lengths(self) -> np.ndarray:
        """How many actions each episode has: int64 [e]."""
        return np.diff(self.ends, prepend=0) - 1


def h5py_library() -> Any:
    try:
        import h5py
    except ImportError as e:
        raise DataError("h5py is not installed: pip install 'postformer[embodied]'") from e
    return h5py


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file to read from, also while it is written to. Raises DataError for what is no HDF5, and what of it cannot be read."""
    h5py = h5py_library()
    if not path.is_file():
        raise DataError(f"{path}: no such file; give one that was recorded or imported")
    try:
        if not h5py.is_hdf5(path):
            raise DataError(f"{path}: not an HDF5 file")
        try:
            file = h5py.File(path, "r", locking=False)
        except OSError:
            file = h5py.File(path, "r", locking=False, swmr=True)
        with file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError) as e:
        raise DataError(f"{path}: it cannot be read: {' '.join(str(e).split())}") from e


def read_contents(path: Path) -> Contents:
    """Reads all but the observations, some at a time. Raises DataError for a file that is damaged or of another form."""
    with opened(path) as file:
        found = str(file.attrs.get("format", "none"))
        if found != FORMAT:
            raise DataError(f"{path}: its format is {found}; expected {FORMAT}")
        ends = _checked_arrays(path, file)
        try:
            about = parse(About, json.loads(file.attrs["about"]), "about")
        except (ValueError, KeyError, TypeError, ConfigError) as e:
            raise DataError(f"{path}: its attribute 'about' is damaged: {e}") from e
        shape, actions = file["observations"].shape[1:], file["actions"].shape[1]
        states = file["states"].shape[1] if "states" in file else 0
        digest = hashlib.sha256(repr((shape, actions, states)).encode() + ends.astype("<i8").tobytes())
        digest.update(file["digests"][: len(ends)].tobytes())
        for name in ("actions", "states")[: 2 if states else 1]:
            for first, rows in blocks(file[name], int(ends[-1]) if len(ends) else 0):
                if not (good := np.isfinite(rows).all(1)).all():
                    _not_finite(path, name, first + int(good.argmin()), ends)
                digest.update(rows.tobytes())
        return Contents(about, shape, actions, states, ends, digest.hexdigest(), not file.swmr_mode)


def _checked_arrays(path: Path, file: Any) -> np.ndarray:
    """The episodes' ends. Raises DataError for arrays that are not there, of another form, or too short."""
    for name, (dtype, axes) in ARRAYS.items():
        if name not in file and name not in NEEDED:
            continue
        if not hasattr(file.get(name), "dtype"):
            raise DataError(f"{path}: it holds no array '{name}'; it has {', '.join(file) or 'none'}")
        if file[name].dtype != dtype or file[name].ndim != axes:
            raise DataError(
                f"{path}: {name} must be {dtype} with {axes} axes; they are {file[name].dtype} of shape {file[name].shape}"
            )
    ends = file["ends"][:]
    lengths = np.diff(ends, prepend=0)
    if (short := lengths < 2).any():
        i = int(short.argmax())
        raise DataError(f"{path}: episode {i} has {lengths[i]} observations; expected at least 2")
    for name in file.keys() & ARRAYS.keys():
        least = int(ends[-1]) if name in BY_STEP and len(ends) else len(ends) if name not in BY_STEP else 0
        if len(file[name]) < least:
            raise DataError(
                f"{path}: lengths disagree: {name} have {len(file[name]):,} rows, and the episodes need {least:,}: it is damaged"
            )
    return ends


def _not_finite(path: Path, name: str, row: int, ends: np.ndarray) -> NoReturn:
    episode = int(np.searchsorted(ends, row, "right"))
    step = row - (int(ends[episode - 1]) if episode else 0)
    raise DataError(f"{path}: {name} of episode {episode} are not finite at step {step}")


def blocks(array: Any, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first rows of an array, some at a time, with the number of the first."""
    at_once = max(1, BLOCK_BYTES // max(1, array.dtype.itemsize * math.prod(array.shape[1:])))
    for first in range(0, rows, at_once):
        yield first, array[first : min(first + at_once, rows)]
