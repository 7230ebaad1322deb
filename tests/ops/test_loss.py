"""The cross-entropy kernel against torch's own, in fp64."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from postformer.ops import _cpu
from postformer.ops.loss import cross_entropy

kernel = pytest.mark.skipif(not _cpu.BUILT, reason="installed without the kernels")


def inputs(n: int, v: int, scale: float = 1.0):
    g = torch.Generator().manual_seed(n + v)
    logits = (scale * torch.randn(n, v, generator=g)).requires_grad_()
    return logits, torch.randint(v, (n,), generator=g)


@kernel
@given(
    n=st.integers(0, 5), v=st.integers(1, 300), scale=st.sampled_from([0.0, 1.0, 30.0]), shift=st.sampled_from([0.0, 1e4, -1e4])
)
def test_equals_torchs_own_with_gradients(n: int, v: int, scale: float, shift: float):
    logits, target = inputs(n, v, scale)
    shifted = logits + shift
    wide = shifted.detach().double().requires_grad_()
    weights = torch.randn(n, generator=torch.Generator().manual_seed(1))
    mine, truth = cross_entropy(shifted, target), F.cross_entropy(wide, target, reduction="none")
    torch.testing.assert_close(mine.double(), truth, rtol=1e-6, atol=3e-6)
    (grad,) = torch.autograd.grad((mine * weights).sum(), logits)
    (true_grad,) = torch.autograd.grad((truth * weights.double()).sum(), wide)
    torch.testing.assert_close(grad.double(), true_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_computed_in_fp32_or_wider(dtype: torch.dtype):
    logits, target = inputs(3, 50)
    loss = cross_entropy(logits.to(dtype), target)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    truth = F.cross_entropy(logits.to(dtype).double(), target, reduction="none")
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(bad: float):
    logits, target = inputs(2, 37)
    with torch.no_grad():
        logits[0, 36] = bad
    target[0] = 36
    loss = cross_entropy(logits, target)
    assert not loss[0].isfinite()
    assert loss[1].isfinite()


def test_a_masked_class_costs_nothing():
    logits, target = inputs(2, 37)
    with torch.no_grad():
        logits[:, 5] = -float("inf")
    target[:] = 6
    others = torch.cat([logits[:, :5], logits[:, 6:]], 1)
    torch.testing.assert_close(cross_entropy(logits, target), cross_entropy(others, target - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [-1, 7, -100])
def test_a_target_that_is_no_class_is_refused(wrong: int, dtype: torch.dtype):
    logits, target = inputs(3, 7)
    target[1] = wrong
    with pytest.raises(IndexError, match=r"targets .* must lie in 0 to 6|Target .* is out of bounds"):
        cross_entropy(logits.to(dtype), target)


@kernel
def test_the_operator_keeps_torchs_rules_and_compiles_whole():
    args = inputs(4, 21)
    torch.library.opcheck(torch.ops.postformer.cross_entropy.default, args)
    compiled = torch.compile(inspect.unwrap(cross_entropy), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), cross_entropy(*args))
