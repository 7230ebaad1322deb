"""Routers, their losses and their statistics against definitions written out token by token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.ops import routing

Z = torch.tensor([[2.0, 1.0, 0.0, -1.0], [-1.0, 0.5, 3.0, 0.4]], dtype=torch.double)


def logits(n=40, e=12, seed=0):
    return torch.randn(n, e, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def test_softmax_top_by_hand():
    routes = routing.softmax_top(Z, 2, renormalise=False)
    assert routes.experts.tolist() == [[0, 1], [2, 1]]
    whole = [sum(math.exp(v) for v in row) for row in Z.tolist()]
    expected = [[math.exp(2) / whole[0], math.exp(1) / whole[0]], [math.exp(3) / whole[1], math.exp(0.5) / whole[1]]]
    torch.testing.assert_close(routes.weights, torch.tensor(expected, dtype=torch.double))
    again = routing.softmax_top(Z, 2, renormalise=True).weights
    torch.testing.assert_close(again, torch.tensor([[v / sum(row) for v in row] for row in expected], dtype=torch.double))
    torch.testing.assert_close(routes.scores.sum(-1), torch.ones(2, dtype=torch.double))


def test_renormalised_softmax_is_softmax_over_the_chosen():
    one, other = routing.softmax_top(logits(), 3, renormalise=True), routing.top_softmax(logits(), 3)
    torch.testing.assert_close(one.weights, other.weights)
    assert torch.equal(one.experts, other.experts)


def brute(scores, wanted, top, groups, top_groups, best_of):
    """The choice of one token, by sorting."""
    size = len(wanted) // groups
    members = [range(g * size, (g + 1) * size) for g in range(groups)]
    best = sorted(range(groups), key=lambda g: -sum(sorted((wanted[i] for i in members[g]), reverse=True)[:best_of]))
    allowed = [i for g in best[:top_groups] for i in members[g]]
    return sorted(allowed, key=lambda i: -wanted[i])[:top]


@given(st.sampled_from([(1, 1), (3, 1), (4, 2), (6, 3), (12, 9)]), st.integers(1, 3), st.integers(0, 99))
def test_groups_and_correction_are_the_published_choice(groups, top, seed):
    count, limit = groups
    z = logits(seed=seed)
    correction = torch.randn(12, dtype=torch.double, generator=torch.Generator().manual_seed(seed + 1)) * 0.2
    top = min(top, 12 // count * limit)
    for kind, best_of in (("softmax", 1), ("sigmoid", 2)):
        of = routing.softmax_top if kind == "softmax" else routing.sigmoid_top
        routes = of(z, top, renormalise=False, correction=correction, groups=count, top_groups=limit)
        s = z.softmax(-1) if kind == "softmax" else z.sigmoid()
        for row in range(len(z)):
            expected = brute(s[row].tolist(), (s + correction)[row].tolist(), top, count, limit, best_of)
            assert sorted(routes.experts[row].tolist()) == sorted(expected)
        torch.testing.assert_close(routes.weights, s.gather(1, routes.experts))


def test_the_correction_has_no_gradient_and_no_weight():
    z, correction = logits().requires_grad_(), torch.full((12,), 5.0, dtype=torch.double, requires_grad=True)
    shifted = routing.sigmoid_top(z, 2, renormalise=True, correction=correction)
    torch.testing.assert_close(shifted.weights, routing.sigmoid_top(z, 2, renormalise=True).weights)
    shifted.weights[:, 0].sum().backward()
    assert correction.grad is None
    assert z.grad.abs().sum() > 0


def test_sigmoids_of_zero_are_no_division_by_zero():
    routes = routing.sigmoid_top(torch.full((2, 4), -200.0), 2, renormalise=True)
    assert routes.weights.isfinite().all()
    assert routes.scores.isfinite().all()


# ---------------------------------------------------------------- losses


def test_balance_is_one_when_even_and_the_number_of_experts_when_collapsed():
    even = torch.full((8, 4), 0.25, dtype=torch.double)
    assert routing.balance_loss(even, torch.arange(4).repeat(4).view(8, 2)).item() == pytest.approx(1.0)
    one = torch.nn.functional.one_hot(torch.zeros(8, dtype=torch.long), 4).double()
    assert routing.balance_loss(one, torch.zeros(8, 1, dtype=torch.long)).item() == pytest.approx(4.0)


def test_balance_by_its_definition():
    routes = routing.softmax_top(logits(), 3, renormalise=False)
    total = 0.0
    for e in range(12):
        f = sum(e in row for row in routes.experts.tolist()) / (40 * 3)
        total += f * routes.scores[:, e].mean().item()
    assert routing.balance_loss(routes.scores, routes.experts).item() == pytest.approx(12 * total)


def test_layers_that_each_collapsed_onto_other_experts_are_not_balanced():
    """The trap of pooling: four layers, each with all tokens at two experts of its own."""
    layers = [(torch.nn.functional.one_hot(torch.tensor([[2 * i, 2 * i + 1]] * 16), 8).sum(1) / 2).double() for i in range(4)]
    chosen = [torch.tensor([[2 * i, 2 * i + 1]] * 16) for i in range(4)]
    pooled = routing.balance_loss(torch.cat(layers), torch.cat(chosen)).item()
    each = [routing.balance_loss(s, e).item() for s, e in zip(layers, chosen, strict=True)]
    assert pooled == pytest.approx(1.0)
    assert each == pytest.approx([4.0] * 4)


def test_balance_of_sequences_is_each_by_itself():
    routes = routing.softmax_top(logits(), 3, renormalise=False)
    scores, experts = routes.scores.view(4, 10, 12), routes.experts.view(4, 10, 3)
    each = torch.stack([routing.balance_loss(s, e) for s, e in zip(scores, experts, strict=True)])
    torch.testing.assert_close(routing.sequence_balance_loss(scores, experts), each.mean())


def test_z_loss_by_its_definition():
    expected = sum(math.log(sum(math.exp(v) for v in row)) ** 2 for row in Z.tolist()) / 2
    assert routing.z_loss(Z).item() == pytest.approx(expected)


@pytest.mark.parametrize("of", [routing.balance_loss, lambda s, e: routing.sequence_balance_loss(s[None], e[None])])
def test_gradients_of_balance(of):
    z = logits(6, 5).requires_grad_()
    experts = z.detach().topk(2).indices
    assert torch.autograd.gradcheck(lambda z: of(z.softmax(-1), experts), (z,))


# ---------------------------------------------------------------- loads


def test_statistics_of_loads():
    even, one = torch.tensor([3, 3, 3]), torch.tensor([9, 0, 0])
    assert routing.max_violation(torch.stack([even, one])).tolist() == [0.0, 2.0]
    assert routing.load_entropy(torch.stack([even, one])).tolist() == pytest.approx([1.0, 0.0])
    assert routing.load(torch.tensor([[0, 2], [2, 1]]), 4).tolist() == [1, 1, 2, 0]


def test_capacity_keeps_first_choices_and_earlier_tokens():
    experts = torch.tensor(
        [[0, 1], [0, 1], [1, 0], [2, 0]]
    )  # four tokens, two choices, three experts: room for ceil(8 / 3) = 3
    kept = routing.within_capacity(experts, 3, 1.0)
    assert kept.tolist() == [[True, True], [True, True], [True, True], [True, False]]
    assert routing.within_capacity(experts, 3, 9.0).all()


@given(st.integers(1, 30), st.integers(1, 3), st.floats(0.3, 2.0), st.integers(0, 99))
def test_capacity_by_its_definition(n, k, factor, seed):
    experts = logits(n, 6, seed).topk(k).indices
    room, taken, expected = math.ceil(factor * n * k / 6), [0] * 6, torch.zeros(n, k, dtype=torch.bool)
    for place in range(k):
        for token in range(n):
            e = int(experts[token, place])
            expected[token, place] = taken[e] < room
            taken[e] += 1
    assert torch.equal(routing.within_capacity(experts, 6, factor), expected)


def test_the_correction_moves_towards_the_idle_and_stays_centred():
    moved = routing.corrected(torch.zeros(4), torch.tensor([10, 2, 2, 2]), 0.1)
    torch.testing.assert_close(moved, torch.tensor([-0.15, 0.05, 0.05, 0.05]))
    assert routing.corrected(torch.zeros(3), torch.tensor([4, 4, 4]), 0.1).tolist() == [0, 0, 0]
