"""Tasks of planning to what a picture shows: how each is posed, and the ways to act in it that are compared.

A way is a search in a model's imagination ("cem", "mppi", "gradient"), what the model tells at once ("reach"), the same search in the
simulator itself ("oracle"), going straight for the goal with the true state known ("straight"), or any actions ("random").
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from postformer.config import Spec
from postformer.embodied.acting import Imagined, Reached
from postformer.embodied.environment import Environment
from postformer.embodied.planning import Search
from postformer.embodied.trials import Policy, StateCost, at_random, following, oracle
from postformer.models.world import STILL

METHODS = ("reach", "cem", "mppi", "gradient")
OTHERS = ("random", "straight", "oracle")
WALKS, WALK_SEED = 256, 1000
"""Random walks from which the oracle knows what a step changes."""


class Task(NamedTuple):
    """How a task is posed and planned for: its environment, the recipe and what is changed of its data, the steps of an episode, how long
    an action of a plan lasts, how many are done before the next look, the weight of a plan's end, the search, whether its distances are
    counted in steps, and how many looks a model remembers: where things go on moving, one does not tell how fast."""

    env: Callable[[], Any]
    recipe: str
    data: Spec
    steps: int
    lasting: int
    execute: int
    last: float
    search: Search
    paced: bool = False
    memory: int = 1

    def searching(self, method: str) -> Search:
        """The search by a method."""
        search = dataclasses.replace(self.search, method="cem" if method == "reach" else method)
        if method != "gradient":
            return search
        few = max(sum(map(search.drawn, range(search.iterations))) // 64, 2)  # followed far, instead of many that are drawn
        return dataclasses.replace(search, samples=few, iterations=20, elites=2, shrink=1.0, spread=0.3 * search.spread)


def _made(place: str, name: str, **words: Any) -> Any:
    """An environment of this package, imported when it is wanted."""
    return getattr(importlib.import_module(f"postformer.embodied.{place}"), name)(**words)


ROOMS = Search(
    horizon=16, samples=540, iterations=3, elites=6, spread=1.5, least=0.15, limit=1.8, colour=2.0, shrink=3.0, kept=0.3
)
"""Many are drawn at first: few plans find the door and come near the goal behind it."""
SIMULATED = Search(horizon=8, samples=200, iterations=4, elites=16, spread=0.7, least=0.1, limit=1.4, colour=1.0)
TASKS = {
    "rooms": Task(functools.partial(_made, "rooms", "TwoRooms", fixed=True), "world-rooms", {}, 200, 5, 2, 30.0, ROOMS),
    "moving": Task(
        functools.partial(_made, "rooms", "TwoRooms", fixed=False), "world-rooms", {"fixed": False}, 200, 5, 2, 30.0, ROOMS
    ),
    "reacher": Task(functools.partial(_made, "reacher", "Reacher"), "world-reacher", {}, 30, 2, 1, 1.0, SIMULATED, True, 2),
    "pushing": Task(
        functools.partial(_made, "pushing", "Pushing"),
        "world-pushing",
        {},
        42,
        3,
        1,
        1.0,
        dataclasses.replace(SIMULATED, horizon=6),
        True,
        2,
    ),
}


def policy(task: Task, env: Environment, way: str, model: Any = None) -> Policy:
    """What acts in a task in a way, the same each time. Raises ValueError for "reach" of a model without it."""
    generator = torch.Generator().manual_seed(0)
    if way == "random":
        return at_random(env, np.random.default_rng(0), task.lasting)
    if way == "straight":
        return following(env, env.straight)
    if way == "oracle":
        cost = _in_steps(env, task) if task.paced else _nearness(env, task.last)
        return oracle(env, cost, task.search, lasting=task.lasting, execute=task.execute, generator=generator)
    if way == "reach":
        return Reached(env, model, task.search.limit)
    words: dict[str, Any] = {"lasting": task.lasting, "execute": task.execute, "last": task.last, "paced": task.paced}
    return Imagined(env, model, task.searching(way), **words, memory=task.memory, generator=generator)


def _nearness(env: Environment, last: float) -> StateCost:
    def cost(states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        far = env.apart(states, goals)[..., 0] ** 2
        return far.mean(-1) + last * far[..., -1]

    return cost


def _in_steps(env: Any, task: Task) -> StateCost:
    """As `World.in_steps`, by the true state."""
    physics, _ = env.walks([np.random.default_rng([WALK_SEED, i]) for i in range(WALKS)], 20 * task.lasting)
    states = env.states(physics[:, :: task.lasting])
    steps = np.diff(states, axis=1).reshape(-1, states.shape[-1])
    changes = steps.T @ steps / len(steps)
    weights = np.linalg.inv(changes + STILL * np.trace(changes) / len(changes) * np.eye(len(changes)))

    def cost(states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        away = states - goals
        far = np.einsum("...i,ij,...j->...", away, weights, away)
        return far.mean(-1) + task.last * far[..., -1]

    return cost
