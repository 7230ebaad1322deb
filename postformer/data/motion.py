"""What a video of discs shows, measured from its pixels, and how far that is from what physics says.

A disc is found by its colour, whose channel no other disc has: where its weight (what the channel has above the others, from 0 to 1)
lies is its place, and how much there is of it its area. The same measure of true videos is the floor below which nothing can be told.

b clips, f frames, n discs.
"""

import dataclasses
import itertools

import numpy as np

from postformer.data.bodies import SIZE
from postformer.data.physics import GRAVITY, SPEED, Physics, Scenario

LEAST = 0.5
"""A disc is there where at least this share of its area is, and no more than its area divided by this. One that is there in a smaller
share of the frames in which it should be is lost."""
SPLIT = 0.35
"""A disc is whole where its weight lies about its centre no further than that of the true disc by this share."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """Of each disc in each frame: where its weight lies float64 [f, n, 2], its radius by its area and by its spread [f, n]."""

    position: np.ndarray
    radius: np.ndarray
    spread: np.ndarray


def seen(clip: np.ndarray, discs: int) -> Seen:
    """Measure a clip float [3, f, h, w] from -1 to 1. A disc without any weight lies nowhere (not a number)."""
    values = (np.asarray(clip, np.float64).clip(-1, 1) + 1) / 2
    position, radius, spread = [], [], []
    for disc in range(discs):
        others = np.delete(values, disc, 0).max(0)
        weight = (values[disc] - others).clip(0)
        weight = np.where(weight > 0.05, weight, 0.0)  # faint haze over a whole frame would draw every centre to its middle
        at, wide = _moments(weight)
        position.append(at)
        spread.append(wide)
        radius.append(np.sqrt(weight.sum((1, 2)) * (SIZE / clip.shape[-1]) ** 2 / np.pi))
    return Seen(np.stack(position, 1), np.stack(radius, 1), np.stack(spread, 1))


def _moments(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centre of weight [f, h, w] as [f, 2] in units, y upward, and the radius of a disc that is spread as far about its centre."""
    side = weight.shape[-1]
    x = (np.arange(side) + 0.5) * SIZE / side
    y = x[::-1]
    total = weight.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        at = np.stack([(weight.sum(1) * x).sum(1), (weight.sum(2) * y).sum(1)], 1) / total[:, None]
        squares = (weight.sum(1) * x**2).sum(1) + (weight.sum(2) * y**2).sum(1)
        variance = squares / total - (at**2).sum(1)
    return at, np.sqrt(2 * variance.clip(0))


@dataclasses.dataclass(frozen=True)
class Score:
    """How far one clip is from physics; not a number where the true clip does not tell it. A disc that is lost counts as one that stands
    still where it was last shown, so that losing what is hard to draw gains nothing.

    `velocity`: the error of the velocity that a line through the places has, units/s, a mean over discs (of "several" the mean error of
    the places a frame apart instead, since they bounce). `place`: the mean distance from the true place, units. `radius`: the mean
    error of the radius, units. `there`: the share of the frames in which a disc that should be seen is there. `whole`: of those the
    share in which it is one piece. `alone`: the share of the frames in which no disc of another colour is seen. `momentum` and `energy`:
    how far that of all discs after they met is from the true one, by masses that are the area shown: energy as a share of the true
    discs' energy, momentum of the sum of their |m v|, both of discs that have half of training's least speed at least. Where the sum
    of the shown |m v| falls short of the true one by more than the momentum is off, that counts, so that standing still scores 1 in
    both. `gravity`: the error of the fall, units/s^2. `returns`: the distance from the true place in the first frame after a wall.
    """

    velocity: float
    place: float
    radius: float
    there: float
    whole: float
    alone: float = float("nan")
    momentum: float = float("nan")
    energy: float = float("nan")
    gravity: float = float("nan")
    returns: float = float("nan")


def visible(scenario: Scenario) -> np.ndarray:
    """Whether each disc is wholly in the frame and in front of no wall: bool [f, n]."""
    at, r = scenario.track.position, scenario.track.radius
    inside = np.all((at - r[:, None] >= 0) & (at + r[:, None] <= SIZE), axis=-1, keepdims=True)[..., 0]
    if scenario.wall is None:
        return inside
    margin = SIZE / 32
    left, right = scenario.wall
    return inside & ((at[..., 0] + r < left - margin) | (at[..., 0] - r > right + margin))


def score(clip: np.ndarray, scenario: Scenario, physics: Physics, known: int) -> Score:
    """Measure the frames of a clip from the `known`-th on against what truly happens."""
    found, track = seen(clip, len(scenario.track.radius)), scenario.track
    counts = visible(scenario)
    counts[:known] = False
    share = (found.radius / track.radius) ** 2
    there = (share >= LEAST) & (share <= 1 / LEAST)
    whole = found.spread <= (1 + SPLIT) * track.radius
    usable = counts & there
    error, stood = (np.hypot(*np.moveaxis(at - track.position, -1, 0)) for at in (found.position, track.position[known - 1]))
    return Score(
        velocity=_velocity_error(found, scenario, counts, usable, physics, known),
        place=_mean(np.where(there, error, stood)[counts]),
        radius=_mean(np.abs(found.radius - track.radius)[counts]),
        there=_mean(there[counts]),
        whole=_mean(whole[usable]),
        alone=_mean(_alone(clip, track.radius)[known:]),
        gravity=_fall_error(found.position, counts, usable, physics) if scenario.scene == "parabola" else float("nan"),
        returns=_return_error(error, usable, scenario, known),
        **_conserved(found, scenario, counts, usable, physics, known),
    )


def _alone(clip: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """In which frames the colours that no disc has hold less than the smallest disc's share that would make one: bool [f]; empty where
    all colours are taken."""
    colours = len(clip)
    if len(radius) == colours:
        return np.empty(0, bool)
    other = seen(clip, colours).radius[:, len(radius) :]
    return (other**2 < LEAST * radius.min() ** 2).all(1)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else float("nan")


def _lost(shown: np.ndarray, usable: np.ndarray) -> bool:
    return bool(usable.sum() < LEAST * shown.sum())


def _slope(position: np.ndarray, frames: np.ndarray, dt: float) -> np.ndarray | None:
    """The velocity of the line through a disc's places; None of fewer than three."""
    if frames.sum() < 3:
        return None
    t = np.flatnonzero(frames) * dt
    t = t - t.mean()
    return (t[:, None] * position[frames]).sum(0) / (t**2).sum()


def _runs(scenario: Scenario, known: int, physics: Physics) -> list[np.ndarray]:
    """Frames between events, of each run bool [f]: discs fly straight within one."""
    if scenario.scene == "several":
        return []
    edges = [known * physics.dt, *[h for h in scenario.track.hits if h > known * physics.dt], np.inf]
    time = np.arange(len(scenario.track.position)) * physics.dt
    return [(time >= a) & (time <= b) for a, b in itertools.pairwise(edges)]


def _velocity_error(
    found: Seen, scenario: Scenario, counts: np.ndarray, usable: np.ndarray, physics: Physics, known: int
) -> float:
    errors, true = [], scenario.track.position
    for run in _runs(scenario, known, physics):
        for disc in range(true.shape[1]):
            shown, own = counts[:, disc] & run, usable[:, disc] & run
            mine, theirs = (_slope(p[:, disc], own, physics.dt) for p in (found.position, true))
            whole = _slope(true[:, disc], shown, physics.dt)
            if whole is not None:
                if mine is None or theirs is None or _lost(shown, own):
                    mine, theirs = np.zeros(2), whole
                errors.append(np.hypot(*(mine - theirs)))
    if scenario.scene == "several":
        moved, truly = (np.diff(p, axis=0) / physics.dt for p in (found.position, true))
        here, shown = (m[1:] & m[:-1] for m in (usable, counts))
        wrong = np.where(here[..., None], moved - truly, truly)
        errors = list(np.hypot(*np.moveaxis(wrong, -1, 0))[shown])
    return float(np.mean(errors)) if errors else float("nan")


def _fall_error(position: np.ndarray, counts: np.ndarray, usable: np.ndarray, physics: Physics) -> float:
    shown, own = counts[:, 0], usable[:, 0]
    if shown.sum() < 5:
        return float("nan")
    if own.sum() < 5 or _lost(shown, own):
        return GRAVITY
    t = np.flatnonzero(own) * physics.dt
    return float(abs(-2 * np.polyfit(t, position[own, 0, 1], 2)[0] - GRAVITY))


def _return_error(error: np.ndarray, usable: np.ndarray, scenario: Scenario, known: int) -> float:
    """How far a disc is off where it comes out from behind a wall; a disc that does not come out is as far off as the world is wide."""
    if scenario.wall is None:
        return float("nan")
    after = visible(scenario)[:, 0]
    hidden = np.flatnonzero(~after[known:]) + known
    out = [f for f in np.flatnonzero(after) if hidden.size and f > hidden[0] and f >= known]
    if not out:
        return float("nan")
    return float(error[out[0], 0]) if usable[out[0], 0] else SIZE


def _conserved(
    found: Seen, scenario: Scenario, counts: np.ndarray, usable: np.ndarray, physics: Physics, known: int
) -> dict[str, float]:
    """Momentum and energy after the last event against the true ones (see `Score`)."""
    track = scenario.track
    if scenario.scene != "collision" or not track.hits or track.hits[0] <= known * physics.dt:
        return {}
    run = _runs(scenario, known, physics)[-1]
    shown, own = counts & run[:, None], usable & run[:, None]
    if (shown.sum(0) < 3).any():
        return {}
    momentum, energy = np.zeros_like(track.velocity[-1]), 0.0
    for disc in range(len(track.radius)):
        v = _slope(found.position[:, disc], own[:, disc], physics.dt)
        if v is not None and not _lost(shown[:, disc], own[:, disc]):
            mass = float(np.mean(found.radius[own[:, disc], disc] ** 2))
            momentum[disc], energy = mass * v, energy + mass * float(v @ v) / 2
    mass, truly = track.radius**2, track.radius[:, None] ** 2 * track.velocity[-1]
    moving, energy_truly = np.linalg.norm(truly, axis=1).sum(), (truly**2).sum(1) @ (1 / mass) / 2
    off = max(np.linalg.norm((momentum - truly).sum(0)), moving - np.linalg.norm(momentum, axis=1).sum())
    least = SPEED[0] / 2
    return {
        "momentum": float(off / max(moving, mass.sum() * least)),
        "energy": float(abs(energy - energy_truly) / max(energy_truly, mass.sum() * least**2 / 2)),
    }


# ---------------------------------------------------------------- what anyone can do


def last_frame(clip: np.ndarray, known: int) -> np.ndarray:
    """The last known frame for ever."""
    out = clip.copy()
    out[:, known:] = clip[:, known - 1 : known]
    return out


def extrapolated(clip: np.ndarray, known: int, physics: Physics, scenario: Scenario) -> np.ndarray:
    """Discs that go on in a straight line as the last two known frames have it, drawn with the radii that they show (and the wall)."""
    found = seen(clip[:, :known], len(scenario.track.radius))
    step = found.position[-1] - found.position[-2] if known > 1 else np.zeros_like(found.position[-1])
    ahead = found.position[-1] + step * np.arange(1, clip.shape[1] - known + 1)[:, None, None]
    out = clip.copy()
    out[:, known:] = physics.picture(np.nan_to_num(ahead, nan=-SIZE), found.radius[-1], scenario.wall)
    return out
