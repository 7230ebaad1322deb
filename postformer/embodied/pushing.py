"""A finger on a table that is to push a block in the shape of a T where a picture shows it.

It resembles Push-T (Florence et al. 2021, arXiv 2109.00137; Chi et al. 2023, arXiv 2303.04137) with numbers of its own: there the finger is
told places and follows by springs, here it is told velocities; there the goal is one place, here each problem has its own, which a walk
from its beginning has reached, as in DINO-WM (Zhou et al. 2024, arXiv 2411.04983). The table resists by damping so heavy that a block
stops within a hundredth of a second: it goes as if pushed slowly against dry friction whose limit surface is an ellipsoid (Goyal, Ruina &
Papadopoulos 1991). Block and finger stay on the table, at whose edges are walls.
"""

import math
from typing import ClassVar

import gymnasium
import numpy as np
from jaxtyping import Float, UInt8

from postformer.embodied.drawing import SIDE, Layer, View, joined, painted
from postformer.embodied.simulator import DT, SUBSTEPS, Simulator, States

TABLE = 0.25
"""From the table's middle to its walls, in metres."""
FINGER, SPEED = 0.018, 0.4
"""The finger's radius, and how fast it is at an action of 1, along each axis."""
BAR, STEM = (0.058, 0.017), (0.017, 0.042)
"""Half sides of the two boxes of a T."""
BAR_Y = (BAR[1] + STEM[1]) * STEM[0] * STEM[1] / (BAR[0] * BAR[1] + STEM[0] * STEM[1])
STEM_Y = BAR_Y - BAR[1] - STEM[1]
"""Where their middles are, from that of all mass."""
RADIUS = math.hypot(STEM[0], STEM_Y - STEM[1])
"""How far the block reaches from there."""
DRAG = 10.0
"""How the table resists, in newtons per metre a second, spread evenly under the block."""
PLACE, ANGLE = 0.02, math.radians(20)
"""How near to the goal's the block's middle has to be, and by the stricter rule its angle too (as Push-T with goals of DINO-WM, where 20 of
512 are for the finger and the block together)."""
MOVED, WALKED, TRIES = 0.06, 30, 8
"""How far from its goal the block is at the beginning at least, within how many steps of a walk it got there, and how many walks are tried
at once."""
MARGIN = 0.16
"""How far from the table's middle, along each axis, blocks begin and have their goals at most."""
PUSH, ROUND = 0.5, 0.3
"""How much of walks goes at the block, and to one of its sides; the rest goes anywhere."""
VIEW = View(0.26)
COLOURS = ((1.0, 0.6, 0.0), (0.0, 0.6, 1.0))
"""Of the block, which has no blue, and the finger, which has no red."""
WALL = 0.4
"""How bright walls are."""


def _spread() -> float:
    """Mean square distance of the block's parts from its middle of mass."""
    parts = [(4 * a * b, (a * a + b * b) / 3 + y * y) for (a, b), y in ((BAR, BAR_Y), (STEM, STEM_Y))]
    return sum(area * square for area, square in parts) / sum(area for area, _ in parts)


WALLS = "".join(
    f'<geom type="plane" pos="{-x * TABLE} {-y * TABLE} 0" zaxis="{x} {y} 0" size="1 1 1" contype="0" conaffinity="2"/>'
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))
)
XML = f"""
<mujoco model="pushing">
  <compiler angle="radian"/>
  <option timestep="{DT}" gravity="0 0 0" integrator="implicitfast" cone="elliptic"><flag warmstart="disable"/></option>
  <default>
    <geom solref="0.01 1" friction="0.3"/>
    <default class="finger"><joint type="slide" limited="true" range="{FINGER - TABLE} {TABLE - FINGER}" solreflimit="0.01 1"/></default>
  </default>
  <worldbody>
    {WALLS}
    <body>
      <joint class="finger" name="x" axis="1 0 0"/>
      <joint class="finger" name="y" axis="0 1 0"/>
      <geom type="sphere" size="{FINGER}" mass="0.1" contype="1" conaffinity="0"/>
    </body>
    <body>
      <joint type="slide" axis="1 0 0" damping="{DRAG}"/>
      <joint type="slide" axis="0 1 0" damping="{DRAG}"/>
      <joint name="turn" axis="0 0 1" damping="{DRAG * _spread()}"/>
      <geom type="box" pos="0 {BAR_Y} 0" size="{BAR[0]} {BAR[1]} 0.02" mass="{30 * BAR[0] * BAR[1]}" contype="2" conaffinity="1"/>
      <geom type="box" pos="0 {STEM_Y} 0" size="{STEM[0]} {STEM[1]} 0.02" mass="{30 * STEM[0] * STEM[1]}" contype="2" conaffinity="1"/>
    </body>
  </worldbody>
  <actuator>
    <velocity joint="x" kv="40"/>
    <velocity joint="y" kv="40"/>
  </actuator>
</mujoco>
"""


class Pushing(Simulator):
    """A finger, a block and a goal on a table."""

    xml = XML
    scale = SPEED
    names: ClassVar[tuple[str, ...]] = (
        *("finger x", "finger y", "block x", "block y", "cos turn", "sin turn"),
        *("finger speed x", "finger speed y", "block speed x", "block speed y", "turning speed"),
    )
    apartness: ClassVar[tuple[str, ...]] = ("distance", "turn")
    bounds: ClassVar[tuple[float, ...]] = (PLACE, ANGLE)

    def states(self, physics: Float[np.ndarray, "*n p"]) -> Float[np.ndarray, "*n s"]:
        turn = physics[..., 5:6]
        return np.concatenate([physics[..., 1:5], np.cos(turn), np.sin(turn), physics[..., 6:]], -1)

    def pictures(self, states: Float[np.ndarray, "*n s"]) -> UInt8[np.ndarray, "*n 3 h w"]:
        return painted(states, _layers, _GROUND)

    def problem(self, rng: np.random.Generator) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "s"]]:
        """The goal is where a walk last moved the block, the finger still at it, both at rest."""
        while True:
            physics, _ = self.walks([rng] * TRIES, WALKED)
            states = self.states(physics)
            moving = np.abs(states[..., 8:10]).max(-1) > 0.01
            last = WALKED - moving[:, ::-1].argmax(1)
            goals = self.states(self.advance(physics[np.arange(TRIES), last], np.zeros((TRIES, 3, 2)))[:, -1])
            good = (self.apart(states[:, 0], goals)[:, 0] >= MOVED) & (np.abs(goals[:, 2:4]).max(1) <= MARGIN)
            if good.any():
                return physics[good.argmax(), 0], goals[good.argmax()]

    def apart(self, states: Float[np.ndarray, "*n s"], goals: Float[np.ndarray, "*#n s"]) -> Float[np.ndarray, "*n m"]:
        far = np.hypot(states[..., 2] - goals[..., 2], states[..., 3] - goals[..., 3])
        (a, b), (c, d) = ((x[..., 4], x[..., 5]) for x in (states, goals))
        return np.stack([far, np.abs(np.arctan2(a * d - b * c, a * c + b * d))], -1)

    def straight(self, states: States, goals: States) -> Float[np.ndarray, "n k"]:
        """At the block's middle, until the block is where it should be."""
        far = np.hypot(*(goals[:, 2:4] - states[:, 2:4]).T)[:, None]
        return np.where(far < PLACE, 0, _towards(states[:, :2], states[:, 2:4]))

    def scripted(self, states: States, goals: States) -> Float[np.ndarray, "n k"]:
        """To a place behind the block, as its goal sees it, and from there through its middle, no farther than the block is from its goal:
        what one does who knows how pushing works, but not how a block turns. Nothing is gone around."""
        finger, block = states[:, :2], states[:, 2:4]
        far = np.hypot(*(goals[:, 2:4] - block).T)[:, None]
        way = (goals[:, 2:4] - block) / np.maximum(far, 1e-9)
        x, y = (finger - block).T
        along, across = x * way[:, 0] + y * way[:, 1], x * way[:, 1] - y * way[:, 0]
        ready = (along < 0) & (np.abs(across) < FINGER)
        target = np.where(ready[:, None], finger + far * way, block - (RADIUS + FINGER) * way)
        return np.where(far < PLACE / 4, 0, _towards(finger, target))

    def _begun(self, rng: np.random.Generator) -> Float[np.ndarray, "p"]:
        block, turn = rng.uniform(-MARGIN, MARGIN, 2) * 0.9, rng.uniform(-np.pi, np.pi)
        while True:
            finger = rng.uniform(FINGER - TABLE, TABLE - FINGER, 2) * 0.98
            if np.hypot(*(finger - block)) > RADIUS + FINGER + 0.005:
                return self.at_rest(np.concatenate([finger, block, [turn]])[None])[0]

    def _drawn(self, rng: np.random.Generator, steps: int) -> Float[np.ndarray, "h d"]:
        """What is held for 4 to 12 steps: whether the finger goes for the block, a place from its middle or on the table, a speed; and a
        little noise."""
        held = np.repeat(np.arange(steps), rng.integers(4, 13, steps))[:steps]
        kind, turn = rng.random((steps, 1)), rng.uniform(-np.pi, np.pi, (steps, 1))
        beside = (RADIUS + 2 * FINGER) * np.concatenate([np.cos(turn), np.sin(turn)], 1)
        anywhere = rng.uniform(FINGER - TABLE, TABLE - FINGER, (steps, 2))
        place = np.where(kind < PUSH, rng.normal(0, 0.025, (steps, 2)), np.where(kind < PUSH + ROUND, beside, anywhere))
        kept = np.concatenate([kind < PUSH + ROUND, place, rng.uniform(0.2, 1, (steps, 1))], 1)
        return np.concatenate([kept[held], rng.normal(0, 0.15, (steps, 2))], 1)

    def _walked(self, drawn: Float[np.ndarray, "n d"], states: States) -> Float[np.ndarray, "n k"]:
        target = drawn[:, 1:3] + drawn[:, :1] * states[:, 2:4]
        return (drawn[:, 3:4] * _towards(states[:, :2], target) + drawn[:, 4:]).clip(-1, 1)


def _towards(finger: Float[np.ndarray, "n 2"], target: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Actions to a target, no longer than 1, and shorter where one step leads there."""
    way = (target - finger) / (SPEED * DT * SUBSTEPS)
    return way / np.maximum(np.hypot(way[:, 0], way[:, 1])[:, None], 1)


def _layers(states: States) -> list[Layer]:
    block, ahead = states[:, 2:4], states[:, 4:6]
    up = np.stack([-ahead[:, 1], ahead[:, 0]], 1)
    parts = (VIEW.box(block + y * up, ahead, half) for y, half in ((BAR_Y, BAR), (STEM_Y, STEM)))
    return list(zip((joined(*parts), VIEW.disc(states[:, :2], FINGER)), COLOURS, strict=True))


def _walls() -> Float[np.ndarray, "3 h w"]:
    table = VIEW.box(np.zeros((1, 2)), np.array([[1.0, 0.0]]), (TABLE, TABLE))
    return WALL * (1 - np.broadcast_to(table, (3, SIDE, SIDE)))


_GROUND = _walls()

gymnasium.register("postformer/Pushing-v0", "postformer.embodied.pushing:Pushing")
