"""The passes of one layer that are timed, and how a ratio of times is told."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from postformer.claims.stats import Estimate
from postformer.claims.words import interval, value


def forward(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """A call of the layer without gradients."""

    def run() -> object:
        with torch.inference_mode():
            return layer(x)

    return run


def both(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """A call of the layer and its gradients, to the input and every parameter; of several outputs the first is taught."""
    x = x.clone().requires_grad_()
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)

    def run() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        y = layer(x)
        (y[0] if isinstance(y, tuple) else y).backward(dy)

    return run


PASSES = {"forward": forward, "both": both}


def told(ratio: Estimate) -> str:
    """A ratio with its interval."""
    number = ratio.number()
    return f"{value(number)} ({interval(number)}; {ratio.n} rounds)"
