"""Environments on MuJoCo's physics (Todorov et al. 2012): one at a time with gymnasium's interface, or many at once as arrays.

All that a simulation is lies in one vector, MuJoCo's full physics state (time, positions, velocities): its solver starts anew in each
step, so a vector that is put back gives the same future to the last bit, alone or among others. Pictures are drawn from the state,
without OpenGL.

n simulations, h steps of control; p numbers of physics, s of a state, k of an action, q coordinates.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from postformer.data.task import SPLITS
from postformer.embodied.drawing import SIDE
from postformer.embodied.environment import Actions, Environment, Physics, States

try:
    import gymnasium
    import mujoco
    from mujoco.rollout import Rollout
except ImportError as e:
    raise ImportError(f"simulations need {e.name}: pip install 'postformer[embodied]'") from e

DT, SUBSTEPS = 0.005, 20
"""Seconds of a step of physics, and how many of them are one step of control."""


class Simulator(Environment):
    """An environment of MuJoCo's. Many simulations run on `threads`.

    A subclass gives the model (MJCF) and what actions are multiplied with beside what any environment gives; and how walks come about.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": round(1 / (DT * SUBSTEPS))}  # noqa: RUF012
    xml: ClassVar[str]
    scale: ClassVar[float]

    def __init__(self, *, steps: int = 50, threads: int = 1, render_mode: str | None = None):
        super().__init__(steps=steps, render_mode=render_mode)
        if threads < 1:
            raise ValueError(f"threads={threads} must be at least 1")
        self.model = mujoco.MjModel.from_xml_string(self.xml)  # type: ignore[attr-defined]
        self._pool = Rollout(nthread=0 if threads == 1 else threads)
        self._scratch = [mujoco.MjData(self.model) for _ in range(threads)]  # type: ignore[attr-defined]
        self.observation_space = gymnasium.spaces.Box(0, 255, (3, SIDE, SIDE), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (self.actions,), np.float32)

    # many at once

    @abstractmethod
    def _begun(self, rng: np.random.Generator) -> Float[np.ndarray, "p"]:
        """Where a walk begins."""

    @abstractmethod
    def _drawn(self, rng: np.random.Generator, steps: int) -> Float[np.ndarray, "h d"]:
        """The random numbers of a walk."""

    @abstractmethod
    def _walked(self, drawn: Float[np.ndarray, "n d"], states: States) -> Float[np.ndarray, "n k"]:
        """What random numbers make one do."""

    def at_rest(self, positions: Float[np.ndarray, "n q"]) -> Physics:
        """Simulations at time 0 that stand still."""
        return np.pad(positions, ((0, 0), (1, self.model.nv)))

    def advance(self, physics: Float[np.ndarray, "n p"], actions: Actions) -> Float[np.ndarray, "n h p"]:
        """Physics after each step of control."""
        controls = np.clip(actions, -1, 1).astype(np.float64) * self.scale
        out = np.empty((len(physics), actions.shape[1], physics.shape[-1]))
        steps = np.empty((len(physics), SUBSTEPS, physics.shape[-1]))
        for t in range(actions.shape[1]):
            self._pool.rollout(self.model, self._scratch, physics, controls[:, t : t + 1].repeat(SUBSTEPS, 1), state=steps)
            physics = out[:, t] = steps[:, -1]
        return out

    def walks(self, rngs: Sequence[np.random.Generator], steps: int) -> tuple[Float[np.ndarray, "n t p"], Actions]:
        """Random walks, each a function of its own generator: physics at the beginning and after each step, and actions."""
        now = np.stack([self._begun(rng) for rng in rngs])
        drawn = np.stack([self._drawn(rng, steps) for rng in rngs])
        physics, actions = [now], []
        for t in range(steps):
            actions.append(self._walked(drawn[:, t], self.states(now)).astype(np.float32))
            now = self.advance(now, actions[-1][:, None])[:, 0]
            physics.append(now)
        return np.stack(physics, 1), np.stack(actions, 1)

    def episodes(
        self, numbers: Sequence[int], steps: int, *, seed: int, split: str = "train", stride: int = 1
    ) -> dict[str, np.ndarray]:
        """Random walks as data, each a function of (seed, split, number): `{"observations": uint8 [n, steps + 1, 3, 64, 64], "actions":
        float32 [n, steps, 2 stride], "states": float32 [n, steps + 1, s]}`. An action is `stride` steps of control, after which there is a
        picture. Raises ValueError for another split."""
        if split not in SPLITS:
            raise ValueError(f"split: unknown {split!r}; choose from {', '.join(SPLITS)}")
        rngs = [np.random.default_rng([seed, SPLITS.index(split), i]) for i in numbers]
        physics, actions = self.walks(rngs, steps * stride)
        states = self.states(physics[:, ::stride])
        return {
            "observations": self.pictures(states),
            "actions": actions.reshape(len(actions), steps, -1),
            "states": states.astype(np.float32),
        }

    # one at a time

    def render(self) -> np.ndarray:
        """The picture as rows, columns and colours."""
        return self._seen()[0].transpose(1, 2, 0).copy()

    def close(self) -> None:
        """Give the threads back."""
        self._pool.close()

    def _over(self) -> bool:
        """Physics has a clock, which goes back with what is restored."""
        return round(float(self._now[0]) / (DT * SUBSTEPS)) >= self.steps
