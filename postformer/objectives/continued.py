"""How a model goes on from the first frames of simulated videos, judged by what physics says, beside what anyone can do.

b clips, f frames, h rows and w columns.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from postformer.data.motion import Score, extrapolated, last_frame, score
from postformer.data.physics import Physics
from postformer.models.dreaming import joined, rolled
from postformer.models.sampling import Sampling

KNOWN = 4
"""Frames that are shown."""
BATCH = 32
FIGURES = tuple(field.name for field in dataclasses.fields(Score))
UNITS = {
    "velocity": "units/s",
    "place": "units",
    "radius": "units",
    "there": "",
    "whole": "",
    "alone": "",
    "momentum": "",
    "energy": "",
    "gravity": "units/s²",
    "returns": "units",
}
PRIME = 1_000_003
"""Parts the noise of one seed from another's: a CPU's generator takes no more than the last 32 bits of what it is given."""
GoesOn = Callable[[Float[Tensor, "b 3 f h w"], int], Float[Tensor, "b 3 f h w"]]
"""Clips, whose first frames are known, and the number of the first: whole clips, of which all that is not known is made."""


@dataclasses.dataclass(frozen=True)
class Continued:
    """`Score`s of as many clips, each figure by its name; None where a clip does not tell it."""

    figures: dict[str, list[float | None]]

    @classmethod
    def of(cls, scores: Sequence[Score]) -> "Continued":
        return cls({name: [_told(getattr(s, name)) for s in scores] for name in FIGURES})

    def told(self, name: str) -> list[float]:
        """The clips that tell a figure."""
        return [value for value in self.figures[name] if value is not None]

    def mean(self, name: str) -> float | None:
        """None where no clip tells it."""
        return statistics.fmean(self.told(name)) if self.told(name) else None


def _told(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def continued(
    goes_on: GoesOn,
    physics: Physics,
    *,
    clips: int,
    seed: int = 0,
    split: str = "test",
    known: int = KNOWN,
    after_batch: Callable[[int], object] = lambda done: None,
) -> Continued:
    """Score what `goes_on` makes of the first `known` frames of the clips 0, 1, ... of a split. Raises ValueError for another split, and
    where nothing is left to be made."""
    if not 0 < known < physics.frames:
        raise ValueError(f"known={known} must be at least 1 and below the {physics.frames} frames of a clip")
    scores = []
    for first in range(0, clips, BATCH):
        numbers = range(first, min(first + BATCH, clips))
        true = torch.from_numpy(np.stack([physics.clip(i, seed=seed, split=split) for i in numbers]))
        made = goes_on(true, first).numpy()
        scores += [
            score(clip, physics.scenario(i, seed=seed, split=split), physics, known)
            for i, clip in zip(numbers, made, strict=True)
        ]
        after_batch(len(scores))
    return Continued.of(scores)


TAKES = {"label": "classes", "text": "vocab"}
"""By which size a model says that it takes what it is told."""
Told = Callable[[int, int], Mapping[str, Any]]
"""The number of the first clip, and of how many: what a model is told of them."""


def told_by(physics: Physics, *, seed: int = 0, split: str = "test") -> Told:
    """The classes or captions of a split's clips."""
    return lambda first, count: physics.told([physics.scenario(i, seed=seed, split=split) for i in range(first, first + count)])


def by_model(model: Any, how: Sampling, *, known: int = KNOWN, seed: int = 0, told: Told = lambda first, count: {}) -> GoesOn:
    """A model of videos goes on, told what it takes: frame by frame from its state where it has one, else all new frames at once.

    Raises ValueError where known or new frames do not fill whole patches.
    """

    def goes_on(true: Tensor, first: int) -> Tensor:
        generator = torch.Generator().manual_seed(PRIME * seed + first)
        before, new = true[:, :, :known], true.shape[2] - known
        words = {name: value for name, value in told(first, len(true)).items() if getattr(model, TAKES[name], 0)}
        if has_state(model):
            made = torch.cat([*rolled(model, before, new, how, generator=generator, **words)], 2)[:, :, :new]
        else:
            made = joined(model, before, None, new, how, generator=generator, **words)
        return torch.cat([before, made], 2)

    return goes_on


def has_state(model: Any) -> bool:
    """Whether it is causal over frames, and so goes on from a state."""
    try:
        return bool(model.init_state(1))
    except (AttributeError, ValueError):
        return False


def rivals(physics: Physics, *, seed: int = 0, split: str = "test", known: int = KNOWN) -> dict[str, GoesOn]:
    """What can be done without a model: the true clips, whose score is the error of measuring; the last known frame for ever; and discs
    that go on in a straight line as the last two known frames have it."""

    def each(change: Callable[[np.ndarray, int], np.ndarray]) -> GoesOn:
        def goes_on(true: Tensor, first: int) -> Tensor:
            return torch.from_numpy(np.stack([change(clip, first + i) for i, clip in enumerate(true.numpy())]))

        return goes_on

    def straight(clip: np.ndarray, number: int) -> np.ndarray:
        return extrapolated(clip, known, physics, physics.scenario(number, seed=seed, split=split))

    return {
        "true clips": lambda true, first: true,
        "straight line": each(straight),
        "last frame": each(lambda clip, number: last_frame(clip, known)),
    }


def table(found: Mapping[str, Continued]) -> str:
    """A line for each way, a column for each figure that any of them tells: its mean and the 95% interval of that over clips."""
    names = [name for name in FIGURES if any(each.told(name) for each in found.values())]
    head = ["", *(f"{name}, {UNITS[name]}" if UNITS[name] else name for name in names)]
    rows = [head, *([way, *(_cell(each.told(name)) for name in names)] for way, each in found.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3g}"
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3g} ({mean - half:.3g} to {mean + half:.3g})"
