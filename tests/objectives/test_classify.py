"""Classes of images: the loss by hand, images that are moved, and a small ViT that learns which corner is bright."""

import pytest
import torch
from torch import nn

from postformer.models.vision import ViT
from postformer.objectives.classify import Classify


class Fixed(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits


def test_the_loss_is_the_cross_entropy_and_its_smoothing_is_of_training_alone():
    logits, label = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.2, 0.1]]), torch.tensor([0, 2])
    batch = {"images": torch.zeros(2, 1, 2, 2), "label": label}
    objective = Classify(Fixed(logits), smoothing=0.3)
    own, even = -logits.log_softmax(1)[torch.arange(2), label], -logits.log_softmax(1).mean(1)
    assert objective(batch)["loss"].item() == pytest.approx((0.7 * own + 0.3 * even).mean().item())
    found = objective.eval()(batch)
    assert found["loss"].item() == pytest.approx(own.mean().item())
    assert found["accuracy"].item() == 0.5
    assert found["tokens"].item() == 2


def test_images_are_moved_by_whole_pixels_and_mirrored():
    torch.manual_seed(0)
    image = torch.arange(25.0).view(1, 1, 5, 5)
    objective = Classify(Fixed(torch.zeros(1)), shift=1, flip=True)
    wide = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    crops = [wide[0, 0, i : i + 5, j : j + 5] for i in range(3) for j in range(3)]
    choices = torch.stack([*crops, *(crop.flip(-1) for crop in crops)])
    found = objective.moved(image.expand(300, 1, 5, 5))[:, 0]
    which = (found[:, None] == choices).all((2, 3))
    assert bool(which.any(1).all())
    assert bool(which.any(0).all())
    still = Classify(Fixed(torch.zeros(1)))
    assert torch.equal(still.moved(image), image)


@pytest.mark.parametrize(("words", "says"), [({"smoothing": 1.0}, "smoothing=1.0"), ({"shift": -1}, "shift=-1")])
def test_what_does_not_fit_is_told(words, says):
    with pytest.raises(ValueError, match=says):
        Classify(Fixed(torch.zeros(1)), **words)


def test_a_small_vit_learns_where_it_is_bright():
    torch.manual_seed(0)

    def batch(n):
        label = torch.randint(4, (n,))
        images = torch.randn(n, 1, 8, 8) * 0.3
        for i, where in enumerate(label.tolist()):
            images[i, 0, 4 * (where // 2) : 4 * (where // 2) + 4, 4 * (where % 2) : 4 * (where % 2) + 4] += 1
        return {"images": images, "label": label}

    objective = Classify(
        ViT(4, (8, 8), channels=1, dim=24, depth=1, mixers=({"kind": "spacetime", "heads": 2, "rope": False, "bias": True},))
    )
    optimizer = torch.optim.AdamW(objective.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        objective(batch(32))["loss"].backward()
        optimizer.step()
    assert objective.eval()(batch(200))["accuracy"] > 0.95
