"""What a study has found: a line of JSON for each result, told apart by all that it depends on, so that a rerun goes on after them and what
was changed is measured anew."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from postformer.claims.stamp import closed, stamp
from postformer.config import Run, plain
from postformer.files import sha256_bytes

Line = dict[str, Any]


def digest(run: Run, *more: Any) -> str:
    """Of a run, on whatever number of threads, and of all else that a result depends on: plain data."""
    alone = dataclasses.replace(run, train=dataclasses.replace(run.train, threads=0))
    return sha256_bytes(json.dumps([plain(alone), *more], sort_keys=True).encode())


def read(file: Path) -> list[Line]:
    """The lines that are whole; a kill may have cut the last."""
    if not file.exists():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def find(file: Path, of: str) -> Line | None:
    """The last line with this digest."""
    return next((line for line in reversed(read(file)) if line.get("of") == of), None)


def add(file: Path, of: str, line: Line, began: Line) -> Line:
    """Write a line with its digest and its stamp, which was opened by `about`; returns it."""
    line = {**line, "of": of, "stamp": closed(began)}
    cut = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as f:
        f.write("\n" * cut + json.dumps(line) + "\n")
    return line


def about(run: Run) -> Line:
    """The stamp of a result of this run that is begun now."""
    return stamp(command=["python", *sys.argv], seeds=[run.seed], threads=run.train.threads)


def latest(lines: Sequence[Line], *names: str) -> list[Line]:
    """Of the lines that agree in all these the last: what was measured before a change is left out."""
    return list({tuple(str(line[name]) for name in names): line for line in lines}.values())
