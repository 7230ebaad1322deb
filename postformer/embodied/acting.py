"""A policy that plans in a model's imagination, from what it sees to what it is shown as the goal.

Model-predictive control with latent goals: Sobal et al. 2025 (PLDM, arXiv 2502.14819, section 4); Assran et al. 2025 (V-JEPA 2-AC, arXiv
2506.09985, section 3.2).

b problems, j actions until the next look, k numbers of an action; p numbers of physics, s of a state.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from postformer.embodied.environment import Environment
from postformer.embodied.planning import Cost, Plan, Search, ahead, bounded, searched, to_goal
from postformer.state import clone


def as_seen(pictures: Shaped[np.ndarray, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """Pictures from 0 to 1, as models of a world are taught them."""
    seen = torch.from_numpy(np.ascontiguousarray(pictures)).float()
    return seen / 255 if pictures.dtype == np.uint8 else seen


class Imagined:
    """Of all problems at once what is done next: the first `execute` actions of a plan, each done `lasting` times, which the model imagines
    to lead to what the goals look like. The next search begins with what is left of the plan. `last` is the weight of a plan's end beside
    the mean of its way, and with `paced` distances are counted in steps. The model remembers what it saw at the last `memory` looks, and
    what was done between. One with `reach` tells of a plan of its own, from which the search begins where that costs less than what is
    left.

    Raises ValueError for a memory of several looks between which several actions are done, that nobody sees the outcome of, and for actions
    that last shorter than the model's.
    """

    def __init__(
        self,
        env: Environment,
        model: Any,
        search: Search,
        *,
        lasting: int = 1,
        execute: int = 1,
        last: float = 0.0,
        memory: int = 1,
        paced: bool = False,
        generator: torch.Generator | None = None,
    ):
        if memory > 1 and execute > 1:
            raise ValueError(
                f"memory={memory} and execute={execute}: what is done between looks would not be seen; take 1 of either"
            )
        if not 1 <= execute <= search.horizon or min(lasting, memory) < 1:
            raise ValueError(
                f"execute={execute} must be from 1 to horizon={search.horizon}, lasting={lasting} and memory={memory} at least 1"
            )
        if lasting * env.actions % model.actions:
            raise ValueError(
                f"lasting={lasting}: {lasting * env.actions} numbers are no whole actions of the model's {model.actions}"
            )
        self.env, self.model, self.search, self.generator = env, model, search, generator
        self.lasting, self.execute, self.last, self.memory = lasting, execute, last, memory
        self.paced = paced
        self.looks: list[Tensor] = []
        self.done: list[Tensor] = []
        self.left: Plan | None = None

    @torch.no_grad()
    def __call__(self, now: Float[np.ndarray, "b p"], goal: Float[np.ndarray, "b s"]) -> Float[np.ndarray, "b j k"]:
        """Search, and return the actions until the next look."""
        env, model = self.env, self.model
        self.looks = [*self.looks, model.encode(as_seen(env.pictures(env.states(now))))][-self.memory :]
        self.done = self.done[len(self.done) + 1 - len(self.looks) :]
        state = None
        if self.done:
            state = model.init_state(len(now))
            _, state = model.predict(torch.stack(self.looks[:-1], 1), torch.stack(self.done, 1), state)
        wanted = model.encode(as_seen(env.pictures(goal)))
        cost = to_goal(model, self.looks[-1], wanted, state=state, lasting=self.lasting, last=self.last, paced=self.paced)
        begin = self._better(cost, self._told(wanted, state), None if self.left is None else ahead(self.left, self.execute))
        self.left = searched(cost, (len(now), env.actions), self.search, begin=begin, generator=self.generator)
        steps = self.left.actions[:, : self.execute].repeat_interleave(self.lasting, 1)
        self.done = [*self.done, steps[:, : self.lasting].flatten(1)]
        return steps.double().numpy()

    def _told(self, wanted: Tensor, state: Any) -> Tensor | None:
        """The plan that the model tells at once, each of its actions as the mean of what is done in it."""
        model, env = self.model, self.env
        if model.reach is None:
            return None
        z, plan = self.looks[-1], []
        state = model.init_state(len(z)) if state is None else clone(state)
        for _ in range(self.search.horizon * self.lasting * env.actions // model.actions):
            plan.append(model.reach(z, wanted))
            made, state = model.imagine(z, plan[-1][:, None], state)
            z = made[:, 0]
        steps = torch.stack(plan, 1).view(len(z), self.search.horizon, self.lasting, env.actions)
        return bounded(steps.mean(2), self.search.limit)

    def _better(self, cost: Cost, told: Tensor | None, left: Tensor | None) -> Tensor | None:
        """Of two plans of each problem the one that costs less."""
        if told is None or left is None:
            return left if told is None else told
        both = torch.stack([left, told], 1)
        return both.take_along_dim(cost(both).argmin(1)[:, None, None, None], 1)[:, 0]


class Reached:
    """A policy without a search: what the model tells at once that leads from what is seen to the goal, of at most `limit` a step."""

    def __init__(self, env: Environment, model: Any, limit: float):
        if model.reach is None:
            raise ValueError("this model tells of no way to a goal: it was made without reach")
        self.env, self.model, self.limit = env, model, limit

    @torch.no_grad()
    def __call__(self, now: Float[np.ndarray, "b p"], goal: Float[np.ndarray, "b s"]) -> Float[np.ndarray, "b j k"]:
        """The actions until the next look, those of one of the model's."""
        env, model = self.env, self.model
        z, wanted = (model.encode(as_seen(env.pictures(states))) for states in (env.states(now), goal))
        steps = model.reach(z, wanted).view(len(z), -1, env.actions)
        return bounded(steps, self.limit).double().numpy()
