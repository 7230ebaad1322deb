"""The one-token kernel called past torch's dispatcher: the same results, and weights that change are seen."""

import copy
import pickle

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from postformer import state as states
from postformer.mixers import mamba
from postformer.mixers.mamba import Mamba
from postformer.ops import _cpu

pytestmark = pytest.mark.skipif(not _cpu.BUILT, reason="installed without the kernels")


def block(dtype: torch.dtype = torch.float32, d: int = 24) -> Mamba:
    torch.manual_seed(d)
    return Mamba(d).to(dtype).requires_grad_(False)


def same_as_the_operator(mixer: Mamba, rows: int = 2) -> torch.Tensor:
    """A step by either way, from a state in use; returns the output."""
    x = torch.randn(rows, 3, mixer.dim, generator=torch.Generator().manual_seed(1)).to(mixer.D.dtype)
    _, state = mixer(x[:, :2], mixer.init_state(rows))
    before = states.clone(state)
    with torch.inference_mode():
        y, after = mixer(x[:, 2:], state)
    with torch.no_grad():
        other, expected = mixer(x[:, 2:], before)
    assert torch.equal(y, other)
    for (_, a), (_, b), (_, kept), (_, c) in zip(*map(states.leaves, (after, expected, state, before)), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
        assert torch.equal(kept, c), "the state that was given stays as it was"
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8])
def test_equals_the_operator_and_calls_it_not(dtype, rows, monkeypatch):
    mixer = block(dtype)
    same_as_the_operator(mixer, rows)
    monkeypatch.setattr(mamba, "mamba_step", None)
    x, state = torch.zeros(rows, 1, 24, dtype=dtype), mixer.init_state(rows)
    with torch.inference_mode():
        mixer(x, state)
    with pytest.raises(TypeError):
        mixer(x, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["inp.weight", "dt.bias", "A_log", "D", "conv_weight", "conv_bias", "out.weight"])
def test_weights_that_change_are_seen(dtype, name):
    mixer = block(dtype)
    y = same_as_the_operator(mixer)
    mixer.get_parameter(name).mul_(3.0).add_(0.5)
    second = same_as_the_operator(mixer)
    assert not torch.equal(y, second)
    mixer.load_state_dict(block(dtype).state_dict())
    assert torch.equal(same_as_the_operator(mixer), y)
    mixer.load_state_dict({k: v * 2 for k, v in mixer.state_dict().items()}, assign=True)
    mixer.requires_grad_(False)
    assert not torch.equal(same_as_the_operator(mixer), y)


def test_another_dtype_and_copies():
    mixer = block()
    y = same_as_the_operator(mixer)
    for twin in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))):
        twin.D.zero_()
        assert not torch.equal(same_as_the_operator(twin), y)
    assert torch.equal(same_as_the_operator(mixer), y)
    same_as_the_operator(mixer.bfloat16())
    assert same_as_the_operator(mixer.float()).dtype == torch.float32


def test_a_block_made_under_inference():
    with torch.inference_mode():
        mixer = block(torch.bfloat16)
        x, state = torch.ones(1, 1, 24, dtype=torch.bfloat16), mixer.init_state(1)
        y, _ = mixer(x, state)
        mixer.D.add_(1)
        other, _ = mixer(x, state)
    assert not torch.equal(y, other)


def test_a_state_of_another_size_is_refused_and_the_work_is_counted():
    mixer = block()
    x = torch.randn(1, 1, 24)
    with torch.inference_mode():
        mixer(x, mixer.init_state(1))
        for other in (Mamba(24, state=5), Mamba(24, conv=5), Mamba(32)):
            with pytest.raises(ValueError, match=r"mamba_step: .* expected"):
                mixer(x, other.init_state(1))
        with FlopCounterMode(display=False) as counter:
            mixer(x, mixer.init_state(1))
    assert counter.get_total_flops() == mixer.flops(1) - 2 * mixer.channels
