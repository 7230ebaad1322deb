"""Synthetic tasks: sequences drawn when they are needed, each with the answers that a model should give at certain places.

| kind | what is asked | source |
|---|---|---|
| `induction` | the token that followed a special one | Gu & Dao 2023 (arXiv 2312.00752), section 4.1.2, appendix E.1 and table 11 |
| `selective_copying` | the tokens that stood scattered among blanks, in order | the same, section 4.1.1 and table 1 |
| `parity` | whether the number of ones so far is odd | Lahoti et al. 2026 (arXiv 2603.15569), table 5b |
| `modular_arithmetic` | the value of an expression modulo 5 | Delétang et al. 2022 (arXiv 2207.02098), Modular Arithmetic (Simple) |

A batch has `ids` and `targets`, int64 [b, t] both: `targets[i, j]` is the answer after `ids[i, : j + 1]`, or IGNORED where none
is asked for.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

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

    @property
    def tokens(self) -> Symbols:
        """What stands in a tokenizer's place."""
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
        ids, targets = self.task.draw(rng, count, length)
        rows = [f"{type(self.task).__name__}({length}) {self.split}[{step}][{i}]" for i in range(count)]
        return {"ids": torch.from_numpy(ids), "targets": torch.from_numpy(targets), "rows": rows}


# ---------------------------------------------------------------- what must be remembered


@dataclasses.dataclass(frozen=True, kw_only=True)
class Induction(Task):
    """Random tokens; the special one, the last of the vocabulary, comes at a random place and again at the end: what came after it?"""

    length: int = 256
    symbols: int = 16
    """Ids, the special one included."""
    least: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.symbols < 3:
            raise ValueError(f"symbols: expected 3 or more, got {self.symbols}")

    @property
    def vocab(self) -> int:
        return self.symbols

    @property
    def choices(self) -> int:
        return self.symbols - 1

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> Sample:
        ids = rng.integers(self.symbols - 1, size=(rows, length))
        row, first = np.arange(rows), rng.integers(length - 2, size=rows)
        ids[row, first] = ids[:, -1] = self.symbols - 1
        targets = np.full_like(ids, IGNORED)
        targets[:, -1] = ids[row, first + 1]
        return ids, targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Task):
    """`copies` tokens at random places among blanks, `length` in all; then as many marks, at each of which the next is asked.

    Id 0 is the blank and the last one the mark; the model is not shown its earlier answers.
    """

    length: int = 256
    copies: int = 16
    symbols: int = 16
    """Ids, the blank and the mark included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shortest = self.lengths(0)[0]
        if not 1 <= self.copies <= shortest:
            raise ValueError(f"copies: expected 1 to {shortest}, the shortest length, got {self.copies}")
        if self.symbols < 3:
            raise ValueError(f"symbols: expected 3 or more, got {self.symbols}")

    @property
    def vocab(self) -> int:
        return self.symbols

    @property
    def choices(self) -> int:
        return self.symbols - 2

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> Sample:
        tokens = rng.integers(1, self.symbols - 1, size=(rows, self.copies))
        places = np.sort(rng.random((rows, length)).argpartition(self.copies - 1, 1)[:, : self.copies], 1)
        ids = np.zeros((rows, length + self.copies), np.int64)
        np.put_along_axis(ids, places, tokens, 1)
        ids[:, length:] = self.symbols - 1
        targets = np.full_like(ids, IGNORED)
        targets[:, length:] = tokens
        return ids, targets


# ---------------------------------------------------------------- what must be tracked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracking(Task):
    """A task with an answer at every place of `answers="every"`, or at the last place alone."""

    length: int = 160
    shortest: int | None = 3
    answers: Literal["every", "last"] = "every"

    def asked(self, targets: np.ndarray) -> np.ndarray:
        """The targets that are asked for."""
        if self.answers == "last":
            targets[:, :-1] = IGNORED
        return targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity(Tracking):
    """Random bits; after each, whether the ones so far are odd in number.

    With `ones="even"` a bit is one half of the time; with "varied", with a probability that is drawn for each sequence, so that a few
    sequences hold as many ones as longer ones do.
    """

    ones: Literal["even", "varied"] = "even"

    @property
    def vocab(self) -> int:
        return 2

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> Sample:
        share = rng.random((rows, 1)) if self.ones == "varied" else 0.5
        ids = (rng.random((rows, length)) < share).astype(np.int64)
        return ids, self.asked(ids.cumsum(1) % 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModularArithmetic(Tracking):
    """Digits below 5 with +, - or * between them: after each digit, the value so far modulo 5, products before sums.

    So read, `1 + 2 * 3` is 2 and `1 - 1 - 1` is 4, as in Delétang et al.'s code; one who reads from the left must hold the sum of
    the closed terms and the open product (25 states). An even length loses its last place. Ids 5, 6 and 7 are +, - and *.
    """

    modulus: ClassVar[int] = 5

    @property
    def vocab(self) -> int:
        return self.modulus + 3

    @property
    def choices(self) -> int:
        return self.modulus

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> Sample:
        digits = (length + 1) // 2
        ids = np.empty((rows, 2 * digits - 1), np.int64)
        ids[:, ::2] = rng.integers(self.modulus, size=(rows, digits))
        ids[:, 1::2] = self.modulus + rng.integers(3, size=(rows, digits - 1))
        targets = np.full_like(ids, IGNORED)
        targets[:, ::2] = prefix_values(ids, self.modulus)
        return ids, self.asked(targets)


def prefix_values(ids: np.ndarray, modulus: int) -> np.ndarray:
    """The value of each expression up to and with each digit: ids [rows, 2n - 1] to [rows, n]."""
    digits, operators = ids[:, ::2], ids[:, 1::2] - modulus
    terms, product = np.zeros(len(ids), np.int64), digits[:, 0]
    values = [product]
    for digit, operator in zip(digits[:, 1:].T, operators.T, strict=True):
        terms = np.where(operator == 2, terms, (terms + product) % modulus)
        product = np.choose(operator, [digit, -digit, product * digit]) % modulus
        values.append((terms + product) % modulus)
    return np.stack(values, 1)


TASKS: dict[str, type[Task]] = {
    "induction": Induction,
    "selective_copying": SelectiveCopying,
    "parity": Parity,
    "modular_arithmetic": ModularArithmetic,
}
