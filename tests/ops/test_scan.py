"""The chunked scan against the recurrence as it is written: outputs and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.ops import scan
from postformer.ops.scan import selective_scan, selective_scan_reference


def inputs(b, t, c, n, seed=0, dtype=torch.double):
    g = torch.Generator().manual_seed(seed)
    u, dt, B, C = (torch.randn(b, t, k, generator=g, dtype=dtype) for k in (c, c, n, n))
    A, h = -torch.rand(c, n, generator=g, dtype=dtype) * 2, torch.randn(b, c, n, generator=g, dtype=dtype)
    return [x.requires_grad_() for x in (u, torch.nn.functional.softplus(dt).detach(), A, B, C, h)]


@given(t=st.integers(1, 20), chunk=st.integers(1, 8), b=st.integers(1, 3), c=st.integers(1, 5), n=st.integers(1, 4))
def test_equals_the_recurrence_with_gradients(t, chunk, b, c, n):
    args = inputs(b, t, c, n, seed=t)
    weight_y, weight_h = torch.randn(b, t, c, dtype=torch.double), torch.randn(b, c, n, dtype=torch.double)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "_chunk", lambda u, A: chunk)
        for f in (selective_scan, selective_scan_reference):
            y, h = f(*args)
            grads = torch.autograd.grad((y * weight_y).sum() + (h * weight_h).sum(), args)
            results.append((y, h, *grads))
        with torch.no_grad():
            results.append((*selective_scan(*args), *results[0][2:]))
    for other in results[:1] + results[2:]:
        for mine, truth in zip(other, results[1], strict=True):
            torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-10)


def test_gradcheck():
    assert torch.autograd.gradcheck(selective_scan, inputs(2, 5, 3, 2))


def test_inputs_are_left_alone():
    args = inputs(1, 9, 3, 2)
    before = [x.detach().clone() for x in args]
    y, h = selective_scan(*args)
    (y.sum() + h.sum()).backward()
    assert all(torch.equal(x, b) for x, b in zip(args, before, strict=True))
