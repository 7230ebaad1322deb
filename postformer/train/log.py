"""What training tells: rows for machines (JSONL, trackio) and a line or a bar for people."""

import dataclasses
import datetime
import importlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from postformer.config import Run, UserError, plain

Row = dict[str, Any]
TIMING = ("seconds", "tokens_per_s")
"""Keys of a row that differ between two runs with the same bits."""


class LogError(UserError):
    """A log that cannot be written, or whose adapter is not installed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands after a step."""

    step: int
    steps: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    tokens_per_s: float
    eta_s: float


@runtime_checkable
class Log(Protocol):
    """Takes one JSON-ready row of finite numbers at a time; `step` is in every row. `sync` comes before a checkpoint."""

    def write(self, row: Row) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class JsonLog:
    """Appends rows to a JSONL file. Opening it rolls back the rows after step `after`; a torn last line goes too."""

    def __init__(self, path: Path, after: int = 0):
        self.path = path
        try:
            length = _length_until(path, after) if path.exists() else 0
            self._file = path.open("ab", buffering=0)
            self._file.truncate(length)
        except OSError as e:
            raise LogError(f"{path}: {e.strerror or e}") from e

    def write(self, row: Row) -> None:
        """Append a row. Raises LogError when the disk refuses it."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as e:
            raise LogError(f"{self.path}: {e.strerror or e}") from e
        if written != len(line):
            raise LogError(f"{self.path}: the disk is full")

    def sync(self) -> None:
        """Flush what was written to the disk. Raises LogError when the disk fails."""
        try:
            os.fsync(self._file.fileno())
        except OSError as e:
            raise LogError(f"{self.path}: {e.strerror or e}") from e

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _length_until(path: Path, after: int) -> int:
    """Bytes of the rows up to step `after`."""
    length = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                late = json.loads(line)["step"] > after
            except (ValueError, KeyError, TypeError) as e:
                raise LogError(f"{path}, line {number}: not a row of a training log; move the file away to go on") from e
            if late:
                break
            length += len(line)
    return length


def finite(row: Row) -> Row:
    """The row with null for each number that is not finite: JSON has none."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


class TrackioLog:
    """Sends rows to trackio, the local-first tracker. Raises LogError when it is not installed."""

    def __init__(self, run: Run, project: str = "postformer"):
        try:
            self._trackio = importlib.import_module("trackio")
        except ImportError as e:
            raise LogError("trackio is not installed; pip install 'postformer[track]', or use the JSONL log alone") from e
        self._trackio.init(project=project, name=run.name, config=plain(run), resume="allow")

    def write(self, row: Row) -> None:
        """Send a row."""
        self._trackio.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def sync(self) -> None:
        """Trackio sends rows in its own time."""

    def close(self) -> None:
        """Wait until every row is sent."""
        self._trackio.finish()


# ---------------------------------------------------------------- for people


@contextmanager
def console_progress(run: Run, console: Console | None = None) -> Iterator[Callable[[Progress], None]]:
    """Give the `on_step` that shows progress on standard error: a bar on a terminal, plain lines elsewhere."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda p: _print_line(p, run, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(run.name, total=run.train.steps, note="")
        yield lambda p: bar.update(task, completed=p.step, note=_note(p))


def _print_line(p: Progress, run: Run, console: Console) -> None:
    if p.step == p.steps or p.step % run.train.log_every == 0:
        console.print(f"step {p.step}/{p.steps}  {_note(p)}", markup=False, highlight=False, soft_wrap=True)


def _note(p: Progress) -> str:
    eta = datetime.timedelta(seconds=round(p.eta_s))
    return f"loss {p.loss:.4f}  lr {p.lr:.2e}  |g| {p.grad_norm:.2f}  {p.tokens_per_s:,.0f} tokens/s  ETA {eta}"
