"""Reading by retrieval: the text is kept as passages, and a model reads only those that a question finds.

The rival of a memory: what is kept grows with the text, can be quoted, corrected and deleted. Passages are ranked by BM25 (Robertson &
Zaragoza 2009, in Lucene's form, through the `bm25s` library) or by vectors from any function, such as `encoder.TextEncoder.encode`.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from postformer.config import UserError
from postformer.models.language import LanguageModel
from postformer.models.memory import Memory
from postformer.models.passages import Ends, Passages
from postformer.models.readers import Ids, Spent, asking, greedy, tokens_of

TERM = re.compile(r"\w+")
BATCH = 256
"""Texts that are made vectors at once."""
NARROW = 4
"""How many times k passages an approximate search looks at, so that ties can be broken."""


def terms(text: str) -> list[str]:
    """The words of a text that count: all, whatever their case."""
    return TERM.findall(text.lower())


def best(scores: np.ndarray, k: int, recent: bool = True) -> list[int]:
    """The places of the k highest scores, the highest first; of equal ones the last comes first, with `recent`, or the first."""
    places = np.arange(len(scores))
    return np.lexsort((-places if recent else places, -scores))[:k].tolist()


@runtime_checkable
class Ranker(Protocol):
    """Finds texts by a question. `index` takes all of them anew."""

    def index(self, texts: Sequence[str]) -> None: ...

    def find(self, question: str, k: int, recent: bool) -> list[int]:
        """The places of at most k texts, the best first."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the index."""
        ...


class BM25:
    """Words that a question shares with a text, the rarer the better. A text that shares none is not found."""

    def __init__(self, k1: float = 1.5, b: float = 0.75):
        self.k1, self.b = k1, b
        self.library: Any = None

    def index(self, texts: Sequence[str]) -> None:
        words = [terms(text) for text in texts]
        self.library = None
        if any(words):
            self.library = _extra("bm25s").BM25(k1=self.k1, b=self.b, method="lucene")
            self.library.index(words, show_progress=False)

    def scores(self, question: str) -> np.ndarray:
        """Of every text; a word that is asked twice counts twice."""
        known = [self.library.vocab_dict[word] for word in terms(question) if word in self.library.vocab_dict]
        return self.library.get_scores_from_ids(known)

    def find(self, question: str, k: int, recent: bool) -> list[int]:
        if self.library is None or not any(word in self.library.vocab_dict for word in terms(question)):
            return []
        scores = self.scores(question)
        return [place for place in best(scores, k, recent) if scores[place] > 0]

    @property
    def nbytes(self) -> int:
        if not self.library:
            return 0
        scores = sum(value.nbytes for value in self.library.scores.values() if hasattr(value, "nbytes"))
        return scores + sum(len(word.encode()) + 4 for word in self.library.vocab_dict)


class Dense:
    """Texts as vectors of `encode`, compared by their angle: with all of them, or by the graph of the `usearch` library."""

    def __init__(self, encode: Callable[[Sequence[str]], np.ndarray], search: Literal["exact", "usearch"] = "exact"):
        if search not in ("exact", "usearch"):
            raise ValueError(f"search: unknown {search!r}; choose from exact, usearch")
        self.encode, self.search = encode, search
        self.vectors = np.zeros((0, 1), np.float32)
        self.graph: Any = None

    def index(self, texts: Sequence[str]) -> None:
        parts = [self._unit(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
        self.vectors = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
        self.graph = None
        if self.search == "usearch" and len(self.vectors):
            self.graph = _extra("usearch.index").Index(ndim=self.vectors.shape[1], metric="cos", dtype="f32")
            self.graph.add(np.arange(len(self.vectors), dtype=np.uint64), self.vectors)

    def find(self, question: str, k: int, recent: bool) -> list[int]:
        if not len(self.vectors):
            return []
        query = self._unit([question])[0]
        if self.graph is None:
            return best(self.vectors @ query, k, recent)
        near = np.sort(self.graph.search(query, NARROW * k).keys.astype(np.int64))
        return [int(near[place]) for place in best(self.vectors[near] @ query, k, recent)]

    def _unit(self, texts: Sequence[str]) -> np.ndarray:
        found = np.asarray(self.encode(texts), np.float32)
        if found.ndim != 2 or len(found) != len(texts):
            raise ValueError(f"encode: expected an array [{len(texts)}, width], got {found.shape}")
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes + (0 if self.graph is None else int(self.graph.memory_usage))


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise UserError(f"{name.split('.')[0]} is not installed; pip install 'postformer[retrieval]'") from e


class RetrievalReader:
    """Keeps passages of at most `size` tokens, and has the model read the `k` that a question finds, in their order, before the question.

    With `recent` the later of two passages that fit equally well is taken. The index is made anew when a question comes after the text has
    changed, which counts as writing.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        ask: Callable[[str], str] = asking,
        rank: Ranker | None = None,
        k: int = 4,
        size: int = 64,
        ends: Ends = "sentence",
        recent: bool = True,
    ):
        if k < 1:
            raise ValueError(f"k: expected 1 or more passages, got {k}")
        self.model, self.ask, self.rank = model, ask, rank or BM25()
        self.k, self.recent = k, recent
        self.tokens, self.spent = tokens_of(model), Spent()
        self.passages = Passages(self.tokens, size, ends)
        self._indexed: list[int] | None = None

    def write(self, ids: Ids) -> None:
        with self.spent.writing(len(ids)):
            self.passages.write(ids)
            self._indexed = None

    def find(self, question: str) -> list[int]:
        """The numbers of the passages that are read for a question, the best first."""
        numbers = self._index()
        return [numbers[place] for place in self.rank.find(question, self.k, self.recent)]

    def answer(self, question: str) -> str:
        self._index()
        with self.spent.answering():
            found = [i for number in sorted(self.find(question)) for i in self.passages.ids(number)]
            ids = [*found, *self.tokens.encode(self.ask(question))]
            return greedy(self.model, Memory.fresh(self.model, begin=False), ids)

    def holding(self, text: str) -> list[int]:
        """The numbers of the passages that hold a text."""
        return [number for number in self.passages.numbers() if text in self.passages.text(number)]

    def delete(self, numbers: Iterable[int]) -> None:
        """Remove passages for good, from the index too. Raises PassagesError where there is not each of them."""
        self.passages.delete(numbers)
        self._indexed = None
        self._index()

    def _index(self) -> list[int]:
        if self._indexed is None:
            with self.spent.writing():
                numbers = self.passages.numbers()
                self.rank.index([self.passages.text(number) for number in numbers])
                self._indexed = numbers
        return self._indexed

    @property
    def nbytes(self) -> int:
        """Of the passages and their index, which is made if it is not there."""
        self._index()
        return self.passages.nbytes + self.rank.nbytes

    def save(self, path: str | Path) -> None:
        """Write the passages; the index is made anew from them."""
        self.passages.save(path)

    @staticmethod
    def load(path: str | Path, model: LanguageModel, **options: Any) -> "RetrievalReader":
        """A reader of saved passages, for any model with their tokenizer; `options` are those of the class but for size and ends."""
        reader = RetrievalReader(model, **options)
        reader.passages = Passages.load(path, reader.tokens)
        return reader
