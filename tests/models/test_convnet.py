"""The convolutional net that names images."""

import pytest
import torch
import torch.nn.functional as F

from postformer.models.convnet import ConvNet


def shaken(**words) -> ConvNet:
    torch.manual_seed(0)
    model = ConvNet(3, **{"channels": 2, "widths": (8, 16), "blocks": 1, **words}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def test_it_is_what_the_paper_draws():
    """Norm, activation and convolution twice beside the identity; written out."""
    model, x = shaken(), torch.randn(2, 2, 8, 8, dtype=torch.float64)

    def norm(layer, x):
        return F.group_norm(x, layer.num_groups, layer.weight, layer.bias, 1e-6)

    y = F.conv2d(x, model.first.weight, padding=1)
    first, second = model.parts
    z = F.conv2d(F.relu(norm(first.norm, y)), first.conv.weight, padding=1)
    y = y + F.conv2d(F.relu(norm(first.last_norm, z)), first.last.weight, padding=1)
    a = F.relu(norm(second.norm, y))
    z = F.conv2d(a, second.conv.weight, stride=2, padding=1)
    y = F.conv2d(a, second.beside.weight, stride=2) + F.conv2d(F.relu(norm(second.last_norm, z)), second.last.weight, padding=1)
    wanted = F.relu(norm(model.norm, y)).mean((2, 3)) @ model.head.weight.T + model.head.bias
    assert (model(x) - wanted).abs().max() < 1e-5  # logits are fp32


def test_an_image_does_not_depend_on_its_batch_and_any_size_goes():
    model = shaken().eval()
    for size in ((8, 8), (5, 7), (1, 1), (16, 8)):
        x = torch.randn(3, 2, *size, dtype=torch.float64)
        assert model(x).shape == (3, 3)
        assert (model(x)[1:2] - model(x[1:2])).abs().max() < 1e-6


def test_operations_are_counted():
    model = ConvNet(3, channels=2, widths=(8,), blocks=1)
    assert model.flops((4, 4)) == 2 * 16 * 9 * (2 * 8 + 2 * 8 * 8) + 2 * 8 * 3
    assert model.cost(16).prefill_flops == model.flops((4, 4)) / 16
    assert model.cost(16).parameters == sum(p.numel() for p in model.parameters())


def test_gradients_reach_all():
    model = shaken()
    model(torch.randn(2, 2, 8, 8, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("words", [{"widths": ()}, {"blocks": 0}, {"channels": 0}])
def test_what_it_refuses(words):
    with pytest.raises(ValueError, match="must be at least 1"):
        ConvNet(3, **words)
    with pytest.raises(ValueError, match="1 channels, and the model takes 3"):
        ConvNet(3)(torch.zeros(1, 1, 8, 8))
