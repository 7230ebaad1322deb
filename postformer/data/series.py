"""Multivariate time series: windows of a table's rows, each with the rows that follow it.

The protocol of Informer (Zhou et al. 2021, arXiv 2012.07436) as DLinear, PatchTST and iTransformer use it: three parts in order of time,
every channel standardised by the mean and deviation of the training part, windows of `look_back` rows with the next `horizon` rows as
their answer, one beginning at each row. A window of the valid or test part may look back into the part before; its answer lies in its own.
"""

import csv
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from postformer.data.prose import data_folder
from postformer.data.sources import DataError, readable
from postformer.data.task import SPLITS
from postformer.data.text import shuffled
from postformer.files import sha256_file

MONTH = {"ETTh": 30 * 24, "ETTm": 30 * 24 * 4}
"""Rows of thirty days."""
MONTHS = (12, 4, 4)
"""Of the training, valid and test part of the ETT series; what follows is not used."""
SHARES = (0.7, 0.2)
"""Of the training and the test part of any other series; the valid part is what lies between."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The numbers of a CSV file, float64 [rows, channels]."""

    channels: list[str]
    values: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """A run's data: a CSV file whose first column is a date and whose others are numbers. Nothing is opened until it is used.

    `path` is a file, or the name of one in POSTFORMER_DATA, such as ETTh1. `parts` says how the rows are divided: by the months of ETT's
    hours or quarters of an hour, or by shares; "auto" goes by the file's name. With `sha256`, which a saved run names, another file is
    refused.
    """

    path: str
    look_back: int = 96
    horizon: int = 96
    parts: Literal["auto", "ETTh", "ETTm", "shares"] = "auto"
    sha256: str | None = None
    tokens: None = dataclasses.field(default=None, init=False, repr=False)
    """There is no tokenizer."""

    def __post_init__(self) -> None:
        if self.look_back < 1 or self.horizon < 1:
            raise ValueError(f"look_back={self.look_back} and horizon={self.horizon} must be at least 1")

    @property
    def sizes(self) -> dict[str, int]:
        """What a model is told of the data."""
        return {"look_back": self.look_back, "horizon": self.horizon}

    @functools.cached_property
    def file(self) -> Path:
        """Raises DataError when there is none."""
        found = Path(self.path)
        if not found.is_file():
            found = data_folder(f"ett/{self.path}.csv") or data_folder(self.path)
        if found is None or not found.is_file():
            raise DataError(
                f"data.path: {self.path}: no such file; give a CSV, or ETTh1 or ETTh2 with POSTFORMER_DATA set to a folder "
                "with ett/ in it"
            )
        return found

    @functools.cached_property
    def table(self) -> Table:
        """The file's numbers as they are. Raises DataError, also for another file than the run names."""
        if self.sha256 not in (None, self.digest):
            raise DataError(f"{self.file}: another series than the run names (data.sha256={self.sha256})")
        return read_table(self.file)

    @functools.cached_property
    def digest(self) -> str:
        """Of the file."""
        with readable(self.file):
            return sha256_file(self.file)

    @property
    def identity(self) -> dict[str, Any]:
        """What a saved run keeps of the data."""
        return {**self.sizes, "parts": self.parts, "sha256": self.digest}

    @functools.cached_property
    def edges(self) -> tuple[int, int, int, int]:
        """The first row of each part, and the row after the last."""
        rows = len(self.table.values)
        kind = next((k for k in MONTH if self.file.stem.startswith(k)), "shares") if self.parts == "auto" else self.parts
        if kind == "shares":
            train, test = (int(rows * share) for share in SHARES)
            return 0, train, rows - test, rows
        train, valid, test = (months * MONTH[kind] for months in MONTHS)
        return 0, min(train, rows), min(train + valid, rows), min(train + valid + test, rows)

    @functools.cached_property
    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel in the training part; a constant channel has a deviation of 1."""
        train = self.table.values[: self.edges[1]]
        deviation = train.std(0)
        return train.mean(0), np.where(deviation > 0, deviation, 1.0)

    @functools.cached_property
    def standardised(self) -> np.ndarray:
        """float32 [rows, channels]."""
        mean, deviation = self.scale
        return ((self.table.values - mean) / deviation).astype(np.float32)

    def batches(self, batch: int, seed: int, split: str = "train") -> "SeriesBatches":
        """Batches of `batch` windows. Raises DataError when the split is shorter than one window."""
        return SeriesBatches(self, batch=batch, seed=seed, split=split)


class SeriesBatches:
    """Windows of the training part in a new order in each epoch; of another part in their own order, and from the first again.

    There is no state to save: `batch(step)` depends on the series, the seed, the split and the step alone.
    """

    def __init__(self, series: Series, *, batch: int, seed: int, split: str = "train"):
        if split not in SPLITS:
            raise ValueError(f"split: unknown {split!r}; choose from {', '.join(SPLITS)}")
        self.series, self.size, self.seed, self.split = series, batch, seed, split
        part = SPLITS.index(split)
        begin, end = series.edges[part], series.edges[part + 1]
        self.first = max(0, begin - series.look_back) if part else 0
        self.windows = end - self.first - series.look_back - series.horizon + 1
        """Windows in one epoch."""
        if self.windows < 1:
            raise DataError(
                f"{series.file}: {split} has {end - begin:,} of {len(series.table.values):,} rows, too few for "
                f"data.look_back={series.look_back} and data.horizon={series.horizon}"
            )

    def batch(self, step: int) -> dict[str, Any]:
        """`{"past": float32 [batch, look_back, c], "future": float32 [batch, horizon, c], "rows": names for errors}`."""
        places = range(step * self.size, (step + 1) * self.size)
        return self.at([self._window(place) for place in places])

    def at(self, windows: list[int]) -> dict[str, Any]:
        """The windows of the given numbers, below `self.windows`, in order of time."""
        back, ahead = self.series.look_back, self.series.horizon
        starts = self.first + np.array(windows)
        both = self.series.standardised[starts[:, None] + np.arange(back + ahead)]
        rows = [f"{self.series.file.name}[{s}:{s + back + ahead}] {self.split}" for s in starts.tolist()]
        past, future = torch.from_numpy(both[:, :back]), torch.from_numpy(both[:, back:])
        return {"past": past, "future": future, "rows": rows}

    def _window(self, place: int) -> int:
        epoch, at = divmod(place, self.windows)
        return shuffled(at, self.windows, self.seed, epoch) if self.split == "train" else at


def read_table(path: Path) -> Table:
    """A CSV file with a header, a date in the first column and finite numbers in the others. Raises DataError with the line."""
    with readable(path):
        text = path.read_bytes()
    try:
        lines = csv.reader(text.decode("utf-8-sig").splitlines())
        rows = [(lines.line_num, row) for row in lines if row]
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path}: not a CSV file: {e}") from e
    if len(rows) < 2 or len(rows[0][1]) < 2:
        raise DataError(f"{path}: expected a header, a column of dates and columns of numbers")
    channels = rows[0][1][1:]
    return Table(channels, np.array([_numbers(path, number, channels, row) for number, row in rows[1:]]))


def _numbers(path: Path, line: int, channels: list[str], row: list[str]) -> list[float]:
    if len(row) != len(channels) + 1:
        raise DataError(f"{path}:{line}: {len(row)} columns, where the header has {len(channels) + 1}")
    values = []
    for channel, cell in zip(channels, row[1:], strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{path}:{line}: column '{channel}' holds '{cell[:40]}', which is no finite number")
        values.append(value)
    return values
