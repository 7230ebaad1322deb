"""Two links in a plane that are to stand as in a picture.

It resembles the reacher of the DeepMind Control Suite (Tassa et al. 2018, arXiv 1801.00690) and of gymnasium, with numbers of its own: the
goal is a picture of the arm and no ball, actions are torques of the two joints as there, but damping is so heavy that a joint turns at
its greatest speed within a step of control or two, the elbow turns to both sides as far as ELBOW, the shoulder without end. As in the
Suite's `reacher-hard` the tip has to be within a tenth of the reach (there 0.025 of 0.24 m with the tip's own radius), not of a quarter
as in its `easy`; joints' angles are the stricter rule, for two poses have their tips at one place.
"""

import math
from typing import ClassVar

import gymnasium
import numpy as np
from jaxtyping import Float, UInt8

from postformer.embodied.drawing import Layer, View, painted
from postformer.embodied.simulator import DT, Simulator, States

UPPER, LOWER = 0.11, 0.09
"""Lengths of the links, in metres."""
THICK, TIP = 0.011, 0.015
"""Radii of the links, and of the disc at the tip."""
ELBOW = 2.6
"""How far the elbow bends to each side, in radians."""
TORQUE, DAMPING = 0.02, (0.0065, 0.005)
"""Newton metres of an action of 1, and per radian a second at the shoulder and at the elbow: their greatest speeds are 3.1 and 4."""
HIT, POSE = 0.02, math.radians(15)
"""How near to the goal's the tip has to be, and by the stricter rule each joint too."""
APART = 0.08
"""How far from the goal's the tip is at the beginning at least."""
VIEW = View(0.22)
COLOURS = ((0.0, 0.4, 0.9), (0.0, 0.85, 0.4), (1.0, 0.35, 0.25))
"""Of the links and the tip, which alone is red."""

XML = f"""
<mujoco model="reacher">
  <compiler angle="radian"/>
  <option timestep="{DT}" gravity="0 0 0" integrator="implicitfast"><flag warmstart="disable" contact="disable"/></option>
  <worldbody>
    <body>
      <joint name="shoulder" axis="0 0 1" damping="{DAMPING[0]}"/>
      <geom type="capsule" fromto="0 0 0 {UPPER} 0 0" size="{THICK}" mass="0.02"/>
      <body pos="{UPPER} 0 0">
        <joint name="elbow" axis="0 0 1" damping="{DAMPING[1]}" limited="true" range="{-ELBOW} {ELBOW}"/>
        <geom type="capsule" fromto="0 0 0 {LOWER} 0 0" size="{THICK}" mass="0.015"/>
        <site name="tip" pos="{LOWER} 0 0"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="shoulder"/><motor joint="elbow"/></actuator>
</mujoco>
"""


class Reacher(Simulator):
    """A two-joint planar arm."""

    xml = XML
    scale = TORQUE
    names: ClassVar[tuple[str, ...]] = (
        *("cos shoulder", "sin shoulder", "cos elbow", "sin elbow"),
        *("shoulder speed", "elbow speed", "tip x", "tip y"),
    )
    apartness: ClassVar[tuple[str, ...]] = ("distance", "shoulder", "elbow")
    bounds: ClassVar[tuple[float, ...]] = (HIT, POSE, POSE)

    def states(self, physics: Float[np.ndarray, "*n p"]) -> Float[np.ndarray, "*n s"]:
        a, b = physics[..., 1], physics[..., 2]
        cos, sin = np.cos(a), np.sin(a)
        x, y = (UPPER * first + LOWER * second for first, second in ((cos, np.cos(a + b)), (sin, np.sin(a + b))))
        return np.stack([cos, sin, np.cos(b), np.sin(b), physics[..., 3], physics[..., 4], x, y], -1)

    def pictures(self, states: Float[np.ndarray, "*n s"]) -> UInt8[np.ndarray, "*n 3 h w"]:
        return painted(states, _layers)

    def problem(self, rng: np.random.Generator) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "s"]]:
        start = self._begun(rng)
        while True:
            goal = self.states(self._begun(rng))
            if self.apart(self.states(start), goal)[0] >= APART:
                return start, goal

    def apart(self, states: Float[np.ndarray, "*n s"], goals: Float[np.ndarray, "*#n s"]) -> Float[np.ndarray, "*n m"]:
        far = np.hypot(states[..., 6] - goals[..., 6], states[..., 7] - goals[..., 7])
        errors = np.abs(_errors(states, goals))
        return np.stack([far, errors[..., 0], errors[..., 1]], -1)

    def straight(self, states: States, goals: States) -> Float[np.ndarray, "n k"]:
        """Each joint the shorter way, slower where it is near."""
        return (_errors(states, goals) / [0.4, 0.5]).clip(-1, 1)

    def _begun(self, rng: np.random.Generator) -> Float[np.ndarray, "p"]:
        most = ELBOW - 0.1
        return self.at_rest(np.array([[rng.uniform(-np.pi, np.pi), rng.uniform(-most, most)]]))[0]

    def _drawn(self, rng: np.random.Generator, steps: int) -> Float[np.ndarray, "h d"]:
        """Torques that are held for 1 to 8 steps, and a little noise."""
        held = np.repeat(np.arange(steps), rng.integers(1, 9, steps))[:steps]
        return rng.uniform(-1, 1, (steps, 2))[held] + rng.normal(0, 0.1, (steps, 2))

    def _walked(self, drawn: Float[np.ndarray, "n d"], states: States) -> Float[np.ndarray, "n k"]:
        return drawn.clip(-1, 1)


def _errors(states: Float[np.ndarray, "*n s"], goals: Float[np.ndarray, "*#n s"]) -> Float[np.ndarray, "*n 2"]:
    """How far the shoulder and the elbow have to turn."""
    now, then = (np.arctan2(x[..., 1:4:2], x[..., 0:4:2]) for x in (states, goals))
    far = then - now
    far[..., 0] = (far[..., 0] + np.pi) % (2 * np.pi) - np.pi
    return far


def _layers(states: States) -> list[Layer]:
    elbow, tip = UPPER * states[:, :2], states[:, 6:8]
    covers = (VIEW.capsule(0 * elbow, elbow, THICK), VIEW.capsule(elbow, tip, THICK), VIEW.disc(tip, TIP))
    return list(zip(covers, COLOURS, strict=True))


gymnasium.register("postformer/Reacher-v0", "postformer.embodied.reacher:Reacher")
