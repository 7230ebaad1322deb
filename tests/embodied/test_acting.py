"""A policy that plans in imagination: with a model that is right it gets there, it remembers, and it goes on from the better plan."""

import dataclasses

import numpy as np
import pytest
import torch

from postformer.embodied.acting import Imagined, Reached, as_seen
from postformer.embodied.environment import Environment
from postformer.embodied.planning import Search
from postformer.embodied.trials import problems, tried
from postformer.models.world import World


class Plane(Environment):
    """A point on a plane, seen as a picture of two pixels: its place."""

    names = ("x", "y")
    apartness = ("distance",)
    bounds = (0.3,)

    def states(self, physics):
        return physics

    def pictures(self, states):
        return states[..., None, None, :].astype(np.float32)

    def problem(self, rng):
        return rng.uniform(-2, 2, 2), rng.uniform(-2, 2, 2)

    def apart(self, states, goals):
        return np.linalg.norm(states - goals, axis=-1, keepdims=True)

    def straight(self, states, goals):
        return (goals - states).clip(-1, 1)

    def advance(self, physics, actions):
        return physics[:, None] + actions.cumsum(1)


class Right(torch.nn.Module):
    """Embeds the place as itself and adds what is done; `blocks` actions are one of its own."""

    def __init__(self, blocks=1, reach=None):
        super().__init__()
        self.actions, self.reach, self.told = 2 * blocks, reach, []

    def encode(self, seen):
        return seen.flatten(-3)

    def init_state(self, batch):
        return (torch.zeros(batch, 1),)

    def predict(self, z, actions, state=None):
        self.told.append((z, actions))
        return z, (state[0] + z.shape[1],)

    def imagine(self, z, actions, state=None):
        moves = actions.unflatten(-1, (-1, 2)).sum(-2)
        return z[:, None] + moves.cumsum(1), state


ENV = Plane(steps=6)
SEARCH = Search(horizon=4, samples=64, elites=8, iterations=4, limit=1.0)


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("lasting", "execute"), [(1, 1), (2, 1), (2, 2)])
def test_with_a_model_that_is_right_goals_are_reached(lasting, execute):
    policy = Imagined(ENV, Right(lasting), SEARCH, lasting=lasting, execute=execute, last=3.0, generator=seeded())
    found = tried(ENV, policy, problems(ENV, range(20)), 6 * lasting)
    assert found.at_end[:, 0].mean() > 0.8
    assert policy.left.actions.shape == (20, 4, 2)


@pytest.mark.parametrize("method", ["cem", "mppi", "gradient"])
def test_every_method_acts_and_no_model_learns_from_it(method):
    """A policy is asked where no gradient is kept, and a search along one keeps its own."""
    torch.manual_seed(0)
    model = World(2, (1, 1), 2, dim=2, widths=(2,), width=8, depth=1, mixers=({"kind": "mingru"},))
    torch.nn.init.normal_(model.head.weight)
    short = Flat(steps=2)
    policy = Imagined(short, model, dataclasses.replace(SEARCH, method=method, iterations=2), last=3.0, generator=seeded())
    found = tried(short, policy, problems(short, range(3)), 2)
    assert np.isfinite(found.end).all()
    assert all(p.grad is None for p in model.parameters())


class Flat(Plane):
    """The same, with the two numbers of a place as two channels of one pixel."""

    def pictures(self, states):
        return states[..., None, None].astype(np.float32)


def test_what_was_seen_and_done_is_remembered():
    model = Right()
    policy = Imagined(ENV, model, SEARCH, memory=3, generator=seeded())
    now, goal = np.zeros((2, 2)), np.ones((2, 2))
    done = []
    for _ in range(4):
        done.append(policy(now, goal))
        now = now + done[-1][:, 0]
    z, actions = model.told[-1]
    assert len(model.told) == 3  # nothing was done before the first look
    assert z.shape == actions.shape == (2, 2, 2)
    assert np.allclose(actions[:, -1].numpy(), done[2][:, 0], atol=1e-6)
    assert np.allclose(actions[:, 0].numpy(), done[1][:, 0], atol=1e-6)
    assert np.allclose(z[:, 1].numpy(), now - done[3][:, 0] - done[2][:, 0], atol=1e-5)


def test_a_plan_that_the_model_tells_is_where_the_search_begins():
    way = Right(reach=lambda z, goal: (goal - z) / 2)
    nothing = Search(horizon=4, samples=2, elites=2, iterations=1, limit=1.0, spread=1e-6, least=0.0)
    now, goal = np.zeros((1, 2)), np.array([[0.8, -0.4]])
    assert np.allclose(Imagined(ENV, way, nothing, last=1.0)(now, goal), [[[0.4, -0.2]]], atol=1e-4)
    assert np.allclose(Imagined(ENV, Right(), nothing, last=1.0)(now, goal), 0, atol=1e-4)
    wrong = Right(reach=lambda z, goal: z - goal)
    policy = Imagined(ENV, wrong, SEARCH, last=1.0, generator=seeded())
    first = policy(now, goal)
    left = policy.left.cost
    policy(now + first[:, 0], goal)
    assert policy.left.cost <= left + 1e-3  # what was left of the plan, not what is told


def test_what_is_told_can_be_done_without_a_search():
    policy = Reached(ENV, Right(2, reach=lambda z, goal: torch.cat([goal - z, 0 * z], -1)), 1.0)
    found = policy(np.zeros((2, 2)), np.array([[0.5, 0.0], [3.0, 4.0]]))
    assert np.allclose(found, [[[0.5, 0], [0, 0]], [[0.6, 0.8], [0, 0]]], atol=1e-6)


def test_bytes_are_shares():
    assert as_seen(np.array([[[255, 0]]], np.uint8)).tolist() == [[[1, 0]]]
    assert as_seen(np.array([[[0.5]]], np.float32)).tolist() == [[[0.5]]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"memory": 2, "execute": 2}, "would not be seen; take 1 of either"),
        ({"execute": 5}, "execute=5 must be from 1 to horizon=4"),
        ({"lasting": 0}, "lasting=0"),
    ],
)
def test_mistakes_are_told(words, says):
    with pytest.raises(ValueError, match=says):
        Imagined(ENV, Right(), SEARCH, **words)
    with pytest.raises(ValueError, match="lasting=1: 2 numbers are no whole actions of the model's 4"):
        Imagined(ENV, Right(2), SEARCH)
    with pytest.raises(ValueError, match="made without reach"):
        Reached(ENV, Right(), 1.0)
