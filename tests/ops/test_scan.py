"""The chunked scan and the kernel against the recurrence as it is written: outputs and gradients."""

import inspect
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.ops import _cpu, scan
from postformer.ops.conv import causal_conv
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


# ---------------------------------------------------------------- the kernel

kernel = pytest.mark.skipif(not _cpu.BUILT, reason="installed without the kernels")
NONE = (None,) * 4
"""No document starts, bias of dt, skip or gate."""
SIZES = {"t": st.integers(0, 40), "b": st.integers(0, 3), "c": st.integers(1, 40), "n": st.integers(1, 17)}


def small_and_wide(b, t, c, n):
    """The same inputs in fp32 and in float64."""
    args = [x.detach().float().requires_grad_() for x in inputs(b, t, c, n, seed=t + c)]
    return args, [x.detach().double().requires_grad_() for x in args]


@kernel
@given(**SIZES)
def test_the_kernel_equals_the_recurrence_with_gradients(b, t, c, n):
    args, wide = small_and_wide(b, t, c, n)
    y, h = selective_scan(*args)
    if not t:
        assert y.shape == (b, 0, c)
        assert torch.equal(h, args[5])
        return
    truth = selective_scan_reference(*wide)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator) for x in (y, h)]
    grads = torch.autograd.grad((y, h), args, weights)
    true_grads = torch.autograd.grad(truth, wide, [w.double() for w in weights])
    for mine, exact in zip((y, h, *grads), (*truth, *true_grads), strict=True):
        assert mine.dtype == torch.float32
        scale = 1 + float(exact.detach().abs().max()) if exact.numel() else 1.0
        torch.testing.assert_close(mine.double(), exact, rtol=0, atol=3e-6 * scale)


@kernel
@given(first=st.integers(0, 40), rest=st.integers(0, 40))
def test_the_kernel_gives_the_same_bits_at_any_split(first, rest):
    u, dt, A, B, C, h = (x.detach() for x in small_and_wide(2, first + rest, 21, 5)[0])
    y, last = selective_scan(u, dt, A, B, C, h)
    y1, middle = selective_scan(u[:, :first], dt[:, :first], A, B[:, :first], C[:, :first], h)
    y2, end = selective_scan(u[:, first:], dt[:, first:], A, B[:, first:], C[:, first:], middle)
    assert torch.equal(torch.cat([y1, y2], 1), y)
    assert torch.equal(end, last)


@kernel
def test_the_kernel_gives_the_same_bits_with_any_number_of_threads():
    args, _ = small_and_wide(2, 50, 200, 16)
    found = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            y, h = selective_scan(*args)
            found.append((y, h, *torch.autograd.grad(y.sum() + h.sum(), args)))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@kernel
def test_extreme_decays_and_numbers_that_are_none():
    u, dt, A, B, C, h = (x.detach().clone() for x in small_and_wide(1, 3, 20, 4)[0])
    y, last = selective_scan(u, torch.full_like(dt, 1e4), torch.full_like(A, -1e4), B, C, h)
    torch.testing.assert_close(last, 1e4 * u[:, -1, :, None] * B[:, -1, None], rtol=1e-5, atol=1e-30)
    assert bool(y.isfinite().all())
    torch.testing.assert_close(selective_scan(u, torch.zeros_like(dt), A, B, C, h)[1], h, rtol=0, atol=0)
    for at in range(6):
        spoiled = [x.clone() for x in (u, dt, A, B, C, h)]
        spoiled[at].reshape(-1)[0] = float("nan")
        y, _ = selective_scan(*spoiled)
        assert bool(y[0, :, 0].isnan().any()), "a NaN is not swallowed"
        assert bool(y[0, :, 1:].isfinite().all()) or at in (3, 4), "and stays in its channel"


@kernel
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7F800001, -1])
def test_a_rate_that_is_no_number_is_not_swallowed(bits):
    u, dt, A, B, C, h = (x.detach().clone() for x in small_and_wide(1, 3, 20, 4)[0])
    A[0, 0] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    y, _ = selective_scan(u, dt, A, B, C, h)
    assert bool(y[0, :, 0].isnan().all()) and bool(y[0, :, 1:].isfinite().all())


@kernel
def test_a_decay_is_exact_to_float_wherever_it_has_one():
    """Around the bound above which the exponents are clamped, and for states that grow."""
    dt = torch.linspace(0.0, 87.0, 2001)[:, None].repeat(1, 18)
    A = torch.stack([-torch.ones(18), torch.ones(18), torch.linspace(-0.01, 0.01, 18)], 1)
    zero, h = torch.zeros(2001, 1, 18), torch.ones(2001, 18, 3)
    none = torch.zeros(2001, 1, 3)
    _, after = selective_scan(zero, dt[:, None], A, none, none, h)
    truth = (dt.double()[..., None] * A.double()).exp()
    torch.testing.assert_close(after.double(), truth, rtol=8e-6, atol=0)  # the product dt A itself is rounded to float


@kernel
def test_views_are_read_as_they_are():
    args, _ = small_and_wide(2, 9, 6, 4)
    turned = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in args]
    assert not all(x.is_contiguous() for x in turned)
    for mine, other in zip(selective_scan(*turned), selective_scan(*args), strict=True):
        assert torch.equal(mine, other)
    y, h = selective_scan(*turned)
    grads = torch.autograd.grad(y.mT.sum() + h.sum(), turned)
    y, h = selective_scan(*args)
    assert all(torch.equal(a, b) for a, b in zip(grads, torch.autograd.grad(y.sum() + h.sum(), args), strict=True))


@kernel
@pytest.mark.parametrize("keep", [False, True])
def test_the_operator_keeps_torchs_rules_and_compiles_whole(keep):
    args, _ = small_and_wide(2, 18, 5, 3)
    given_args = args if keep else [x.detach() for x in args]
    torch.library.opcheck(torch.ops.postformer.selective_scan.default, (*given_args, *NONE, keep))
    compiled = torch.compile(inspect.unwrap(selective_scan), fullgraph=True, backend="aot_eager")
    for mine, other in zip(compiled(*given_args), selective_scan(*given_args), strict=True):
        assert torch.equal(mine, other)


@kernel
def test_each_build_of_the_kernel(turn_to_build):
    args, _ = small_and_wide(2, 20, 33, 16)
    x, weight, past = torch.randn(2, 20, 33, requires_grad=True), torch.randn(33, 4), torch.randn(2, 3, 33)

    def everything():
        y, h = selective_scan(*args)
        z, _ = causal_conv(x, weight, None, past)
        return y, h, z, *torch.autograd.grad(y.square().sum() + h.sum() + z.square().sum(), [*args, x])

    expected = everything()
    turn_to_build()
    for mine, other in zip(everything(), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_the_kernels_are_built_on_ci():
    assert _cpu.BUILT or not os.environ.get("CI"), "CI has a compiler: the build failed"


@kernel
def test_a_build_of_another_version_is_not_used(monkeypatch, capsys):
    monkeypatch.setattr(_cpu, "VERSION", -1)
    _cpu.load.cache_clear()
    try:
        assert _cpu.kernels.__wrapped__() is None
    finally:
        _cpu.load.cache_clear()
    assert "is of another version of postformer" in capsys.readouterr().err


@kernel
def test_the_operator_refuses_what_it_cannot_read():
    args = [x.detach() for x in small_and_wide(2, 5, 4, 3)[0]]
    operator = torch.ops.postformer.selective_scan
    for i in range(6):
        for spoiled in (args[i][:1], args[i].double()):
            with pytest.raises(ValueError, match="selective_scan: "):
                operator(*args[:i], spoiled, *args[i + 1 :], *NONE, False)
    grown = [x.requires_grad_() for x in args]
    with pytest.raises(ValueError, match="kept is"):
        operator(*grown, *NONE, False)[0].sum().backward()
    y, _ = selective_scan(*grown)
    (first,) = torch.autograd.grad(y.square().sum(), grown[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="first-order gradients only"):
        first.sum().backward()


def test_without_kernels_everything_still_runs():
    code = (
        "import torch; from postformer.ops import _cpu; from postformer.mixers.mamba import Mamba; torch.manual_seed(0)\n"
        "y, _ = Mamba(8)(torch.randn(1, 5, 8)); y.sum().backward(); print(_cpu.BUILT, bool(y.isfinite().all()))"
    )
    env = {**os.environ, "POSTFORMER_KERNELS": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["False", "True"], "")
