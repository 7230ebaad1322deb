"""The recurrences of Mamba-2, Mamba-3 and the gated delta rule: chunks against the recurrence as written, against the quadratic
form, and with document starts against each document alone; outputs, states and gradients, in float64."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.ops import delta, ssd, trapezoid
from postformer.ops.packing import Packing

EXACT = {"rtol": 0.0, "atol": 1e-10}
B, H, P, N = 2, 4, 3, 5
lengths = st.sampled_from([1, 2, 3, 17, 63, 64, 65, 128, 150])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def decays(t: int, scale: float = 0.3) -> torch.Tensor:
    return -scale * draw(B, t, H, seed=9).abs()


def ssd_inputs(t: int, r: int = 1, g: int = 2) -> list[torch.Tensor]:
    return [draw(B, t, r, H, P), decays(t), draw(B, t, r, g, N, seed=1), draw(B, t, r, g, N, seed=2), draw(B, H, P, N, seed=3)]


def delta_inputs(t: int) -> list[torch.Tensor]:
    q, k = (torch.nn.functional.normalize(draw(B, t, H, N, seed=i), dim=-1) for i in (4, 5))
    beta = 2 * draw(B, t, H, seed=6).sigmoid()
    return [q, k, draw(B, t, H, P, seed=7), decays(t), beta, draw(B, H, P, N, seed=3)]


def weighed_inputs(t: int, r: int = 1) -> list[torch.Tensor]:
    *inputs, state = ssd_inputs(t, r)
    return [*inputs, draw(B, t, H, seed=10), draw(B, t, H, seed=11), state]


def weighed(op):
    """The operation as a function of what has a time, and of the state and starts."""
    D = draw(H, seed=12)
    return lambda x, a, B_, C, now, later, *rest: op(x, a, B_, C, *rest, weights=ssd.Weights(now, later, D))


def trapezoid_inputs(t: int, r: int = 1) -> tuple[list[torch.Tensor], trapezoid.TrapezoidState]:
    x, B_, C = draw(B, t, r, H, P), draw(B, t, r, H, N, seed=1), draw(B, t, r, H, N, seed=2)
    beta, gamma = draw(B, t, H, seed=3).sigmoid(), draw(B, t, H, seed=4).sigmoid()
    state = trapezoid.TrapezoidState(draw(B, H, P, N, seed=5), draw(B, r, H, N, seed=6), draw(B, r, H, P, seed=7))
    return [x, decays(t), beta, gamma, B_, C], state


def starts_of(t: int, places: set[int]) -> torch.Tensor:
    """Row 0 starts at the places that lie in it; row 1 only goes on."""
    starts = torch.zeros(B, t, dtype=torch.bool)
    starts[0, [p for p in places if p < t]] = True
    return starts


def same(got, wanted) -> None:
    for a, b in zip(got, wanted, strict=True):
        if isinstance(a, tuple):
            same(a, b)
        else:
            torch.testing.assert_close(a, b, **EXACT)


OPS = {
    "ssd": (ssd.ssd, ssd.ssd_reference, ssd_inputs),
    "ssd-rank-3": (ssd.ssd, ssd.ssd_reference, lambda t: ssd_inputs(t, 3, 4)),
    "delta": (delta.gated_delta, delta.gated_delta_reference, delta_inputs),
    "ssd-weighed": (weighed(ssd.ssd), weighed(ssd.ssd_reference), weighed_inputs),
    "ssd-weighed-rank-3": (weighed(ssd.ssd), weighed(ssd.ssd_reference), lambda t: weighed_inputs(t, 3)),
}
places = st.sets(st.integers(0, 149), max_size=5)


@pytest.mark.parametrize("name", OPS)
@given(t=lengths, at=places)
def test_chunks_equal_the_recurrence(name, t, at):
    chunked, reference, inputs = OPS[name]
    x = inputs(t)
    same(chunked(*x), reference(*x))
    same(chunked(*x, starts_of(t, at)), reference(*x, starts_of(t, at)))


@pytest.mark.parametrize("name", OPS)
@given(t=st.sampled_from([5, 64, 100]), at=st.sets(st.integers(1, 99), min_size=1, max_size=3))
def test_a_packed_row_equals_its_documents_alone(name, t, at):
    chunked, _, inputs = OPS[name]
    *x, state = (m[:1] for m in inputs(t))
    cuts = [0, *sorted(p for p in at if p < t), t]
    y, last = chunked(*x, state, starts_of(t, at)[:1])
    for i, (first, end) in enumerate(itertools.pairwise(cuts)):
        own = state if i == 0 else torch.zeros_like(state)
        alone, after = chunked(*(m[:, first:end] for m in x), own)
        torch.testing.assert_close(y[:, first:end], alone, **EXACT)
    torch.testing.assert_close(last, after, **EXACT)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("at", [set(), {0, 7, 64}], ids=["whole", "packed"])
def test_gradients_equal_those_of_the_recurrence(name, at):
    chunked, reference, inputs = OPS[name]
    x = [m.requires_grad_() for m in inputs(70)]
    grads = []
    for op in (chunked, reference):
        y, last = op(*x, starts_of(70, at))
        grads.append(torch.autograd.grad((y * draw(*y.shape, seed=8)).sum() + (last * draw(*last.shape, seed=9)).sum(), x))
    same(*grads)


@given(t=lengths, r=st.sampled_from([1, 3]))
def test_trapezoid_equals_its_recurrence(t, r):
    x, state = trapezoid_inputs(t, r)
    same(trapezoid.trapezoid(*x, state), trapezoid.trapezoid_reference(*x, state))


@pytest.mark.parametrize("r", [1, 3])
def test_trapezoid_equals_its_quadratic_form(r):
    """y_t = sum over s <= t of w_ts (C_t . B_s) x_s, with w_ts = exp(a_{s+1} + ... + a_t) (gamma_s + beta_{s+1}), gamma_t at s = t."""
    t = 90
    (x, a, beta, gamma, B_, C), state = trapezoid_inputs(t, r)
    state = trapezoid.TrapezoidState(*map(torch.zeros_like, state))
    s = a.cumsum(1)
    left = (s[:, :, None] - s[:, None]).masked_fill(~torch.ones(t, t).tril().bool()[None, :, :, None], -torch.inf).exp()
    weight = left * (gamma + torch.nn.functional.pad(beta[:, 1:], (0, 0, 0, 1)))[:, None]
    for i in range(t):
        weight[:, i, i] = gamma[:, i]
    y = torch.einsum("btrhn,bsqhn,btsh,bsqhp->btrhp", C, B_, weight, x)
    torch.testing.assert_close(trapezoid.trapezoid(x, a, beta, gamma, B_, C, state)[0], y, **EXACT)


def test_a_state_that_forgets_all_at_once_stays_finite_and_exact():
    """Decays of e^-80 a token: sums of them would not fit in fp32's digits."""
    x = [m.float() for m in ssd_inputs(128)]
    x[1] = torch.where(draw(B, 128, H, seed=11) > 0, -80.0, -1e-3).float()
    y, last = ssd.ssd(*x)
    exact = ssd.ssd_reference(*(m.double() for m in x))
    torch.testing.assert_close(y.double(), exact[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(last.double(), exact[1], rtol=1e-5, atol=1e-4)


@given(real=st.lists(st.integers(0, 6), min_size=2, max_size=2))
def test_last_is_what_stands_at_the_last_real_token(real):
    x, before = draw(2, 6, 3), draw(2, 3, seed=1)
    got = Packing(lengths=torch.tensor(real)).last(x, before)
    for row, n in enumerate(real):
        assert torch.equal(got[row], x[row, n - 1] if n else before[row])
