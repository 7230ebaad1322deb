"""What a study has found: a line of JSON for each result, told apart by all that it depends on, so that a rerun goes on after them and what
was changed is measured anew."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from postformer.claims.stamp import closed, stamp
from postformer.config import Run, UserError, plain
from postformer.files import sha256_bytes

Line = dict[str, Any]


def digest(run: Run, *more: Any) -> str:
    """Of a run, on whatever number of threads, and of all else that a result depends on: plain data."""
    alone = dataclasses.replace(run, train=dataclasses.replace(run.train, threads=0))
    told = {key: value for key, value in plain(alone).items() if value is not None}
    return sha256_bytes(json.dumps([told, *more], sort_keys=True).encode())


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


# ---------------------------------------------------------------- a study's command line


def chosen(option: str, names: str, choices: Iterable[str]) -> list[str]:
    """Names with commas between. Raises UserError for one that is no choice."""
    found = names.split(",")
    if unknown := [name for name in found if name not in choices]:
        raise UserError(f"--{option}: unknown '{unknown[0]}'; choose from {', '.join(choices)}")
    return found


def folder(out: Path) -> None:
    """Have --out be a folder. Raises UserError where it is a file."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)


def of_study(out: Path, name: str) -> Path:
    """The file of a study's results that --render names. Raises UserError where it is not there."""
    if not (out / name).exists():
        raise UserError(f"--render: {out} holds no {name}; give the --out of a study")
    return out / name
