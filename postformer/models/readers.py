"""Readers: what is given a text to keep, and then questions about it. `StateReader` keeps a state; `retrieval.py` keeps the text.

All take ids to keep and a question as text, and count what both cost.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from postformer.config import UserError
from postformer.models.generation import Batch, Sampling
from postformer.models.language import LanguageModel
from postformer.models.memory import Memory
from postformer.tokens.text import Tokens

Ids = Sequence[int] | np.ndarray
MOST = 64
"""Tokens of the longest answer."""


@dataclass
class Spent:
    """What reading and answering took."""

    written: int = 0
    """Tokens."""
    write_s: float = 0.0
    answered: int = 0
    """Questions."""
    answer_s: float = 0.0

    @contextmanager
    def writing(self, tokens: int = 0) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.written, self.write_s = self.written + tokens, self.write_s + time.perf_counter() - began

    @contextmanager
    def answering(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.answered, self.answer_s = self.answered + 1, self.answer_s + time.perf_counter() - began


@runtime_checkable
class Reader(Protocol):
    """Keeps a text and answers questions about it, each as if it were the first."""

    spent: Spent

    def write(self, ids: Ids) -> None:
        """Go on reading the text."""
        ...

    def answer(self, question: str) -> str:
        """What the model says; what is kept does not change."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        ...

    def save(self, path: str | Path) -> None:
        """Write what is kept to a file."""
        ...


def asking(question: str) -> str:
    """A question as it is."""
    return question


class StateReader:
    """Keeps what the model's state remembers. `ask` makes of a question what follows the text, such as a task's `asked`."""

    def __init__(self, model: LanguageModel, *, ask: Callable[[str], str] = asking, memory: Memory | None = None):
        self.tokens = tokens_of(model)
        self.model, self.ask, self.spent = model, ask, Spent()
        self.memory = Memory.fresh(model, begin=False) if memory is None else memory

    def write(self, ids: Ids) -> None:
        with self.spent.writing(len(ids)):
            self.memory.read(self.model, np.asarray(ids).tolist())

    def answer(self, question: str) -> str:
        with self.spent.answering():
            return greedy(self.model, self.memory, self.tokens.encode(self.ask(question)))

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    def fork(self) -> "StateReader":
        """A copy that goes its own way."""
        return StateReader(self.model, ask=self.ask, memory=self.memory.fork())

    def save(self, path: str | Path) -> None:
        self.memory.save(path, self.model)

    @staticmethod
    def load(path: str | Path, model: LanguageModel, *, ask: Callable[[str], str] = asking) -> "StateReader":
        """What was saved. Raises StateError when the file is damaged or another model's."""
        return StateReader(model, ask=ask, memory=Memory.load(path, model))


def tokens_of(model: LanguageModel) -> Tokens:
    """The model's tokenizer. Raises UserError for one without."""
    if model.tokens is None:
        raise UserError("this model was saved without a tokenizer; it cannot read text")
    return model.tokens


@torch.inference_mode()
def greedy(model: LanguageModel, memory: Memory, ids: Sequence[int]) -> str:
    """The most probable answer after `ids`, up to the end token or MOST tokens, without the space before it. The memory does not change."""
    tokens, batch = tokens_of(model), Batch(model)
    row = batch.join(list(ids), Sampling(temperature=0.0, max_tokens=MOST), memory)
    while row.ending is None:
        batch.step()
    return tokens.decode([i for i in row.produced if i != tokens.end]).strip()
