"""Surprise is the error of the next frame, and pairs are told apart by it as by hand."""

import pytest
import torch

from postformer.models.world import World
from postformer.objectives.surprise import surprise, told_apart


def test_surprise_is_the_error_of_the_next_embedding_or_picture():
    torch.manual_seed(0)
    model = World(
        3, (8, 8), dim=4, widths=(4, 6), width=8, depth=1, look=True, mixers=({"kind": "gated_delta", "heads": 2},)
    ).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    clips = torch.rand(2, 3, 5, 8, 8)
    with torch.no_grad():
        z = model.encode(clips.transpose(1, 2))
        made, _ = model.predict(z[:, :-1], torch.zeros(2, 4, 0))
        far, drawn = surprise(model, {"clips": clips}), surprise(model, {"clips": clips}, pictures=True)
        assert torch.allclose(far, (made - z[:, 1:]).square().mean(-1))
        assert torch.allclose(drawn[1, 2], (model.decode(made[1, 2]) - clips[1, :, 3]).square().mean())
        changed = clips.clone()
        changed[:, :, 3:] = torch.rand(2, 3, 2, 8, 8)
        assert torch.equal(surprise(model, {"clips": changed})[:, :2], far[:, :2])
        assert (surprise(model, {"clips": changed})[:, 2] != far[:, 2]).all()


def test_pairs_are_told_apart_as_by_hand():
    told = told_apart(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0, 2.5, 9.0]))
    assert told.pairwise == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    above = [1 + 0.5 + 0 + 0, 1 + 0.5 + 0 + 0, 1 + 1 + 0 + 0, 4]
    assert told.auroc == pytest.approx(sum(above) / 16)
    same = torch.rand(5)
    assert told_apart(same, same).pairwise == 0.5
    with pytest.raises(ValueError, match="give one number for each"):
        told_apart(torch.rand(3), torch.rand(4))
