"""Synthetic tasks: sequences drawn when they are needed, each with the answers that a model should give at certain places.

| kind | what is asked | source |
|---|---|---|
| `induction` | the token that followed a special one | Gu & Dao 2023 (arXiv 2312.00752), section 4.1.2, appendix E.1 and table 11 |
| `selective_copying` | the tokens that stood scattered among blanks, in order | the same, section 4.1.1 and table 1 |
| `mqar` | the values that went with keys, asked for again and again | Arora et al. 2023 (arXiv 2312.04927), section 3.2 and figure 2 |
| `parity` | whether the number of ones so far is odd | Lahoti et al. 2026 (arXiv 2603.15569), table 5b |
| `modular_arithmetic` | the value of an expression modulo 5 | Delétang et al. 2022 (arXiv 2207.02098), Modular Arithmetic (Simple) |

`task.py` says what a batch is.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from postformer.data.task import IGNORED, Sample, Task

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MQAR(Task):
    """Multi-query associative recall: `pairs` keys, each followed by its value; then every key once more: what was its value?

    As in the authors' code: keys come from the first half of the ids, id 0 left out, values from the second, none twice; a query
    stands at an even place, the g-th of them with a weight of g^(alpha - 1), so that most come soon; all other places hold random
    ids with `noise`, keys among them, and else 0. An odd length loses its last place.
    """

    length: int = 64
    pairs: int = 4
    symbols: int = 8192
    """Ids: keys, values and 0."""
    alpha: float = 0.01
    """1 spreads the queries evenly."""
    noise: bool = True
    least: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        shortest = self.lengths(0)[0]
        if not 1 <= self.pairs <= shortest // 4:
            raise ValueError(f"pairs: expected 1 to {shortest // 4}, a quarter of the shortest length, got {self.pairs}")
        if self.symbols < 2 * self.pairs + 2:
            raise ValueError(f"symbols: expected {2 * self.pairs + 2} or more for {self.pairs} pairs, got {self.symbols}")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha: expected a number above 0, at most 1, got {self.alpha}")

    @property
    def vocab(self) -> int:
        return self.symbols

    @property
    def choices(self) -> int:
        return self.symbols - self.symbols // 2

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> Sample:
        half, after = self.symbols // 2, 2 * self.pairs
        keys = 1 + drawn_without_repeat(rng, np.ones(half - 1), rows, self.pairs)
        values = half + drawn_without_repeat(rng, np.ones(self.symbols - half), rows, self.pairs)
        ids = np.zeros((rows, length - length % 2), np.int64)
        ids[:, :after:2], ids[:, 1:after:2] = keys, values
        weights = np.arange(1, (ids.shape[1] - after) // 2 + 1) ** (self.alpha - 1)
        places = after + 2 * drawn_without_repeat(rng, weights, rows, self.pairs)
        np.put_along_axis(ids, places, keys, 1)
        targets = np.full_like(ids, IGNORED)
        np.put_along_axis(targets, places, values, 1)
        return np.where((ids == 0) & self.noise, rng.integers(self.symbols, size=ids.shape), ids), targets


def drawn_without_repeat(rng: np.random.Generator, weights: np.ndarray, rows: int, count: int) -> np.ndarray:
    """[rows, count] places of the weights, one after another, each with its share of what is left.

    The first to ring of clocks with these rates (Efraimidis and Spirakis 2006).
    """
    rings = rng.standard_exponential((rows, len(weights))) / weights
    first = rings.argpartition(count - 1, 1)[:, :count]
    return np.take_along_axis(first, np.take_along_axis(rings, first, 1).argsort(1), 1)


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
    "mqar": MQAR,
    "parity": Parity,
    "modular_arithmetic": ModularArithmetic,
}
