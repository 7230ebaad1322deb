"""Two rooms with a door between them, and a dot that is pushed about: where it goes, what is seen, and walks through it as data.

The world of PLDM (Sobal et al. 2025, arXiv 2502.14819) and EB-JEPA (Terver et al. 2026, arXiv 2602.03604), with the latter's sizes:
pictures of 65 x 65 pixels in two channels, the dot (a bell of 1.3 pixels) and the walls; an outer wall 4 pixels from the edge, one
between the rooms that is 3 pixels wide, and a door of 9. There a dot that meets a wall is thrown back by noise; here it stops exactly
before it.

n worlds, t steps.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from postformer.data.task import SPLITS

SIDE, BORDER = 65, 4
"""Pixels of a picture, and of its margin: the dot's centre stays between BORDER and SIDE - 1 - BORDER."""
HALF, DOOR = 1, 4
"""From the middle of the wall to its sides, and from that of the door to its ends."""
BELL, AWAY = 1.3, 0.3
"""Standard deviation of the dot, and how far from a wall it stops."""
FIXED = (32.0, 18.0)
"""Where the wall and the door are where they do not move."""
WALLS, DOORS = (20, 44), (10, 54)
"""The least and the greatest place of those that do, in whole pixels."""
LONGEST = 2.45
"""Pixels that the dot can be pushed in a step, along each axis."""
FASTEST, UNEVEN, TURN = 1.8, 0.2, 0.2
"""Of walks in the data: the longest push, by what share the pushes of an action differ from its pace, any up to that, and how much the next
push turns, in radians."""
STUBBORN = 0.5
"""The share of walks that go on against a wall that they meet, as plans do; the others turn."""
GIVEN_UP = 0.1
"""How likely a stubborn walk that is aimed gives up at each push against a wall."""
BESIDE, FAR, NEAR = 12.0, (3.0, 28.0), 3.0
"""Pixels, at most, from the door's middle to where walks are aimed along the wall (what lies beside the door tells where it is), from the
wall, and of one that has come there."""

Layout = Float[np.ndarray, "n 2"]
"""Where the wall is (x) and where the middle of its door (y)."""
Places = Float[np.ndarray, "n 2"]


def moved(place: Places, push: Places, layout: Layout) -> Places:
    """Where dots are after a push: at its end, or AWAY from the wall that they meet first on their way."""
    low, high = BORDER + AWAY, SIDE - 1 - BORDER - AWAY
    way = np.where(push == 0, 1e-12, push)
    share = np.minimum(1.0, ((np.where(way > 0, high, low) - place) / way).min(1))
    length = np.hypot(*push.T).clip(1e-12)
    for rows in ((-np.inf, layout[:, 1] - DOOR), (layout[:, 1] + DOOR, np.inf)):
        edges = np.stack(np.broadcast_arrays(layout[:, 0] - HALF, layout[:, 0] + HALF, *rows), 1)
        with np.errstate(invalid="ignore"):
            met = (edges.reshape(-1, 2, 2) - place[:, :, None]) / way[:, :, None]
        first, last = met.min(2).max(1), met.max(2).min(1)
        hits = (first <= last) & (first >= 0) & (first - AWAY / length < share)
        share = np.where(hits, np.maximum(first - AWAY / length, 0.0), share)
    return place + share.clip(0)[:, None] * push


def free(place: Places, layout: Layout) -> np.ndarray:
    """Whether dots are in a room or in the door, and in no wall: bool [n]."""
    inside = ((place > BORDER) & (place < SIDE - 1 - BORDER)).all(1)
    beside = np.abs(place[:, 0] - layout[:, 0]) > HALF
    return inside & (beside | (np.abs(place[:, 1] - layout[:, 1]) < DOOR))


def dots(place: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n h w"]:
    """Pictures of dots, from 0 to 1."""
    line = np.arange(SIDE, dtype=np.float32)
    bells = np.exp(-((line - place[..., None].astype(np.float32)) ** 2) / np.float32(2 * BELL**2))
    return bells[..., 1, :, None] * bells[..., 0, None, :]


def walls(layout: Layout) -> Float[np.ndarray, "n h w"]:
    """Pictures of walls, 0 and 1."""
    line = np.arange(SIDE)
    across = np.abs(line - layout[:, :1]) <= HALF
    shut = np.abs(line - layout[:, 1:]) > DOOR
    out = (across[:, None, :] & shut[:, :, None]).astype(np.float32)
    for edge in (BORDER, SIDE - 1 - BORDER):
        out[:, edge, :] = out[:, :, edge] = 1.0
    return out


def layouts(rng: np.random.Generator, count: int, *, fixed: bool) -> Layout:
    """Rooms, all alike or each drawn."""
    if fixed:
        return np.tile(np.array(FIXED), (count, 1))
    return np.stack([rng.integers(low, high + 1, count) for low, high in (WALLS, DOORS)], 1).astype(float)


def anywhere(rng: np.random.Generator, layout: Layout) -> Places:
    """A free place in each world, two bells from the walls where there is room for that."""
    low, high = BORDER + 2 * BELL, SIDE - 1 - BORDER - 2 * BELL
    place = rng.uniform(low, high, layout.shape)
    while not (good := free(place, layout)).all():
        place = np.where(good[:, None], place, rng.uniform(low, high, layout.shape))
    return place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rooms:
    """A run's data: walks of `steps` actions through two rooms, drawn as a function of (seed, split, number). An action is `stride` pushes,
    after which there is a picture. Of all walks the share `aimed` goes back and forth through the door or against the wall beside it.
    `fixed` keeps wall and door where they are."""

    steps: int = 16
    stride: int = 1
    fixed: bool = True
    aimed: float = 0.6
    tokens: None = dataclasses.field(default=None, init=False, repr=False)
    """There is no tokenizer."""

    def __post_init__(self) -> None:
        if min(self.steps, self.stride) < 1 or not 0 <= self.aimed <= 1:
            raise ValueError(
                f"steps={self.steps} and stride={self.stride} must be at least 1 and aimed={self.aimed} from 0 to 1"
            )

    @property
    def sizes(self) -> dict[str, Any]:
        """What a model is told of the data."""
        return {"channels": 2, "size": (SIDE, SIDE), "actions": 2 * self.stride}

    @property
    def identity(self) -> dict[str, Any]:
        """What a saved run keeps of the data: its keywords are all."""
        return {}

    def batches(self, batch: int, seed: int, split: str = "train") -> "RoomsBatches":
        """Batches of `batch` walks. Raises ValueError for another split."""
        if split not in SPLITS:
            raise ValueError(f"split: unknown {split!r}; choose from {', '.join(SPLITS)}")
        return RoomsBatches(self, batch, seed, split)


@dataclasses.dataclass(frozen=True)
class RoomsBatches:
    """There is no state to save: `batch(step)` depends on the seed, the split and the step alone, and no walk comes twice."""

    rooms: Rooms
    size: int
    seed: int
    split: str

    def batch(self, step: int) -> dict[str, Any]:
        """`{"observations": float32 [b, steps + 1, 2, 65, 65] from 0 to 1, "actions": float32 [b, steps, 2 stride] in pixels, "states":
        float32 [b, steps + 1, 4], the dot's place and those of wall and door, "rows": names for errors}`."""
        states, actions = self.walks(step)
        seen = dots(states[..., :2])
        layout = walls(states[:, 0, 2:])
        observed = np.stack([seen, np.broadcast_to(layout[:, None], seen.shape)], 2)
        numbers = range(step * self.size, (step + 1) * self.size)
        return {
            "observations": torch.from_numpy(observed),
            "actions": _tensor(actions),
            "states": _tensor(states),
            "rows": [f"rooms {self.split} {i}" for i in numbers],
        }

    def walks(self, step: int) -> tuple[Float[np.ndarray, "b t1 4"], Float[np.ndarray, "b t k"]]:
        """The states and actions of a batch, without pictures."""
        numbers = range(step * self.size, (step + 1) * self.size)
        rngs = [np.random.default_rng([self.seed, SPLITS.index(self.split), i]) for i in numbers]
        layout = np.concatenate([layouts(rng, 1, fixed=self.rooms.fixed) for rng in rngs])
        walks = [self._drawn(rng, own) for rng, own in zip(rngs, layout, strict=True)]
        drawn = _Drawn(*(np.stack(part) for part in zip(*walks, strict=True)))
        place, heading = drawn.start, drawn.heading
        target = _across(place, layout, drawn.aims[:, 0], over=True)
        places, pushes = [place], []
        for t in range(drawn.length.shape[1]):
            way = target - place
            heading = np.where(drawn.aimed, np.arctan2(way[:, 1], way[:, 0]), heading) + drawn.turn[:, t]
            push = drawn.length[:, t, None] * np.stack([np.cos(heading), np.sin(heading)], 1)
            place = moved(place, push, layout)
            blocked = np.abs(place - places[-1] - push).max(1) > 1e-9
            heading = np.where(blocked & ~drawn.stubborn & ~drawn.aimed, drawn.again[:, t], heading)
            there = np.hypot(*(target - place).T) < NEAR
            turned = there | (blocked & (~drawn.stubborn | drawn.given_up[:, t]))
            target = np.where(turned[:, None], _across(place, layout, drawn.aims[:, t], over=there), target)
            pushes.append(push)
            places.append(place)
        seen = np.stack(places[:: self.rooms.stride], 1)
        states = np.concatenate([seen, np.broadcast_to(layout[:, None], seen.shape)], 2)
        return states, np.stack(pushes, 1).reshape(self.size, self.rooms.steps, -1)

    def _drawn(self, rng: np.random.Generator, layout: np.ndarray) -> "_Drawn":
        """The random numbers of a walk."""
        steps = self.rooms.steps * self.rooms.stride
        pace = rng.uniform(0, FASTEST, self.rooms.steps).repeat(self.rooms.stride)
        return _Drawn(
            start=anywhere(rng, layout[None])[0],
            heading=np.array(rng.uniform(0, 2 * np.pi)),
            length=(pace * rng.normal(1, UNEVEN, steps)).clip(0, FASTEST),
            turn=rng.normal(0, TURN, steps),
            again=rng.uniform(0, 2 * np.pi, steps),
            aims=np.stack([rng.uniform(*FAR, steps), rng.uniform(-BESIDE, BESIDE, steps)], 1),
            given_up=rng.random(steps) < GIVEN_UP,
            aimed=np.array(rng.random() < self.rooms.aimed),
            stubborn=np.array(rng.random() < STUBBORN),
        )


class _Drawn(NamedTuple):
    """Of a walk, or of each of some: where it begins and in which direction; of each push how long it is, how much it turns, where to after
    a wall, how far from the wall and from the door's middle it is aimed, if it is aimed anew, and whether it gives up; whether it is aimed
    at all and whether it is stubborn."""

    start: np.ndarray
    heading: np.ndarray
    length: np.ndarray
    turn: np.ndarray
    again: np.ndarray
    aims: np.ndarray
    given_up: np.ndarray
    aimed: np.ndarray
    stubborn: np.ndarray


def _across(place: Places, layout: Layout, aims: Float[np.ndarray, "n 2"], *, over: np.ndarray | bool) -> Places:
    """Where walks are aimed: so far from the wall, on its other side where they are to go `over` and else on this one, and so far from the
    door's middle."""
    side = np.where(place[:, 0] < layout[:, 0], -1.0, 1.0) * np.where(over, -1.0, 1.0)
    target = layout + np.stack([side * aims[:, 0], aims[:, 1]], 1)
    return target.clip(BORDER + 2 * BELL, SIDE - 1 - BORDER - 2 * BELL)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
