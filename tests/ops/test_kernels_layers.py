"""One token through several layers in one call: the same as layer by layer, and given up where a layer must be called itself."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize, prune

from postformer import state as states
from postformer.mixers.mamba import Mamba, MambaState
from postformer.models.backbone import Backbone
from postformer.ops import _cpu
from postformer.ops.layers import Linear

pytestmark = pytest.mark.skipif(not _cpu.BUILT, reason="installed without the kernels")

MAMBA, OTHER = {"kind": "mamba", "state": 5}, {"kind": "mamba", "state": 3, "conv": 1}
ATTENTION, MLP, NONE = {"kind": "attention", "heads": 2}, {"kind": "mlp", "hidden": 16}, {"kind": "none"}


def stack(mixers: tuple[Any, ...] = (MAMBA,), ffns: tuple[Any, ...] = (NONE,), depth: int = 5, dim: int = 24) -> Backbone:
    torch.manual_seed(dim)
    backbone = Backbone(dim, depth, mixers, ffns).requires_grad_(False)
    for p in backbone.parameters():
        p.add_(0.1 * torch.randn_like(p))
    return backbone


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each call of the kernel takes, from now on."""
    seen, run = [], _cpu.run

    def count(name: str, *arguments: int) -> None:
        if name == "mamba_steps":
            seen.append(arguments[2])
        run(name, *arguments)

    monkeypatch.setattr(_cpu, "run", count)
    return seen


def stepped(backbone: Backbone, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
    before = states.clone(state)
    with torch.inference_mode():
        y, after = backbone(x, state)
    for layer, kept in zip(state, before, strict=True):
        if isinstance(layer, MambaState):  # attention's ring is written in place
            assert torch.equal(layer.conv, kept.conv) and torch.equal(layer.ssm, kept.ssm)
    return y, after


def same_as_layer_by_layer(backbone: Backbone, rows: int = 2, **close: float) -> torch.Tensor:
    dtype = backbone.norm.weight.dtype
    close = close or {"rtol": 1e-5, "atol": 1e-5}
    x = torch.randn(rows, 3, backbone.dim, generator=torch.Generator().manual_seed(rows)).to(dtype)
    with torch.no_grad():
        _, state = backbone(x[:, :2], backbone.init_state(rows))
        expected, last = backbone(x[:, 2:], states.clone(state))
    y, after = stepped(backbone, x[:, 2:], state)
    torch.testing.assert_close(y, expected, **close)
    for (name, a), (_, b) in zip(states.leaves(after), states.leaves(last), strict=True):
        torch.testing.assert_close(a, b, **close, msg=name)
    return y


@given(rows=st.integers(0, 9), dim=st.integers(1, 40), depth=st.integers(1, 4), n=st.integers(1, 20), k=st.integers(1, 5))
def test_equals_layer_by_layer(rows: int, dim: int, depth: int, n: int, k: int):
    same_as_layer_by_layer(stack(({"kind": "mamba", "state": n, "conv": k},), depth=depth, dim=dim), rows)


def test_a_row_of_zeros_and_a_row_that_is_not_finite_stay_apart():
    backbone = stack()
    x = torch.randn(3, 1, 24)
    alone, _ = stepped(backbone, x[:1], backbone.init_state(1))
    x[1], x[2, 0, 3] = 0, torch.nan
    y, _ = stepped(backbone, x, backbone.init_state(3))
    assert torch.equal(y[:1], alone) and y[1].isfinite().all() and y[2].isnan().all()


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_bf16_between_layers_is_rounded_once(weights: torch.dtype):
    backbone = stack().bfloat16().to(weights)
    wide = copy.deepcopy(backbone).double()
    x = torch.randn(2, 2, 24).bfloat16()
    state, truth = backbone.init_state(2), wide.init_state(2)
    for t in range(2):
        y, state = stepped(backbone, x[:, t : t + 1], state)
        true_y, truth = wide(x[:, t : t + 1].double(), truth)
        assert y.dtype == state[0].conv.dtype == torch.bfloat16 and state[0].ssm.dtype == torch.float32
        torch.testing.assert_close(y.double(), true_y, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("mixers", "ffns", "runs"),
    [
        ((MAMBA,), (NONE,), [7]),
        ((MAMBA, MAMBA, MAMBA, ATTENTION), (NONE,), [3, 3]),
        ((MAMBA, OTHER), (NONE,), [1] * 7),
        ((MAMBA, MAMBA, OTHER), (NONE,), [2, 1, 2, 1, 1]),
        ((MAMBA,), (MLP,), [1] * 7),
        ((MAMBA,), (NONE, NONE, MLP), [2, 1, 2, 1, 1]),
    ],
)
def test_layers_of_one_form_go_together(mixers: Any, ffns: Any, runs: list[int], monkeypatch: pytest.MonkeyPatch):
    backbone = stack(mixers, ffns, depth=7)
    same_as_layer_by_layer(backbone)
    seen = calls(monkeypatch)
    stepped(backbone, torch.randn(1, 1, 24), backbone.init_state(1))
    assert seen == runs


@pytest.mark.parametrize(
    "name", ["blocks.3.mixer.inp.weight", "blocks.0.mixer.D", "blocks.4.norm.weight", "blocks.2.mixer.A_log"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_change_are_seen(name: str, dtype: torch.dtype):
    close = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
    backbone = stack().to(dtype)
    y = same_as_layer_by_layer(backbone, **close)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone)), backbone):
        twin.get_parameter(name).mul_(-2)
        assert not torch.equal(same_as_layer_by_layer(twin, **close), y)


@pytest.mark.parametrize("part", ["blocks.1", "blocks.2.norm", "blocks.0.mixer", "blocks.3.mixer.inp"])
def test_who_listens_to_a_layer_hears_it(part: str):
    backbone = stack()
    expected = same_as_layer_by_layer(backbone)
    heard = []
    handle = backbone.get_submodule(part).register_forward_hook(lambda *_: heard.append(part))
    y = same_as_layer_by_layer(backbone)
    assert len(heard) == 3
    handle.remove()
    torch.testing.assert_close(y, expected)
    same_as_layer_by_layer(backbone)
    assert len(heard) == 3


class Adapted(nn.Module):
    """A projection with something added, as adapters wrap it."""

    def __init__(self, inner: Linear):
        super().__init__()
        self.inner, self.weight = inner, inner.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 1


def test_a_projection_that_was_replaced_is_called():
    backbone = stack()
    y = same_as_layer_by_layer(backbone)
    backbone.blocks[1].mixer.out = Adapted(backbone.blocks[1].mixer.out)
    assert not torch.allclose(same_as_layer_by_layer(backbone), y)
    backbone.blocks[2].norm = nn.Identity()
    assert not torch.allclose(same_as_layer_by_layer(backbone), y)


def test_a_state_of_another_size_is_refused():
    backbone = stack()
    with pytest.raises(ValueError, match=r"mamba_step: .* expected"):
        stepped(backbone, torch.randn(1, 1, 24), stack((OTHER,)).init_state(1))


class Tripled(Mamba):
    """A mixer that is a Mamba and does more."""

    def forward(self, *args: Any, **words: Any) -> Any:
        y, state = super().forward(*args, **words)
        return 3 * y, state


def test_a_subclass_with_a_forward_of_its_own_is_called():
    backbone = stack()
    y = same_as_layer_by_layer(backbone)
    for block in backbone.blocks:
        block.mixer.__class__ = Tripled
    assert not torch.allclose(same_as_layer_by_layer(backbone), y)
    backbone, called = stack(), []
    mixer = backbone.blocks[2].mixer
    mixer.forward = lambda *args, **words: called.append(1) or Mamba.forward(mixer, *args, **words)
    same_as_layer_by_layer(backbone)
    assert len(called) == 3


def test_layers_of_two_dtypes_go_one_by_one():
    backbone = stack()
    backbone.blocks[1].mixer.bfloat16()
    same_as_layer_by_layer(backbone, rtol=2e-2, atol=2e-2)
    backbone.blocks[3].mixer.D.data = backbone.blocks[3].mixer.D.data.bfloat16()
    same_as_layer_by_layer(backbone, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mixer.D", "mixer.A_log", "norm.weight", "mixer.dt.weight"])
def test_weights_that_are_written_past_their_version_are_seen(name: str, dtype: torch.dtype):
    backbone = stack().to(dtype)
    x = torch.randn(1, 1, 24).to(dtype)
    _, state = stepped(backbone, x, backbone.init_state(1))
    before = stepped(backbone, x, state)
    backbone.blocks[0].get_parameter(name).data.mul_(-3)
    again, fresh = (stepped(m, x, state) for m in (backbone, copy.deepcopy(backbone)))
    assert torch.equal(again[0], fresh[0])
    assert not (torch.equal(again[0], before[0]) and torch.equal(again[1][0].ssm, before[1][0].ssm))


def test_pruned_and_parametrized_layers_are_called():
    backbone = stack()
    y = same_as_layer_by_layer(backbone)
    prune.l1_unstructured(backbone.blocks[1].mixer, "D", 0.5)
    pruned = same_as_layer_by_layer(backbone)
    parametrize.register_parametrization(backbone.blocks[2].mixer, "A_log", nn.Softplus(), unsafe=True)
    assert not torch.allclose(pruned, y) and not torch.allclose(same_as_layer_by_layer(backbone), pruned)


def test_many_rows_go_layer_by_layer(monkeypatch: pytest.MonkeyPatch):
    seen = calls(monkeypatch)
    same_as_layer_by_layer(stack(), rows=9)
    assert not seen


def test_threads_may_share_a_model():
    with torch.inference_mode():
        backbone = stack().bfloat16()
        x, state = torch.randn(1, 1, 24).bfloat16(), backbone.init_state(1)
        expected, _ = backbone(x, state)

    def steps(_: int) -> bool:
        with torch.inference_mode():
            return all(torch.equal(backbone(x, state)[0], expected) for _ in range(200))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(steps, range(3)))
