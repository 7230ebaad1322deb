"""The one-token kernel against the block made of torch's operations, in fp64."""

import copy
import inspect
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer import state as states
from postformer.mixers.mamba import Mamba
from postformer.ops import _cpu
from postformer.ops._cpu import MOST_ROWS
from postformer.ops.mamba_step import Weights, mamba_step, serves

pytestmark = pytest.mark.skipif(not _cpu.BUILT, reason="installed without the kernels")


def block(d: int, **options: int) -> Mamba:
    torch.manual_seed(d)
    mixer = Mamba(d, **options).requires_grad_(False)
    for p in mixer.parameters():
        p.add_(0.1 * torch.randn_like(p))
    return mixer


@given(
    rows=st.integers(1, MOST_ROWS),
    d=st.integers(1, 40),
    n=st.integers(1, 20),
    k=st.integers(1, 5),
    expand=st.integers(1, 3),
    rank=st.integers(1, 9),
)
def test_equals_the_block_of_torchs_operations(rows: int, d: int, n: int, k: int, expand: int, rank: int):
    mixer = block(d, state=n, conv=k, expand=expand, rank=rank)
    wide = copy.deepcopy(mixer).double()
    x = torch.randn(rows, 4, d)
    state, truth = mixer.init_state(rows), wide.init_state(rows)
    for t in range(4):
        token = x[:, t : t + 1]
        assert serves(token, state, mixer.weights())
        assert not serves(token.double(), truth, wide.weights())
        y, state = mixer(token, state)
        true_y, truth = wide(token.double(), truth)
        torch.testing.assert_close(y.double(), true_y, rtol=1e-5, atol=1e-5)
    for (name, leaf), (_, true_leaf) in zip(states.leaves(state), states.leaves(truth), strict=True):
        torch.testing.assert_close(leaf.double(), true_leaf, rtol=1e-5, atol=1e-5, msg=name)


def test_weights_in_bf16_are_read_as_they_are():
    mixer = block(24)
    half = copy.deepcopy(mixer).bfloat16()
    truth = copy.deepcopy(half).float()
    x = torch.randn(2, 1, 24)
    y, after = half(x.bfloat16(), half.init_state(2))
    true_y, true_after = truth(x.bfloat16().float(), truth.init_state(2))
    assert y.dtype == after.conv.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), true_y, rtol=8e-3, atol=1e-3)
    torch.testing.assert_close(after.ssm.float(), true_after.ssm, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_rows_and_threads_change_nothing(threads: int):
    mixer = block(40)
    x = torch.randn(5, 1, 40)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y, _ = mixer(x, mixer.init_state(5))
        each = [mixer(x[i : i + 1], mixer.init_state(1))[0] for i in range(5)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.cat(each), y)


def test_a_state_whose_rows_lie_apart_is_taken_as_it_is():
    mixer = block(16)
    x = torch.randn(2, 1, 16)
    _, state = mixer(torch.randn(2, 9, 16), mixer.init_state(2))  # the convolution's part of it is a view
    scattered = states.map_leaves(lambda leaf: torch.stack([leaf, leaf], -1)[..., 0], state)
    y, after = mixer(x, states.clone(state))
    again, other = mixer(x, scattered)
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(states.leaves(after), states.leaves(other), strict=True))


def test_gradients_take_the_other_way():
    mixer = block(16)
    x, state = torch.randn(1, 1, 16), mixer.init_state(1)
    assert serves(x, state, mixer.weights())
    assert not serves(x.clone().requires_grad_(), state, mixer.weights())
    mixer.requires_grad_(True)
    assert not serves(x, state, mixer.weights())
    with torch.inference_mode():
        assert serves(x, state, mixer.weights())
    y, _ = mixer(x, state)
    y.sum().backward()
    assert mixer.inp.weight.grad is not None


def test_a_prompt_is_taught_through_a_frozen_block():
    mixer = block(16)
    wide = copy.deepcopy(mixer).double()
    prompt, token = torch.randn(1, 3, 16), torch.randn(1, 1, 16)
    grads = []
    for m, dtype in ((mixer, torch.float32), (wide, torch.float64)):
        p = prompt.to(dtype).requires_grad_()
        _, state = m(p, m.init_state(1))
        y, _ = m(token.to(dtype), state)
        grads += torch.autograd.grad(y.square().sum(), p)
    assert grads[1].abs().max() > 1e-4
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-4, atol=1e-6)
    _, state = mixer(prompt.clone().requires_grad_(), mixer.init_state(1))
    with pytest.raises(RuntimeError, match="has no gradient"):
        mamba_step(token[:, 0], *state, mixer.weights())[0].sum().backward()


def test_matrices_of_two_dtypes_take_the_other_way():
    mixer = block(16)
    mixer.inp.bfloat16()
    assert not serves(torch.randn(1, 1, 16), mixer.init_state(1), mixer.weights())
    assert mixer(torch.randn(1, 1, 16), mixer.init_state(1))[0].isfinite().all()


@pytest.mark.parametrize("cuts", [[1, 1, 1, 1], [4], [3, 1], [1, 3]])
def test_a_state_in_bf16_has_one_dtype_at_any_split(cuts: list[int]):
    mixer = block(16)
    x, state = torch.randn(1, 4, 16).bfloat16(), mixer.init_state(1)
    for piece in x.split(cuts, 1):
        _, state = mixer(piece, state)
    assert (state.conv.dtype, state.ssm.dtype) == (torch.bfloat16, torch.float32)


def test_a_state_of_another_size_is_refused():
    mixer = block(16)
    x = torch.randn(1, 16)
    for other in (Mamba(16, state=5), Mamba(16, conv=5), Mamba(24)):
        state = other.init_state(1)
        with pytest.raises(ValueError, match=r"mamba_step: .* expected"):
            mamba_step(x, *state, mixer.weights())


def test_more_rows_than_the_kernel_takes_are_refused():
    mixer = block(16)
    with pytest.raises(ValueError, match="mamba_step: 9 rows; expected 8 at most"):
        mamba_step(torch.randn(9, 16), *mixer.init_state(9), mixer.weights())


def test_the_operator_keeps_torchs_rules_and_compiles_whole():
    mixer = block(12)
    weights = [w.contiguous() for w in mixer.weights()]
    state = mixer.init_state(2)
    args = torch.randn(2, 12), state.conv, state.ssm, weights
    torch.library.opcheck(torch.ops.postformer.mamba_step.default, args, test_utils=("test_schema", "test_faketensor"))
    compiled = torch.compile(inspect.unwrap(mamba_step), fullgraph=True, backend="aot_eager")
    outputs = [f(args[0], *mixer.init_state(2), mixer.weights()) for f in (compiled, mamba_step)]
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_it_is_counted_in_operations():
    from torch.utils.flop_counter import FlopCounterMode

    mixer = block(16)
    x = torch.randn(1, 1, 16)
    with FlopCounterMode(display=False) as counter:
        mixer(x, mixer.init_state(1))
    c = mixer.channels
    assert counter.get_total_flops() == mixer.flops(1) - 2 * c  # the skip and the gate are not counted by torch


def test_all_weights_have_a_place():
    assert set(Weights._fields) == {"inp", "select", "dt", "out", "taps", "tap_bias", "dt_bias", "A_log", "D"}
    assert len(set(itertools.chain(map(id, block(8).weights())))) == len(Weights._fields)
