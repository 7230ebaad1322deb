"""What a language model has to beat: a compressor and a table of counts, given the same text to learn from."""

import math
from collections.abc import Sequence

import numpy as np

from postformer.config import UserError

DICTIONARY_BYTES = 112_640
"""The size that `zstd --train` makes by default."""


def zstd_bits(train: Sequence[bytes], documents: Sequence[bytes], *, sample_bytes: int = 16 << 20) -> dict[str, list[int]]:
    """Bits of each document under `zstd -19`: with a dictionary trained on the training text as `zstd --train` makes it, with
    the end of the training text itself as the dictionary (as `--patch-from`), and without any.

    At most `sample_bytes` of the training documents, evenly spread, train the dictionary (more slows it and does not help).
    Raises UserError when the `report` extra is not installed.
    """
    try:
        import zstandard
    except ImportError as e:
        raise UserError("zstd is needed to compare with: pip install 'postformer[report]'") from e
    dictionaries: dict[str, zstandard.ZstdCompressionDict | None] = {"none": None}
    raw = b"".join(train)[-(8 << 20) :]
    if raw:
        dictionaries["text"] = zstandard.ZstdCompressionDict(raw, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    samples = [d for d in train if d][:: max(1, math.ceil(sum(map(len, train)) / sample_bytes))]
    try:
        dictionaries["trained"] = zstandard.train_dictionary(DICTIONARY_BYTES, list(samples), level=19)  # type: ignore[arg-type]
    except zstandard.ZstdError:  # too little text for a dictionary
        dictionaries["trained"] = None
    bits = {}
    for name, dictionary in dictionaries.items():
        compressor = zstandard.ZstdCompressor(level=19, dict_data=dictionary)
        bits[name] = [8 * len(compressor.compress(d)) for d in documents]
    return bits


class ByteNgrams:
    """A model of each byte given the `order - 1` before it: interpolated Kneser-Ney (Chen & Goodman 1999, section 2.7) with one
    discount per order, from the counts of the training documents.

    Counts are kept as sorted arrays of packed n-grams, so that tens of megabytes are counted in seconds.
    """

    def __init__(self, documents: Sequence[bytes], order: int = 5):
        if not 1 <= order <= 7:
            raise ValueError(f"order={order} must lie in 1 ... 7")
        self.order = order
        self.levels: list[_Level] = []
        grams, counts = np.unique(_pack(documents, order), return_counts=True)
        self.levels.append(_Level(grams, counts))
        for n in range(order - 1, 0, -1):  # a lower order counts the different bytes that stand before an n-gram
            low = (1 << 8 * n) - 1
            grams, counts = np.unique(grams & low, return_counts=True)
            self.levels.append(_Level(grams, counts))

    def bits(self, document: bytes) -> float:
        """Code length of a document, in bits."""
        grams = _pack([document], self.order)
        p = np.full(len(grams), 1 / 256)
        for n, level in zip(range(1, self.order + 1), reversed(self.levels), strict=True):
            p = level.probability(grams & ((1 << 8 * n) - 1), p)
        return float(-np.log2(p).sum())


class _Level:
    """Counts of one order, and the total and the number of different continuations of each context."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray):
        self.grams, self.counts = grams, counts
        self.contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
        self.totals = np.add.reduceat(counts, first)
        self.kinds = np.diff(np.append(first, len(grams)))
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        self.discount = once / (once + 2 * twice) if once else 0.5

    def probability(self, grams: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """max(count - D, 0) / total + D kinds / total * lower; a context never seen leaves the lower order's value."""
        at, known = _find(self.grams, grams)
        count = np.where(known, self.counts[at], 0)
        at, known = _find(self.contexts, grams >> np.uint64(8))
        total = np.where(known, self.totals[at], 1)
        value = (np.maximum(count - self.discount, 0) + self.discount * self.kinds[at] * lower) / total
        return np.where(known, value, lower)


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted


def _pack(documents: Sequence[bytes], order: int) -> np.ndarray:
    """Each byte of the documents with the order - 1 before it as one integer, the newest lowest; zeros stand before a document."""
    packed = []
    for document in documents:
        x = np.frombuffer(bytes(order - 1) + document, np.uint8).astype(np.uint64)
        value = np.zeros(len(document), np.uint64)
        for i in range(order):
            value = value << np.uint64(8) | x[i : i + len(document)]
        packed.append(value)
    return np.concatenate(packed) if packed else np.zeros(0, np.uint64)
