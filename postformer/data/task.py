"""What every generated task is: batches drawn when they are needed, each a pure function of the seed, the split and the step.

A batch has `ids` and `targets`, int64 [b, t] both: `targets[i, j]` is the answer after `ids[i, : j + 1]`, or IGNORED where none
is asked for.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from postformer.tokens.text import Tokens

IGNORED = -1
MOST = 16
"""A batch is filled to so many times its rows."""
SPLITS = ("train", "valid", "test")
"""Independent streams of random numbers. Sequences of few symbols are few, so a short one can occur in two streams."""

Sample = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Symbols:
    """What the ids of a task are: numbers that stand for no text, so a model of them is saved without a tokenizer."""

    vocab: int
    kind: ClassVar[str] = "symbols"

    def save(self, folder: str | Path) -> None:
        """Write nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A run's data, drawn from its seed.

    All rows of a batch have one length, drawn evenly from `shortest` (default: `length`) to `length`. With `grow`, the longest
    that is drawn for training rises from `start` to `length` over that many batches, as a power of the share of them that is done.
    With a `spread` below 1 no sequence for training is shorter than 1 - spread of the longest.
    With `fill`, a batch for training has as many rows as make that many tokens, from the run's batch to MOST times as many.
    """

    length: int
    shortest: int | None = None
    start: int | None = None
    grow: int = 0
    power: float = 1.0
    spread: float = 1.0
    fill: int = 0
    least: ClassVar[int] = 1
    """The shortest length that the task can have."""

    def __post_init__(self) -> None:
        shortest = self.length if self.shortest is None else self.shortest
        start = shortest if self.start is None else self.start
        if not self.least <= shortest <= start <= self.length:
            raise ValueError(
                f"shortest={shortest}, start={start} and length={self.length} must satisfy "
                f"{self.least} <= shortest <= start <= length"
            )
        if self.grow < 0:
            raise ValueError(f"grow: expected 0 or more batches, got {self.grow}")
        if not 0 < self.power <= 10:
            raise ValueError(f"power: expected a number above 0, at most 10, got {self.power}")
        if not 0 <= self.spread <= 1:
            raise ValueError(f"spread: expected a share from 0 to 1, got {self.spread}")
        if self.fill < 0:
            raise ValueError(f"fill: expected 0 or more tokens, got {self.fill}")

    @property
    @abstractmethod
    def vocab(self) -> int:
        """How many ids there are."""

    @property
    def choices(self) -> int:
        """How many answers are equally likely to one who has not read the sequence."""
        return self.vocab

    @abstractmethod
    def draw(self, rng: np.random.Generator, rows: int, length: int) -> Sample:
        """Ids and targets of `rows` sequences."""

    def draw_from(self, split: str, rng: np.random.Generator, rows: int, length: int) -> Sample:
        """`draw` for a split: the same for all of them, unless the task has texts of its own for each."""
        return self.draw(rng, rows, length)

    @property
    def tokens(self) -> Symbols | Tokens:
        """The tokenizer, or what stands in its place."""
        return Symbols(self.vocab)

    @property
    def identity(self) -> dict[str, Any]:
        """Every keyword with its value, so that a saved run goes on with the same task when a default has changed."""
        return dataclasses.asdict(self)

    def lengths(self, step: int, split: str = "train") -> tuple[int, int]:
        """The shortest and the longest length that batch `step` may have."""
        shortest = self.length if self.shortest is None else self.shortest
        if split != "train":
            return shortest, self.length
        start = shortest if self.start is None else self.start
        done = (step / self.grow) ** self.power if step < self.grow else 1.0
        longest = start + int((self.length - start) * done + 1e-9)
        return max(shortest, math.ceil((1 - self.spread) * longest)), longest

    def rows(self, batch: int, length: int, split: str = "train") -> int:
        """How many rows a batch of that length has in a run whose batch is `batch`."""
        return max(batch, min(MOST * batch, self.fill // length)) if split == "train" else batch

    def batches(self, batch: int, seed: int, split: str = "train") -> "TaskBatches":
        """Batches of `batch` sequences, or more with `fill`. Raises ValueError for a split that there is not."""
        return TaskBatches(self, batch=batch, seed=seed, split=split)


class TaskBatches:
    """Fresh sequences in each batch; `batch(step)` depends on the task, the seed, the split and the step alone."""

    def __init__(self, task: Task, *, batch: int, seed: int, split: str = "train"):
        if split not in SPLITS:
            raise ValueError(f"split: unknown {split!r}; choose from {', '.join(SPLITS)}")
        self.task, self.size, self.seed, self.split = task, batch, seed, split
        self.stream = SPLITS.index(split)

    def batch(self, step: int) -> dict[str, Any]:
        """`{"ids": int64 [rows, t], "targets": int64 [rows, t], "rows": names for errors}`."""
        rng = np.random.default_rng([self.seed & (1 << 64) - 1, self.stream, step])
        length = int(rng.integers(*self.task.lengths(step, self.split), endpoint=True))
        count = self.task.rows(self.size, length, self.split)
        ids, targets = self.task.draw_from(self.split, rng, count, length)
        rows = [f"{type(self.task).__name__}({length}) {self.split}[{step}][{i}]" for i in range(count)]
        return {"ids": torch.from_numpy(ids), "targets": torch.from_numpy(targets), "rows": rows}
