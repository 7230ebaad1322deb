"""A few rows times a large matrix: the kernel against torch's product in float64."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from postformer.ops import _cpu, matvec
from postformer.ops.layers import Embedding, Linear

kernel = pytest.mark.skipif(not _cpu.BUILT, reason="installed without the kernels")


@kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@given(shape=st.lists(st.integers(1, 3), max_size=2), d=st.integers(1, 80), v=st.integers(1, 40))
def test_equals_torchs_product(dtype, weights, shape, d, v):
    g = torch.Generator().manual_seed(d + v)
    x, w = torch.randn(*shape, d, generator=g).to(dtype), torch.randn(v, d, generator=g).to(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matvec, "LEAST_WEIGHTS", 0)
        few = x.numel() <= _cpu.MOST_ROWS * d
        assert matvec.serves(x, w) == few
        y = matvec.project(x, w)
    exact = x.double() @ w.double().T
    assert (y.dtype, y.shape) == (dtype, exact.shape)
    atol = (1e-6 if few else 2**-8) * d  # torch's product rounds the weights to bf16 where x is bf16
    torch.testing.assert_close(y.double(), exact, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=atol)


@kernel
def test_the_same_bits_for_any_rows_and_threads():
    x, w = torch.randn(8, 70), torch.randn(333, 70)
    whole = torch.ops.postformer.matvec(x, w)
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            assert torch.equal(torch.cat([torch.ops.postformer.matvec(row[None], w) for row in x]), whole)
    finally:
        torch.set_num_threads(1)


@kernel
def test_layers_take_it_where_no_gradient_is_asked_for():
    with torch.inference_mode():
        x, linear, embedding = torch.randn(2, 1, 1024), Linear(1024, 512, bias=False), Embedding(512, 1024)
        assert matvec.serves(x, linear.weight)
        many = x.expand(-1, 9, -1)
        assert not matvec.serves(many, linear.weight)
        for f, weight in ((linear, linear.weight), (embedding.head, embedding.weight)):
            with FlopCounterMode(display=False) as counter:
                y = f(x)
            assert counter.get_total_flops() == 2 * 2 * 1024 * 512
            torch.testing.assert_close(y, x @ weight.T, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(f(many)[:, :1], y, rtol=1e-5, atol=1e-5)
    trained = Linear(1024, 512, bias=False)
    y = trained(torch.randn(1, 1024))
    y.sum().backward()
    assert trained.weight.grad is not None
    with pytest.raises(RuntimeError, match="has no gradient"):
        torch.ops.postformer.matvec(torch.randn(1, 1024), trained.weight).sum().backward()


@kernel
def test_the_operator_keeps_torchs_rules_and_compiles_whole():
    x, w = torch.randn(2, 20), torch.randn(30, 20)
    torch.library.opcheck(torch.ops.postformer.matvec.default, (x, w), test_utils=("test_schema", "test_faketensor"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matvec, "LEAST_WEIGHTS", 0)
        compiled = torch.compile(inspect.unwrap(matvec.project), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, w), matvec.project(x, w))
    for spoiled in (x.double(), x[:, 1:]):
        with pytest.raises(ValueError, match=r"matvec: (x|weight) is"):
            torch.ops.postformer.matvec(spoiled, w)


@pytest.mark.parametrize("native", [True, False])
def test_bf16_without_instructions_for_it_is_multiplied_in_fp32(native, monkeypatch):
    monkeypatch.setattr(_cpu, "MULTIPLIES_BF16", native)
    x, weight = torch.randn(9, 24).bfloat16().requires_grad_(), torch.randn(30, 24, requires_grad=True)
    y = matvec.project(x, weight)
    (dx, dw) = torch.autograd.grad(y.float().sum(), (x, weight))
    assert (y.dtype, dx.dtype, dw.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    exact = x.detach().double() @ weight.detach().double().T
    torch.testing.assert_close(y.detach().double(), exact, rtol=0.02, atol=0.1)
