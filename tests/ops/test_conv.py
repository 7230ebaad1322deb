"""The convolution's kernel against torch's own: outputs, gradients, and any split."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.ops import _cpu
from postformer.ops.conv import causal_conv, causal_conv_reference

kernel = pytest.mark.skipif(not _cpu.BUILT, reason="installed without the kernels")


def inputs(b, t, c, k, bias=True, dtype=torch.float32):
    g = torch.Generator().manual_seed(t + c)
    shapes = ((b, t, c), (c, k), (c,), (b, k - 1, c))
    args: list = [torch.randn(s, generator=g, dtype=dtype).requires_grad_() for s in shapes]
    return [x if bias or i != 2 else None for i, x in enumerate(args)]


@kernel
@given(b=st.integers(1, 3), t=st.integers(1, 12), c=st.integers(1, 40), k=st.integers(1, 5), bias=st.booleans())
def test_equals_torchs_own_with_gradients(b, t, c, k, bias):
    args = inputs(b, t, c, k, bias)
    wide = [None if x is None else x.detach().double().requires_grad_() for x in args]
    outputs = causal_conv(*args), causal_conv_reference(*wide)
    weights = [torch.randn(y.shape, generator=torch.Generator().manual_seed(i)) for i, y in enumerate(outputs[0])]
    found = []
    for (y, kept), own in zip(outputs, (args, wide), strict=True):
        wanted = [x for x in own if x is not None and x.numel()]
        loss = (y * weights[0].to(y.dtype)).sum() + (kept * weights[1].to(y.dtype)).sum()
        found.append([y, kept, *torch.autograd.grad(loss, wanted)])
    for mine, truth in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-5, atol=1e-5)


@kernel
@given(first=st.integers(0, 12), rest=st.integers(1, 12), k=st.integers(1, 5))
def test_the_same_bits_at_any_split_and_from_a_view(first, rest, k):
    x, weight, bias, past = (a.detach() for a in inputs(2, first + rest, 21, k))
    y, kept = causal_conv(x, weight, bias, past)
    y1, middle = causal_conv(x[:, :first], weight, bias, past)
    y2, end = causal_conv(x[:, first:], weight, bias, middle)
    assert torch.equal(torch.cat([y1, y2], 1), y)
    assert torch.equal(end, kept)
    both = torch.cat([x, x], 2)
    assert torch.equal(causal_conv(both[..., 21:], weight, bias, past)[0], y)
    assert torch.equal(causal_conv(x.mT.contiguous().mT, weight, bias, past)[0], y)
    one = torch.randn(1, 3, 21).transpose(0, 1)  # strides of a dimension of size 1 tell nothing
    three = torch.cat([past, past])[:3]
    assert torch.equal(causal_conv(one, weight, bias, three)[0], causal_conv(one.clone(), weight, bias, three)[0])
    torch.testing.assert_close(causal_conv(one, weight, bias, three)[0], causal_conv_reference(one, weight, bias, three)[0])


@kernel
@pytest.mark.parametrize("bias", [True, False])
def test_the_operator_keeps_torchs_rules_and_compiles_whole(bias):
    args = inputs(2, 9, 5, 4, bias)
    torch.library.opcheck(torch.ops.postformer.causal_conv.default, (*args, None, False))
    compiled = torch.compile(inspect.unwrap(causal_conv), fullgraph=True, backend="aot_eager")
    for mine, other in zip(compiled(*args), causal_conv(*args), strict=True):
        assert torch.equal(mine, other)
