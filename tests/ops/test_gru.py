"""The recurrence of a minimal gated unit: a scan of all tokens equals a loop over them, gradients too."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.ops.gru import gated_mean


def looped(keep, new, h):
    out = []
    for t in range(keep.shape[1]):
        h = keep[:, t] * h + new[:, t]
        out.append(h)
    return torch.stack(out, 1)


@given(st.integers(1, 40), st.integers(0, 1000))
def test_the_scan_is_the_loop(length, seed):
    g = torch.Generator().manual_seed(seed)
    keep, new = (
        torch.rand(2, length, 3, generator=g, dtype=torch.float64),
        torch.randn(2, length, 3, generator=g, dtype=torch.float64),
    )
    keep[:, ::7] = 0  # nothing before these
    h = torch.randn(2, 3, generator=g, dtype=torch.float64)
    assert torch.allclose(gated_mean(keep, new, h), looped(keep, new, h), atol=1e-12)


def test_gradients_are_those_of_the_loop():
    g = torch.Generator().manual_seed(0)
    given = [torch.rand(2, 9, 3, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2)]
    h = torch.randn(2, 3, generator=g, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(gated_mean, (*given, h))
