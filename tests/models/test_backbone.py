"""The stack: the pattern over depth, the residual stream, the start, and the costs."""

import pytest
import torch
from torch import nn

from postformer import state as states
from postformer.config import ConfigError, UserError
from postformer.mixers import MIXERS
from postformer.models.backbone import Backbone, complete_pattern
from postformer.ops.packing import Packing

MAMBA, ATTENTION = {"kind": "mamba", "state": 2}, {"kind": "attention", "heads": 2}
MLP, NONE = {"kind": "mlp", "hidden": 16}, {"kind": "none"}


def test_patterns_are_tiled_over_depth():
    b = Backbone(16, 7, (MAMBA, MAMBA, ATTENTION), (MLP, NONE))
    assert [type(x.mixer).__name__ for x in b.blocks] == ["Mamba", "Mamba", "Attention", "Mamba", "Mamba", "Attention", "Mamba"]
    assert [x.ffn is None for x in b.blocks] == [False, True, False, True, False, True, False]
    assert [x.ffn_norm is None for x in b.blocks] == [False, True, False, True, False, True, False]


def test_a_block_is_pre_norm_and_residual():
    b = Backbone(16, 2, (ATTENTION,), (MLP, NONE)).double()
    x = torch.randn(2, 5, 16, dtype=torch.double)
    y = x
    for block in b.blocks:
        y = y + block.mixer(block.norm(y))[0]
        y = y + block.ffn(block.ffn_norm(y)) if block.ffn is not None else y
    got, nothing = b(x)
    torch.testing.assert_close(got, b.norm(y), rtol=1e-12, atol=1e-12)
    assert nothing is None


def test_branches_start_scaled_by_their_number():
    torch.manual_seed(0)
    one = Backbone(64, 1, (ATTENTION,), (NONE,)).blocks[0].mixer.out.weight.std()
    b = Backbone(64, 4, (ATTENTION,), (MLP,))
    for block in b.blocks:
        assert float(block.mixer.out.weight.detach().std()) == pytest.approx(float(one.detach()) / 8**0.5, rel=0.05)
    assert all(isinstance(block.ffn.out, nn.Linear) for block in b.blocks)


def test_costs_are_sums_over_blocks():
    b = Backbone(16, 3, (MAMBA, ATTENTION), (MLP,))
    for length, past in ((1, 0), (5, 3)):
        assert b.flops(length, past) == sum(x.mixer.flops(length, past) + x.ffn.flops(length) for x in b.blocks)
    with torch.no_grad():
        _, state = b(torch.randn(1, 70, 16), b.init_state(1))
    assert b.state_bytes(70) == states.nbytes(state)
    assert b.idle_parameters() == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((0, 1, (MAMBA,), (MLP,)), "dim=0"),
        ((8, 0, (MAMBA,), (MLP,)), "depth=0"),
        ((8, 1, (), (MLP,)), "model.mixers: must not be empty"),
        ((8, 1, (MAMBA,), ()), "model.ffns: must not be empty"),
        ((8, 1, (NONE,), (MLP,)), r"model.mixers\[0\].kind: unknown 'none'"),
        ((8, 1, (MAMBA,), ({"kind": "mpl"},)), r"model.ffns\[0\].kind: unknown 'mpl' \(did you mean 'mlp'\?\)"),
        ((8, 2, (MAMBA, {"kind": "attention", "heads": 3}), (MLP,)), r"model.mixers\[1\]: dim=8 is not divisible"),
    ],
)
def test_what_is_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        Backbone(*words)


def test_a_pattern_is_completed_in_place_and_stays():
    full = complete_pattern((MAMBA, NONE), MIXERS, "model.mixers")
    assert full[0] == {"kind": "mamba", "state": 2, "expand": 2, "conv": 4, "rank": None, "dt_min": 1e-3, "dt_max": 0.1}
    assert full[1] == NONE
    assert complete_pattern(tuple(full), MIXERS, "model.mixers") == full


@pytest.mark.parametrize("lengths", [[3, 9], [-1, 2]])
def test_a_row_of_more_tokens_than_there_are_is_refused(lengths: list[int]):
    b = Backbone(16, 1, (MAMBA,), (NONE,))
    with pytest.raises(ValueError, match=r"packing.lengths: expected 0 to 4 tokens a row"):
        b(torch.randn(2, 4, 16), None, Packing(None, torch.tensor(lengths)))


class Plain(nn.Module):
    """A mixer that knows nothing of packed rows."""

    def __init__(self, dim: int):
        super().__init__()

    def init_state(self, batch: int) -> torch.Tensor:
        return torch.zeros(batch, 1)

    def forward(self, x: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        return x, state


def test_a_mixer_without_packing_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(MIXERS, "plain", Plain)
    b = Backbone(16, 1, ({"kind": "plain"},), (NONE,))
    x = torch.randn(2, 3, 16)
    b(x, b.init_state(2))
    with pytest.raises(UserError, match="Plain: its forward takes no `packing`"):
        b(x, None, Packing(torch.ones(2, 3, dtype=torch.bool)))
