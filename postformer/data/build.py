"""Building a corpus: scan the sources, train the tokenizer on the train split, encode document by document into shards.

An interrupted build goes on where it was: a journal names the finished shards, and the result is the same, bit for bit.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from postformer.config import parse, plain
from postformer.data.corpus import (
    INDEX,
    JOURNAL,
    MANIFEST,
    QUARANTINE,
    SPLITS,
    Count,
    Manifest,
    Shard,
    Split,
    TokensInfo,
    read_manifest,
    token_dtype,
)
from postformer.data.scan import Progress, Scan
from postformer.data.sources import DataError, Document, Source, readable
from postformer.files import sha256_bytes, sha256_file, write_durably
from postformer.tokens.text import BPE, Tokens, load_tokens
from postformer.tokens.text import FILE as TOKENIZER

SHARD = 1 << 24
"""Tokens after which a shard is closed."""
BATCH = 1 << 21
"""Bytes of text encoded at once."""
SAMPLE = 1 << 24
"""Bytes of the train split that a BPE learns from."""


def build_corpus(
    sources: Sequence[Source],
    out: str | Path,
    tokens: Tokens | int,
    *,
    seed: int = 0,
    valid: float = 0.02,
    progress: Progress | None = None,
    max_bad: float = 0.05,
    shard: int = SHARD,
) -> Manifest:
    """Turn sources into a corpus folder and return its manifest; a finished or interrupted build of the same is taken up.

    `tokens` is a tokenizer, or the vocabulary of a BPE to train on the train split. `valid` is the share of the documents
    kept out of training, drawn by the sha256 of their content or group; with two or more documents neither split is empty
    unless `valid` is 0. `max_bad` is the largest share of bad rows that a source may hold; `shard` is in tokens.

    Raises DataError for sources that cannot be read or hold too many bad rows, and for a folder that holds anything else. A
    build that was refused or interrupted before its first shard stands in no other build's way.
    """
    out = Path(out)
    if not 0 <= valid < 1:
        raise DataError(f"valid: expected a share from 0 to less than 1, got {valid}")
    digests = [source.sha256() for source in sources]
    plan = _plan(sources, digests, tokens, seed=seed, valid=valid, max_bad=max_bad, shard=shard)
    with _folder(out):
        if (out / MANIFEST).exists():
            manifest = read_manifest(out)
            _check_plan(out, manifest.plan, plan)
            (out / JOURNAL).unlink(missing_ok=True)
            return manifest
        report = progress or (lambda what, done, total: None)
        journal = _Journal(out, plan)
        scan = Scan(sources, digests, seed, valid)
        scan.run(out / QUARANTINE, max_bad, report)
        trained = _tokens(tokens, out, journal, scan, report)
        _encode(scan, trained, out, journal, shard, report)
        manifest = _manifest(scan, trained, out, journal, plan)
        write_durably(out / MANIFEST, json.dumps(plain(manifest), indent=1) + "\n")
        journal.path.unlink()
        return manifest


def _plan(sources: Sequence[Source], digests: Sequence[str], tokens: Tokens | int, **arguments: Any) -> dict[str, Any]:
    named = [
        {"sha256": digest, "domain": s.domain, "license": s.license, "field": s.field}
        for s, digest in zip(sources, digests, strict=True)
    ]
    return {"sources": named, "tokens": tokens if isinstance(tokens, int) else _fingerprint(tokens), **arguments}


def _fingerprint(tokens: Tokens) -> str:
    pieces = (tokens.decode_bytes([i]).hex() for i in range(tokens.vocab))
    return f"{tokens.kind} {sha256_bytes(' '.join(pieces).encode())}"


def _check_plan(out: Path, found: dict[str, Any], plan: dict[str, Any]) -> None:
    for key, wanted in plan.items():
        if found.get(key) != wanted:
            what = "other sources, or they have changed" if key == "sources" else f"{key}={found.get(key)}, not {wanted}"
            raise DataError(f"{out}: holds a corpus built from {what}; choose another folder or remove this one")


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """The folder, made if it is missing and locked: a second builder waits. The lock ends with the process.

    What the disk refuses, a full one included, becomes a DataError.
    """
    with readable(out):
        out.mkdir(parents=True, exist_ok=True)
        fd = os.open(out, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


class _Journal:
    """`journal.jsonl`: the plan, then one line for the tokenizer and for each finished shard."""

    def __init__(self, out: Path, plan: dict[str, Any]):
        self.path = out / JOURNAL
        for left in out.glob(".*.tmp"):
            left.unlink()
        if not self.path.exists():
            if any(out.iterdir()):
                raise DataError(f"{out}: holds files that are no corpus of postformer's; choose an empty or a new folder")
            self._begin(plan)
        whole = self.path.read_bytes()
        whole = whole[: whole.rfind(b"\n") + 1]
        os.truncate(self.path, len(whole))
        try:
            self.lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
            if self.lines[0]["plan"] != plan and not self.shards():
                self._begin(plan)
            _check_plan(out, self.lines[0]["plan"], plan)
        except (ValueError, LookupError, TypeError) as e:
            raise DataError(f"{self.path}: damaged; remove {out} to build the corpus anew") from e

    def _begin(self, plan: dict[str, Any]) -> None:
        self.lines = [{"plan": plan}]
        write_durably(self.path, json.dumps(self.lines[0]) + "\n")

    def add(self, **line: Any) -> None:
        with self.path.open("ab") as f:
            f.write(json.dumps(line).encode() + b"\n")
            f.flush()
            os.fsync(f.fileno())
        self.lines.append(line)

    def shards(self) -> list[dict[str, Any]]:
        """The finished ones as `{"shard": its manifest entry, "counts": by domain, "through": its last document}`."""
        return [line for line in self.lines if "shard" in line]


def _tokens(tokens: Tokens | int, out: Path, journal: _Journal, scan: Scan, progress: Progress) -> Tokens:
    """The tokenizer, in the folder: taken up from an interrupted build, given, or trained."""
    if any("tokenizer" in line for line in journal.lines):
        return load_tokens(out)
    if isinstance(tokens, int):
        progress("training the tokenizer", 0, min(SAMPLE, scan.train_bytes))
        tokens = BPE.train(scan.sample(SAMPLE), tokens)
    tokens.save(out)
    journal.add(tokenizer=sha256_file(out / TOKENIZER))
    return tokens


# ---------------------------------------------------------------- shards


class _OpenShard:
    """A split's shard while it fills up in memory."""

    def __init__(self, split: Split, number: int, domains: Sequence[str], dtype: np.dtype):
        self.split: Split = split
        self.number, self.domains, self.dtype = number, domains, dtype
        self.ids: list[np.ndarray] = []
        self.index: list[tuple[int, int, int, int]] = []
        self.names = bytearray()
        self.tokens = 0
        self.last = -1
        self.counts = np.zeros((len(domains), 3), np.int64)

    def add(self, number: int, document: Document, ids: list[int], end: int) -> None:
        domain = self.domains.index(document.domain)
        self.ids.append(np.array([*ids, end], self.dtype))
        self.index.append((self.tokens, len(document.text), len(self.names), domain))
        self.names += document.name.replace("\n", " ").encode("utf-8", "backslashreplace") + b"\n"
        self.tokens += len(ids) + 1
        self.counts[domain] += (1, len(ids) + 1, len(document.text))
        self.last = number

    def close(self, out: Path, journal: _Journal) -> None:
        name = f"{self.split}-{self.number:05d}"
        parts = (np.concatenate(self.ids).tobytes(), np.array(self.index, INDEX).tobytes(), bytes(self.names))
        for suffix, data in zip(("bin", "idx", "names"), parts, strict=True):
            write_durably(out / f"{name}.{suffix}", data)
        documents, tokens, nbytes = self.counts.sum(0).tolist()
        sha256 = [sha256_bytes(data) for data in parts]
        entry = {"name": name, "split": self.split, "documents": documents, "tokens": tokens, "bytes": nbytes, "sha256": sha256}
        journal.add(shard=entry, counts=self.counts.tolist(), through=self.last)


def _encode(scan: Scan, tokens: Tokens, out: Path, journal: _Journal, largest: int, progress: Progress) -> None:
    domains, dtype = _domains(scan), token_dtype(tokens.vocab)
    through: dict[Split, int] = dict.fromkeys(SPLITS, -1)
    numbers: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    for line in journal.shards():
        split = line["shard"]["split"]
        through[split], numbers[split] = line["through"], numbers[split] + 1
    shards: dict[Split, _OpenShard] = {split: _OpenShard(split, number, domains, dtype) for split, number in numbers.items()}
    encoded = 0
    for batch in _batches(scan.documents()):
        todo: list[tuple[int, Document, Split]] = [(n, d, scan.split(d)) for n, d in batch]
        todo = [(n, d, split) for n, d, split in todo if n > through[split]]
        for (n, document, split), ids in zip(todo, tokens.encode_batch([d.text for _, d, _ in todo]), strict=True):
            shards[split].add(n, document, ids, tokens.end)
            if shards[split].tokens >= largest:
                shards[split].close(out, journal)
                shards[split] = _OpenShard(split, shards[split].number + 1, domains, dtype)
        encoded += sum(len(d.text) for _, d in batch)
        progress("encoding", encoded, scan.bytes)
    for shard in shards.values():
        if shard.index:
            shard.close(out, journal)


def _batches(documents: Iterable[Document]) -> Iterator[list[tuple[int, Document]]]:
    """Numbered documents, BATCH bytes or a little more at a time."""
    batch: list[tuple[int, Document]] = []
    size = 0
    for number, document in enumerate(documents):
        batch.append((number, document))
        size += len(document.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _domains(scan: Scan) -> list[str]:
    return list(dict.fromkeys(source.domain for source in scan.sources))


def _manifest(scan: Scan, tokens: Tokens, out: Path, journal: _Journal, plan: dict[str, Any]) -> Manifest:
    domains, lines = _domains(scan), journal.shards()
    sums: dict[Split, np.ndarray] = {split: np.zeros((len(domains), 3), np.int64) for split in SPLITS}
    for line in lines:
        sums[line["shard"]["split"]] += np.array(line["counts"], np.int64)
    return Manifest(
        tokens=TokensInfo(kind=tokens.kind, vocab=tokens.vocab, sha256=sha256_file(out / TOKENIZER)),
        domains=tuple(domains),
        counts=tuple(
            Count(split=split, domain=domain, documents=row[0], tokens=row[1], bytes=row[2])
            for split, table in sums.items()
            for domain, row in zip(domains, table.tolist(), strict=True)
        ),
        shards=tuple(sorted((parse(Shard, line["shard"]) for line in lines), key=lambda shard: shard.name)),
        sources=tuple(scan.infos),
        quarantine=dict(sorted(scan.bad.items())),
        quarantine_sha256=sha256_file(out / QUARANTINE),
        split_rule=scan.split_rule(),
        plan=plan,
    )
