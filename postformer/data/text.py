"""Batches of text for training: windows of a corpus in an order that is a pure function of the seed."""

import bisect
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from postformer.data.corpus import Corpus, Shard, open_corpus
from postformer.data.sources import DataError
from postformer.tokens.text import Tokens


class Text:
    """The data of a run: `{"kind": "text", "path": "corpora/default", "length": 256}`. Nothing is opened until it is used.

    With `sha256`, which a saved run names, any other corpus at the path is refused. With `separate`, a window that holds several
    documents is read as if each were alone: nothing of one reaches into the next.
    """

    def __init__(self, path: str, length: int = 256, sha256: str | None = None, separate: bool = False):
        if length < 1:
            raise ValueError(f"length: expected 1 or more tokens, got {length}")
        self.path, self.length, self.sha256, self.separate = Path(path), length, sha256, separate

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The corpus, opened and verified. Raises DataError."""
        corpus = open_corpus(self.path)
        if self.sha256 not in (None, corpus.sha256):
            raise DataError(f"{self.path}: another corpus than the run names (data.sha256={self.sha256})")
        return corpus

    @property
    def identity(self) -> dict[str, str]:
        """What a saved run keeps of the data, so that it does not go on with other text."""
        return {"sha256": self.corpus.sha256}

    @property
    def tokens(self) -> Tokens:
        """The corpus's tokenizer."""
        return self.corpus.tokens

    def batches(self, batch: int, seed: int, split: str = "train") -> "TextBatches":
        """Batches of `batch` windows. Raises DataError when the split is shorter than one window."""
        return TextBatches(self.corpus, length=self.length, batch=batch, seed=seed, split=split, separate=self.separate)


class TextBatches:
    """Windows of `length` + 1 tokens, `length` apart, each once in an epoch, in a new order in each epoch.

    There is no state to save: `batch(step)` depends on the seed and the step alone, and reads from disk what it returns.
    """

    def __init__(self, corpus: Corpus, *, length: int, batch: int, seed: int, split: str = "train", separate: bool = False):
        self.corpus, self.length, self.size, self.seed, self.separate = corpus, length, batch, seed, separate
        self.shards = [s for s in corpus.shards(split) if s.tokens > length]
        self.firsts = np.cumsum([0, *((s.tokens - 1) // length for s in self.shards)])
        self.windows = int(self.firsts[-1])
        """Windows in one epoch."""
        if not self.windows:
            tokens = corpus.count(split).tokens
            raise DataError(f"{corpus.path}: {split} has {tokens:,} tokens, fewer than a window of {length} + 1")

    def batch(self, step: int) -> dict[str, Any]:
        """`{"ids": int64 [batch, length + 1], "rows": names of the shard, the tokens and the documents of each row}`.

        With `separate` also `"starts"`, bool [batch, length]: true at the end token that stands before a document.
        """
        ids = np.empty((self.size, self.length + 1), np.int64)
        rows: list[str] = []
        for i in range(self.size):
            epoch, place = divmod(step * self.size + i, self.windows)
            window = shuffled(place, self.windows, self.seed, epoch)
            shard = int(np.searchsorted(self.firsts, window, "right")) - 1
            start = (window - int(self.firsts[shard])) * self.length
            ids[i] = self._read(self.shards[shard], start)
            rows.append(self._describe(self.shards[shard], start))
        drawn = {"ids": torch.from_numpy(ids), "rows": rows}
        return drawn | {"starts": drawn["ids"][:, :-1] == self.corpus.tokens.end} if self.separate else drawn

    def _read(self, shard: Shard, start: int) -> np.ndarray:
        file = self.corpus.path / f"{shard.name}.bin"
        dtype = self.corpus.dtype
        ids = np.fromfile(file, dtype, self.length + 1, offset=start * dtype.itemsize)
        if len(ids) <= self.length:
            raise DataError(f"{file}: damaged: it ends before token {start + self.length:,}")
        return ids

    def _describe(self, shard: Shard, start: int) -> str:
        index = self.corpus.index(shard)
        first, last = (bisect.bisect_right(index["start"], at) - 1 for at in (start, start + self.length))
        more = f" +{last - first} more" if last > first else ""
        return f"{shard.name}.bin[{start}:{start + self.length + 1}] {self.corpus.name(shard, index, first)}{more}"


def shuffled(place: int, count: int, seed: int, epoch: int) -> int:
    """The number at `place` of the epoch's random order of 0 .. count - 1, without holding the order.

    A Feistel network of four rounds over the next even number of bits, walked until it lands below `count`
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    key = _mix(_mix(seed) + epoch)
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(4):
            left, right = right, left ^ (_mix(right ^ _mix(key + turn)) & mask)
        place = left << half | right
        if place < count:
            return place


def _mix(x: int) -> int:
    """The finalizer of splitmix64 (Steele et al. 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & (1 << 64) - 1
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    x = (x ^ x >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    return x ^ x >> 31
