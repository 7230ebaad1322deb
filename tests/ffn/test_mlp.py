"""The per-token networks against their formulas."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from postformer.config import ConfigError, build
from postformer.ffn import FFN, FFNS

CASES = {
    "swiglu": {"kind": "mlp"},
    "gelu": {"kind": "mlp", "activation": "gelu"},
    "narrow": {"kind": "mlp", "hidden": 5},
}


def make(case: str, dim: int = 12):
    torch.manual_seed(0)
    return build(CASES[case], FFNS, case, dim=dim)


def test_swiglu_is_equation_6():
    m, x = make("swiglu").double(), torch.randn(2, 3, 12, dtype=torch.double)
    gate = x @ m.gate.weight.T
    expected = (gate / (1 + torch.exp(-gate)) * (x @ m.up.weight.T)) @ m.out.weight.T
    torch.testing.assert_close(m(x), expected, rtol=1e-12, atol=1e-12)


def test_gelu_is_its_definition():
    m, x = make("gelu").double(), torch.randn(2, 3, 12, dtype=torch.double)
    h = x @ m.up.weight.T
    expected = (h * 0.5 * (1 + torch.erf(h / 2**0.5))) @ m.out.weight.T
    torch.testing.assert_close(m(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [48, 192, 512])
def test_both_activations_have_equal_parameters(dim):
    swiglu, gelu = (sum(p.numel() for p in make(c, dim).parameters()) for c in ("swiglu", "gelu"))
    assert swiglu == pytest.approx(gelu, rel=0.05)
    assert make("swiglu", dim).out.in_features % 16 == 0


@pytest.mark.parametrize("case", CASES)
def test_costs_are_counted(case):
    m = make(case)
    with FlopCounterMode(display=False) as counter:
        m(torch.randn(1, 7, 12))
    assert counter.get_total_flops() == m.flops(7)
    assert m.active_parameters() == sum(p.numel() for p in m.parameters())
    assert isinstance(m, torch.nn.Module)
    assert hasattr(FFN, "active_parameters")


@pytest.mark.parametrize("case", CASES)
def test_each_token_is_for_itself(case):
    m, x = make(case).double(), torch.randn(2, 5, 12, dtype=torch.double)
    each = torch.cat([m(x[:, t : t + 1]) for t in range(5)], 1)
    torch.testing.assert_close(m(x), each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_bf16_activations_with_fp32_parameters(case):
    m = make(case)
    y = m(torch.randn(1, 2, 12, dtype=torch.bfloat16))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert {p.dtype for p in m.parameters()} == {p.grad.dtype for p in m.parameters()} == {torch.float32}


@pytest.mark.parametrize("words", [{"hidden": 0}, {"hidden": -3}, {"activation": "relu"}])
def test_what_is_refused(words):
    with pytest.raises(ConfigError, match=r"^here"):
        build({"kind": "mlp", **words}, FFNS, "here", dim=8)
