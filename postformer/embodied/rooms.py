"""Two rooms as an environment: the dot is to be pushed through the door to where a picture shows it.

The task of PLDM (Sobal et al. 2025, arXiv 2502.14819) and EB-JEPA (Terver et al. 2026, arXiv 2602.03604, its two rooms): 200 pushes, start
and goal in different rooms, reached where the dot ends within 4.5 pixels of its goal.

n worlds, h pushes.
"""

from typing import ClassVar

import gymnasium
import numpy as np
from jaxtyping import Float

from postformer.data.rooms import LONGEST, SIDE, anywhere, dots, layouts, moved, walls
from postformer.embodied.environment import Environment, States

NEAR, NEARER = 4.5, 2.0
"""Pixels that count as reached, and by the stricter rule."""
STEPS = 200


class TwoRooms(Environment):
    """`fixed` keeps wall and door where they are. An action is a push in pixels; a state is the dot's place and those of wall and door,
    and is all there is of physics."""

    names: ClassVar[tuple[str, ...]] = ("x", "y", "wall", "door")
    apartness: ClassVar[tuple[str, ...]] = ("distance", "nearer")
    bounds: ClassVar[tuple[float, ...]] = (NEAR, NEARER)

    def __init__(self, *, fixed: bool = True, steps: int = STEPS, render_mode: str | None = None):
        super().__init__(steps=steps, render_mode=render_mode)
        self.fixed = fixed
        self.observation_space = gymnasium.spaces.Box(0, 1, (2, SIDE, SIDE), np.float32)
        self.action_space = gymnasium.spaces.Box(-LONGEST, LONGEST, (self.actions,), np.float32)

    def states(self, physics: Float[np.ndarray, "*n p"]) -> Float[np.ndarray, "*n s"]:
        return physics

    def pictures(self, states: Float[np.ndarray, "*n s"]) -> Float[np.ndarray, "*n c h w"]:
        flat = states.reshape(-1, len(self.names))
        both = np.stack([dots(flat[:, :2]), walls(flat[:, 2:])], 1)
        return both.reshape(*states.shape[:-1], *both.shape[1:])

    def problem(self, rng: np.random.Generator) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "s"]]:
        """Start and goal on different sides of the wall, farther apart than what counts as reached."""
        layout = layouts(rng, 1, fixed=self.fixed)
        while True:
            start, goal = anywhere(rng, layout)[0], anywhere(rng, layout)[0]
            if (start[0] < layout[0, 0]) != (goal[0] < layout[0, 0]) and np.hypot(*(start - goal)) > NEAR:
                return np.concatenate([start, layout[0]]), np.concatenate([goal, layout[0]])

    def apart(self, states: Float[np.ndarray, "*n s"], goals: Float[np.ndarray, "*#n s"]) -> Float[np.ndarray, "*n m"]:
        far = np.hypot(states[..., 0] - goals[..., 0], states[..., 1] - goals[..., 1])
        return np.stack([far, far], -1)

    def straight(self, states: States, goals: States) -> Float[np.ndarray, "n k"]:
        way = (goals - states)[:, :2]
        return way * np.minimum(1.0, LONGEST / np.hypot(*way.T).clip(1e-12))[:, None]

    def advance(self, physics: Float[np.ndarray, "n p"], actions: Float[np.ndarray, "n h k"]) -> Float[np.ndarray, "n h p"]:
        """As in the other environments; a push that is longer than LONGEST along an axis is cut to it."""
        layout, place, out = physics[:, 2:], physics[:, :2], []
        for push in np.clip(actions, -LONGEST, LONGEST).transpose(1, 0, 2):
            place = moved(place, push.astype(float), layout)
            out.append(np.concatenate([place, layout], 1))
        return np.stack(out, 1)

    def render(self) -> np.ndarray:
        """The picture as rows, columns and colours from 0 to 255: walls grey, the goal green, the dot red."""
        (dot, wall), goal = self._seen()[0], self.goal_picture[0]
        picture = 0.45 * wall[..., None] * np.ones(3)
        picture[..., 0], picture[..., 1] = np.maximum(picture[..., 0], dot), np.maximum(picture[..., 1], goal)
        return np.round(255 * picture.clip(0, 1)).astype(np.uint8)
