"""A classifier's judgement of drawn images: the distance is the one of Gaussians, and real images score as real ones."""

import numpy as np
import pytest
import torch

from postformer.models.vision import ViT
from postformer.objectives.drawn import frechet, halves, judged, seen


def test_the_distance_is_that_of_the_gaussians():
    """Of independent coordinates it is |m - m'|² + sum (s - s')², and turning the space does not change it."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200_000, 3)) * [1, 2, 0.5], rng.normal(size=(200_000, 3)) * [2, 2, 0.1] + [1, 0, -1]
    assert frechet(a, b) == pytest.approx(1 + 1 + 1 + 0.4**2, rel=0.02)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    assert frechet(a @ turn, b @ turn) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)


def test_features_that_lie_in_a_plane_have_a_distance_too():
    flat = np.zeros((50, 4))
    flat[:, 0] = np.random.default_rng(0).normal(size=50)
    assert frechet(flat, flat + 2) == pytest.approx(16, rel=1e-6)
    with pytest.raises(ValueError, match="two images at least; there are 1 and 50"):
        frechet(flat[:1], flat)


def test_images_are_judged_beside_as_many_real_ones():
    torch.manual_seed(0)
    model = ViT(3, (8, 8), channels=1, dim=24, depth=1).eval()
    torch.nn.init.normal_(model.head.weight)
    real = torch.randn(41, 1, 8, 8)
    named = torch.from_numpy(seen(model, real).named)
    to, other = halves(named.numpy(), seed=5)
    assert len(to) == len(other) == len({*to, *other}) // 2
    counts = [np.bincount(named.numpy()[half], minlength=3).tolist() for half in (to, other)]
    assert counts[0] == counts[1] == (np.bincount(named.numpy(), minlength=3) // 2).tolist()
    same = judged(model, real[to], named[to], real, named, seed=5)
    assert same.right == same.real_right == same.asked == len(to)
    assert same.distance == pytest.approx(0, abs=1e-6)
    assert same.real > 0
    far = judged(model, torch.ones(len(to), 1, 8, 8), None, real, named, seed=5)
    assert far.right is None
    assert far.distance > far.real
    assert "taken for" not in far.listed()
    with pytest.raises(ValueError, match=f"3 drawn images, and a half of the real ones are {len(to)}"):
        judged(model, real[:3], None, real, named)
