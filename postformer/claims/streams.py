"""Experiments on long texts that are read from their beginning: the parts that are learned and read, and a memory that is written, stands
still, or is begun anew meanwhile."""

import itertools
import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from postformer.claims.ledger import Context, NotMeasurable
from postformer.claims.stats import interleaved
from postformer.data import Document, Source, build_corpus, open_corpus
from postformer.data.embedded import embedded_sources
from postformer.data.prose import PEPYS_FILE, data_folder
from postformer.data.scan import Progress
from postformer.files import write_durably
from postformer.mixers.titans import LMMState
from postformer.models.language import LanguageModel
from postformer.models.writing import frozen
from postformer.ops.loss import cross_entropy
from postformer.state import nbytes
from postformer.tokens.text import Tokens
from postformer.train import process
from postformer.train.session import open_model

VOCAB = 1024
LEARNED = 0.7
"""The share of a text, in bytes, that the models learn from: its beginning."""
ROWS = 4
"""Places in the rest from which it is read, evenly spread, each from a fresh state."""
PART = 4096
"""Bytes after which a long document counts as another one, for the intervals."""
LEAST = 4096
"""Tokens that a row must have."""
CHUNK = 1024
"""Tokens read at once, and those after which a memory is begun anew where it is."""
DEFAULT_BYTES = 8 << 20
"""About how much of Python's library stands for a text where there is none."""


class Text(NamedTuple):
    """The documents of a text in their order: those that are learned, and those after them that are read."""

    name: str
    learned: list[bytes]
    read: list[bytes]


def text_of(path: Path | None) -> Text:
    """The text there, or else Pepys' diary in order of date, or Python's library. Raises DataError and NotMeasurable."""
    if path is not None:
        name, sources = str(path), [Source(path)]
    elif diary := data_folder(PEPYS_FILE):
        name, sources = "Pepys' diary, 1660 to 1669, in order of date", [Source(diary)]
    else:
        name, sources = "Python's own library: code and prose", embedded_sources(DEFAULT_BYTES)
    documents = [row.text for source in sources for row in source.read() if isinstance(row, Document)]
    ends = np.cumsum([len(d) for d in documents])
    learned = int(np.searchsorted(ends, LEARNED * ends[-1])) if documents else 0
    if not 0 < learned < len(documents):
        raise NotMeasurable(f"{name}: {len(documents)} documents are too few to learn from some and read others")
    return Text(name, documents[:learned], documents[learned:])


def make_corpus(folder: Path, text: Text, window: int, progress: Progress | None = None) -> dict[str, Any]:
    """Build the corpus of what is learned in folder/corpus, and describe both parts. Raises NotMeasurable."""
    listed = folder / "learned.jsonl"
    lines = (json.dumps({"text": d.decode("utf-8", "replace")}) + "\n" for d in text.learned)
    write_durably(listed, "".join(lines))
    build_corpus([Source(listed)], folder / "corpus", VOCAB, valid=0.0, progress=progress)
    corpus = open_corpus(folder / "corpus", verify=False)
    count = corpus.count("train")
    if count.tokens <= window:
        raise NotMeasurable(f"{text.name}: {count.tokens:,} tokens to learn from are too few; more than {window:,} are needed")
    streams(text, corpus.tokens, LEAST)
    return {
        "text": text.name,
        "sha256": corpus.sha256,
        "vocab": corpus.tokens.vocab,
        "learned": {"documents": len(text.learned), "bytes": sum(map(len, text.learned)), "tokens": count.tokens},
        "read": {"documents": len(text.read), "bytes": sum(map(len, text.read))},
    }


# ---------------------------------------------------------------- what is read


class Streams(NamedTuple):
    """Rows of tokens, each a stretch of the text, the token before it first; and of each token after that one."""

    ids: Int[Tensor, "r n"]
    nbytes: Int[np.ndarray, "r m"]
    unit: Int[np.ndarray, "r m"]
    """The document, or part of a long one, that it belongs to: from 0 on, in order, over all rows."""


def streams(text: Text, tokens: Tokens, length: int) -> Streams:
    """Rows of the documents that are read, of at most `length` tokens each. Raises NotMeasurable for too little text."""
    ends = np.cumsum([len(d) for d in text.read])
    rows = min(ROWS, len(text.read))
    firsts = [int(np.searchsorted(ends, i * ends[-1] / rows, "right")) for i in range(rows)] + [len(text.read)]
    sizes_of = np.array([len(tokens.decode_bytes([i])) for i in range(tokens.vocab)])
    encoded = [_encoded(text.read[a:b], tokens, sizes_of, length) for a, b in itertools.pairwise(firsts)]
    shortest = min(len(ids) for ids, _, _ in encoded)
    if shortest < min(length, LEAST):
        raise NotMeasurable(f"{text.name}: a row of what is read has {shortest:,} tokens; at least {LEAST:,} are needed")
    ids, sizes, units = (np.stack([np.asarray(row[i][:shortest], np.int64) for row in encoded]) for i in range(3))
    _, units = np.unique(units + (1 << 32) * np.arange(rows)[:, None], return_inverse=True)
    before = np.full((rows, 1), tokens.end)
    return Streams(torch.from_numpy(np.concatenate([before, ids], 1)), sizes, units.reshape(rows, -1))


def _encoded(
    documents: list[bytes], tokens: Tokens, sizes_of: Int[np.ndarray, " v"], length: int
) -> tuple[list[int], list[int], list[int]]:
    """Tokens of the documents with the end token after each, their bytes, and the document or part they lie in."""
    ids: list[int] = []
    sizes: list[int] = []
    units: list[int] = []
    unit = 0
    for document in documents:
        own = [*tokens.encode(document), tokens.end]
        taken = sizes_of[own]
        part = np.maximum(np.cumsum(taken) - 1, 0) // PART
        ids += own
        sizes += taken.tolist()
        units += (unit + part).tolist()
        unit = units[-1] + 1
        if len(ids) >= length:
            break
    return ids[:length], sizes[:length], units[:length]


def units_of(s: Streams) -> dict[str, Any]:
    """The bytes of each unit, and how many of its row lie before it."""
    before = np.cumsum(s.nbytes, 1) - s.nbytes
    _, first = np.unique(s.unit, return_index=True)
    return {"bytes": np.bincount(s.unit.ravel(), s.nbytes.ravel()).tolist(), "at": before.ravel()[first].tolist()}


# ---------------------------------------------------------------- reading


@torch.inference_mode()
def token_nats(model: LanguageModel, ids: Int[Tensor, "r n"], renewed: bool = False) -> Float[np.ndarray, "r m"]:
    """Nats of each token after the first, the rows read from fresh states; with `renewed` each memory is the learned one again every CHUNK
    tokens, while attention goes on."""
    state, nats = model.init_state(len(ids)), []
    for x, y in zip(ids[:, :-1].split(CHUNK, 1), ids[:, 1:].split(CHUNK, 1), strict=True):
        logits, state = model(x, begun_anew(state) if renewed else state)
        nats.append(cross_entropy(logits.flatten(0, 1), y.flatten()).view(y.shape))
    return torch.cat(nats, 1).double().numpy()


def begun_anew(state: Any) -> Any:
    """The state in which each memory is as if nothing had been read; what else there is stays."""
    if isinstance(state, LMMState):
        return state._replace(seen=torch.zeros_like(state.seen))
    if isinstance(state, tuple | list):
        parts = [begun_anew(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


def unit_bits(ctx: Context, folder: Path, s: Streams, way: str = "on") -> list[float]:
    """Bits of each unit: the memory written ("on"), standing still ("frozen") or begun anew ("anew")."""
    model = open_model(folder)
    with process.threads(ctx.threads), process.freed_memory_kept(), frozen(model) if way == "frozen" else nullcontext():
        nats = token_nats(model, s.ids, way == "anew")
    return (np.bincount(s.unit.ravel(), nats.ravel()) / math.log(2)).tolist()


@torch.inference_mode()
def reading_times(ctx: Context, memory: Path, window: Path, s: Streams) -> dict[str, Any]:
    """Seconds to read a thousand bytes from a state, one row alone, in turns; the bytes of the state; the parameters."""
    models = {"memory": open_model(memory), "window": open_model(window)}
    begun, more = s.ids[:1, :CHUNK], s.ids[:1, CHUNK : 2 * CHUNK]
    kilobytes = float(s.nbytes[0, CHUNK - 1 : 2 * CHUNK - 1].sum()) / 1000
    with process.threads(ctx.threads), process.freed_memory_kept():
        states = {name: m(begun, m.init_state(1))[1] for name, m in models.items()}

        def still() -> None:
            with frozen(models["memory"]):
                models["memory"](more, states["memory"])

        functions = {
            "on": lambda: models["memory"](more, states["memory"]),
            "frozen": still,
            "window": lambda: models["window"](more, states["window"]),
        }
        timing = interleaved(functions, 20, warmup=2)
    return {
        "samples": {name: [t / kilobytes for t in taken] for name, taken in timing.samples.items()},
        "control": [t / kilobytes for t in timing.control],
        "token_s": {name: float(np.median(taken)) / CHUNK for name, taken in timing.samples.items()},
        "state_bytes": {name: nbytes(state) for name, state in states.items()},
        "parameters": {name: m.cost(1).parameters for name, m in models.items()},
    }
