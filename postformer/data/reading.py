"""A text with a question at its end: what `needles`, `babilong` and `diary` have in common.

    text  question  answer  end
                 ^^^^^^^^^^^        where targets stand: what comes next of the answer and the end token

All of it together is `length` tokens. In training further questions with their answers may stand before that one, `Taught` as well.
Sentences are encoded one by one, so that a text of any length is a stream.
"""

import dataclasses
import difflib
import functools
import random
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from postformer.data.prose import Prose
from postformer.data.sources import DataError
from postformer.data.task import IGNORED, SPLITS, Sample, Task, TaskBatches
from postformer.files import sha256_bytes
from postformer.tokens.text import Bytes, TokenizerError, Tokens, load_tokens

TRIES = 100
"""How many passages are drawn until one fits the length."""
FILLER = -1
"""The label of a piece that is no fact."""

WORD = re.compile(r"\w+(?:[-'\u2019]\w+)*")

T = TypeVar("T")
Piece = tuple[Sequence[T], int]
"""Tokens or words that stay together, and the number of the fact that they are, or FILLER."""


class Taught(list[int]):
    """An answer's ids in a text: each is a target."""


@dataclasses.dataclass(frozen=True)
class Passage:
    """One text to read. `pieces` are the ids of the text and of the question after it, once; `ids` of the answer end with the end token.

    `about` says what is known of it, such as where a needle lies.
    """

    pieces: Iterator[Sequence[int]]
    ids: list[int]
    question: str
    answer: str
    about: dict[str, Any]

    def text(self) -> Iterator[Sequence[int]]:
        """The pieces without the last one, which is the question."""
        last: Sequence[int] | None = None
        for piece in self.pieces:
            if last is not None:
                yield last
            last = piece

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """The ids of text and question as int64 arrays of `size`, the last one shorter: no more than one and a piece are held."""
        return chunks(self.pieces, size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(Task):
    """Passages as a run's data. Nothing is opened until it is used.

    `tokenizer` is "bytes", or a tokenizer file or a folder that holds one, such as a corpus. With `sha256`, which a saved run
    names, another tokenizer and other texts are refused.
    """

    length: int = 1024
    tokenizer: str = "bytes"
    sha256: str | None = None

    @abstractmethod
    def compose(self, rng: random.Random, length: int, split: str) -> Passage | None:
        """A passage of `length` tokens, or None where what was drawn does not fit into them."""

    def asked(self, question: str) -> str:
        """What follows a text to ask a question of this kind; the answer comes after a space.

        Raises DataError for words that no question of this kind has.
        """
        return asking(self.checked(question))

    @abstractmethod
    def wordings(self) -> Iterator[str]:
        """Texts that hold every word which its questions can have."""

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """All words that its questions can have."""
        return frozenset(word for text in self.wordings() for word in WORD.findall(text))

    def sort(self, question: str) -> str:
        """What can be told of a question's kind from the question alone: how often it is answered rightly is told by it."""
        return "all"

    def checked(self, question: str) -> str:
        """The question with single spaces. Raises DataError that names the words which no question of this kind has."""
        found = WORD.findall(question)
        unknown = [word for word in dict.fromkeys(found) if word not in self.words]
        if not found:
            raise DataError("the question has no words")
        if unknown:
            near = difflib.get_close_matches(unknown[0], self.words, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            said = f"the question's {', '.join(map(repr, unknown))} stands in no question of {self.kind}{hint}"
            raise DataError(said + self._example())
        return " ".join(question.split())

    def _example(self) -> str:
        """One of the questions, in words; nothing where a text cannot be drawn here, as of books that are not there."""
        try:
            return f"; one of them is '{self.passage(0, seed=0).question}'"
        except DataError:
            return ""

    @property
    def kind(self) -> str:
        """Its name in messages."""
        return type(self).__name__.lower()

    def files(self) -> str:
        """A digest of the texts that passages are made of, "" when they are generated. Raises DataError."""
        return ""

    @functools.cached_property
    def _tokens(self) -> Tokens:
        return Bytes() if self.tokenizer == "bytes" else load_tokens(self.tokenizer)

    @property
    def tokens(self) -> Tokens:
        """The tokenizer. Raises DataError for one that cannot be read."""
        try:
            return self._tokens
        except TokenizerError as e:
            raise DataError(f"data.tokenizer: {e}") from e

    @property
    def vocab(self) -> int:
        return self.tokens.vocab

    @functools.cached_property
    def digest(self) -> str:
        """Of the tokenizer and of the texts."""
        tokens = b" ".join(self.tokens.decode_bytes([i]).hex().encode() for i in range(self.tokens.vocab))
        return sha256_bytes(b"\n".join([tokens, self.files().encode()]))

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "sha256": self.digest}

    def batches(self, batch: int, seed: int, split: str = "train") -> TaskBatches:
        """Batches of `batch` passages. Raises DataError for other texts than the run names, and when the shortest length is too short."""
        if self.sha256 and self.sha256 != self.digest:
            raise DataError(f"data: another tokenizer or other texts than the run names (data.sha256={self.sha256})")
        made = super().batches(batch, seed, split)
        self.passage(0, length=self.lengths(0, split)[0], split=split)
        return made

    def passage(self, index: int, *, seed: int = 0, length: int | None = None, split: str = "test") -> Passage:
        """The passage that stands at `index` of a split: the same for the same seed, at any length."""
        if split not in SPLITS:
            raise ValueError(f"split: unknown {split!r}; choose from {', '.join(SPLITS)}")
        return self._fitting(random.Random(f"{seed} {split} {index}"), length or self.length, split)

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> Sample:
        return self.draw_from("train", rng, rows, length)

    def draw_from(self, split: str, rng: np.random.Generator, rows: int, length: int) -> Sample:
        ids = np.empty((rows, length), np.int64)
        targets = np.full_like(ids, IGNORED)
        for row, seed in enumerate(rng.integers(1 << 62, size=rows).tolist()):
            passage, at = self._fitting(random.Random(seed), length, split), 0
            for piece in (*passage.pieces, Taught(passage.ids)):
                ids[row, at : at + len(piece)] = piece
                if isinstance(piece, Taught):
                    targets[row, at - 1 : at - 1 + len(piece)] = piece
                at += len(piece)
        return ids, targets

    def _fitting(self, rng: random.Random, length: int, split: str) -> Passage:
        for _ in range(TRIES):
            if passage := self.compose(rng, length, split):
                return passage
        raise DataError(f"data.length: {length:,} tokens ({self.tokens.kind}) are too few for what must stand in them")

    def _answer(self, answer: str) -> Taught:
        return Taught([*self.tokens.encode(f" {answer}"), self.tokens.end])


def chunks(pieces: Iterable[Sequence[int]], size: int) -> Iterator[np.ndarray]:
    """The ids of pieces as int64 arrays of `size`, the last one shorter: no more than one and a piece are held."""
    held: list[int] = []
    for piece in pieces:
        held += piece
        whole = len(held) - len(held) % size
        for start in range(0, whole, size):
            yield np.array(held[start : start + size], np.int64)
        held = held[whole:]
    if held:
        yield np.array(held, np.int64)


def asking(question: str) -> str:
    """How a question follows its text; the answer comes after a space."""
    return f"\nQuestion: {question}\nAnswer:"


def weave(filler: Iterable[Piece[T]], facts: Sequence[tuple[float, Sequence[T]]], room: int) -> Iterator[Piece[T]]:
    """`room` items of filler, the last piece cut, and each fact between two pieces, at the end of one that is nearest its place.

    `facts` are (place, piece), in order of their places, which count items of filler; their labels are their numbers.
    """
    done = at = 0
    for piece, label in filler:
        piece = piece[: room - done]
        while at < len(facts) and (not piece or facts[at][0] <= done + len(piece) / 2):
            yield facts[at][1], at
            at += 1
        if not piece:
            return
        yield piece, label
        done += len(piece)


def prose(path: str | None) -> Prose | None:
    """The text at a path, or None."""
    return Prose(Path(path)) if path else None
