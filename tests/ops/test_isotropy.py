"""Distances to a standard normal cloud against their closed forms, and the rank of clouds that are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.ops.isotropy import (
    POINTS,
    REACH,
    Collapse,
    Watch,
    correlated,
    deviation,
    directions,
    effective_rank,
    sigreg,
    too_narrow,
)


def integral(f, points=20_001):
    t = torch.linspace(-REACH, REACH, points, dtype=torch.float64)
    return float(torch.trapezoid(f(t), t))


def test_of_a_normal_cloud_it_is_what_chance_gives():
    """n |mean of exp(itz) - exp(-t²/2)|² has the mean 1 - exp(-t²), whatever n is."""
    torch.manual_seed(0)
    expected = integral(lambda t: (1 - (-t.square()).exp()) * (-t.square() / 2).exp())
    for n in (50, 1000):
        found = [float(sigreg(z, directions(8, 64, z))) for z in torch.randn(60, n, 8, dtype=torch.float64)]
        assert sum(found) / 60 == pytest.approx(expected, rel=0.04)


def test_of_a_collapsed_cloud_it_is_the_distance_of_a_point():
    z = torch.zeros(100, 4, dtype=torch.float64)
    expected = 100 * integral(lambda t: (1 - (-t.square() / 2).exp()).square() * (-t.square() / 2).exp())
    assert float(sigreg(z, directions(4, 3, z))) == pytest.approx(expected, rel=1e-3)
    assert POINTS == 17


@given(st.integers(0, 100), st.floats(0.1, 0.7) | st.floats(1.5, 4))
def test_other_widths_and_places_are_farther(seed, scale):
    torch.manual_seed(seed)
    z = torch.randn(2000, 6, dtype=torch.float64)
    along = directions(6, 32, z)
    assert torch.allclose(along.norm(dim=0), torch.ones(32, dtype=torch.float64))
    assert sigreg(scale * z, along) > 3 * sigreg(z, along)
    assert sigreg(z + 0.5, along) > 3 * sigreg(z, along)


def test_its_gradient_is_right_and_leads_to_the_normal_cloud():
    torch.manual_seed(0)
    z = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    along = directions(3, 5, z)
    assert torch.autograd.gradcheck(lambda z: sigreg(z, along), (z,))
    cloud = torch.nn.Parameter(0.1 * torch.randn(256, 4) + 2)
    optimizer = torch.optim.Adam([cloud], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        sigreg(cloud, directions(4, 64, cloud)).backward()
        optimizer.step()
    assert cloud.mean(0).abs().max() < 0.15
    assert (cloud.std(0) - 1).abs().max() < 0.15
    assert effective_rank(cloud.detach()) > 3.9


def test_variance_and_covariance_by_hand():
    z = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 10.0]], dtype=torch.float64)
    assert float(correlated(z)) == pytest.approx(2 * 8.0**2 / 2)
    assert float(too_narrow(z)) == 0
    assert float(too_narrow(0.1 * z, eps=0.0)) == pytest.approx(((1 - 0.2) + (1 - 0.4)) / 2)


def test_the_rank_of_known_clouds():
    torch.manual_seed(0)
    assert effective_rank(torch.ones(50, 8)) == 0
    line = torch.randn(500, 1) * torch.randn(1, 8)
    assert effective_rank(line) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.randn(50_000, 8)) == pytest.approx(8, abs=0.01)
    uneven = torch.randn(100_000, 2) * torch.tensor([3.0, 1.0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(uneven) == pytest.approx(math.exp(entropy), rel=0.01)


def test_deviation_is_the_mean_of_the_dimensions():
    assert deviation(torch.tensor([[1.0, 2.0], [3.0, 8.0]])) == pytest.approx((1 + 3) / 2)


def test_a_watch_tells_a_collapse_and_nothing_else():
    watch = Watch(patience=3)
    for rank, spread in [(5.0, 0.4), (1.2, 0.4), (1.2, 0.4), (4.0, 0.4), (5.0, 0.03), (5.0, 0.03), (5.0, 0.05)]:
        watch.look(rank, spread)
    for _ in range(2):
        watch.look(5.0, 0.03)
    with pytest.raises(Collapse, match=r"for 3 steps .* of the 0\.4 at the start; the last have 5\.00 and 0\.03"):
        watch.look(5.0, 0.03)


def test_a_watch_that_is_restored_goes_on():
    watch, again = Watch(patience=2), Watch(patience=2)
    watch.look(5.0, 0.4)
    watch.look(5.0, 0.01)
    again.load_state_dict(watch.state_dict())
    with pytest.raises(Collapse, match=r"for 2 steps .* of the 0\.4 at the start"):
        again.look(5.0, 0.01)
