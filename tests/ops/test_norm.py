"""The kernel of csrc/norm.cpp: against torch's operations in float64, from views, with any number of threads, and as an operator."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.ops import _cpu, norm
from postformer.ops.norm import rms_norm, rms_norm_reference, unit

kernel = pytest.mark.skipif(not _cpu.BUILT, reason="the CPU kernels are not built")
HALF = torch.bfloat16
DTYPES = [(torch.float32, torch.float32), (HALF, HALF), (torch.float32, HALF)]
EPS = 1e-5
gated = pytest.mark.parametrize("gate", [None, "before", "after"])


@pytest.fixture(autouse=True)
def small_ones_go_to_the_kernel_too(monkeypatch):
    monkeypatch.setattr(norm, "FEW", 0)


def inputs(rows, d, gate, dtypes=DTYPES[0], seed=0):
    """x and gate as parts of wider rows, as the blocks have them."""
    generator = torch.Generator().manual_seed(seed + rows + d)
    wide = torch.randn(rows, 2 * d + 3, generator=generator)
    weight = (1 + torch.randn(d, generator=generator) / 4).requires_grad_()
    x, z = wide[:, 3 : 3 + d].to(dtypes[0]), wide.to(dtypes[1])[:, 3 + d :]
    return [x.requires_grad_(), weight] + ([z.requires_grad_()] if gate else [])


def run(f, args, gate, groups):
    """The output of f, and the gradients of a weighed sum of it."""
    x, weight, *z = args
    y = f(x, weight, EPS, *(z or [None]), groups, after=gate == "after")
    at = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(HALF)
    return y, *torch.autograd.grad(y, args, at.to(y.dtype))


@kernel
@gated
@pytest.mark.parametrize("dtypes", DTYPES)
@given(rows=st.sampled_from([0, 1, 3, 64, 65, 150]), groups=st.integers(1, 3), width=st.sampled_from([3, 16, 33, 64]))
def test_equals_torchs_operations_with_gradients(gate, dtypes, rows, groups, width):
    args = inputs(rows, groups * width, gate, dtypes)
    exact = run(rms_norm_reference, [m.detach().double().requires_grad_() for m in args], gate, groups)
    mine = run(rms_norm, args, gate, groups)
    assert [m.dtype for m in mine] == [dtypes[1 if gate else 0], *(m.dtype for m in args)]
    for got, wanted in zip(mine, exact, strict=True):
        size = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
        close = 2e-6 if got.dtype == torch.float32 and HALF not in (mine[0].dtype, args[0].dtype) else 2**-7
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=close * (size + 1))


@gated
def test_what_the_formulas_say(gate):
    """Two groups, in float64, where the reference serves."""
    x, weight, *z = (m.detach().double() for m in inputs(4, 6, gate))
    y = rms_norm(x, weight, EPS, *(z or [None]), 2, after=gate == "after")
    opened = z[0] / (1 + (-z[0]).exp()) if z else torch.ones_like(x)
    normed = x * opened if gate == "before" else x
    for part in (slice(0, 3), slice(3, 6)):
        wanted = normed[:, part] / (normed[:, part].square().mean(1, keepdim=True) + EPS).sqrt() * weight[part]
        torch.testing.assert_close(y[:, part], wanted * opened[:, part] if gate == "after" else wanted, rtol=0, atol=1e-12)


@kernel
@gated
def test_the_same_bits_from_any_view_and_with_any_number_of_threads(gate):
    args = inputs(200, 40, gate)
    copies = [m.detach().clone().requires_grad_() for m in args]
    turned = [(m.detach().T.contiguous().T if m.ndim == 2 else m.detach()).requires_grad_() for m in args]
    found = [run(rms_norm, given_args, gate, 2) for given_args in (copies, turned)]
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(run(rms_norm, args, gate, 2))
    finally:
        torch.set_num_threads(1)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@kernel
@gated
def test_more_dimensions_are_rows(gate):
    args = [m.detach() for m in inputs(12, 10, gate)]
    shaped = [m.unflatten(0, (2, 3, 2)) if m.ndim == 2 else m for m in args]
    outputs = [rms_norm(x, w, EPS, *(z or [None]), after=gate == "after") for x, w, *z in (args, shaped)]
    assert outputs[1].shape == (2, 3, 2, 10)
    assert torch.equal(outputs[0], outputs[1].flatten(0, 2))


@kernel
@gated
def test_the_operator_keeps_torchs_rules_and_compiles_whole(gate):
    x, weight, *z = inputs(5, 12, gate)
    rest = (*(z or [None]), EPS, 3, gate == "after")
    torch.library.opcheck(torch.ops.postformer.rms_norm.default, (x, weight, *rest))
    compiled = torch.compile(inspect.unwrap(rms_norm), fullgraph=True, backend="aot_eager")
    words = {"after": gate == "after"}
    arguments = (x, weight, EPS, *(z or [None]), 3)
    assert torch.equal(compiled(*arguments, **words), rms_norm(*arguments, **words))


@kernel
def test_the_operator_refuses_what_it_cannot_read():
    x, weight, z = (m.detach() for m in inputs(5, 12, "before"))
    operator = torch.ops.postformer.rms_norm
    for spoiled in (
        (x, weight[:3], z),
        (x, weight.double(), z),
        (x, weight, z[:2]),
        (x, weight, z.double()),
        (x.to(HALF), weight, z),
    ):
        with pytest.raises(ValueError, match="rms_norm: "):
            operator(*spoiled, EPS, 1, False)
    with pytest.raises(ValueError, match="12 channels cannot be parted into 5 equal groups"):
        operator(x, weight, z, EPS, 5, False)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(rms_norm(leaf, weight, EPS).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="first-order gradients only"):
        first.sum().backward()


@kernel
@gated
def test_a_nan_is_not_swallowed_and_stays_in_its_group(gate):
    args = [m.detach().clone() for m in inputs(3, 40, gate)]
    for at in range(0, len(args), 2):
        spoiled = [m.clone() for m in args]
        spoiled[at][1, 0] = float("nan")
        x, weight, *z = spoiled
        y = rms_norm(x, weight, EPS, *(z or [None]), 2, after=gate == "after")
        assert bool(y[1, 0].isnan())
        assert bool(y[[0, 2]].isfinite().all())
        assert bool(y[1, 20:].isfinite().all())


@kernel
def test_each_build(turn_to_build):
    args = inputs(70, 66, "before")
    expected = run(rms_norm, args, "before", 2)
    turn_to_build()
    for mine, other in zip(run(rms_norm, args, "before", 2), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_few_numbers_go_to_torch_and_come_out_the_same(monkeypatch):
    x, weight = torch.randn(3, 40), torch.randn(40)
    by_kernel = norm.rms_norm(x, weight, 1e-5)
    monkeypatch.setattr(norm, "FEW", 120)
    torch.testing.assert_close(norm.rms_norm(x, weight, 1e-5), by_kernel)


# ---------------------------------------------------------------- vectors of length 1


@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 4, 3, 1)])
def test_a_unit_is_torchs_normalize_with_its_gradient(shape):
    x = torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(0)).requires_grad_()
    dy = torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.normalize(x, dim=-1)
    torch.testing.assert_close(unit(x), expected, rtol=1e-14, atol=1e-14)
    (got,), (wanted,) = (torch.autograd.grad(y, x, dy) for y in (unit(x), expected))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(unit, x)


def test_a_unit_of_nothing_is_nothing():
    x = torch.tensor([[0.0, 0.0], [3e-13, 4e-13], [3.0, 4.0]], dtype=torch.double, requires_grad=True)
    y = unit(x)
    torch.testing.assert_close(y, torch.tensor([[0.0, 0.0], [0.3, 0.4], [0.6, 0.8]], dtype=torch.double))
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    (wanted,) = torch.autograd.grad(torch.nn.functional.normalize(x, dim=-1), x, torch.ones_like(y))
    torch.testing.assert_close(dx, wanted)


def test_a_unit_under_a_transform_is_torchs():
    x = torch.randn(4, 3)
    torch.testing.assert_close(torch.func.vmap(unit)(x), unit(x))


def test_a_units_input_can_be_freed():
    x = torch.randn(8, 4, requires_grad=True)
    y = unit(x * 1)
    kept = [t.data_ptr() for t in y.grad_fn.saved_tensors]
    assert y.data_ptr() in kept and len(kept) == 2
