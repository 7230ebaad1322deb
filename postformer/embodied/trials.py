"""Goals tried for: what a policy reaches from many beginnings, and policies to compare with.

b problems, j actions until the next look, k numbers of an action; p numbers of physics, s of a state; t steps of control; n plans of h
actions.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from postformer.embodied.environment import Environment
from postformer.embodied.planning import Plan, Search, ahead, searched

Policy = Callable[[Float[np.ndarray, "b p"], Float[np.ndarray, "b s"]], Float[np.ndarray, "b j k"]]
"""What is done next, of physics and the goals' states. One that sees pictures draws them: `env.pictures(env.states(physics))`."""
StateCost = Callable[[Float[np.ndarray, "b n h s"], Float[np.ndarray, "b 1 1 s"]], Float[np.ndarray, "b n"]]
"""What it costs that plans lead through some states, beside the goals' states."""


class Outcome(NamedTuple):
    """How far problems were from their goals at the beginning and the end, and which were reached at the end and ever: by the rule and by
    the stricter one."""

    begin: Float[np.ndarray, "b m"]
    end: Float[np.ndarray, "b m"]
    at_end: Bool[np.ndarray, "b 2"]
    ever: Bool[np.ndarray, "b 2"]


class Problems(NamedTuple):
    """Beginnings, as physics, and the states of goals."""

    start: Float[np.ndarray, "b p"]
    goal: Float[np.ndarray, "b s"]


def problems(env: Environment, seeds: Sequence[int]) -> Problems:
    """Those that `env.reset` poses for the seeds."""
    starts, goals = zip(*(env.problem(np.random.default_rng(seed)) for seed in seeds), strict=True)
    return Problems(np.stack(starts), np.stack(goals))


def walked(env: Environment, policy: Policy, posed: Problems, steps: int) -> Float[np.ndarray, "b t p"]:
    """Where a policy leads in some steps of control: physics at the beginning and after each of them."""
    now, goal = posed
    parts, done = [now[:, None]], 0
    while done < steps:
        parts.append(env.advance(now, policy(now, goal)[:, : steps - done]))
        now, done = parts[-1][:, -1], done + parts[-1].shape[1]
    return np.concatenate(parts, 1)


def tried(env: Environment, policy: Policy, posed: Problems, steps: int) -> Outcome:
    """What a policy reaches in some steps of control."""
    states = env.states(walked(env, policy, posed, steps))
    reached = env.reached(states[:, 1:], posed.goal[:, None])
    begin, end = (env.apart(states[:, i], posed.goal) for i in (0, -1))
    return Outcome(begin, end, reached[:, -1], np.asarray(reached.any(1)))


def still(env: Environment) -> Policy:
    """Nothing is done."""
    return lambda now, goal: np.zeros((len(now), 1, env.actions))


def at_random(env: Environment, rng: np.random.Generator, lasting: int = 1) -> Policy:
    """Any action of the environment's, each for some steps."""
    space = env.action_space
    return lambda now, goal: rng.uniform(space.low, space.high, (len(now), 1, env.actions)).repeat(lasting, 1)  # type: ignore[attr-defined]


def following(env: Environment, act: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Policy:
    """What one does who knows states and goals, as `env.straight`."""
    return lambda now, goal: act(env.states(now), goal)[:, None]


def oracle(
    env: Environment,
    cost: StateCost,
    search: Search,
    *,
    lasting: int = 1,
    execute: int = 1,
    generator: torch.Generator | None = None,
) -> Policy:
    """Plans searched for in the simulator itself, an oracle: an action is `lasting` steps long, and `execute` of them are done before the
    next search, which begins with what is left of the plan."""
    left: list[Plan] = []

    def policy(now: np.ndarray, goal: np.ndarray) -> np.ndarray:
        def costs(actions: Tensor) -> Tensor:
            b, n = actions.shape[:2]
            steps = actions.flatten(0, 1).repeat_interleave(lasting, 1).numpy()
            states = env.states(env.advance(now.repeat(n, 0), steps))
            return torch.from_numpy(cost(states.reshape(b, n, *states.shape[1:]), goal[:, None, None])).float()

        begin = ahead(left.pop(), execute) if left else None
        left.append(searched(costs, (len(now), env.actions), search, begin=begin, generator=generator))
        return left[0].actions[:, :execute].repeat_interleave(lasting, 1).numpy()

    return policy
