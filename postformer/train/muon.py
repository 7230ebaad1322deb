"""Muon: momentum whose matrices are made nearly orthogonal.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", with the update scaled to AdamW's root mean square
(Liu et al. 2025, arXiv 2502.16982, section 2.2). `torch.optim.Muon` computes the same in bf16 alone, which a processor without
bf16 instructions does six times slower than fp32, and which differs from one processor to the next.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that lifts small singular values fastest; they end between about 0.7 and 1.2 and not at 1."""
STEPS = 5


def orthogonalize(x: Float[Tensor, "*b m n"]) -> Float[Tensor, "*b m n"]:
    """U V^T of each matrix's singular value decomposition, nearly, by Newton-Schulz steps: in bf16 on a GPU and in fp32 elsewhere."""
    if x.ndim > 2:
        return torch.stack([orthogonalize(matrix) for matrix in x])
    a, b, c = COEFFICIENTS
    y = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    y = y.mT if x.shape[0] > x.shape[1] else y
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = y @ y.mT
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if x.shape[0] > x.shape[1] else y).to(x.dtype)


class Muon(torch.optim.Optimizer):
    """For matrices, stacks of them (three dimensions), and the filters of convolutions over rows and columns and more (four or five), each
    output's a row, as in Jordan et al.; Nesterov momentum. Each step first shrinks a matrix by lr * weight_decay, as AdamW does."""

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        if not lr >= 0:
            raise ValueError(f"lr={lr} must be at least 0")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group["lr"], group["weight_decay"], group["momentum"])
        return loss

    def _update(self, p: Tensor, grad: Tensor, lr: float, weight_decay: float, momentum: float) -> None:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        wanted = grad.lerp(buffer, momentum)
        update = orthogonalize(wanted.flatten(1) if p.ndim > 3 else wanted)
        p.mul_(1 - lr * weight_decay)
        p.add_(update.view_as(p), alpha=-lr * 0.2 * math.sqrt(max(update.shape[-2:])))
