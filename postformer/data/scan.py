"""The first pass over the sources of a corpus: count, quarantine, drop duplicates, and fix which documents are held out."""

import collections
import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from postformer.data.corpus import SourceInfo, Split
from postformer.data.sources import BadRow, DataError, Document, Skipped, Source
from postformer.files import durable_file

SPLIT_RULE = "held out: documents whose first 8 bytes of sha256('{seed}:' + (group or sha256 of text)) are below {threshold}"

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many bytes of text are done, and how many there are."""


class Scan:
    """What the sources hold. `digests` are their sha256, `valid` is the share to hold out.

    `bad` counts bad rows by reason; `bytes` and `train_bytes` are of the text that is kept.
    """

    def __init__(self, sources: Sequence[Source], digests: Sequence[str], seed: int, valid: float):
        self.sources, self.digests, self.seed, self.valid = sources, digests, seed, valid
        self.infos: list[SourceInfo] = []
        self.bad: collections.Counter[str] = collections.Counter()
        self.bytes = 0
        self.train_bytes = 0
        self.threshold = 0
        self._seen: set[bytes] = set()
        self._groups: dict[int, int] = collections.defaultdict(int)

    def run(self, quarantine: Path, max_bad: float, progress: Progress) -> None:
        """Read everything once and write the quarantine file. Raises DataError for too many bad rows and for no text."""
        total, done = sum(s.size() for s in self.sources), 0
        with durable_file(quarantine) as temporary, temporary.open("w", encoding="utf-8") as f:
            for source, digest in zip(self.sources, self.digests, strict=True):
                progress("reading", done, total)
                self.infos.append(self._source(source, digest, f, max_bad))
                done += source.size()
        if not self.bytes:
            skipped = sum(sum(info.skipped.values()) for info in self.infos)
            labels = ", ".join(s.label for s in self.sources)
            raise DataError(f"{labels}: no text in it ({sum(self.bad.values()):,} bad rows, {skipped:,} files skipped)")
        self.threshold = self._threshold()
        self.train_bytes = sum(nbytes for place, nbytes in self._groups.items() if place >= self.threshold)

    def split(self, document: Document) -> Split:
        """The split of a document, decided by its group or else by its content."""
        return "valid" if self._place(document) < self.threshold else "train"

    def documents(self) -> Iterator[Document]:
        """The kept documents once more. Raises DataError when they are no longer those that were scanned."""
        seen: set[bytes] = set()
        for source, info in zip(self.sources, self.infos, strict=True):
            kept = 0
            for row in source.read():
                if isinstance(row, Document) and (digest := content_digest(row)) not in seen:
                    seen.add(digest)
                    kept += len(row.text)
                    yield row
            if kept != info.bytes:
                raise DataError(f"{source.label}: it changed while it was read")

    def sample(self, size: int) -> Iterator[bytes]:
        """Texts of the train split, about `size` bytes in all, drawn by their content."""
        below = size / max(1, self.train_bytes) * 2**32
        for document in self.documents():
            if int.from_bytes(content_digest(document)[:4], "big") < below and self.split(document) == "train":
                yield document.text

    def split_rule(self) -> str:
        """The rule in words, for the manifest."""
        return SPLIT_RULE.format(seed=self.seed, threshold=f"{self.threshold:016x}")

    def _source(self, source: Source, sha256: str, quarantine: TextIO, max_bad: float) -> SourceInfo:
        documents = nbytes = duplicates = bad = 0
        skipped: collections.Counter[str] = collections.Counter()
        first: BadRow | None = None
        for row in source.read():
            if isinstance(row, Skipped):
                skipped[row.reason] += 1
            elif isinstance(row, BadRow):
                first, bad = first or row, bad + 1
                self.bad[row.reason.partition(" (")[0]] += 1
                line = {"source": row.file, "row": row.row, "reason": row.reason, "start": repr(row.start)}
                quarantine.write(json.dumps(line) + "\n")
            elif (digest := content_digest(row)) in self._seen:
                duplicates += 1
            else:
                self._seen.add(digest)
                self._groups[self._place(row)] += len(row.text)
                documents, nbytes = documents + 1, nbytes + len(row.text)
        rows = documents + duplicates + bad
        if first and bad > max_bad * rows:
            share = f"{bad:,} of {rows:,} rows are bad, more than {max_bad:.0%}"
            raise DataError(f"{first.file}: {share}; the first is row {first.row}: {first.reason}")
        self.bytes += nbytes
        return SourceInfo(
            label=source.label,
            domain=source.domain,
            license=source.license,
            sha256=sha256,
            documents=documents,
            bytes=nbytes,
            duplicates=duplicates,
            bad=bad,
            skipped=dict(sorted(skipped.items())),
        )

    def _place(self, document: Document) -> int:
        """Where a document's group stands between 0 and 2**64."""
        key = document.group.encode("utf-8", "surrogateescape") or hashlib.sha256(document.text).digest()
        return int.from_bytes(hashlib.sha256(b"%d:" % self.seed + key).digest()[:8], "big")

    def _threshold(self) -> int:
        """Groups below it are held out: the share asked for, but at least one group on either side."""
        share = int(self.valid * 2**64)
        lowest = heapq.nsmallest(2, self._groups)
        if not share or len(lowest) < 2:
            return 0
        return min(lowest[1] if share <= lowest[0] else share, max(self._groups))


def content_digest(document: Document) -> bytes:
    """What exact duplicates share."""
    return hashlib.sha256(document.text).digest()[:16]
