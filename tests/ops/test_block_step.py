"""One token through blocks of attention and a network in one call: the same as block by block, and given up where one must be called."""

import copy
import gc
import inspect
import pickle
import weakref
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from postformer import state as states
from postformer.ffn.mlp import MLP as MLP_CLASS
from postformer.ffn.moe import MoE, Preset
from postformer.mixers.attention import Attention
from postformer.models.backbone import Backbone
from postformer.models.routing import routed
from postformer.ops import _cpu
from postformer.ops._cpu import MOST_ROWS
from postformer.ops.block_step import Stepper
from postformer.ops.layers import Linear
from postformer.ops.packing import Packing

pytestmark = pytest.mark.skipif(not _cpu.BUILT, reason="installed without the kernels")

ATTENTION, MAMBA = {"kind": "attention", "heads": 4}, {"kind": "mamba", "state": 4}
MLP, NONE, MOE = {"kind": "mlp", "hidden": 20}, {"kind": "none"}, {"kind": "moe", "hidden": 12}
PRESETS: tuple[str, ...] = get_args(Preset)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def stack(mixers: tuple[Any, ...] = (ATTENTION,), ffns: tuple[Any, ...] = (MLP,), depth: int = 3, dim: int = 24) -> Backbone:
    torch.manual_seed(dim)
    backbone = Backbone(dim, depth, mixers, ffns).requires_grad_(False).eval()
    for p in backbone.parameters():
        p.add_(0.1 * torch.randn_like(p))
    for block in backbone.blocks:
        if getattr(block.ffn, "correction", None) is not None:
            block.ffn.correction.normal_(0, 0.1)
    return backbone


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks each call of the kernel takes, from now on."""
    seen, asked = [], _cpu.asked

    def count(name: str, *arguments: int) -> int:
        said = asked(name, *arguments)
        seen.extend([arguments[2]] * (name == "block_steps" and not said))
        return said

    monkeypatch.setattr(_cpu, "asked", count)
    return seen


def step(backbone: Backbone, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
    with torch.inference_mode():
        return backbone(x, state)


def same_as_block_by_block(
    backbone: Backbone, rows: int = 2, before: int = 2, kernel: bool = True, **close: float
) -> torch.Tensor:
    """Of two tokens after some others: with no cache yet where there are none before. Whether the kernel had a part in it is checked."""
    dtype = backbone.norm.weight.dtype
    x = torch.randn(rows, before + 2, backbone.dim, generator=torch.Generator().manual_seed(rows)).to(dtype)
    with torch.no_grad():
        _, state = backbone(x[:, :before], backbone.init_state(rows))
        after = states.clone(state)
        ys = []
        for t in (-2, -1):
            y, after = backbone(x[:, t, None], after)
            ys.append(y)
    found = states.clone(state)
    with pytest.MonkeyPatch.context() as patched:
        seen = calls(patched)
        for t, expected in zip((-2, -1), ys, strict=True):
            y, found = step(backbone, x[:, t, None], found)
            torch.testing.assert_close(y, expected, **(close or CLOSE))
        assert bool(seen) == kernel
    for (name, a), (_, b) in zip(states.leaves(found), states.leaves(after), strict=True):
        torch.testing.assert_close(a, b, **(close or CLOSE), msg=lambda text, name=name: f"{name}: {text}")
    return y


@st.composite
def attentions(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.integers(1, 3))
    return {
        "kind": "attention",
        "heads": groups * draw(st.integers(1, 3)),
        "kv_heads": groups,
        "head_dim": 2 * draw(st.integers(1, 40)),
        "window": draw(st.sampled_from([None, 1, 3, 300])),
        "qk_norm": draw(st.sampled_from([False, True, "whole"])),
        "bias": draw(st.booleans()),
        "rope_base": draw(st.sampled_from([10, 1e4, 1e6])),
    }


NETWORKS = st.one_of(
    st.just(NONE),
    st.builds(
        lambda hidden, activation: {"kind": "mlp", "hidden": hidden, "activation": activation},
        st.integers(1, 70),
        st.sampled_from(["swiglu", "gelu"]),
    ),
    st.builds(
        lambda preset, hidden, biases: {"kind": "moe", "preset": preset, "hidden": hidden, "biases": biases},
        st.sampled_from(PRESETS),
        st.integers(1, 40),
        st.booleans(),
    ),
)


@given(attentions(), NETWORKS, st.integers(1, 70), st.integers(1, MOST_ROWS), st.integers(0, 5))
def test_equals_block_by_block(attention: Any, network: Any, dim: int, rows: int, before: int):
    same_as_block_by_block(stack((attention,), (network,), dim=dim), rows, before)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_goes_in_one_call(preset: str, monkeypatch: pytest.MonkeyPatch):
    backbone = stack(ffns=({"kind": "moe", "preset": preset, "hidden": 12},))
    seen = calls(monkeypatch)
    same_as_block_by_block(backbone)
    assert seen == [3, 3]


@pytest.mark.parametrize("before", [63, 64, 254, 255, 256, 600])
@pytest.mark.parametrize("window", [None, 64, 400])
def test_long_caches(before: int, window: int | None):
    mixer = {**ATTENTION, "kv_heads": 2, "window": window}
    same_as_block_by_block(stack((mixer,), depth=2), before=before)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=MOST_ROWS), st.sampled_from([None, 7]))
def test_rows_that_have_seen_more_or_less(seen: list[int], window: int | None):
    backbone = stack(({**ATTENTION, "window": window},), depth=2)
    x = torch.randn(len(seen), max(seen) + 1, 24)
    mask = torch.arange(x.shape[1] - 1) < torch.tensor(seen)[:, None]
    alone = []
    with torch.no_grad():
        state = backbone.init_state(len(seen))
        if mask.shape[1]:
            _, state = backbone(x[:, :-1], state, Packing(None, torch.tensor(seen)))
        for row, count in enumerate(seen):
            y, _ = backbone(torch.cat([x[row : row + 1, :count], x[row : row + 1, -1:]], 1), backbone.init_state(1))
            alone.append(y[:, -1:])
    y, _ = step(backbone, x[:, -1:], state)
    torch.testing.assert_close(y, torch.cat(alone), **CLOSE)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("network", [MLP, {**MOE, "experts": 2}])
def test_bf16_between_blocks_is_rounded_once(weights: torch.dtype, network: Any):
    backbone = stack(ffns=(network,)).bfloat16().to(weights)
    wide = copy.deepcopy(backbone).double()
    x = torch.randn(2, 70, 24).bfloat16()
    state, truth = backbone.init_state(2), wide.init_state(2)
    for t in range(x.shape[1]):
        y, state = step(backbone, x[:, t : t + 1], state)
        true_y, truth = wide(x[:, t : t + 1].double(), truth)
        assert y.dtype == state[0].k.dtype == state[0].v.dtype == torch.bfloat16
        torch.testing.assert_close(y.double(), true_y, rtol=3e-2, atol=3e-2)


def test_a_correction_is_wider_than_what_is_bf16():
    """All blocks go in one call, whatever else is bf16."""
    words = {**MOE, "preset": "deepseek-v3", "experts": 16, "top": 2}
    half = stack(ffns=(words,)).bfloat16()
    assert {block.ffn.correction.dtype for block in half.blocks} == {torch.float32}
    same_as_block_by_block(half, rtol=0.2, atol=0.2)
    matrices = stack(ffns=(words,))
    for block in matrices.blocks:
        for p in [*block.mixer.parameters(), *block.ffn.parameters()]:
            p.data = p.data.bfloat16()
    same_as_block_by_block(matrices)


@pytest.mark.parametrize(
    ("mixers", "ffns", "runs"),
    [
        ((ATTENTION,), (MLP,), [7]),
        ((ATTENTION, {**ATTENTION, "heads": 2, "window": 5}), (MLP, MOE, NONE), [7]),
        ((MAMBA, MAMBA, ATTENTION), (NONE,), [1, 1]),
        ((ATTENTION, {**ATTENTION, "conv": 3}), (MLP,), [1] * 4),
        ((ATTENTION, ATTENTION, {**ATTENTION, "persistent": 2}), (MLP,), [2, 2, 1]),
    ],
)
def test_which_blocks_go_together(mixers: Any, ffns: Any, runs: list[int], monkeypatch: pytest.MonkeyPatch):
    backbone = stack(mixers, ffns, depth=7)
    same_as_block_by_block(backbone)
    seen = calls(monkeypatch)
    step(backbone, torch.randn(1, 1, 24), backbone.init_state(1))
    assert seen == runs


def test_when_blocks_are_called_one_by_one(monkeypatch: pytest.MonkeyPatch):
    backbone = stack(ffns=(MOE,))
    seen = calls(monkeypatch)
    same_as_block_by_block(backbone, rows=MOST_ROWS + 1, kernel=False)
    x, state = torch.randn(1, 2, 24), backbone.init_state(1)
    step(backbone, x, state)
    backbone(x[:, :1], state)
    with torch.inference_mode():
        backbone(x[:, :1])
        backbone.double()(x[:, :1].double(), backbone.init_state(1))
        with FlopCounterMode(display=False) as counter:
            backbone.float()(x[:, :1], backbone.init_state(1))
    assert counter.get_total_flops() and not seen
    backbone.train()
    step(backbone, x[:, :1], backbone.init_state(1))
    assert not seen
    step(backbone.eval(), x[:, :1], backbone.init_state(1))
    assert seen == [3]


@pytest.mark.parametrize(
    "name",
    [
        "blocks.1.mixer.q.weight",
        "blocks.0.norm.weight",
        "blocks.2.ffn_norm.weight",
        "blocks.1.ffn.up.weight",
        "blocks.0.ffn.router.weight",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_change_are_seen(name: str, dtype: torch.dtype):
    close = {"rtol": 0.2, "atol": 0.2} if dtype == torch.bfloat16 else {}
    backbone = stack(ffns=({**MOE, "experts": 2},)).to(dtype)
    y = same_as_block_by_block(backbone, **close)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone)), backbone):
        weight = twin.get_parameter(name)
        weight.mul_(-2)
        second = same_as_block_by_block(twin, **close)
        assert not torch.equal(second, y)
        weight.data = weight.data.clone().mul_(-2)
        third = same_as_block_by_block(twin, **close)
        assert not torch.equal(third, second)
        twin.load_state_dict({k: 0.5 * v for k, v in twin.state_dict().items()}, assign=True)
        assert not torch.equal(same_as_block_by_block(twin.requires_grad_(False), **close), third)


@pytest.mark.parametrize(("part", "name"), [("norm", "eps"), ("mixer", "rope_base"), ("ffn", "scale"), ("ffn", "top")])
def test_numbers_that_change_are_seen(part: str, name: str):
    backbone = stack(ffns=(MOE,))
    y = same_as_block_by_block(backbone)
    module = getattr(backbone.blocks[1], part)
    setattr(module, name, 1 if name == "top" else 3 * getattr(module, name) + 1)
    assert not torch.equal(same_as_block_by_block(backbone), y)


@pytest.mark.parametrize(
    "part", ["blocks.1", "blocks.2.norm", "blocks.0.mixer.q", "blocks.1.ffn", "blocks.2.ffn.router", "blocks.0.ffn_norm"]
)
def test_who_listens_hears_it(part: str):
    backbone = stack(ffns=(MOE,))
    expected = same_as_block_by_block(backbone)
    heard = []
    handle = backbone.get_submodule(part).register_forward_hook(lambda *_: heard.append(part))
    torch.testing.assert_close(same_as_block_by_block(backbone), expected)
    assert len(heard) == 5
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: heard.append(part))
    try:
        step(backbone, torch.randn(1, 1, 24), backbone.init_state(1))
    finally:
        handle.remove()
    assert len(heard) > 20


def test_who_asks_for_routes_gets_them(monkeypatch: pytest.MonkeyPatch):
    backbone = stack(ffns=(MOE,))
    step(backbone, torch.randn(1, 1, 24), backbone.init_state(1))
    seen = calls(monkeypatch)
    with routed(backbone) as found:
        step(backbone, torch.randn(1, 1, 24), backbone.init_state(1))
    assert not seen and all(len(of) == 1 for of in found.calls.values())
    step(backbone, torch.randn(1, 1, 24), backbone.init_state(1))
    assert seen == [3]


class Adapted(nn.Module):
    """A projection with something added, as adapters wrap it."""

    def __init__(self, inner: Linear):
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y + torch.arange(y.shape[-1], dtype=y.dtype).sin()


@pytest.mark.parametrize("path", ["mixer.out", "ffn.router", "ffn.shared.up"])
def test_a_part_that_was_replaced_is_called(path: str):
    backbone = stack(ffns=({**MOE, "shared": 5},))
    y = same_as_block_by_block(backbone)
    parent, _, name = path.rpartition(".")
    module = backbone.blocks[1].get_submodule(parent)
    setattr(module, name, Adapted(getattr(module, name)))
    changed = same_as_block_by_block(backbone)
    assert not torch.allclose(changed, y)
    backbone.blocks[2] = stack(ffns=(NONE,)).blocks[2]
    assert not torch.allclose(same_as_block_by_block(backbone), changed)


def test_other_blocks_are_seen():
    backbone = stack(depth=4)
    y = same_as_block_by_block(backbone)
    backbone.blocks = backbone.blocks[1:]
    fewer = same_as_block_by_block(backbone)
    torch.manual_seed(1)
    backbone.blocks = Backbone(24, 3, (ATTENTION,), (MLP,)).requires_grad_(False).eval().blocks
    other = same_as_block_by_block(backbone)
    assert not torch.allclose(y, fewer) and not torch.allclose(fewer, other)
    twin = copy.copy(backbone)
    twin._modules = {**backbone._modules, "blocks": stack().blocks}
    assert not torch.allclose(same_as_block_by_block(twin), other)
    assert torch.equal(same_as_block_by_block(backbone), other)


@pytest.mark.parametrize(
    ("name", "value"), [("top", 9), ("top", 0), ("groups", 16), ("groups", 3), ("groups", 0), ("top_groups", 2)]
)
def test_numbers_that_do_not_fit_are_refused(name: str, value: int):
    backbone = stack(ffns=(MOE,))
    setattr(backbone.blocks[1].ffn, name, value)
    with pytest.raises(ValueError, match=r"block_step: \d+ of \d+ of \d+ groups of 8 experts"):
        step(backbone, torch.randn(1, 1, 24), backbone.init_state(1))


@pytest.mark.parametrize("path", ["mixer.out", "ffn.shared.up", "ffn.shared.out"])
def test_biases_that_the_kernel_has_not_are_added(path: str):
    backbone = stack(ffns=({**MOE, "shared": 5},), depth=1)
    y = same_as_block_by_block(backbone)
    module = backbone.blocks[0].get_submodule(path)
    module.bias = nn.Parameter(torch.ones(module.weight.shape[0]), requires_grad=False)
    assert not torch.allclose(same_as_block_by_block(backbone, kernel=False), y)


def test_norms_of_queries_and_keys_that_differ():
    backbone = stack(({**ATTENTION, "qk_norm": True},), depth=1)
    y = same_as_block_by_block(backbone)
    backbone.blocks[0].mixer.k_norm.eps = 3.0
    assert not torch.allclose(same_as_block_by_block(backbone, kernel=False), y)


def test_methods_that_were_replaced_are_called(monkeypatch: pytest.MonkeyPatch):
    backbone = stack(ffns=(MOE,), depth=1)
    y = same_as_block_by_block(backbone)
    mixture = backbone.blocks[0].ffn
    mixture.route = lambda logits, corrected=True: MoE.route(mixture, -logits, corrected)
    assert not torch.allclose(same_as_block_by_block(backbone, kernel=False), y)
    del mixture.route
    assert torch.equal(same_as_block_by_block(backbone), y)
    backbone.blocks[0].mixer.__class__ = type(
        "Other", (Attention,), {"project": lambda self, *a, **w: Attention.project(self, *a, **w)}
    )
    same_as_block_by_block(backbone, kernel=False)
    backbone = stack(depth=1)
    same_as_block_by_block(backbone)
    monkeypatch.setattr(MLP_CLASS, "forward", lambda self, x: 3 * x)
    same_as_block_by_block(backbone, kernel=False)


def test_the_kernel_is_back_when_nobody_listens_any_more(monkeypatch: pytest.MonkeyPatch):
    backbone = stack()
    x = torch.randn(1, 1, 24)
    seen = calls(monkeypatch)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    step(backbone, x, backbone.init_state(1))
    handle.remove()
    with FlopCounterMode(display=False):
        step(backbone, x, backbone.init_state(1))
    assert not seen
    step(backbone, x, backbone.init_state(1))
    assert seen == [3]


def test_weights_that_were_replaced_are_let_go():
    backbone = stack()
    same_as_block_by_block(backbone)
    old = [weakref.ref(p) for p in backbone.parameters()]
    backbone.load_state_dict({k: v.clone() for k, v in backbone.state_dict().items()}, assign=True)
    same_as_block_by_block(backbone.requires_grad_(False))
    gc.collect()
    assert not any(ref() is not None for ref in old)


@pytest.mark.parametrize("router", ["softmax", "sigmoid", "chosen"])
def test_damaged_routers_are_not_hidden(router: str):
    backbone = stack(ffns=({**MOE, "router": router},), depth=1)
    backbone.blocks[0].ffn.router.weight[3] = torch.nan
    y, _ = step(backbone, torch.randn(2, 1, 24), backbone.init_state(2))
    assert y.isnan().all()


def test_blocks_of_other_kinds(monkeypatch: pytest.MonkeyPatch):
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        @property
        def mixer(self) -> Any:
            return self.inner.mixer

        def forward(self, *args: Any) -> Any:
            return self.inner(*args)

    backbone = stack(depth=3)
    y = same_as_block_by_block(backbone)
    backbone.blocks[0] = Wrapped(backbone.blocks[0])
    torch.testing.assert_close(same_as_block_by_block(backbone), y, **CLOSE)
    backbone = stack(depth=1)
    backbone.blocks[0].ffn_norm = None
    same_as_block_by_block(backbone)


def test_a_row_that_is_not_finite_stays_apart():
    backbone = stack(ffns=({**MOE, "preset": "deepseek-v3"},))
    x = torch.randn(3, 1, 24)
    alone, _ = step(backbone, x[:1], backbone.init_state(1))
    x[1], x[2, 0, 3] = 0, torch.nan
    y, _ = step(backbone, x, backbone.init_state(3))
    assert torch.equal(y[:1], alone) and y[1].isfinite().all() and y[2].isnan().all()


def test_states_that_do_not_fit_are_left_to_the_mixer():
    backbone = stack(depth=1)
    (state,) = backbone.init_state(2)
    x = torch.randn(2, 24)
    layers = type(backbone.blocks[0].mixer).Steps.layers(list(backbone.blocks))
    run = lambda state, x=x, layers=layers: inspect.unwrap(Stepper.__call__)(Stepper(), x, [state], layers)  # noqa: E731
    with torch.inference_mode():
        assert run(state) is not None
        assert run(state._replace(seen=torch.tensor([0, -1]))) is None
        assert run(state._replace(seen=torch.zeros(3, dtype=torch.long))) is None
        assert run(state._replace(k=torch.zeros(2, 4, 3, 5))) is None
        assert run(state, x=x.double()) is None
        assert run(state, x=x[:, :5]) is None
        assert run(state, x=x.as_subclass(type("Other", (torch.Tensor,), {}))) is None
        for part, name, wrong in ((0, "q", torch.zeros(3, 24)), (0, "norm", torch.zeros(5)), (1, "up", torch.zeros(3, 24))):
            block = list(layers[0])
            block[part] = block[part]._replace(**{name: wrong})
            with pytest.raises(ValueError, match="block_step: "):
                run(state, layers=[tuple(block)])
    assert run(state) is None, "gradients may be asked for"


def test_more_rows_than_the_kernel_has_room_for_are_refused():
    y = torch.zeros(MOST_ROWS + 1, 24)
    assert _cpu.asked("block_steps", None, y.data_ptr(), 1, 0, 0, 0, MOST_ROWS + 1, 24) == 1
