"""Sentences of text files, read as a stream from any place: what stands between the facts of a long text.

The splitter is our own, without training: a sentence ends at a full stop, a question or exclamation mark (with the quotes and
brackets that follow it) before space and a capital, a digit or an opening quote, unless an abbreviation stands before the stop; and
at an empty line.
"""

import dataclasses
import functools
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

from postformer.data.sources import DataError, jsonl_text, readable
from postformer.data.world import words
from postformer.files import sha256_file

ENVIRONMENT = "POSTFORMER_DATA"
"""The variable that names the folder of real data."""
SUFFIXES = (".txt", ".jsonl")
FIRST_BLOCK, BLOCK = 1 << 12, 1 << 16
"""Bytes that are read at once: few at first, since most stretches are short, twice as many each time, and no more than so many."""
HELD_OUT = 0.1
"""Of a file alone, the last tenth is for the valid and test splits; of several, the first."""
ABBREVIATIONS = frozenset(
    words("Mr Mrs Ms Dr St Messrs Capt Col Gen Lieut Lt Sergt Sir Rev Prof Hon Jr Sr vs etc viz cf No Vol Chap")
)
END = re.compile(r"[.!?…]+[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]*[^\W_a-zß-öø-ÿ])|\n[ \t\r]*\n")
LAST_WORD = re.compile(r"(\w+)$")
COUNTED = re.compile(r"\w+|[^\w\s]")


PEPYS_FILE = "pepys/pepys.jsonl"
"""Pepys' diary in it: the text of claims that read one where the user gives none."""


def data_folder(name: str) -> Path | None:
    """A file or folder of the real data, or None where there is none. Nothing is downloaded."""
    path = Path(os.environ.get(ENVIRONMENT, "")) / name
    return path if os.environ.get(ENVIRONMENT) and path.exists() else None


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, with single spaces in them."""
    parts, start = [], 0
    for mark in END.finditer(text):
        word = LAST_WORD.search(text, start, mark.start())
        if (
            mark[0][0] == "."
            and word
            and (word[1] in ABBREVIATIONS or (len(word[1]) == 1 and word[1].isupper() and word[1] != "I"))
        ):
            continue
        parts.append(text[start : mark.end()])
        start = mark.end()
    parts.append(text[start:])
    return [sentence for part in parts if (sentence := " ".join(part.split()))]


def words_and_marks(sentence: str) -> int:
    """How many words and punctuation marks there are: in plain English about as many as GPT-2 has tokens."""
    return len(COUNTED.findall(sentence))


@dataclasses.dataclass(frozen=True)
class Part:
    """The bytes `start` to `stop` of a file."""

    path: Path
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Prose:
    """A text file, JSONL with its text in `text`, or a folder of them (.txt and .jsonl), of which a stretch is read at a time."""

    path: Path

    @functools.cached_property
    def files(self) -> list[Path]:
        """In order of their names. Raises DataError when there is none."""
        if self.path.is_file():
            return [self.path]
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such file or folder")
        with readable(self.path):
            found = sorted(path for path in self.path.rglob("*") if path.suffix in SUFFIXES and path.is_file())
        if not found:
            raise DataError(f"{self.path}: no file in it that ends in {' or '.join(SUFFIXES)}")
        return found

    @functools.cached_property
    def digest(self) -> str:
        """What the files hold."""
        with readable(self.path):
            return " ".join(sha256_file(path) for path in self.files)

    def parts(self, split: str | None = None) -> list[Part]:
        """The files of a split, all of them without one.

        Of several files, the first in order of their names is kept for the valid and test splits; of one file, its last tenth.
        """
        with readable(self.path):
            whole = [Part(path, 0, path.stat().st_size) for path in self.files]
        if split is None:
            return whole
        if len(whole) > 1:
            return whole[1:] if split == "train" else whole[:1]
        cut = int(whole[0].stop * (1 - HELD_OUT))
        return [dataclasses.replace(whole[0], **({"stop": cut} if split == "train" else {"start": cut}))]

    def sentences(self, rng: random.Random, split: str | None = None, least: int = 1) -> Iterator[str]:
        """Sentences of `least` or more words and marks without end: from a random place of a random file on to its end, then anew.

        The first and the last sentence of each stretch are left out, as they may be cut. Raises DataError when there are none.
        """
        parts, without = self.parts(split), 0
        while True:
            part = parts[int(rng.random() * len(parts))]
            found = 0
            for sentence in _stretch(part, part.start + int(rng.random() * (part.stop - part.start))):
                if words_and_marks(sentence) >= least:
                    found += 1
                    yield sentence
            without = 0 if found else without + 1
            if without == 20 * len(parts):  # by then a file of three sentences has been met near its start
                raise DataError(
                    f"{self.path}: no sentence of {least} or more words and marks that ends with a full stop, ! or ?"
                )


def _stretch(part: Part, start: int) -> Iterator[str]:
    rest, first = "", True
    for text in _jsonl(part, start) if part.path.suffix == ".jsonl" else _text(part, start):
        *whole, rest = sentences_of(rest + text) or [""]
        if len(rest) > BLOCK:
            whole, rest = [*whole, rest], ""
        yield from whole[first:]
        first = first and not whole
        rest += " "


def _text(part: Part, start: int) -> Iterator[str]:
    with readable(part.path), part.path.open("rb") as f:
        f.seek(start)
        kept, size = b"", FIRST_BLOCK
        while start < part.stop and (block := f.read(min(size, part.stop - start))):
            start, size = start + len(block), min(2 * size, BLOCK)
            block = kept + block
            whole = block.rfind(b" ") + 1 or len(block)
            kept = block[whole:]
            yield block[:whole].decode("utf-8", "ignore")
        yield kept.decode("utf-8", "ignore")


def _jsonl(part: Part, start: int) -> Iterator[str]:
    """Rows from the first that begins after `start`; those without text are passed over."""
    with readable(part.path), part.path.open("rb") as f:
        f.seek(start)
        f.readline()
        while f.tell() < part.stop and (line := f.readline()):
            text, bad = jsonl_text(line, "text")
            if not bad:
                yield text.decode() + "\n\n"
