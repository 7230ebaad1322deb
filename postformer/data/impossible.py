"""Pairs of clips that are the same up to a frame: in one what follows is physics, in the other it cannot be.

Violation of expectation, as IntPhys (Riochet et al. 2018, arXiv 1803.07616) and Garrido et al. 2025 (arXiv 2502.11831) ask it, with the
scenes of `physics.py`: of matched pairs nothing but what cannot be tells one from the other.

f frames, n discs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from postformer.data.bodies import SIZE, Bodies, flown, track
from postformer.data.physics import GRAVITY, SPLITS, Physics, Scenario
from postformer.data.sources import DataError

MARGIN = 4
"""Frames of a clip before what cannot be, and from there to the end, at least."""
JUMP = 3.0
"""Units between where a disc was and where it suddenly is, at least."""
GONE = 100 * SIZE
"""Where a disc is that is no longer seen."""
DIFFERENT = 0.1
"""Of brightness, from -1 to 1, that a pixel differs by at least in the first frame in which clips differ."""


class Pair(NamedTuple):
    """Clips float32 [3, f, h, w] from -1 to 1, and the first frame in which they differ."""

    possible: np.ndarray
    impossible: np.ndarray
    frame: int


Change = Callable[[Physics, Scenario, int, np.random.Generator], np.ndarray | None]
"""Places float64 [f, n, 2] that cannot be, from about a frame on; None where the clip has no room for it."""


def _with(scenario: Scenario, frame: int, disc: int, places: np.ndarray | float) -> np.ndarray:
    """The places of a clip, but for those of a disc from a frame on."""
    out = scenario.track.position.copy()
    out[frame:, disc] = places
    return out


def _one(scenario: Scenario, rng: np.random.Generator) -> int:
    return int(rng.integers(len(scenario.track.radius)))


def _later(physics: Physics, frame: int) -> np.ndarray:
    """Seconds from the last frame before `frame` to it and all after it, float64 [f - frame, 1]."""
    return np.arange(1, physics.frames - frame + 1)[:, None] * physics.dt


def _bodies(scenario: Scenario, frame: int, discs: list[int]) -> Bodies:
    moved = scenario.track
    return Bodies(moved.position[frame, discs], moved.velocity[frame, discs], moved.radius[discs])


def _vanishes(physics: Physics, scenario: Scenario, frame: int, rng: np.random.Generator) -> np.ndarray | None:
    return _with(scenario, frame, _one(scenario, rng), GONE)


def _jumps(physics: Physics, scenario: Scenario, frame: int, rng: np.random.Generator) -> np.ndarray | None:
    """It goes on from another place, at least JUMP away, on a parallel way."""
    disc, moved = _one(scenario, rng), scenario.track
    way = moved.position[frame:, disc]
    low, high = moved.radius[disc] - way.min(0), SIZE - moved.radius[disc] - way.max(0)
    for _ in range(100):
        shift = rng.uniform(np.minimum(low, 0), np.maximum(high, 0))
        gaps = np.hypot(*np.moveaxis(moved.position[frame:] - (way + shift)[:, None], -1, 0))
        if np.hypot(*shift) >= JUMP and (np.delete(gaps, disc, 1) > np.delete(moved.radius, disc) + moved.radius[disc]).all():
            return _with(scenario, frame, disc, way + shift)
    return None


def _turns(physics: Physics, scenario: Scenario, frame: int, rng: np.random.Generator) -> np.ndarray | None:
    """It flies back the way it came, and nothing turned it."""
    moved = scenario.track
    return _with(scenario, frame, 0, moved.position[frame - 1, 0] - moved.velocity[frame - 1, 0] * _later(physics, frame))


def _falls_up(physics: Physics, scenario: Scenario, frame: int, rng: np.random.Generator) -> np.ndarray | None:
    seconds, moved = _later(physics, frame), scenario.track
    level = moved.position[frame - 1, 0] + moved.velocity[frame - 1, 0] * seconds
    return _with(scenario, frame, 0, level + np.array([0.0, GRAVITY / 2]) * seconds**2)


def _stands(physics: Physics, scenario: Scenario, frame: int, rng: np.random.Generator) -> np.ndarray | None:
    return _with(scenario, frame, 0, scenario.track.position[frame - 1, 0])


def _stays_hidden(physics: Physics, scenario: Scenario, frame: int, rng: np.random.Generator) -> np.ndarray | None:
    """It goes behind the wall and does not come out."""
    assert scenario.wall is not None
    at, radius = scenario.track.position[:, 0, 0], scenario.track.radius[0]
    hidden = np.flatnonzero((at - radius > scenario.wall[0]) & (at + radius < scenario.wall[1]))
    return _with(scenario, int(hidden[-1]) + 1, 0, GONE) if hidden.size else None


def _through_wall(physics: Physics, scenario: Scenario, frame: int, rng: np.random.Generator) -> np.ndarray | None:
    """The first disc that meets a wall of the box flies on through it; the others go on as they would without it."""
    moved, everyone = scenario.track, list(range(len(scenario.track.radius)))
    for at in range(MARGIN, physics.frames - MARGIN + 1):
        ahead = flown(_bodies(scenario, at - 1, everyone), physics.dt, 0.0).position
        out = np.flatnonzero((np.minimum(ahead, SIZE - ahead) < moved.radius[:, None]).any(1))
        if out.size:
            disc = int(out[0])
            others = [i for i in everyone if i != disc]
            places = _with(
                scenario, at, disc, moved.position[at - 1, disc] + moved.velocity[at - 1, disc] * _later(physics, at)
            )
            rest = track(_bodies(scenario, at - 1, others), physics.frames - at + 1, physics.dt, box=True)
            places[at:, others] = rest.position[1:]
            return places
    return None


def _through_disc(physics: Physics, scenario: Scenario, frame: int, rng: np.random.Generator) -> np.ndarray | None:
    """Each of two that meet flies on as if the other were not there."""
    moved, seconds = scenario.track, np.arange(physics.frames)[:, None, None] * physics.dt
    return moved.position[0] + moved.velocity[0] * seconds


KINDS: dict[str, tuple[tuple[str, ...], Change | None]] = {
    "vanishes": (("uniform", "parabola", "several"), _vanishes),
    "jumps": (("uniform", "parabola", "several"), _jumps),
    "changes colour": (("uniform", "parabola", "several"), None),
    "turns back": (("uniform",), _turns),
    "falls up": (("parabola",), _falls_up),
    "stands still": (("uniform", "parabola"), _stands),
    "through a wall": (("several",), _through_wall),
    "through a disc": (("collision",), _through_disc),
    "stays hidden": (("occlusion",), _stays_hidden),
}
"""What cannot be, and the scenes in which it is shown; colours are changed in the picture."""
EASY = ("vanishes", "jumps", "changes colour")
"""Those that a frame beside the one before tells."""


def pair(physics: Physics, kind: str, index: int, *, seed: int, split: str = "test") -> Pair:
    """The pair of a number: a pure function of kind, seed, split and index, in frames and sizes of `physics`, whose own scene does not
    matter. Raises ValueError for another kind or split, DataError where clips are too short for it."""
    if kind not in KINDS:
        raise ValueError(f"kind: unknown {kind!r}; choose from {', '.join(KINDS)}")
    if split not in SPLITS:
        raise ValueError(f"split: unknown {split!r}; choose from {', '.join(SPLITS)}")
    scenes, change = KINDS[kind]
    rng = np.random.default_rng([seed, SPLITS.index(split), index, list(KINDS).index(kind)])
    for _ in range(100):
        own = Physics(scene=str(rng.choice(scenes)), frames=physics.frames, size=physics.size, dt=physics.dt)  # type: ignore[arg-type]
        scenario = own.scenario(int(rng.integers(2**31)), seed=seed, split=split)
        if physics.frames < 2 * MARGIN:
            break
        frame = int(rng.integers(MARGIN, physics.frames - MARGIN + 1))
        possible = own.shown(scenario)
        impossible = _recoloured(possible, frame, rng) if change is None else _redrawn(own, scenario, change, frame, rng)
        if impossible is None:
            continue
        differ = np.flatnonzero(np.abs(possible - impossible).max((0, 2, 3)) >= DIFFERENT)
        if differ.size and MARGIN <= differ[0] <= physics.frames - MARGIN:
            return Pair(possible, impossible, int(differ[0]))
    raise DataError(
        f"data: no clip of {physics.frames} frames has room for {kind!r}; take at least {2 * MARGIN}, or longer ones"
    )


def _redrawn(physics: Physics, scenario: Scenario, change: Change, frame: int, rng: np.random.Generator) -> np.ndarray | None:
    places = change(physics, scenario, frame, rng)
    return None if places is None else physics.picture(places, scenario.track.radius, scenario.wall)


def _recoloured(clip: np.ndarray, frame: int, rng: np.random.Generator) -> np.ndarray:
    """Colours are one channel each, and change places."""
    out = clip.copy()
    out[:, frame:] = clip[np.roll(np.arange(len(clip)), int(rng.integers(1, len(clip)))), frame:]
    return out
