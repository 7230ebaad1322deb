"""A run that can be killed: each step's result is journaled, and the same run started again goes on after the last one.

The journal is a file of JSON lines that only grows; each record is on the disk and whole, or not there.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from postformer.config import plain
from postformer.files import sync

Real = float | int
"""A number as people write it; the run-time check of tests takes no int for a float."""


@dataclasses.dataclass
class Context:
    """What a claim's run is given. `step` journals each result, so that a killed run continues where it was."""

    folder: Path
    """`<out>/work/<claim>`; the journal lies in it."""
    settings: str
    """Digest of all that the results depend on: steps of other settings are never reused."""
    budget_s: Real
    text: Path | None = None
    """The user's text, or None for the default corpus."""
    seeds: tuple[int, ...] = (0,)
    threads: int = 1
    on_progress: Callable[[str, Real, Real], None] = lambda text, done, total: None
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list, init=False)
    """The journal's records of the steps taken or reused so far, in order."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / "journal.jsonl"
        self._done = {r["step"]: r for r in read(self._path) if r["settings"] == self.settings}

    @property
    def files(self) -> Path:
        """A folder for this run's own files (checkpoints, shards); it is there again when the run is resumed."""
        path = self.folder / self.settings[:16]
        path.mkdir(exist_ok=True)
        return path

    @property
    def left_s(self) -> Real:
        """Budget less the seconds of all steps so far: the same value on a resumed run as on a straight one."""
        return self.budget_s - sum(r["seconds"] for r in self.steps)

    def step(self, name: str, fn: Callable[[], Any]) -> Any:
        """The JSON-ready result of `fn`, or the journaled one if this step was taken before under these settings.

        The result always comes back through JSON (tuples as lists, dataclasses as tables), so that a resumed run sees the
        same values. Raises ValueError when a name is used twice in a run or a number is not finite.
        """
        if any(r["step"] == name for r in self.steps):
            raise ValueError(f"the step '{name}' is taken twice")
        self.progress(name, 0, 1)
        if name not in self._done:
            at, load, began = datetime.now(UTC).isoformat(timespec="seconds"), os.getloadavg()[0], time.perf_counter()
            result = plain(fn())
            record = {"settings": self.settings, "step": name, "at": at, "load": load}
            line = json.dumps({**record, "seconds": time.perf_counter() - began, "result": result}, allow_nan=False)
            append(self._path, line)
            self._done[name] = json.loads(line)
        self.steps.append(self._done[name])
        self.progress(name, 1, 1)
        return self._done[name]["result"]

    def progress(self, text: str, done: Real, total: Real) -> None:
        """Tell the user how far a step is."""
        self.on_progress(text, done, total)


def read(path: Path) -> list[dict[str, Any]]:
    """The whole records of a journal; a line that a kill cut short is left out."""
    records = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"settings", "step", "at", "load", "seconds", "result"} <= record.keys():
            records.append(record)
    return records


def append(path: Path, line: str) -> None:
    """Append a line and flush it to the disk; what a kill left of an earlier line ends before it."""
    with path.open("ab+") as f:
        if f.tell() > 0:
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":
                line = "\n" + line
        f.write(line.encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())
    sync(path.parent)
