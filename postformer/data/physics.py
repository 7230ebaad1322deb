"""Videos of simulated physics: drawn when they are needed, each a pure function of seed, split and number, with what truly happened
beside it.

The scenes and ranges are those of phyworld (Kang et al. 2024, arXiv 2411.02385, section 3 and its appendix): discs in a world of 10 x
10 units, a frame each 0.1 s, speeds from 1 to 4 units/s and radii from 0.7 to 1.4 in training, and outside of them in the test.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from postformer.data.bodies import SIZE, Bodies, Track, drawn, track
from postformer.data.captions import VOCAB, encoded
from postformer.data.sources import DataError

Scene = Literal["uniform", "collision", "parabola", "occlusion", "several", "all"]
"""Of "all" each clip is of the next scene in turn."""
SPLITS = ("train", "valid", "test", "slow", "fast", "small", "large")
"""Three streams of the training ranges, and four of tests outside of them."""
SPEED, RADIUS = (1.0, 4.0), (0.7, 1.4)
OUTSIDE: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "slow": ((0.0, 0.8), RADIUS),
    "fast": ((4.5, 6.0), RADIUS),
    "small": (SPEED, (0.3, 0.6)),
    "large": (SPEED, (1.5, 2.0)),
}
"""Speeds and radii (phyworld, table 1)."""
GRAVITY = 2.5
"""Units/s^2 in a parabola."""
COLOURS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
"""One channel for each disc, so that each can be told apart and measured alone."""
COUNTS: dict[str, int] = {"uniform": 1, "collision": 2, "parabola": 1, "occlusion": 1, "several": 3}
TRIES = 1000
CAPTION = 48
"""Bytes of a clip's caption that a model is told."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A video before it is drawn: of which scene, the true track, and where the wall stands."""

    scene: str
    track: Track
    wall: tuple[float, float] | None = None

    @property
    def caption(self) -> str:
        """What happens, in words."""
        vx = float(self.track.velocity[0, 0, 0])
        way = f"to the {'right' if vx > 0 else 'left'}"
        return {
            "uniform": f"a disc flies {way}, {'fast' if abs(vx) > sum(SPEED) / 2 else 'slowly'}",
            "parabola": f"a disc thrown {way} falls",
            "collision": "two discs meet head on",
            "occlusion": f"a disc passes {way} behind a wall",
            "several": "three discs in a box",
        }[self.scene]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Physics:
    """A run's data. "uniform": a disc flies level; "collision": two meet head on; "parabola": one is thrown level and falls;
    "occlusion": one passes behind a wall; "several": three in a box; "all": one of these after the other, each a class. `size` is the
    side of the square frames in pixels, `dt` the seconds from one frame to the next. With `text` a model is told each clip's caption
    instead of its class."""

    scene: Scene = "uniform"
    frames: int = 16
    size: int = 32
    dt: float = 0.1
    text: bool = False
    tokens: None = dataclasses.field(default=None, init=False, repr=False)
    """There is no tokenizer."""

    def __post_init__(self) -> None:
        if self.scene not in (*COUNTS, "all"):
            raise ValueError(f"scene={self.scene!r} is not a choice; choose from {', '.join(COUNTS)}, all")
        if self.frames < 1 or self.size < 8 or self.dt <= 0:
            raise ValueError(f"frames={self.frames} must be at least 1, size={self.size} at least 8 and dt={self.dt} above 0")

    @property
    def sizes(self) -> dict[str, Any]:
        """What a model is told of the data."""
        told = {"vocab": VOCAB} if self.text else {"classes": len(COUNTS)} if self.scene == "all" else {}
        return {"channels": 3, "size": (self.size, self.size), **told}

    @property
    def classes(self) -> list[str]:
        """The names of the classes; empty where a model is told none."""
        return list(COUNTS) if "classes" in self.sizes else []

    @property
    def caption_bytes(self) -> int:
        """How long a caption is; 0 where a model is told none."""
        return CAPTION if self.text else 0

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a clip."""
        return self.frames, self.size, self.size

    @property
    def identity(self) -> dict[str, Any]:
        """What a saved run keeps of the data: its keywords are all."""
        return {}

    def scenario(self, index: int, *, seed: int, split: str = "train") -> Scenario:
        """The video of a number: what happens in it. Raises ValueError for another split."""
        if split not in SPLITS:
            raise ValueError(f"split: unknown {split!r}; choose from {', '.join(SPLITS)}")
        scene = list(COUNTS)[index % len(COUNTS)] if self.scene == "all" else self.scene
        rng = np.random.default_rng([seed, SPLITS.index(split), index, sorted(COUNTS).index(scene)])
        speed, radius = OUTSIDE.get(split, (SPEED, RADIUS))
        return SCENES[scene](self, rng, speed, radius)

    def clip(self, index: int, *, seed: int, split: str = "train") -> np.ndarray:
        """float32 [3, frames, size, size] from -1 to 1."""
        return self.shown(self.scenario(index, seed=seed, split=split))

    def shown(self, scenario: Scenario) -> np.ndarray:
        """As `clip`, of a scenario."""
        return self.picture(scenario.track.position, scenario.track.radius, scenario.wall)

    def picture(self, position: np.ndarray, radius: np.ndarray, wall: tuple[float, float] | None = None) -> np.ndarray:
        """As `clip`, of discs at given places [f, n, 2]."""
        return drawn(position, radius, COLOURS[: len(radius)], self.size, wall)

    def told(self, scenarios: Sequence[Scenario]) -> dict[str, Tensor]:
        """What a model is told of such clips: the class or the caption of each, where there are several."""
        if self.text:
            return {"text": torch.stack([encoded(scenario.caption, CAPTION) for scenario in scenarios])}
        if self.classes:
            return {"label": torch.tensor([self.classes.index(scenario.scene) for scenario in scenarios])}
        return {}

    def batches(self, batch: int, seed: int, split: str = "train") -> "PhysicsBatches":
        """Batches of `batch` videos. Raises ValueError for another split."""
        if split not in SPLITS:
            raise ValueError(f"split: unknown {split!r}; choose from {', '.join(SPLITS)}")
        return PhysicsBatches(self, batch, seed, split)


@dataclasses.dataclass(frozen=True)
class PhysicsBatches:
    """There is no state to save: `batch(step)` depends on the scene, the seed, the split and the step alone, and no video comes twice."""

    physics: Physics
    size: int
    seed: int
    split: str

    def batch(self, step: int) -> dict[str, Any]:
        """`{"clips": float32 [batch, 3, frames, size, size], "rows": names for errors}`, and of all scenes "label" int64 [batch] or,
        where models are told captions, "text" int64 [batch, CAPTION]."""
        physics, numbers = self.physics, range(step * self.size, (step + 1) * self.size)
        scenarios = [physics.scenario(i, seed=self.seed, split=self.split) for i in numbers]
        clips = torch.from_numpy(np.stack([physics.shown(scenario) for scenario in scenarios]))
        return {"clips": clips, "rows": [f"{physics.scene} {self.split} {i}" for i in numbers], **physics.told(scenarios)}


# ---------------------------------------------------------------- scenes


def _side(rng: np.random.Generator) -> float:
    return float(rng.choice([-1.0, 1.0]))


def _flight(physics: Physics, rng: np.random.Generator, speed: tuple[float, float], radius: tuple[float, float]) -> Bodies:
    """One disc that flies level and is in the frame as long as it can be: it begins near the edge that it comes from."""
    r, v, side = rng.uniform(*radius), rng.uniform(*speed), _side(rng)
    room = max(SIZE - 2 * r - v * physics.dt * (physics.frames - 1), 0.0)
    x = r + rng.uniform(0, room)
    position = [x if side > 0 else SIZE - x, rng.uniform(r, SIZE - r)]
    return Bodies(np.array([position]), np.array([[side * v, 0.0]]), np.array([r]))


def _uniform(physics: Physics, rng: np.random.Generator, speed: tuple[float, float], radius: tuple[float, float]) -> Scenario:
    return Scenario("uniform", track(_flight(physics, rng, speed, radius), physics.frames, physics.dt))


def _parabola(physics: Physics, rng: np.random.Generator, speed: tuple[float, float], radius: tuple[float, float]) -> Scenario:
    """Thrown level from the upper part."""
    bodies = _flight(physics, rng, speed, radius)
    r = float(bodies.radius[0])
    fall = GRAVITY * (physics.dt * (physics.frames - 1)) ** 2 / 2
    bodies.position[0, 1] = rng.uniform(min(r + fall, SIZE - r), SIZE - r)
    return Scenario("parabola", track(bodies, physics.frames, physics.dt, gravity=GRAVITY))


def _occlusion(physics: Physics, rng: np.random.Generator, speed: tuple[float, float], radius: tuple[float, float]) -> Scenario:
    """A wall stands in its way, which it reaches after a quarter of the video and which hides it whole for a frame at least. Discs are half
    as large and half again as fast as elsewhere, and come out again before the end unless all of a range are too slow for that."""
    speed, radius = (1.5 * speed[0], 1.5 * speed[1]), (radius[0] / 2, radius[1] / 2)
    clear, last = physics.dt * (physics.frames // 4), physics.dt * max(physics.frames - 2, 1)
    tries = TRIES if speed[1] * (last - clear - physics.dt) >= 4 * radius[0] else 1
    while True:
        bodies, tries = _flight(physics, rng, speed, radius), tries - 1
        r, x, v = float(bodies.radius[0]), float(bodies.position[0, 0]), float(bodies.velocity[0, 0])
        near, wide = abs(v) * clear + r, 2 * r * rng.uniform(1.05, 1.3) + abs(v) * physics.dt
        if near + wide + r <= abs(v) * last or tries <= 0:
            break
    wall = sorted(x + np.sign(v) * away for away in (near, near + wide))
    return Scenario("occlusion", track(bodies, physics.frames, physics.dt), (wall[0], wall[1]))


def _collision(physics: Physics, rng: np.random.Generator, speed: tuple[float, float], radius: tuple[float, float]) -> Scenario:
    """Head on: they meet between a third and two thirds of the video, in the middle part."""
    for _ in range(TRIES):
        r, v, y = rng.uniform(*radius, 2), rng.uniform(*speed, 2), rng.uniform(radius[1], SIZE - radius[1])
        when = physics.dt * (physics.frames - 1) * rng.uniform(1 / 3, 2 / 3)
        meet = rng.uniform(0.4, 0.6) * SIZE
        x = np.array([meet - r[0] - v[0] * when, meet + r[1] + v[1] * when])
        if x[0] >= r[0] and x[1] <= SIZE - r[1]:
            bodies = Bodies(np.stack([x, [y, y]], 1), np.array([[v[0], 0.0], [-v[1], 0.0]]), r)
            return Scenario("collision", track(bodies, physics.frames, physics.dt))
    raise DataError(
        f"data: no collision of discs of radius {radius} at speeds {speed} fits into {physics.frames} frames of {physics.dt} s; "
        "take fewer frames"
    )


def _several(physics: Physics, rng: np.random.Generator, speed: tuple[float, float], radius: tuple[float, float]) -> Scenario:
    """Three discs in any direction, in a box."""
    for _ in range(TRIES):
        r, angle = rng.uniform(*radius, 3), rng.uniform(0, 2 * np.pi, 3)
        position = r[:, None] + rng.uniform(size=(3, 2)) * (SIZE - 2 * r[:, None])
        gaps = [np.hypot(*(position[i] - position[j])) - r[i] - r[j] for i in range(3) for j in range(i)]
        if min(gaps) > 0:
            velocity = rng.uniform(*speed, (3, 1)) * np.stack([np.cos(angle), np.sin(angle)], 1)
            try:
                moved = track(Bodies(position, velocity, r), physics.frames, physics.dt, box=True)
            except ValueError as e:
                raise DataError(f"data: three discs in a box for {physics.frames} frames of {physics.dt} s: {e}") from e
            return Scenario("several", moved)
    raise DataError(f"data: three discs of radius {radius} do not fit into the box")


SCENES: dict[str, Any] = {
    "uniform": _uniform,
    "collision": _collision,
    "parabola": _parabola,
    "occlusion": _occlusion,
    "several": _several,
}
