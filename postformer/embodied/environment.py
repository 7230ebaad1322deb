"""Environments that are asked to look like a picture of their goal: one at a time with gymnasium's interface, or many at once as arrays.

All that the future depends on lies in one vector, the physics: one that is put back gives the same future to the last bit, alone or among
others. What is known of it as the state, what is seen, and how far apart two states are follow from that.

n environments, h steps of control; p numbers of physics, s of a state, k of an action, m ways to be apart.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Shaped

try:
    import gymnasium
except ImportError as e:
    raise ImportError(f"environments need {e.name}: pip install 'postformer[embodied]'") from e

Physics = Float[np.ndarray, "n p"]
States = Float[np.ndarray, "n s"]
Actions = Float[np.ndarray, "n h k"]


class Environment(gymnasium.Env[np.ndarray, np.ndarray], ABC):
    """Episodes end after `steps` and not at the goal, so that both can be told: who is there at the end, and who ever was.

    A subclass gives the names of a state's numbers, of the ways to be apart and the bounds that count as reached; the spaces of what is
    seen and done; and how states, pictures, problems and futures come about.
    """

    names: ClassVar[tuple[str, ...]]
    apartness: ClassVar[tuple[str, ...]]
    bounds: ClassVar[tuple[float, ...]]
    actions: ClassVar[int] = 2
    """Numbers of an action."""

    def __init__(self, *, steps: int, render_mode: str | None = None):
        if steps < 1 or render_mode not in (None, "rgb_array"):
            raise ValueError(f"steps={steps} must be at least 1, render_mode={render_mode!r} None or 'rgb_array'")
        self.steps, self.render_mode, self._done = steps, render_mode, 0

    # many at once

    @abstractmethod
    def states(self, physics: Float[np.ndarray, "*n p"]) -> Float[np.ndarray, "*n s"]:
        """What of physics is known as the state: `names`."""

    @abstractmethod
    def pictures(self, states: Float[np.ndarray, "*n s"]) -> Shaped[np.ndarray, "*n c h w"]:
        """What is seen of states."""

    @abstractmethod
    def problem(self, rng: np.random.Generator) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "s"]]:
        """A beginning, and the state of a goal that can be reached and is not reached yet."""

    @abstractmethod
    def apart(self, states: Float[np.ndarray, "*n s"], goals: Float[np.ndarray, "*#n s"]) -> Float[np.ndarray, "*n m"]:
        """How far states are from goals: first what the rule of success looks at, then what a stricter one does too."""

    @abstractmethod
    def straight(self, states: States, goals: States) -> Float[np.ndarray, "n k"]:
        """What one does who knows the true state and goes straight for the goal."""

    @abstractmethod
    def advance(self, physics: Physics, actions: Actions) -> Float[np.ndarray, "n h p"]:
        """Physics after each step of control."""

    def rollout(self, snapshot: Float[np.ndarray, "p"], actions: Actions) -> Float[np.ndarray, "n h s"]:
        """States after each action of some plans, all of which begin at one snapshot: what a planner asks that knows the simulator."""
        return self.states(self.advance(np.broadcast_to(snapshot, (len(actions), len(snapshot))), actions))

    def reached(self, states: Float[np.ndarray, "*n s"], goals: Float[np.ndarray, "*#n s"]) -> Bool[np.ndarray, "*n 2"]:
        """Whether states count as the goals, by the rule of success and by the stricter one."""
        near = self.apart(states, goals) <= np.array(self.bounds)
        return np.stack([near[..., 0], near.all(-1)], -1)

    # one at a time

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A new problem, a function of the seed; with options `{"start": physics, "goal": state}` that one. Raises ValueError for other
        options."""
        super().reset(seed=seed)
        if options and options.keys() != {"start", "goal"}:
            raise ValueError(f"options: {', '.join(options)}; give both start and goal, or none")
        start, self.goal = (options["start"], np.array(options["goal"], float)) if options else self.problem(self.np_random)
        self.restore(start)
        self._done = 0
        self.goal_picture = self.pictures(self.goal)
        return self._seen()[0], self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step of control. The reward is the distance to the goal, negative; the goal does not end an episode."""
        self._now = self.advance(self._now[None], np.asarray(action)[None, None])[0, 0]
        self._done += 1
        info = self._info()
        return self._seen()[0], -info[self.apartness[0]], False, self._over(), info

    def snapshot(self) -> Float[np.ndarray, "p"]:
        """All that the future depends on, but for the goal."""
        return self._now.copy()

    def restore(self, snapshot: Float[np.ndarray, "p"]) -> None:
        """Go back to a snapshot."""
        self._now = np.array(snapshot, float)

    def _over(self) -> bool:
        return self._done >= self.steps

    def _seen(self) -> Shaped[np.ndarray, "1 c h w"]:
        return self.pictures(self.states(self._now[None]))

    def _info(self) -> dict[str, Any]:
        state = self.states(self._now)
        far, near = self.apart(state, self.goal), self.reached(state, self.goal)
        told = {name: float(value) for name, value in zip(self.apartness, far, strict=True)}
        return {"state": state, **told, "success": bool(near[0]), "strict": bool(near[1])}
