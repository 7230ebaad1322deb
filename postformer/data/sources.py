"""Where documents come from: a file, a folder or JSONL, read as a stream, with every row that is not text told apart."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

from postformer.config import UserError
from postformer.files import sha256_file

LARGEST_ROW = 16 << 20
"""Bytes in one line of JSONL; a longer one is a bad row."""
LARGEST_PART = 1 << 20
"""Bytes in one document; a longer file is cut at line ends."""
LARGE_SHARE = 0.1
"""A file with more than this share of its folder's bytes is cut into documents that are split one by one, if it is longer than
such a document may be, and so is a file given alone: both splits have some of it."""
SHARED_PARTS = 50
"""Such a file's documents have about this fraction of the source's bytes, between the sizes of SHARED_PART."""
SHARED_PART = (1 << 10, 1 << 16)
SUFFIXES = frozenset(
    f".{suffix}" if suffix else ""
    for line in (
        ("", "txt", "md", "rst", "tex", "org", "log", "csv", "tsv", "html", "htm", "xml", "css", "json", "jsonl"),
        ("toml", "yaml", "yml", "ini", "cfg", "py", "pyi", "c", "h", "cc", "cpp", "hpp", "cu", "rs", "go", "java", "kt"),
        ("scala", "js", "ts", "jsx", "tsx", "sh", "sql", "r", "jl", "rb", "php", "lua", "pl", "swift", "hs", "ml", "el"),
    )
    for suffix in line
)
"""What is read in a folder; other files are skipped and counted."""


class DataError(UserError):
    """Data that cannot be read, is damaged, or is not what it should be: the message names the file."""


@dataclasses.dataclass(frozen=True)
class Document:
    """One text. Documents of one `group` land in the same split; without a group the content decides."""

    name: str
    domain: str
    text: bytes
    group: str = ""


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that holds no usable text: `row` counts from 1, `start` is its first 200 bytes."""

    file: str
    row: int
    reason: str
    start: bytes


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A file that is no text and was not meant to be."""

    name: str
    reason: str


Row = Document | BadRow | Skipped


@dataclasses.dataclass(frozen=True)
class Source:
    """A text file, a folder of them (files in order of their names, hidden ones left out) or JSONL with the text in `field`.

    A document is a row of JSONL, a file, or a part of a file that is a large share of the source (as one given alone is).
    """

    path: Path
    domain: str = "text"
    license: str = "unknown"
    field: str = "text"
    split: bool = True
    """Whether a file that is a large share of the source is cut, so that both splits have some of it; else it stays one."""

    @property
    def label(self) -> str:
        """How messages and the manifest name the source."""
        return str(self.path)

    def files(self) -> list[Path]:
        """The files that are read. Raises DataError when there is nothing at `path`."""
        if self.path.is_dir():
            return [f for f in self._everything() if f.suffix.lower() in SUFFIXES and f.is_file()]
        if not self.path.is_file():
            raise DataError(f"{self.path}: {'neither a file nor a folder' if self.path.exists() else 'no such file or folder'}")
        return [self.path]

    def size(self) -> int:
        """Bytes of all files that are read."""
        return sum(f.stat().st_size for f in self.files())

    def sha256(self) -> str:
        """Of the file, or of the list of a folder's files with theirs. Raises DataError when one cannot be read."""
        with readable(self.path):
            if not self.path.is_dir():
                return sha256_file(self.files()[0])
            lines = (f"{sha256_file(f)}  {self._name(f)}\n".encode("utf-8", "surrogateescape") for f in self.files())
            return hashlib.sha256(b"".join(lines)).hexdigest()

    def read(self) -> Iterator[Row]:
        """Documents, bad rows and skipped files, in a fixed order. Raises DataError when a file cannot be read."""
        folder, total = self.path.is_dir(), self.size()
        for path in self._everything() if folder else self.files():
            if not path.is_file():
                yield Skipped(self._name(path), "a link to a folder" if path.is_dir() else "no regular file")
                continue
            if folder and path.suffix.lower() not in SUFFIXES:
                yield Skipped(self._name(path), "not a text file's suffix")
                continue
            with readable(path), path.open("rb") as f:
                rows = self._rows(f, path) if path.suffix.lower() == ".jsonl" else self._parts(f, path, total)
                yield from rows

    def _everything(self) -> list[Path]:
        """All that is no folder, and links to folders, which are not followed. Raises DataError for a folder that cannot be read."""

        def refuse(e: OSError) -> NoReturn:
            raise DataError(f"{e.filename}: {e.strerror}") from e

        found: list[Path] = []
        for folder, folders, files in os.walk(self.path, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            here = [Path(folder) / name for name in (*folders, *files) if not name.startswith(".")]
            found += (path for path in here if path.is_symlink() or not path.is_dir())
        return sorted(found, key=self._name)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix() if path != self.path else path.name

    def _rows(self, f: BinaryIO, path: Path) -> Iterator[Row]:
        for number, line in enumerate(_lines(f), 1):
            if not line.strip():
                continue
            text, reason = jsonl_text(line, self.field)
            if reason:
                yield BadRow(str(path), number, reason, line[:200])
            else:
                yield Document(f"{self._name(path)}:{number}", self.domain, text)

    def _parts(self, f: BinaryIO, path: Path, total: int) -> Iterator[Row]:
        name, size, folder = self._name(path), path.stat().st_size, self.path.is_dir()
        smallest, largest = SHARED_PART
        shared = self.split and (not folder or size > max(largest, LARGE_SHARE * total))
        part = max(smallest, min(largest, total // SHARED_PARTS)) if shared else LARGEST_PART
        if not size:
            yield Skipped(name, "empty")
        for number, text in enumerate(_blocks(f, part), 1):
            reason = why_bad(text)
            if folder and number == 1 and reason == "NUL bytes":
                yield Skipped(name, "binary")
                return
            if folder and reason == "empty":  # a blank stretch of a longer file is not missed
                if size <= part:
                    yield Skipped(name, "empty")
            elif reason:
                yield BadRow(str(path), number, reason, text[:200])
            elif size <= part:
                yield Document(name, self.domain, text)
            else:
                yield Document(f"{name}#{number}", self.domain, text, group="" if shared else name)


def why_bad(text: bytes) -> str:
    """Why this is no text to train on, or ""."""
    if not text.strip():
        return "empty"
    if b"\0" in text:
        return "NUL bytes"
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as e:
        return f"not UTF-8 (byte {e.start})"
    return ""


def jsonl_text(line: bytes, field: str) -> tuple[bytes, str]:
    """The text of a row, and why it is bad or ""."""
    if len(line) > LARGEST_ROW:
        return b"", f"longer than {LARGEST_ROW >> 20} MiB"
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        return b"", f"not UTF-8 (byte {e.start})"
    except ValueError:
        return b"", "not JSON"
    except RecursionError:
        return b"", "nested too deeply"
    if not isinstance(row, dict):
        return b"", "not a JSON object"
    if field not in row:
        return b"", f"no '{field}'"
    if not isinstance(row[field], str):
        return b"", f"'{field}' is not text"
    try:
        text = row[field].encode("utf-8")
    except UnicodeEncodeError:
        return b"", "half of a surrogate pair"
    return text, why_bad(text)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an OSError into a DataError that names the file."""
    try:
        yield
    except OSError as e:
        raise DataError(f"{e.filename or path}: {e.strerror or e}") from e


def _lines(f: BinaryIO) -> Iterator[bytes]:
    """Lines, of which one that is longer than a row may be comes cut."""
    while line := f.readline(LARGEST_ROW + 1):
        rest = line
        while not rest.endswith(b"\n") and (rest := f.readline(LARGEST_ROW)):
            pass
        yield line


def _blocks(f: BinaryIO, size: int) -> Iterator[bytes]:
    """About `size` bytes each, up to a line's end, or else to a character's."""
    peek: Callable[[int], bytes] = f.peek  # type: ignore[attr-defined]
    while block := f.read(size):
        block += b"" if block.endswith(b"\n") else f.readline(size)
        for _ in range(3):
            if not block.endswith(b"\n") and (after := peek(1)[:1]) and after[0] & 0xC0 == 0x80:
                block += f.read(1)
        yield block
