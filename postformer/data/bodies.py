"""Discs that move as physics says: exact from event to event, with no step of time and so no error of one.

Between events a disc flies along a parabola; an event is two discs that touch, or a disc that touches a wall of the box. All discs feel
the same gravity, so two of them approach each other along a line and touch at a root of a quadratic; a wall across gravity is a root of
one too. Collisions are elastic and without friction; a disc's mass is its area.

n discs, f frames; lengths in units of a world of SIZE x SIZE, times in seconds, y upward.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

SIZE = 10.0
MOST_EVENTS = 10_000
NEVER = math.inf


@dataclasses.dataclass(frozen=True)
class Bodies:
    """Discs at one time: positions and velocities float64 [n, 2], radii [n]."""

    position: np.ndarray
    velocity: np.ndarray
    radius: np.ndarray

    @property
    def mass(self) -> np.ndarray:
        """Proportional to the area."""
        return self.radius**2


@dataclasses.dataclass(frozen=True)
class Track:
    """Bodies over time: positions and velocities float64 [f, n, 2], radii [n], and when discs hit each other or a wall."""

    position: np.ndarray
    velocity: np.ndarray
    radius: np.ndarray
    hits: list[float]


def flown(bodies: Bodies, seconds: float, gravity: float) -> Bodies:
    """Where free flight leads."""
    pull = np.array([0.0, -gravity])
    position = bodies.position + bodies.velocity * seconds + pull * (seconds**2 / 2)
    return Bodies(position, bodies.velocity + pull * seconds, bodies.radius)


def track(bodies: Bodies, frames: int, dt: float, *, gravity: float = 0.0, box: bool = False) -> Track:
    """The bodies at times 0, dt, 2 dt ...; in a `box` the world's edges are walls.

    Raises ValueError for discs that overlap at the start, or leave the box then, and for more events than MOST_EVENTS.
    """
    _check(bodies, box)
    positions, velocities, hits, now = [], [], [], 0.0
    wait, pair = _next(bodies, gravity, box)
    for frame in range(frames):
        end = frame * dt
        while now + wait <= end:
            bodies = _bounced(flown(bodies, wait, gravity), pair)
            now += wait
            hits.append(now)
            if len(hits) > MOST_EVENTS:
                raise ValueError(f"more than {MOST_EVENTS:,} events in {end:g} s: the discs are too fast or too crowded")
            wait, pair = _next(bodies, gravity, box)
        at = flown(bodies, end - now, gravity)
        positions.append(at.position)
        velocities.append(at.velocity)
    return Track(np.stack(positions), np.stack(velocities), bodies.radius, hits)


def _check(bodies: Bodies, box: bool) -> None:
    gap = bodies.position[:, None] - bodies.position
    touching = np.hypot(*gap.transpose(2, 0, 1)) < (bodies.radius[:, None] + bodies.radius) - 1e-9
    np.fill_diagonal(touching, False)
    if touching.any():
        raise ValueError("discs overlap at the start")
    near = np.minimum(bodies.position, SIZE - bodies.position) < bodies.radius[:, None] - 1e-9
    if box and near.any():
        raise ValueError("a disc leaves the box at the start")


Pair = tuple[int, int]
"""Two discs, or a disc and a wall: -1 left, -2 bottom, -3 right, -4 top."""


def _next(bodies: Bodies, gravity: float, box: bool) -> tuple[float, Pair]:
    """The time to the next event, and who meets."""
    n, best = len(bodies.radius), (NEVER, (0, 0))
    for i in range(n):
        for j in range(i):
            best = min(best, (_meeting(bodies, i, j), (i, j)))
        if box:
            for axis in (0, 1):
                pull = -gravity if axis == 1 else 0.0
                x, v, r = bodies.position[i, axis], bodies.velocity[i, axis], bodies.radius[i]
                best = min(
                    best, (_reaching(x - r, v, pull), (i, -1 - axis)), (_reaching(SIZE - r - x, -v, -pull), (i, -3 - axis))
                )
    return best


def _meeting(bodies: Bodies, i: int, j: int) -> float:
    """When two discs touch: the smaller root of |dx + dv t| = r_i + r_j, where they approach."""
    dx, dv = bodies.position[i] - bodies.position[j], bodies.velocity[i] - bodies.velocity[j]
    approach, speed2 = float(dx @ dv), float(dv @ dv)
    if approach >= 0 or speed2 == 0:
        return NEVER
    gap2 = float(dx @ dx) - float(bodies.radius[i] + bodies.radius[j]) ** 2
    under = approach**2 - speed2 * gap2
    if under < 0:
        return NEVER
    return max(gap2 / (-approach + math.sqrt(under)), 0.0)


def _reaching(gap: float, v: float, pull: float) -> float:
    """When gap + v t + pull t^2 / 2 falls to 0: the first root at which it falls."""
    gap = max(gap, 0.0)
    if pull == 0:
        return gap / -v if v < 0 else NEVER
    under = v**2 - 2 * pull * gap
    if under < 0:
        return NEVER
    root = math.sqrt(under)
    if pull > 0:  # falls to 0 only if it comes fast enough, at the first root
        return 2 * gap / (-v + root) if v < 0 else NEVER
    late = 2 * gap / (-v + root) if v < 0 else (-v - root) / pull
    return late if late > 0 or v < 0 else NEVER


def _bounced(bodies: Bodies, pair: Pair) -> Bodies:
    i, j = pair
    velocity = bodies.velocity.copy()
    if j < 0:
        velocity[i, (-j - 1) % 2] *= -1
        return dataclasses.replace(bodies, velocity=velocity)
    normal = bodies.position[i] - bodies.position[j]
    normal = normal / np.hypot(*normal)
    m, n = bodies.mass[i], bodies.mass[j]
    closing = float((velocity[i] - velocity[j]) @ normal)
    velocity[i] -= 2 * n / (m + n) * closing * normal
    velocity[j] += 2 * m / (m + n) * closing * normal
    return dataclasses.replace(bodies, velocity=velocity)


# ---------------------------------------------------------------- pictures


def drawn(
    position: np.ndarray,
    radius: np.ndarray,
    colours: Sequence[Sequence[float]],
    size: int,
    wall: tuple[float, float] | None = None,
) -> np.ndarray:
    """float32 [3, f, size, size] from -1 (black) to 1: discs at `position` [f, n, 2], later ones above earlier ones, in front of them
    all a grey wall between two x. A pixel at a disc's edge has the share of it that the disc covers, to some 0.01."""
    centres = (np.arange(size) + 0.5) * (SIZE / size)
    picture = np.zeros((3, len(position), size, size))
    for body, colour in enumerate(colours):
        dx = centres[None, None, :] - position[:, body, 0, None, None]
        dy = centres[None, ::-1, None] - position[:, body, 1, None, None]
        cover = np.clip((radius[body] - np.hypot(dx, dy)) * (size / SIZE) + 0.5, 0, 1)
        picture += cover * (np.asarray(colour, float)[:, None, None, None] - picture)
    if wall is not None:
        edges = np.clip(np.stack([centres - wall[0], wall[1] - centres]) * (size / SIZE) + 0.5, 0, 1)
        picture += edges.prod(0) * (WALL - picture)
    return (2 * picture - 1).astype(np.float32)


WALL = 0.5
"""How bright the wall is."""
