"""The one-token kernel called past torch's dispatcher: the same results, and weights that change are seen."""

import copy
import inspect
import pickle

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from postformer import state as states
from postformer.config import build
from postformer.mixers import MIXERS, mamba
from postformer.mixers.mamba import Mamba
from postformer.ops import _cpu
from postformer.ops.mamba_step import Stepper

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


def test_what_cannot_be_read_in_place_takes_the_other_way():
    """A subclass of tensors may lie elsewhere than where its pointer says."""

    class Other(torch.Tensor):
        pass

    mixer, x = block(), torch.zeros(1, 24)
    state, weights = mixer.init_state(1), mixer.weights()
    with torch.inference_mode():
        assert Stepper()(x, [state], [weights]) is not None
        assert Stepper()(x.as_subclass(Other), [state], [weights]) is None
        assert Stepper()(x, [state], [weights._replace(D=weights.D.as_subclass(Other))]) is None
        assert Stepper()(x, [(state.conv, state.ssm.as_subclass(Other))], [weights]) is None


def test_a_weight_of_another_shape_in_the_same_memory_is_seen():
    mixer, x = block(), torch.zeros(1, 24)
    state, weights, step = mixer.init_state(1), mixer.weights(), Stepper()
    with torch.inference_mode():
        assert step(x, [state], [weights]) is not None
        turned = weights._replace(out=weights.out.data.view(weights.out.shape[::-1]))
        with pytest.raises(ValueError, match="mamba_step: out is"):
            step(x, [state], [turned])


def test_states_and_norms_that_do_not_fit_are_refused():
    mixer, x = block(), torch.zeros(1, 24)
    state, weights = mixer.init_state(1), mixer.weights()
    with torch.inference_mode():
        for states_ in ([], [state, state]):
            with pytest.raises(ValueError, match="states for 1 layers"):
                Stepper()(x, states_, [weights])
        with pytest.raises(ValueError, match=r"mamba_step: a norm is \(4,\); expected \(24,\)"):
            inspect.unwrap(Stepper.__call__)(Stepper(), x, [state], [weights], [torch.ones(4)], 1e-5)


def test_more_rows_than_the_kernel_has_room_for_are_refused():
    y = torch.zeros(_ROWS, 24)
    with pytest.raises(MemoryError):
        _cpu.run("mamba_steps", None, y.data_ptr(), 1, 0, 0, 0, 0, _ROWS, 24, 48, 4, 2, 16)


_ROWS = 9


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", ["mamba", "mamba2", "mamba3", "gated_delta"])
def test_transforms_of_torch_func_take_the_reference(kind, rows):
    """Kernels have no rule for forward-mode derivatives and for vmap; both are right all the same."""
    torch.manual_seed(0)
    options = {"mamba": {}, "gated_delta": {"heads": 2}}.get(kind, {"state": 8, "head_dim": 8})
    mixer = build({"kind": kind, **options}, MIXERS, "mixer", dim=16)
    x, along = torch.randn(rows, 4, 16), torch.randn(rows, 4, 16)
    _, slope = torch.func.jvp(lambda x: mixer(x)[0], (x,), (along,))
    wide = copy.deepcopy(mixer).double()
    _, exact = torch.func.jvp(lambda x: wide(x)[0], (x.double(),), (along.double(),))
    torch.testing.assert_close(slope.double(), exact, rtol=1e-3, atol=1e-4)
    with forward_ad.dual_level():
        dual = mixer(forward_ad.make_dual(x, along))[0]
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, slope)
    state = mixer.init_state(1)
    with torch.no_grad():
        each = torch.func.vmap(lambda x: mixer(x[None], state)[0][0])(x[:, :1])
        torch.testing.assert_close(each, torch.cat([mixer(row[None, :1], mixer.init_state(1))[0] for row in x]))
