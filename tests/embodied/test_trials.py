"""Trials: what is reached at the end and ever, and plans searched for in the simulator itself."""

import numpy as np
import pytest
import torch

from postformer.embodied.planning import Search
from postformer.embodied.reacher import Reacher
from postformer.embodied.trials import Problems, at_random, following, oracle, problems, tried

ENV = Reacher()


def tips(states, goals):
    far = ((states[..., 6:8] - goals[..., 6:8]) ** 2).sum(-1)
    return far.mean(-1) + far[..., -1]


def test_problems_are_those_of_reset():
    posed = problems(ENV, [7, 3])
    env = Reacher()
    env.reset(seed=3)
    assert np.array_equal(env.snapshot(), posed.start[1])
    assert np.array_equal(env.goal, posed.goal[1])


def test_what_was_reached_on_the_way_is_told_beside_the_end():
    """One is pushed through its goal, one is left at it, one never gets there, and only the tip of one does."""
    start = ENV.at_rest(np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]))
    plan = np.zeros((4, 12, 2))
    plan[:2, :, 0] = 1
    plan[1, 8:] = 0
    path = ENV.states(ENV.advance(start, plan))
    goal = np.stack([path[0, 5], path[1, -1], ENV.states(ENV.at_rest(np.array([[3.0, 1.0]])))[0], path[3, -1]])
    goal[3, 2:4] = [1, 0]  # another elbow, the same tip

    def policy(now, goal):
        done = round(float(now[0, 0]) / 0.1)
        return plan[:, done : done + 5]

    found = tried(ENV, policy, Problems(start, goal), 12)
    assert found.ever.tolist() == [[True, True], [True, True], [False, False], [True, False]]
    assert found.at_end.tolist() == [[False, False], [True, True], [False, False], [True, False]]
    assert np.allclose(found.begin[:, 0], np.hypot(*(ENV.states(start) - goal)[:, 6:8].T))
    assert np.allclose(found.end[:, 0], np.hypot(*(path[:, -1] - goal)[:, 6:8].T))


@pytest.mark.parametrize(("lasting", "execute", "steps"), [(2, 2, 16), (1, 4, 16)])
def test_plans_searched_in_the_simulator_reach_goals(lasting, execute, steps):
    posed = problems(ENV, range(4))
    search = Search(horizon=8, samples=32, iterations=3, elites=8, limit=1.4)
    policy = oracle(ENV, tips, search, lasting=lasting, execute=execute, generator=torch.Generator().manual_seed(0))
    found = tried(ENV, policy, posed, steps)
    anything = tried(ENV, at_random(ENV, np.random.default_rng(0), 3), posed, steps)
    assert found.ever[:, 0].mean() >= 0.7
    assert found.end[:, 0].mean() < 0.3 * anything.end[:, 0].mean()


def test_random_actions_last():
    policy = at_random(ENV, np.random.default_rng(0), 4)
    found = policy(np.zeros((3, 5)), np.zeros((3, 8)))
    assert found.shape == (3, 4, 2)
    assert np.array_equal(found, found[:, :1].repeat(4, 1))
    assert not np.array_equal(found, policy(np.zeros((3, 5)), np.zeros((3, 8))))
    one = following(ENV, ENV.straight)(*problems(ENV, [0, 1]))
    assert one.shape == (2, 1, 2)
