"""A corpus on disk: shards of tokens with an index, named by a manifest that was written last.

manifest.json        what is in the corpus, where it came from, and the sha256 of every file
tokenizer.json       what the tokens mean
quarantine.jsonl     the rows that were not used, and why
train-00000.bin      tokens, little-endian uint16 (uint32 for more than 65,536), the end token after each document
train-00000.idx      one INDEX record for each document
train-00000.names    the documents' names, one on a line
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from postformer.config import ConfigError, UserError, parse
from postformer.data.sources import DataError, readable
from postformer.files import sha256_file
from postformer.tokens.text import FILE as TOKENIZER
from postformer.tokens.text import Tokens, load_tokens

FORMAT = "postformer-corpus-1"
MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"
QUARANTINE = "quarantine.jsonl"
INDEX = np.dtype([("start", "<i8"), ("bytes", "<i8"), ("name", "<i8"), ("domain", "<i8")])
"""First token, bytes of text, first byte of the name in the names file, place in the manifest's list of domains."""

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One `.bin`, `.idx` and `.names`; the sha256 of each in that order."""

    name: str
    split: Split
    documents: int
    tokens: int
    bytes: int
    sha256: tuple[str, str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """What became of a source: documents kept, exact duplicates dropped, bad rows quarantined, files skipped by reason."""

    label: str
    domain: str
    license: str
    sha256: str
    documents: int
    bytes: int
    duplicates: int
    bad: int
    skipped: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
    """Documents, tokens (end tokens included) and bytes of text."""

    split: Split
    domain: str
    documents: int
    tokens: int
    bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokensInfo:
    """The tokenizer: its kind, its number of ids, and the sha256 of its file."""

    kind: str
    vocab: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is in a corpus. `plan` is what it was asked to be; a build with another plan is refused."""

    format: str = FORMAT
    tokens: TokensInfo
    domains: tuple[str, ...]
    counts: tuple[Count, ...]
    shards: tuple[Shard, ...]
    sources: tuple[SourceInfo, ...]
    quarantine: dict[str, int]
    """Bad rows by reason."""
    quarantine_sha256: str
    split_rule: str
    plan: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """A document of a corpus: `ids` is a view into the shard, its end token left out; `nbytes` counts its text."""

    name: str
    domain: str
    ids: np.ndarray
    nbytes: int


class Corpus:
    """An open corpus. Make one with `open_corpus`."""

    def __init__(self, path: Path, manifest: Manifest, tokens: Tokens):
        self.path, self.manifest, self.tokens = path, manifest, tokens
        self.dtype = token_dtype(tokens.vocab)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the manifest, and so of everything in the corpus."""
        return sha256_file(self.path / MANIFEST)

    def shards(self, split: str) -> list[Shard]:
        """The split's shards in order. Raises DataError for a split that there is not."""
        self._check_split(split)
        return [s for s in self.manifest.shards if s.split == split]

    def count(self, split: str, domain: str | None = None) -> Count:
        """How much there is of a split, or of one domain in it."""
        self._check_split(split)
        self._check_domain(domain)
        chosen = [c for c in self.manifest.counts if c.split == split and domain in (None, c.domain)]
        documents, tokens, nbytes = (sum(getattr(c, name) for c in chosen) for name in ("documents", "tokens", "bytes"))
        return Count(split=split, domain=domain or "all", documents=documents, tokens=tokens, bytes=nbytes)  # type: ignore[arg-type]

    def documents(self, split: str, domain: str | None = None) -> Iterator[Tokenized]:
        """The documents of a split in order, or those of one domain. Raises DataError for an unknown split or domain."""
        self._check_domain(domain)
        for shard in self.shards(split):
            ids = np.memmap(self.path / f"{shard.name}.bin", self.dtype, mode="r")
            index = self.index(shard)
            ends = [*index["start"][1:].tolist(), shard.tokens]
            for i, (start, nbytes, _, of) in enumerate(index.tolist()):
                if domain in (None, self.manifest.domains[of]):
                    yield Tokenized(self.name(shard, index, i), self.manifest.domains[of], ids[start : ends[i] - 1], nbytes)

    def text(self, split: str, domain: str | None = None) -> Iterator[tuple[str, str, bytes]]:
        """Name, domain and exact text of each document."""
        for document in self.documents(split, domain):
            yield document.name, document.domain, self.tokens.decode_bytes(document.ids.tolist())

    def index(self, shard: Shard) -> np.ndarray:
        """The shard's INDEX records, memory-mapped."""
        return np.memmap(self.path / f"{shard.name}.idx", INDEX, mode="r")

    def name(self, shard: Shard, index: np.ndarray, document: int) -> str:
        """The name of a shard's document."""
        with (self.path / f"{shard.name}.names").open("rb") as f:
            f.seek(int(index["name"][document]))
            stop = int(index["name"][document + 1]) if document + 1 < len(index) else None
            return f.read(-1 if stop is None else stop - f.tell())[:-1].decode("utf-8", "replace")

    def _check_split(self, split: str) -> None:
        if split not in SPLITS:
            raise DataError(f"{self.path}: no split '{split}'; choose from {', '.join(SPLITS)}")

    def _check_domain(self, domain: str | None) -> None:
        if domain is not None and domain not in self.manifest.domains:
            raise DataError(f"{self.path}: no domain '{domain}'; choose from {', '.join(self.manifest.domains)}")


def remarks(manifest: Manifest) -> list[str]:
    """What its user should know of how a corpus came about: rows left out, files skipped, and a split far from what was asked."""
    lines = [f"{count:,} rows quarantined: {reason} (see {QUARANTINE})" for reason, count in manifest.quarantine.items()]
    for source in manifest.sources:
        lines += [f"{source.label}: {n:,} files skipped: {reason}" for reason, n in source.skipped.items()]
        lines += [f"{source.label}: {source.duplicates:,} exact duplicates left out"] if source.duplicates else []
    size = {split: sum(c.bytes for c in manifest.counts if c.split == split) for split in SPLITS}
    share, asked = size["valid"] / max(1, sum(size.values())), manifest.plan.get("valid", 0.0)
    if not asked / 3 <= share <= asked * 3:
        few = sum(c.documents for c in manifest.counts)
        lines.append(f"{share:.1%} of the text is held out where {asked:.0%} was asked for: it has only {few:,} documents")
    return lines


def token_dtype(vocab: int) -> np.dtype:
    """How a token is stored."""
    return np.dtype("<u2" if vocab <= 1 << 16 else "<u4")


# ---------------------------------------------------------------- opening


def open_corpus(path: str | Path, *, verify: bool = True) -> Corpus:
    """Open a finished corpus; `verify` reads every shard once and checks its sha256, its ids and its index.

    Raises DataError that names the file which is missing, truncated or damaged.
    """
    path = Path(path)
    manifest = read_manifest(path)
    try:
        tokens = load_tokens(path / TOKENIZER)
    except UserError as e:
        raise DataError(str(e)) from e
    if (tokens.kind, tokens.vocab) != (manifest.tokens.kind, manifest.tokens.vocab):
        raise DataError(f"{path / TOKENIZER}: not the tokenizer of {MANIFEST}: {tokens.kind} with {tokens.vocab} tokens")
    for file, expected in ((TOKENIZER, manifest.tokens.sha256), (QUARANTINE, manifest.quarantine_sha256)):
        with readable(path / file):
            if sha256_file(path / file) != expected:
                raise DataError(f"{path / file}: damaged: its sha256 is not the one in {MANIFEST}")
    corpus = Corpus(path, manifest, tokens)
    for shard in manifest.shards:
        _check_sizes(corpus, shard)
        if verify:
            _verify(corpus, shard)
    return corpus


def read_manifest(path: Path) -> Manifest:
    """The manifest of a corpus folder. Raises DataError."""
    file = path / MANIFEST
    if not file.exists():
        unfinished = (path / JOURNAL).exists()
        why = "its building was interrupted; build it again to go on" if unfinished else f"not a corpus: no {MANIFEST} in it"
        raise DataError(f"{path}: {why if path.is_dir() else 'no such folder'}")
    try:
        with readable(file):
            data = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DataError(f"{file}: not a corpus of format {FORMAT}")
        manifest = parse(Manifest, data)
    except (ValueError, RecursionError, ConfigError) as e:
        raise DataError(f"{file}: damaged: {e}") from e
    for shard in manifest.shards:
        if not re.fullmatch(rf"{shard.split}-[0-9]{{5,}}", shard.name) or min(shard.documents, shard.tokens) < 1:
            raise DataError(f"{file}: damaged: {shard.name!r} is not a shard")
    return manifest


def _check_sizes(corpus: Corpus, shard: Shard) -> None:
    for file, size in (("bin", shard.tokens * corpus.dtype.itemsize), ("idx", shard.documents * INDEX.itemsize)):
        file = corpus.path / f"{shard.name}.{file}"
        with readable(file):
            if (found := file.stat().st_size) != size:
                raise DataError(f"{file}: damaged: {found:,} bytes instead of {size:,}")


def _verify(corpus: Corpus, shard: Shard) -> None:
    for suffix, expected in zip(("bin", "idx", "names"), shard.sha256, strict=True):
        file = corpus.path / f"{shard.name}.{suffix}"
        digest = hashlib.sha256()
        with readable(file), file.open("rb") as f:
            while block := f.read(1 << 22):
                digest.update(block)
                if suffix == "bin" and np.frombuffer(block, corpus.dtype).max() >= corpus.tokens.vocab:
                    raise DataError(f"{file}: damaged: it holds ids that the tokenizer has not")
        if digest.hexdigest() != expected:
            raise DataError(f"{file}: damaged: its sha256 is not the one in {MANIFEST}")
    index = corpus.index(shard)
    starts = np.append(index["start"], shard.tokens)
    names = index["name"]
    in_order = starts[0] == 0 and (np.diff(starts) > 0).all() and names[0] == 0 and (np.diff(names) > 0).all()
    if not in_order or not ((index["domain"] >= 0) & (index["domain"] < len(corpus.manifest.domains))).all():
        raise DataError(f"{corpus.path / shard.name}.idx: damaged: its documents do not fill the shard in order")
