"""Forecasters: the way back from the normalised window, DLinear against its definition, files, and what they refuse."""

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st

import postformer
from postformer.config import ConfigError, build
from postformer.models import FORECASTERS, MODELS
from postformer.models.forecast import DLinear, Forecaster, normalised

MIXERS = {**small.MIXERS, "lmm": {"kind": "lmm", "heads": 2, "chunk": 4}}


def forecaster(mixer: str = "mamba", **words) -> Forecaster:
    torch.manual_seed(0)
    words = {"dim": 16, "depth": 1, "patch": 8, "stride": 4, "ffns": ({"kind": "mlp", "hidden": 16},), **words}
    return Forecaster(24, 5, mixers=(MIXERS[mixer],), **words).eval()


def test_a_window_comes_back_from_its_normal_form():
    x = torch.randn(3, 2, 40, dtype=torch.float64) * 7 + 3
    y, mean, deviation = normalised(x)
    torch.testing.assert_close(y * deviation + mean, x)
    torch.testing.assert_close(y.mean(-1), torch.zeros(3, 2, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(y.std(-1, correction=0), torch.ones(3, 2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_forecast_moves_and_grows_with_its_window():
    """Up to what keeps a constant window from a division by 0."""
    model, x = forecaster().double(), torch.randn(2, 24, 3, dtype=torch.float64)
    torch.testing.assert_close(model(x * 50 + 20), model(x) * 50 + 20, rtol=1e-3, atol=1e-3)
    constant = torch.full((1, 24, 1), 4.0, dtype=torch.float64)
    torch.testing.assert_close(model(constant), torch.full((1, 5, 1), 4.0, dtype=torch.float64), atol=0.05, rtol=0)


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_every_channel_is_forecast_alone_and_every_parameter_learns(mixer):
    model = forecaster(mixer).double()
    x = torch.randn(2, 24, 3, dtype=torch.float64)
    torch.testing.assert_close(model(x)[..., 1:2], model(x[..., 1:2]))
    model(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_the_head_reads_every_step():
    for words in ({}, {"patch": 16, "stride": 8}, {"patch": 1, "stride": 1}, {"patch": 7, "stride": 7}):
        model = forecaster(**words).double()
        x = torch.randn(1, 24, 1, dtype=torch.float64, requires_grad=True)
        model(x).square().sum().backward()
        assert x.grad is not None
        assert bool((x.grad.abs() > 0).all())


def test_patches_are_counted_as_in_patchtst():
    """Nie et al. 2023, section 3.1: (L - P) / S + 2."""
    with torch.device("meta"):
        assert Forecaster(96, 192).patches == (96 - 16) // 8 + 2
        assert Forecaster(96, 192, patch=1, stride=1).patches == 96


@given(window=st.sampled_from([1, 3, 7]), steps=st.integers(1, 12), horizon=st.integers(1, 4))
def test_dlinear_is_its_definition(window, steps, horizon):
    torch.manual_seed(0)
    model = DLinear(steps, horizon, window=window).double()
    x = torch.randn(2, steps, 3, dtype=torch.float64)
    half, expected = window // 2, torch.empty(2, horizon, 3, dtype=torch.float64)
    for b in range(2):
        for c in range(3):
            line = x[b, :, c].tolist()
            trend = [sum(line[min(max(j, 0), steps - 1)] for j in range(i - half, i + half + 1)) / window for i in range(steps)]
            left = [v - t for v, t in zip(line, trend, strict=True)]
            for h in range(horizon):
                both = model.trend.weight[h] @ x.new_tensor(trend) + model.season.weight[h] @ x.new_tensor(left)
                expected[b, h, c] = both + model.trend.bias[h] + model.season.bias[h]
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("model", [forecaster("lmm", dropout=0.2), DLinear(24, 5).eval()])
def test_a_forecaster_is_saved_and_opened(model, tmp_path):
    postformer.save(model, tmp_path)
    again, x = postformer.load(tmp_path), torch.randn(2, 24, 3)
    assert again.config == model.config
    assert again.tokens is None
    assert torch.equal(again(x), model(x))


def test_a_forecast_may_return_to_the_mean_of_the_training_part():
    model, x = forecaster(returning=True).double(), torch.randn(2, 24, 3, dtype=torch.float64) + 5
    torch.testing.assert_close(model(x), forecaster().double()(x))  # at first it does not
    with torch.no_grad():
        model.kept.fill_(0.25)
    torch.testing.assert_close(model(x), forecaster().double()(x) - 0.75 * x.mean(1, keepdim=True))


def test_dropout_is_for_training():
    model, x = forecaster(dropout=0.5), torch.randn(2, 24, 3)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_bf16():
    x = torch.randn(2, 24, 3)
    for model in (forecaster("lmm"), DLinear(24, 5)):
        exact = model(x)
        model.compute_dtype = torch.bfloat16
        assert model(x).dtype == torch.float32
        torch.testing.assert_close(model(x), exact, rtol=0.05, atol=0.05)


def test_cost():
    model = forecaster("lmm", patch=8, stride=8)
    cost = model.cost(model.patches)
    assert cost.parameters == cost.active_parameters == sum(p.numel() for p in model.parameters())
    assert cost.prefill_flops * model.patches == model.backbone.flops(model.patches) + 2 * (
        model.patches * model.embed.weight.numel() + model.head.weight.numel()
    )
    linear = DLinear(24, 5).cost(24)
    assert linear.prefill_flops == 2 * 2 * 5 + 25
    assert linear.state_bytes == 0


@pytest.mark.parametrize("kind", FORECASTERS)
def test_another_window_is_refused(kind):
    model = build({"kind": kind}, MODELS, "model", look_back=24, horizon=5)
    with pytest.raises(ValueError, match=r"past: expected \[windows, 24 steps, channels\]"):
        model(torch.randn(2, 23, 3))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            {"kind": "forecast", "patch": 0},
            "model: stride=8, patch=0 and look_back=24: expected 1 <= stride <= patch <= look_back",
        ),
        ({"kind": "forecast", "patch": 25}, "expected 1 <= stride <= patch <= look_back"),
        ({"kind": "forecast", "stride": 17}, "expected 1 <= stride <= patch <= look_back"),
        ({"kind": "forecast", "dropout": 1.0}, "model: dropout=1.0 must be at least 0 and below 1"),
        ({"kind": "dlinear", "window": 4}, "model: window=4 must be an odd number"),
        ({"kind": "forecast", "mixers": [{"kind": "lmn"}]}, r"model.mixers\[0\].kind: unknown 'lmn' \(did you mean 'lmm'\?\)"),
    ],
)
def test_sizes_that_do_not_fit(spec, says):
    with pytest.raises(ConfigError, match=says):
        build(spec, MODELS, "model", look_back=24, horizon=5)
