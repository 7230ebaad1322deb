"""Recorded episodes as data: windows of a file of observations, actions and states, of which only the chunks that a batch needs are read.

With a `stride` above 1 an action is a block of that many, one behind the other, and an observation follows each block (frameskip with
action blocks; LeWorldModel: Maes et al. 2026, arXiv 2603.19312).

b windows, t steps, c channels, h rows and w columns of pixels, k numbers of an action, s of a state.
"""

import bisect
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from postformer.data.episode_file import BY_STEP, Contents, opened, read_contents
from postformer.data.sources import DataError
from postformer.data.task import SPLITS
from postformer.data.text import shuffled

TEST, VALID = 0.2, 0.05
"""Shares of the episodes, drawn once and for all; what is left is for training."""
FEWEST = 3
"""Episodes that can be parted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episodes:
    """A run's data. `path` is a file that was recorded or imported; a window has `steps` actions, each a block of `stride`, and lies in
    one episode.

    Of the episodes 20%, or one, are for tests and 5%, or one, for validation, whatever the seed and the size of windows; those that are
    shorter than a window are left out.
    """

    path: str
    steps: int = 16
    stride: int = 1
    sha256: str | None = None
    tokens: None = dataclasses.field(default=None, init=False, repr=False)
    """There is no tokenizer."""

    def __post_init__(self) -> None:
        if min(self.steps, self.stride) < 1:
            raise ValueError(f"steps={self.steps} and stride={self.stride} must be at least 1")

    @property
    def span(self) -> int:
        """Actions of the file in a window."""
        return self.steps * self.stride

    @functools.cached_property
    def contents(self) -> Contents:
        """Raises DataError for a file that is damaged, or holds too few episodes to be parted."""
        found = read_contents(Path(self.path))
        if (count := len(found.ends)) < FEWEST:
            raise DataError(
                f"data.path: {self.path}: {count} whole episodes are too few to be parted; expected at least {FEWEST}"
            )
        return found

    @property
    def sizes(self) -> dict[str, Any]:
        """What a model is told of the data."""
        channels, rows, columns = self.contents.shape
        return {"channels": channels, "size": (rows, columns), "actions": self.contents.actions * self.stride}

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What a saved run keeps of the data: a digest of actions, states and ends, and of the observations as they were written. Raises
        DataError for others than the run names."""
        if self.sha256 not in (None, self.contents.digest):
            raise DataError(f"data.path: {self.path}: other episodes than the run names (data.sha256={self.sha256})")
        return {"sha256": self.contents.digest}

    @functools.cached_property
    def numbers(self) -> dict[str, np.ndarray]:
        """The episodes of each split, by number."""
        n = len(self.contents.ends)
        order = np.random.default_rng(0).permutation(n)
        test, valid = max(int(n * TEST), 1), max(int(n * VALID), 1)
        parts = np.split(order, [test, test + valid])
        return {split: np.sort(part) for split, part in zip(("test", "valid", "train"), parts, strict=True)}

    @property
    def remarks(self) -> list[str]:
        """What may not be as it was meant, in lines."""
        lengths, lines = self.contents.lengths, []
        if short := int((lengths < self.span).sum()):
            lines.append(
                f"data.path: {self.path}: {short} of {len(lengths)} episodes have fewer than the {self.span} actions of a window "
                "and are left out"
            )
        if not self.contents.closed:
            lines.append(
                f"data.path: {self.path}: it was not closed by what wrote it; its {len(lengths)} whole episodes are used"
            )
        return lines

    def batches(self, batch: int, seed: int, split: str = "train") -> "EpisodesBatches":
        """Batches of `batch` windows. Raises ValueError for another split, and DataError for one without a window."""
        if split not in SPLITS:
            raise ValueError(f"split: unknown {split!r}; choose from {', '.join(SPLITS)}")
        return EpisodesBatches(self, batch, seed, split)


class EpisodesBatches:
    """Each window of a split once in an epoch, from every step of an episode at which one can begin, in a new order each time.

    There is no state to save: `batch(step)` depends on the file, the seed, the split and the step alone. The file is opened for each
    batch.
    """

    def __init__(self, episodes: Episodes, size: int, seed: int, split: str):
        self.episodes, self.size, self.seed, self.split = episodes, size, seed, split
        own, lengths = episodes.numbers[split], episodes.contents.lengths
        self.own = own[lengths[own] >= episodes.span]
        if not len(self.own):
            raise DataError(
                f"data.path: {episodes.path}: no episode for {split} has the {episodes.span} actions of a window, the longest "
                f"{lengths[own].max()}: set data.steps or data.stride lower"
            )
        self.through = (lengths[self.own] - episodes.span + 1).cumsum().tolist()
        """How many windows there are up to the end of each own episode."""

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return self.through[-1]

    def window(self, place: int) -> tuple[int, int]:
        """The episode of a window, and the step of it at which the window begins."""
        epoch, at = divmod(place, self.windows)
        at = shuffled(at, self.windows, self.seed, epoch)
        number = bisect.bisect_right(self.through, at)
        return int(self.own[number]), at - (self.through[number - 1] if number else 0)

    def batch(self, step: int) -> dict[str, Any]:
        """`{"observations": float32 [b, steps + 1, c, h, w] from 0 to 1, "actions": float32 [b, steps, stride * k], "rows": names for
        errors}` and, where there are states, "states" float32 [b, steps + 1, s]. Raises DataError."""
        episodes, contents = self.episodes, self.episodes.contents
        path, steps, stride = Path(episodes.path), episodes.steps, episodes.stride
        own = [self.window(place) for place in range(step * self.size, (step + 1) * self.size)]
        seen = np.empty((len(own), steps + 1, *contents.shape), np.uint8)
        done = np.empty((len(own), steps * stride, contents.actions), np.float32)
        states = np.empty((len(own), steps + 1, contents.states), np.float32)
        with opened(path) as file:
            arrays = {name: file[name] for name in BY_STEP if name in file}
            for i, (episode, start) in enumerate(own):
                first = start + (int(contents.ends[episode - 1]) if episode else 0)
                seen[i] = _every(arrays["observations"], first, steps + 1, stride)
                done[i] = arrays["actions"][first : first + episodes.span]
                if contents.states:
                    states[i] = _every(arrays["states"], first, steps + 1, stride)
        batch = {
            "observations": torch.from_numpy(seen).float().div_(255),
            "actions": torch.from_numpy(done.reshape(len(own), steps, -1)),
            "rows": [f"{path.name} {self.split} episode {episode} from step {start}" for episode, start in own],
        }
        return batch | ({"states": torch.from_numpy(states)} if contents.states else {})


def _every(array: Any, first: int, count: int, stride: int) -> np.ndarray:
    """So many rows of an array, `stride` apart. HDF5's own selections with a stride take 10 times as long."""
    if array.chunks and stride <= array.chunks[0]:
        return array[first : first + (count - 1) * stride + 1][::stride]
    return np.stack([array[first + i * stride] for i in range(count)])
