"""Documents that lie packed in one row, and padded rows: each is as if it were alone, in outputs, gradients and states."""

import inspect
import itertools

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from postformer.ops import _cpu, scan
from postformer.ops.conv import causal_conv, causal_conv_reference
from postformer.ops.scan import selective_scan, selective_scan_reference

kernel = pytest.mark.skipif(not _cpu.BUILT, reason="installed without the kernels")
WAYS = [pytest.param(torch.float32, 2e-5, marks=kernel, id="kernel"), pytest.param(torch.double, 1e-10, id="torch")]
rows_of_starts = st.integers(1, 20).flatmap(
    lambda t: st.lists(st.lists(st.booleans(), min_size=t, max_size=t), min_size=1, max_size=3)
)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def scan_inputs(b, t, c, n):
    u, dt, B, C = (normal(b, t, k, seed=i) for i, k in enumerate((c, c, n, n)))
    return u, torch.nn.functional.softplus(dt), -normal(c, n, seed=4).abs(), B, C, normal(b, c, n, seed=5)


def documents(starts):
    """The slices of a row, the first of which goes on from the state that is given."""
    cuts = [0, *(i for i, s in enumerate(starts) if s and i), len(starts)]
    return [slice(a, z) for a, z in itertools.pairwise(cuts)]


def alone(starts, step, *firsts):
    """`step(row, slice, *states)` over each document of each row; states begin at those given only where no document starts."""
    ys, ends = [], []
    for row, flags in enumerate(starts):
        states = [f[row : row + 1] * (not flags[0]) for f in firsts]
        pieces = []
        for at in documents(flags):
            y, *states = step(row, at, *(s if at.start == 0 else torch.zeros_like(s) for s in states))
            pieces.append(y)
        ys.append(torch.cat(pieces, 1))
        ends += states
    return torch.cat(ys), torch.cat(ends)


def same_with_gradients(packed, args, truth, wide, atol):
    weights = [normal(*x.shape, seed=9 + i) for i, x in enumerate(truth)]
    found = []
    for outputs, leaves in ((packed, args), (truth, wide)):
        loss = sum((x * w.to(x.dtype)).sum() for x, w in zip(outputs, weights, strict=True))
        grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
        found.append([*outputs, *grads])
    for mine, exact in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=atol, atol=atol)


def leaves(tensors, dtype):
    return [x.detach().to(dtype).requires_grad_() for x in tensors]


@pytest.mark.parametrize(("dtype", "atol"), WAYS)
@given(starts=rows_of_starts, c=st.integers(1, 20), n=st.integers(1, 17))
@example(starts=[[True] * 40, [False] * 40], c=17, n=16)
@example(
    starts=[[i % 16 == 0 for i in range(40)], [i % 16 == 15 for i in range(40)]], c=3, n=2
)  # borders of the kernel's chunks
def test_a_scan_sees_nothing_before_its_document(dtype, atol, starts, c, n):
    exact = scan_inputs(len(starts), len(starts[0]), c, n)
    args, wide = leaves(exact, dtype), leaves(exact, torch.double)
    u, dt, A, B, C, h = wide

    def step(row, at, h):
        return selective_scan_reference(*(x[row : row + 1, at] for x in (u, dt)), A, *(x[row : row + 1, at] for x in (B, C)), h)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "_chunk", lambda u, A: 4)
        packed = selective_scan(*args, torch.tensor(starts))
        truth = alone(starts, step, h)
        same_with_gradients(packed, args, truth, wide, atol)
        by_reference = selective_scan_reference(*wide, torch.tensor(starts))
    for mine, other in zip(by_reference, truth, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "atol"), WAYS)
@pytest.mark.parametrize("f", [causal_conv, causal_conv_reference])
@given(starts=rows_of_starts, c=st.integers(1, 20), k=st.integers(1, 5), data=st.data())
@example(starts=[[True] * 9, [False] * 9], c=17, k=4, data=None)
def test_a_convolution_reaches_no_other_document_and_no_padding(f, dtype, atol, starts, c, k, data):
    b, t = len(starts), len(starts[0])
    lengths = None if data is None else data.draw(st.none() | st.lists(st.integers(0, t), min_size=b, max_size=b))
    exact = normal(b, t, c, seed=1), normal(c, k, seed=2), normal(c, seed=3), normal(b, k - 1, c, seed=4)
    args, wide = leaves(exact, dtype), leaves(exact, torch.double)
    x, weight, bias, past = wide
    real = [flags[: t if lengths is None else lengths[i]] for i, flags in enumerate(starts)]

    ys, ends = [], []
    for row, flags in enumerate(real):
        end, pieces = past[row : row + 1], []
        for at in documents(flags) if flags else []:
            if flags[at.start]:
                end = torch.zeros_like(end)
            both = torch.cat([end, x[row : row + 1, at]], 1)
            shifted = [both[:, j : both.shape[1] - k + 1 + j] * weight[:, j] for j in range(k)]
            pieces.append(sum(shifted) + bias)
            end = both[:, both.shape[1] - k + 1 :]
        ys.append(torch.cat([*pieces, x.new_zeros(1, t - len(flags), c)], 1))
        ends.append(end)
    y, kept = f(*args, torch.tensor(starts), None if lengths is None else torch.tensor(lengths))
    assert y.isfinite().all()
    mask = torch.tensor([[i < len(flags) for i in range(t)] for flags in real])[..., None]
    same_with_gradients((y * mask, kept), args, (torch.cat(ys), torch.cat(ends)), wide, atol)


@pytest.mark.parametrize(("dtype", "atol"), WAYS)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3), k=st.integers(1, 5))
def test_padding_alone_leaves_the_last_inputs(dtype, atol, lengths, k):
    b, t, c = len(lengths), max(lengths), 3
    x, weight, past = normal(b, t, c).to(dtype), normal(c, k).to(dtype), normal(b, k - 1, c).to(dtype)
    _, kept = causal_conv(x, weight, None, past, lengths=torch.tensor(lengths))
    for row, length in enumerate(lengths):
        both = torch.cat([past[row], x[row, :length]])
        assert torch.equal(kept[row], both[len(both) - k + 1 :])


@pytest.mark.parametrize("dtype", [p.values[0] for p in WAYS])
def test_nothing_comes_through_from_a_spoiled_document(dtype):
    if dtype == torch.float32 and not _cpu.BUILT:
        pytest.skip("installed without the kernels")
    starts = torch.tensor([[False, False, True, False, False]])
    u, *rest = (x.to(dtype) for x in scan_inputs(1, 5, 3, 2))
    u[:, 1] = float("inf")
    u.requires_grad_()
    y, h = selective_scan(u, *rest, starts)
    assert y[:, 2:].isfinite().all() and h.isfinite().all()
    (du,) = torch.autograd.grad(y[:, 2:].sum() + h.sum(), u)
    assert torch.equal(du[:, :2], torch.zeros_like(du[:, :2])) and du[:, 2:].all()
    y, _ = causal_conv(u, torch.ones(3, 4, dtype=dtype), None, torch.zeros(1, 3, 3, dtype=dtype), starts)
    assert y[:, 2:].isfinite().all() and not y[:, 1].isfinite().any()


@kernel
def test_operators_with_documents_keep_torchs_rules_and_compile_whole():
    starts = torch.rand(2, 18, generator=torch.Generator().manual_seed(0)) < 0.3
    args = leaves(scan_inputs(2, 18, 5, 3), torch.float32)
    torch.library.opcheck(torch.ops.postformer.selective_scan.default, (*args, starts, None, None, None, True))
    conv_args = [x.float().requires_grad_() for x in (normal(2, 18, 5), normal(5, 4), normal(5), normal(2, 3, 5))]
    torch.library.opcheck(torch.ops.postformer.causal_conv.default, (*conv_args, starts, False))
    for f, given_args in (
        (selective_scan, (*args, starts)),
        (causal_conv, (*conv_args, starts)),
        (causal_conv, (*conv_args, starts, torch.tensor([18, 2]))),
        (causal_conv, (*conv_args, None, torch.tensor([0, 7]))),
    ):
        compiled = torch.compile(inspect.unwrap(f), fullgraph=True, backend="aot_eager")
        for mine, other in zip(compiled(*given_args), f(*given_args), strict=True):
            assert torch.equal(mine, other)


@kernel
def test_starts_of_another_size_or_dtype_are_refused():
    args = [x.float() for x in scan_inputs(2, 5, 4, 3)]
    conv_args = torch.ones(2, 5, 4), torch.ones(4, 3), None, torch.ones(2, 2, 4)
    for starts in (torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 5)):
        with pytest.raises(ValueError, match="selective_scan: starts is"):
            torch.ops.postformer.selective_scan(*args, starts, None, None, None, False)
        with pytest.raises(ValueError, match="causal_conv: starts is"):
            torch.ops.postformer.causal_conv(*conv_args, starts, False)
