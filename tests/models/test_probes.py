"""Probes find a linear map that is there, tell noise by its size, and are refused where they could tell anything."""

import pytest
import torch

from postformer.models.probes import probe


def test_a_linear_attribute_is_found_and_noise_has_its_size():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 6, generator=g, dtype=torch.float64) * torch.tensor([1, 1, 1, 1, 1e-3, 5.0]).double() + 3
    weight = torch.randn(6, 2, generator=g, dtype=torch.float64)
    clean = z @ weight - 7
    noisy = clean[:, 1:] + 0.5 * torch.randn(4000, 1, generator=g, dtype=torch.float64)
    found = probe(z[:2000].float(), torch.cat([clean, noisy], 1)[:2000])
    score = found.score(z[2000:], torch.cat([clean, noisy], 1)[2000:])
    assert score.rmse[:2].max() < 1e-2
    assert score.rmse[2].item() == pytest.approx(0.5, rel=0.05)
    assert score.r2[2].item() == pytest.approx(1 - 0.25 / noisy.var().item(), abs=0.01)
    assert found(z.view(4, 1000, 6)).shape == (4, 1000, 3)


def test_what_embeddings_do_not_tell_scores_nothing():
    g = torch.Generator().manual_seed(0)
    z, truth = torch.randn(3000, 5, generator=g), torch.randn(3000, 1, generator=g)
    assert abs(float(probe(z[:1500], truth[:1500]).score(z[1500:], truth[1500:]).r2)) < 0.02


def test_a_number_that_never_changes_does_no_harm():
    g = torch.Generator().manual_seed(0)
    z = torch.cat([torch.randn(100, 3, generator=g), torch.full((100, 2), 4.0)], 1)
    score = probe(z, z[:, :1]).score(z, z[:, :1])
    assert float(score.rmse) < 1e-4


def test_too_few_embeddings_are_refused():
    with pytest.raises(ValueError, match="6 embeddings of 5 numbers"):
        probe(torch.randn(6, 5), torch.randn(6, 1))
