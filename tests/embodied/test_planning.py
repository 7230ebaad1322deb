"""Plans: the known best one is found by every method, problems do not mix, states are forked and not changed."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.embodied.planning import Plan, Search, _noise, ahead, bounded, searched, to_goal
from postformer.models.world import World

SEARCHES = {
    "cem": Search(horizon=5, samples=200, iterations=15, elites=20, limit=1.0),
    "mppi": Search(method="mppi", horizon=5, samples=200, iterations=15, elites=20, limit=1.0, temperature=0.3),
    "gradient": Search(method="gradient", horizon=5, samples=8, iterations=60, elites=2, limit=1.0, spread=0.1),
}


def walked(goal):
    """A point that begins at 0 and goes by its actions: how far from the goal it ends, and a little for the way."""

    def cost(actions):
        return (actions.sum(-2) - goal[:, None]).square().sum(-1) + 0.01 * actions.square().sum((-1, -2))

    return cost


@pytest.mark.parametrize("method", SEARCHES)
def test_the_best_plan_is_found(method):
    """Equal steps straight to the goal: x = goal / (h + 0.01) each; and as far as it can where the goal is too far."""
    goal = torch.tensor([[2.0, -1.0], [0.0, 0.5], [30.0, 40.0]])
    plan = searched(walked(goal), (3, 2), SEARCHES[method], generator=torch.Generator().manual_seed(0))
    expected = (goal / 5.01)[:, None].expand(3, 5, 2).clone()
    expected[2] = torch.tensor([0.6, 0.8])
    assert (plan.actions - expected).abs().max() < 0.3
    assert (plan.actions.sum(1) - expected.sum(1)).abs().max() < 0.12
    assert torch.allclose(walked(goal)(plan.actions[:, None])[:, 0], plan.cost, atol=1e-5)


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_is_never_worse_than_what_it_begins_with(method):
    goal = torch.tensor([[2.0, -1.0]])
    best = searched(walked(goal), (1, 2), SEARCHES[method], generator=torch.Generator().manual_seed(0))
    few = Search(method=method, horizon=5, samples=4, iterations=1, elites=2)
    again = searched(walked(goal), (1, 2), few, begin=best.actions, generator=torch.Generator().manual_seed(1))
    assert float(again.cost) <= float(best.cost) + 1e-6
    assert float(searched(walked(goal), (1, 2), few, generator=torch.Generator().manual_seed(1)).cost) > float(again.cost)


@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_ever_fewer_are_drawn_and_the_best_are_among_the_next(method):
    """iCEM: as many as shrink says, twice the elites at least, beside the kept ones, the cheapest of all before."""
    search = Search(method=method, horizon=5, samples=100, iterations=5, elites=10, limit=1.0, shrink=3.0, kept=0.3)
    asked = []

    def cost(actions):
        asked.append((actions, walked(torch.tensor([[2.0, -1.0]]))(actions)))
        return asked[-1][1]

    plan = searched(cost, (1, 2), search, generator=torch.Generator().manual_seed(0))
    assert [len(actions[0]) for actions, _ in asked] == [100, 3 + 33, 3 + 20, 3 + 20, 3 + 20]
    for (before, cost_before), (after, _) in itertools.pairwise(asked):
        best = before[0, cost_before[0].argsort()[:3]]
        assert torch.equal(after[0, :3], best)
    assert float(plan.cost) == min(float(found.min()) for _, found in asked)


@pytest.mark.parametrize("h", [2, 5, 8, 16])
def test_noise_has_its_colour_and_deviation(h):
    """The power of each frequency is that of the lowest, divided by what the frequency is of it to the power of the colour."""
    noise = _noise((400, 50, h, 2), 2.0, torch.Generator().manual_seed(0)).double()
    assert noise.std((0, 1, 3)).sub(1).abs().max() < 0.03
    turns = torch.exp(-2j * torch.pi * torch.arange(h)[:, None] * torch.arange(h) / h)
    power = torch.einsum("fh,bnhk->bnfk", turns, noise.to(turns.dtype)).abs().square().mean((0, 1, 3))
    frequency = torch.arange(h).clamp(max=h - torch.arange(h)).clamp(min=1).double()
    assert torch.allclose((power / power[1]).double(), frequency**-2, rtol=0.1)
    white = _noise((400, 50, h, 2), 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(white, torch.randn(400, 50, h, 2, generator=torch.Generator().manual_seed(0)))


def test_what_is_left_of_a_plan_is_moved_on():
    plan = Plan(torch.arange(6.0).view(1, 3, 2), torch.zeros(1))
    assert ahead(plan, 2).tolist() == [[[4, 5], [0, 0], [0, 0]]]


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=2), st.floats(0.1, 5))
def test_actions_keep_their_direction_within_the_limit(action, limit):
    found = bounded(torch.tensor(action, dtype=torch.float64), limit)
    length = torch.tensor(action, dtype=torch.float64).norm()
    assert float(found.norm()) <= limit * (1 + 1e-9)
    assert torch.allclose(found * length, torch.tensor(action, dtype=torch.float64) * found.norm(), atol=1e-6)


def world():
    torch.manual_seed(0)
    model = World(1, (8, 8), 2, dim=4, widths=(4,), width=8, depth=1, mixers=({"kind": "gated_delta", "heads": 2},))
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model.eval()


def test_the_cost_is_how_far_it_imagines_to_be():
    model, now, goal = world(), torch.randn(3, 4), torch.randn(3, 4)
    actions = torch.randn(3, 2, 3, 2)
    with torch.no_grad():
        found = to_goal(model, now, goal, lasting=2, last=0.5)(actions)
        for i in range(3):
            for j in range(2):
                made, _ = model.imagine(now[i : i + 1], actions[i, j : j + 1].repeat_interleave(2, 1))
                far = (made[0] - goal[i]).square().mean(-1)
                assert float(found[i, j]) == pytest.approx(float(far.mean() + 0.5 * far[-1]), rel=1e-4)


def test_a_paced_cost_is_counted_in_steps():
    model, now, goal, actions = world(), torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 2, 3, 2)
    model.notice(torch.randn(2, 6, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]))
    with torch.no_grad():
        found = to_goal(model, now, goal, paced=True)(actions)
        made, _ = model.imagine(now[1:2], actions[1, 1:])
        far = (model.in_steps(made[0]) - model.in_steps(goal[1])).square().mean()
    assert float(found[1, 1]) == pytest.approx(float(far), rel=1e-4)


def test_samples_fork_from_the_state_and_leave_it_as_it_was():
    model, now, goal = world(), torch.randn(2, 4), torch.randn(2, 4)
    with torch.no_grad():
        made, state = model.imagine(now, torch.randn(2, 3, 2))
        before = [leaf.clone() for layer in state for leaf in layer]
        actions = torch.randn(2, 5, 3, 2)
        found = to_goal(model, made[:, -1], goal, state=state)(actions)
        own, _ = model.imagine(made[:1, -1], actions[0, 2:3], tuple(type(s)(*(leaf[:1] for leaf in s)) for s in state))
        assert float(found[0, 2]) == pytest.approx(float((own[0] - goal[0]).square().mean()), rel=1e-4)
        fresh = to_goal(model, made[:, -1], goal)(actions)
    assert not torch.allclose(found, fresh)
    for leaf, kept in zip((leaf for layer in state for leaf in layer), before, strict=True):
        assert torch.equal(leaf, kept)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"elites": 400}, "elites=400 from 2 to samples=300"),
        ({"momentum": 1.0}, r"momentum=1\.0 from 0 to below 1"),
        ({"shrink": 0.5}, r"shrink=0\.5 must be at least 1"),
        ({"kept": 1.5}, r"kept=1\.5 from 0 to 1"),
    ],
)
def test_mistakes_are_told(words, says):
    with pytest.raises(ValueError, match=says):
        Search(**words)
