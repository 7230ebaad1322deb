"""The default corpus, which needs no download: the running Python's own standard library.

Code is the library's source; prose is its docstrings and the language reference's topics. Nothing is imported: docstrings and
topics are taken from syntax trees. A module and its docstrings share a group, so that no docstring is in both splits.
"""

import ast
import collections
import dataclasses
import functools
import hashlib
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from postformer.data.build import build_corpus
from postformer.data.scan import Progress
from postformer.data.sources import BadRow, Document, Row, Skipped, Source, readable, why_bad
from postformer.tokens.text import Bytes

LICENSE = "PSF-2.0"
EXCLUDED = frozenset(["site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"])
"""Folders left out: other people's packages, tests (absent on Debian), tables of character sets, and the topics, which are
prose here."""
SHORTEST_PROSE = 200
"""Characters of the shortest docstring that counts as prose."""
TABLE_ENTRY = re.compile(rb"^[ \t]*(?:[bru]?['\"\d(\[{-]).*,[ \t]*(?:#.*)?$", re.MULTILINE)
"""A line that is an entry of a literal table."""
VALID = 0.05
"""Share of the documents held out: enough to measure bits per byte of each domain."""


@dataclasses.dataclass(frozen=True)
class Library(Source):
    """The source of each module of a standard library; of `share` of them, drawn by their names."""

    domain: str = "code"
    license: str = LICENSE
    share: float = 1.0

    @property
    def label(self) -> str:
        return f"Python {platform.python_version()} {type(self).__name__.lower()}"

    def files(self) -> list[Path]:
        found: list[Path] = []
        for folder, inner, names in os.walk(self.path):
            inner[:] = [name for name in inner if name not in EXCLUDED]
            found += [Path(folder, name) for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata")]
        return sorted((file for file in found if self._chosen(file)), key=self._name)

    def sha256(self) -> str:
        with readable(self.path):
            lines = (f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {self._name(f)}\n" for f in self.files())
            return hashlib.sha256(f"{self.label}\n{''.join(lines)}".encode()).hexdigest()

    def read(self) -> Iterator[Row]:
        for file in self.files():
            with readable(file):
                text = file.read_bytes()
            if _is_table(text):
                yield Skipped(self._name(file), "a table of data")
            else:
                yield from _row(self._name(file), self.domain, text, self._name(file))

    def _chosen(self, file: Path) -> bool:
        return int.from_bytes(hashlib.sha256(self._name(file).encode()).digest()[:4], "big") < self.share * 2**32


@dataclasses.dataclass(frozen=True)
class Docstrings(Library):
    """The long docstrings of each module, joined. One that is in several modules is left out."""

    domain: str = "prose"

    def read(self) -> Iterator[Row]:
        yield from self._found

    @functools.cached_property
    def _found(self) -> list[Row]:
        found = {self._name(file): _docstrings(file) for file in self.files()}
        modules = collections.Counter(text for texts in found.values() for text in texts)
        joined = ((name, "\n\n".join(text for text in texts if modules[text] == 1)) for name, texts in found.items())
        return [row for name, text in joined if text for row in _row(f"{name} docstrings", self.domain, _encoded(text), name)]


@dataclasses.dataclass(frozen=True)
class Topics(Library):
    """The language reference's topics, as `help("with")` shows them; none where the interpreter came without them."""

    domain: str = "prose"

    def files(self) -> list[Path]:
        return [f for f in [self.path / "pydoc_data" / "topics.py"] if f.exists()]

    def read(self) -> Iterator[Row]:
        for file in self.files():
            table = next(node for node in ast.walk(_tree(file)) if isinstance(node, ast.Dict))
            for name, text in sorted(ast.literal_eval(table).items()):
                yield from _row(f"topic {name}", self.domain, _encoded(text), f"topic {name}")


def _row(name: str, domain: str, text: bytes, group: str) -> Iterator[Row]:
    if not (reason := why_bad(text)):
        yield Document(name, domain, text, group)
    elif reason != "empty":
        yield BadRow(name, 1, reason, text[:200])


def _is_table(text: bytes) -> bool:
    """Whether most of a module is entries of literal tables, such as `html.entities`: data, which tells nothing of code."""
    return 2 * sum(map(len, TABLE_ENTRY.findall(text))) > len(text)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _tree(file: Path) -> ast.Module:
    with readable(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            return ast.Module([], [])


def _docstrings(file: Path) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) or "" for node in ast.walk(_tree(file)) if isinstance(node, kinds))
    return list(dict.fromkeys(text for text in texts if len(text) >= SHORTEST_PROSE))


# ---------------------------------------------------------------- corpora


def embedded_sources(max_bytes: int | None = None) -> list[Source]:
    """Code, docstrings and topics of the running Python; the modules limited to about `max_bytes` of code."""
    path = Path(sysconfig.get_paths()["stdlib"])
    share = 1.0 if max_bytes is None else min(1.0, max_bytes / max(1, Library(path).size()))
    return [Library(path, share=share), Docstrings(path, share=share), Topics(path)]


def embedded_documents() -> Iterator[Document]:
    """Every document of the embedded sources, duplicates included."""
    return (row for source in embedded_sources() for row in source.read() if isinstance(row, Document))


def default_corpus(
    folder: str | Path, vocab: int | Literal["bytes"] = 4096, max_bytes: int | None = None, progress: Progress | None = None
) -> Path:
    """Build the embedded corpus in `folder`, or find it there, and return the folder. Raises DataError as `build_corpus`."""
    return _build(embedded_sources(max_bytes), folder, vocab, 0, VALID, progress)


def corpus_from(
    paths: Iterable[str | Path],
    folder: str | Path,
    vocab: int | Literal["bytes"] = 4096,
    *,
    field: str = "text",
    license: str = "unknown",
    seed: int = 0,
    valid: float = VALID,
    progress: Progress | None = None,
) -> Path:
    """Build a corpus from files, folders and JSONL in `folder`, or find it there, and return the folder.

    With several paths, each is a domain of its own, named by the file or folder. Raises DataError as `build_corpus`.
    """
    found = [Path(path) for path in paths]
    domains = ["text" if len(found) == 1 else path.stem for path in found]
    sources = [Source(path, domain, license, field) for path, domain in zip(found, domains, strict=True)]
    return _build(sources, folder, vocab, seed, valid, progress)


def _build(
    sources: Sequence[Source],
    folder: str | Path,
    vocab: int | Literal["bytes"],
    seed: int,
    valid: float,
    progress: Progress | None,
) -> Path:
    tokens = Bytes() if vocab == "bytes" else vocab
    build_corpus(sources, folder, tokens, seed=seed, valid=valid, progress=progress)
    return Path(folder)
