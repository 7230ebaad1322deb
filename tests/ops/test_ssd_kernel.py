"""The kernel of csrc/ssd.cpp: against the recurrence in float64, at odd sizes, with any number of threads, and as an operator."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.ops import _cpu
from postformer.ops.ssd import PLAIN, Weights, ssd, ssd_reference

kernel = pytest.mark.skipif(not _cpu.BUILT, reason="the CPU kernels are not built")
SIZES = {
    "b": st.integers(0, 2),
    "t": st.sampled_from([0, 1, 15, 16, 17, 40]),
    "r": st.integers(1, 3),
    "heads": st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3), (18, 9)]),
    "p": st.sampled_from([1, 7, 16, 33]),
    "n": st.sampled_from([1, 2, 5, 16]),
}


def inputs(b, t, r, heads, p, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    h, g = heads
    shapes = (b, t, r, h, p), (b, t, h), (b, t, r, g, n), (b, t, r, g, n), (b, h, p, n)
    x = [torch.randn(shape, generator=generator) for shape in shapes]
    x[1] = -x[1].abs()
    return [m.requires_grad_() for m in x]


def weights_of(b, t, h, chosen, seed=0):
    """Of the three, those that are chosen."""
    generator = torch.Generator().manual_seed(seed + 100)
    drawn = {"now": torch.rand(b, t, h, generator=generator), "later": torch.randn(b, t, h, generator=generator)}
    drawn["D"] = torch.randn(h, generator=generator)
    return Weights(**{k: v.requires_grad_() for k, v in drawn.items() if k in chosen})


def with_gradients(f, args, starts=None, given=PLAIN):
    y, last = f(*args, starts, given)
    args = [*args, *(m for m in given if m is not None)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(m.shape, generator=generator).to(m.dtype) for m in (y, last)]
    return y, last, *torch.autograd.grad((y, last), args, weights)


@kernel
@given(**SIZES, packed=st.booleans(), chosen=st.sets(st.sampled_from(Weights._fields)))
def test_equals_the_recurrence_with_gradients(b, t, r, heads, p, n, packed, chosen):
    args = inputs(b, t, r, heads, p, n, seed=t + p)
    if not t or not b:
        y, last = ssd(*args)
        assert y.shape == args[0].shape
        assert torch.equal(last, args[4])
        return
    starts = torch.rand(b, t, generator=torch.Generator().manual_seed(t)) < 0.2 if packed else None
    wide = [m.detach().double().requires_grad_() for m in args]
    given_weights = weights_of(b, t, heads[0], chosen, seed=t + p)
    exactly = Weights(*(None if m is None else m.detach().double().requires_grad_() for m in given_weights))
    found = with_gradients(ssd, args, starts, given_weights), with_gradients(ssd_reference, wide, starts, exactly)
    for mine, exact in zip(*found, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), exact, rtol=0, atol=3e-6 * (1 + float(exact.detach().abs().max())))


@kernel
@pytest.mark.parametrize("r", [1, 2])
@pytest.mark.parametrize(("t", "n"), [(63, 16), (64, 33), (65, 17), (129, 128), (200, 5)])
def test_gradients_across_the_states_that_are_kept(t, n, r):
    args = inputs(1, t, r, (2, 1), 17, n, seed=t)
    found = with_gradients(ssd, args), with_gradients(ssd_reference, [m.detach().double().requires_grad_() for m in args])
    for mine, exact in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=0, atol=3e-6 * (1 + float(exact.detach().abs().max())))


@kernel
@pytest.mark.parametrize("r", [1, 2])
def test_a_document_forgets_a_state_that_is_not_finite(r):
    x, a, B, C, state = (m.detach() for m in inputs(2, 12, r, (2, 1), 17, 5))
    x[0, 1] = torch.inf
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[:, 6] = True
    y, last = ssd(x, a, B, C, state, starts)
    alone, end = ssd(x[:, 6:], a[:, 6:], B[:, 6:], C[:, 6:], torch.zeros_like(state))
    assert not y[0, 1:6].isfinite().any()
    torch.testing.assert_close(y[:, 6:], alone)
    torch.testing.assert_close(last, end)
    y, last = ssd_reference(x, a, B, C, state, starts)
    torch.testing.assert_close(y[:, 6:], alone)


@kernel
@pytest.mark.parametrize("r", [1, 2])
@pytest.mark.parametrize("first", [0, 6], ids=["a spoiled state", "a spoiled document"])
def test_a_documents_gradients_know_nothing_of_what_is_not_finite_before_it(first, r):
    args = inputs(2, 12, r, (2, 1), 17, 5)
    with torch.no_grad():
        args[4 if first == 0 else 0][0, 1] = torch.inf
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[:, first] = True
    found = []
    for form in (ssd, ssd_reference):
        y, last = form(*args, starts)
        found.append(torch.autograd.grad(y[:, first:].square().sum() + last.sum(), args[:4]))
    for mine, exact in zip(*found, strict=True):
        assert exact[:, first:].isfinite().all()
        torch.testing.assert_close(mine[:, first:], exact[:, first:], rtol=1e-4, atol=1e-4)


@kernel
@given(first=st.integers(0, 40), rest=st.integers(0, 40), r=st.integers(1, 2))
def test_the_same_bits_at_any_split(first, rest, r):
    x, a, B, C, state = (m.detach() for m in inputs(2, first + rest, r, (4, 2), 21, 5))
    y, last = ssd(x, a, B, C, state)
    y1, middle = ssd(x[:, :first], a[:, :first], B[:, :first], C[:, :first], state)
    y2, end = ssd(x[:, first:], a[:, first:], B[:, first:], C[:, first:], middle)
    assert torch.equal(torch.cat([y1, y2], 1), y)
    assert torch.equal(end, last)


@kernel
@pytest.mark.parametrize("heads", [(6, 1), (10, 10)])
def test_the_same_bits_with_any_number_of_threads(heads):
    args = inputs(2, 50, 1, heads, 40, 16)
    found = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(with_gradients(ssd, args, given=weights_of(2, 50, heads[0], Weights._fields)))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@kernel
def test_views_are_read_as_they_are():
    args = inputs(2, 9, 2, (4, 2), 6, 4)
    turned = [m.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for m in args]
    assert not any(m.is_contiguous() for m in turned)
    parts = []  # of one tensor, as the block has them
    for i, m in enumerate(m.detach() for m in args):
        wide = torch.randn(2, 9, m[0, 0].numel() + 3) if i in (0, 2, 3) else None
        if wide is not None:
            wide[..., 3:] = m.flatten(2)
        parts.append((m.clone() if wide is None else wide[..., 3:].view(m.shape)).requires_grad_())
    assert not parts[0].is_contiguous()
    for view in (turned, parts):
        for mine, other in zip(with_gradients(ssd, view), with_gradients(ssd, args), strict=True):
            assert torch.equal(mine, other)


@kernel
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("chosen", [(), Weights._fields])
def test_the_operator_keeps_torchs_rules_and_compiles_whole(keep, chosen):
    x, a, B, C, state = inputs(2, 18, 2, (4, 2), 5, 3)
    given_weights = weights_of(2, 18, 4, chosen)
    given_args = [x, a.exp().detach().requires_grad_(), B, C, state, *given_weights]
    given_args = [m if keep or m is None else m.detach() for m in given_args]
    torch.library.opcheck(torch.ops.postformer.ssd.default, (*given_args, keep))
    compiled = torch.compile(inspect.unwrap(ssd), fullgraph=True, backend="aot_eager")
    arguments = (x, a, B, C, state, None, given_weights)
    for mine, other in zip(compiled(*arguments), ssd(*arguments), strict=True):
        assert torch.equal(mine, other)


@kernel
def test_the_operator_refuses_what_it_cannot_read():
    args = [m.detach() for m in (*inputs(2, 5, 1, (4, 2), 4, 3), *weights_of(2, 5, 4, Weights._fields))]
    operator = torch.ops.postformer.ssd
    for i in range(8):
        for spoiled in (args[i][:1], args[i].double()):
            with pytest.raises(ValueError, match="ssd: "):
                operator(*args[:i], spoiled, *args[i + 1 :], False)
    with pytest.raises(ValueError, match="4 heads cannot share B and C in 3 groups"):
        operator(args[0], args[1], torch.randn(2, 5, 1, 3, 3), torch.randn(2, 5, 1, 3, 3), *args[4:], False)
    grown = [m.requires_grad_() for m in args]
    with pytest.raises(ValueError, match="kept is"):
        operator(*grown, False)[0].sum().backward()
    y, _ = ssd(*grown[:5], None, Weights(*grown[5:]))
    (first,) = torch.autograd.grad(y.square().sum(), grown[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="first-order gradients only"):
        first.sum().backward()


@kernel
def test_a_nan_is_not_swallowed_and_stays_in_its_head():
    args = [m.detach() for m in inputs(1, 3, 1, (2, 2), 4, 3)]
    for at in range(5):
        spoiled = [m.clone() for m in args]
        spoiled[at].reshape(-1)[0] = float("nan")
        y, _ = ssd(*spoiled)
        assert bool(y[0, :, 0, 0].isnan().any())
        assert bool(y[0, :, 0, 1].isfinite().all())


@kernel
def test_each_build(turn_to_build):
    args = inputs(2, 20, 2, (4, 2), 33, 16)
    given_weights = weights_of(2, 20, 4, Weights._fields)
    expected = with_gradients(ssd, args, given=given_weights)
    turn_to_build()
    for mine, other in zip(with_gradients(ssd, args, given=given_weights), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
