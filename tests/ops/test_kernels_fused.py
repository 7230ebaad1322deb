"""Kernels with what stands around them in a block, in fp32 and bf16, against the reference in float64 on the same numbers."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from postformer.ops import _cpu
from postformer.ops.conv import causal_conv, causal_conv_reference
from postformer.ops.scan import selective_scan, selective_scan_reference

kernel = pytest.mark.skipif(not _cpu.BUILT, reason="installed without the kernels")
HALF = torch.bfloat16
TOLERANCE = {torch.float32: 1e-5, HALF: 2**-7}
"""Of the largest number in a tensor; a bf16 number is rounded by up to 2^-9 of itself."""


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scan_inputs(b, t, c, n, dtype):
    """u, dt, A, B, C, h and what is optional; z is a view into wider rows, as the block has it."""
    u, B, C = (normal(b, t, k, seed=i).to(dtype) for i, k in enumerate((c, n, n)))
    wide = normal(b, t, 2 * c, seed=3).to(dtype)
    plain = [u, 3 * normal(b, t, c, seed=4) - 2, -normal(c, n, seed=5).abs(), B, C, normal(b, c, n, seed=6)]
    return plain, {"dt_bias": normal(c, seed=7), "D": normal(c, seed=8), "z": wide[..., c:]}


def leaf(x, dtype=None):
    return x.detach().to(dtype or x.dtype).requires_grad_()


def same_with_gradients(f, reference, args, options, wanted):
    """`f` on args against `reference` on the same in float64: outputs, gradients, and the dtypes of both."""
    mine = [leaf(x) for x in args], {k: leaf(x) for k, x in options.items()}
    truth = [leaf(x, torch.double) for x in args], {k: leaf(x, torch.double) for k, x in options.items()}
    found = []
    for (plain, rest), call in ((mine, f), (truth, reference)):
        outputs = call(*plain, **rest)
        weights = [normal(*y.shape, seed=20 + i).to(wanted) for i, y in enumerate(outputs)]
        leaves = [x for x in (*plain, *rest.values()) if x.numel()]
        grads = torch.autograd.grad(outputs, leaves, [w.to(y.dtype) for w, y in zip(weights, outputs, strict=True)])
        assert [g.dtype for g in grads] == [x.dtype for x in leaves]
        found.append([*outputs, *grads])
    for x, exact in zip(*found, strict=True):
        scale = float(exact.detach().abs().max()) if exact.numel() else 1.0
        torch.testing.assert_close(x.double(), exact, rtol=0, atol=TOLERANCE[wanted] * (scale + 0.1))
    return found[0]


options = st.sets(st.sampled_from(["dt_bias", "D", "z"]))


@kernel
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@given(b=st.integers(1, 3), t=st.integers(1, 40), c=st.integers(1, 40), n=st.integers(1, 17), chosen=options)
@example(b=1, t=33, c=32, n=16, chosen={"dt_bias", "D", "z"})
def test_the_scan(dtype, b, t, c, n, chosen):
    plain, rest = scan_inputs(b, t, c, n, dtype)
    if "dt_bias" not in chosen:
        plain[1] = F.softplus(plain[1])
    y, h, *_ = same_with_gradients(selective_scan, selective_scan_reference, plain, {k: rest[k] for k in sorted(chosen)}, dtype)
    assert (y.dtype, h.dtype) == (dtype, torch.float32)


@kernel
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@given(b=st.integers(1, 2), t=st.integers(1, 12), c=st.integers(1, 40), k=st.integers(1, 5), silu=st.booleans())
@example(b=2, t=600, c=150, k=4, silu=True)  # more than a tile of tokens and a strip of channels
def test_the_convolution(dtype, b, t, c, k, silu):
    x, past = normal(b, t, c, seed=1).to(dtype), normal(b, k - 1, c, seed=2).to(dtype)
    args = x, normal(c, k, seed=3).to(dtype), normal(c, seed=4).to(dtype), past
    y, kept, *_ = same_with_gradients(
        lambda *a: causal_conv(*a, silu=silu), lambda *a: causal_conv_reference(*a, silu=silu), args, {}, dtype
    )
    assert y.dtype == kept.dtype == dtype


@kernel
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_the_reference_in_torch_is_taken_without_a_kernel_and_agrees(dtype, monkeypatch):
    plain, rest = scan_inputs(2, 70, 5, 3, dtype)
    conv_args = plain[0], normal(5, 4, seed=1), None, normal(2, 3, 5, seed=2)
    results = []
    for built in (True, False):
        monkeypatch.setattr(_cpu, "BUILT", built)
        args, options = [leaf(x) for x in plain], {k: leaf(x) for k, x in rest.items()}
        y, h = selective_scan(*args, **options)
        grads = torch.autograd.grad(y.float().sum() + h.sum(), [*args, *options.values()])
        results.append([y, h, *grads, *causal_conv(*conv_args, silu=True)])
    for mine, other in zip(*results, strict=True):
        assert mine.dtype == other.dtype
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(mine.double(), other.double(), rtol=0, atol=TOLERANCE[dtype] * scale)


@kernel
def test_softplus_and_gates_far_from_zero():
    """dt from e^-80 to 100 keeps its relative accuracy, and gates saturate without overflow."""
    raw, starts = torch.linspace(-80, 100, 181)[None, :, None], torch.ones(1, 181, dtype=torch.bool)
    one = torch.ones(1, 181, 1)
    y, _ = selective_scan(one, raw, -torch.ones(1, 1), one, one, torch.zeros(1, 1, 1), starts, dt_bias=torch.zeros(1))
    torch.testing.assert_close(y, F.softplus(raw.double()).float(), rtol=3e-6, atol=0)
    z = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4])[None, :, None]
    y, _ = selective_scan(
        *(torch.ones(1, 7, 1),) * 2, -torch.ones(1, 1), *(torch.zeros(1, 7, 1),) * 2, torch.zeros(1, 1, 1), D=torch.ones(1), z=z
    )
    torch.testing.assert_close(y, F.silu(z), rtol=1e-5, atol=1e-30)


@kernel
def test_rounding_to_bf16_is_torchs():
    """A convolution with one tap of 1 hands numbers through fp32: ties to even, infinities, NaN and numbers below the normal."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    x = bits.view(HALF)[None, :, None]
    y, _ = causal_conv(x, torch.ones(1, 1), None, x[:, :0])
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y[~y.isnan()], x[~x.isnan()])
    w = torch.tensor([[1 + 2**-8]])
    assert torch.equal(causal_conv(x, w, None, x[:, :0])[0].nan_to_num(), (x.float() * w).to(HALF).nan_to_num())


@kernel
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_operators_with_all_options_keep_torchs_rules_and_compile_whole(dtype):
    plain, rest = scan_inputs(2, 18, 5, 3, dtype)
    args, options = [leaf(x) for x in plain], {k: leaf(x) for k, x in rest.items()}
    wide = [leaf(x.float()) if i in (3, 4) else x for i, x in enumerate(args)]
    torch.library.opcheck(torch.ops.postformer.selective_scan.default, (*wide, None, *options.values(), True))
    conv_args = leaf(plain[0]), leaf(normal(5, 4, seed=1)), leaf(normal(5, seed=2)), leaf(normal(2, 3, 5, seed=3).to(dtype))
    torch.library.opcheck(torch.ops.postformer.causal_conv.default, (*conv_args, None, True))
    compiled = torch.compile(inspect.unwrap(selective_scan), fullgraph=True, backend="aot_eager")
    for mine, other in zip(compiled(*args, **options), selective_scan(*args, **options), strict=True):
        assert torch.equal(mine, other)


@kernel
def test_options_that_do_not_fit_are_refused():
    plain, rest = scan_inputs(2, 5, 4, 3, torch.float32)
    for name, spoiled in (
        ("dt_bias", torch.ones(3)),
        ("D", torch.ones(4, dtype=torch.double)),
        ("z", rest["z"][:1]),
        ("z", rest["z"].to(HALF)),
    ):
        with pytest.raises(ValueError, match=f"selective_scan: {name} is"):
            torch.ops.postformer.selective_scan(*plain, None, *{**rest, name: spoiled}.values(), False)
    with pytest.raises(ValueError, match=r"u is torch\.float64"):
        torch.ops.postformer.selective_scan(plain[0].double(), *plain[1:], None, None, None, None, False)
