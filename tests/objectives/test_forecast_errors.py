"""The loss of forecasts, and errors over all windows, against their definitions."""

import pytest
import torch

from postformer.data import DataError, Series
from postformer.models.forecast import DLinear
from postformer.objectives.errors import errors
from postformer.objectives.forecast import Forecast


@pytest.fixture
def series(tmp_path):
    torch.manual_seed(0)
    lines = [f"d,{a:.4f},{b:.4f}" for a, b in torch.randn(90, 2).tolist()]
    (tmp_path / "s.csv").write_text("\n".join(["date,a,b", *lines]))
    return Series(path=str(tmp_path / "s.csv"), look_back=6, horizon=4)


@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_the_loss_is_the_mean_error(series, loss):
    model = DLinear(6, 4, window=3)
    batch = series.batches(5, 0).batch(0)
    out = Forecast(model, loss=loss)(batch)
    error = model(batch["past"]) - batch["future"]
    torch.testing.assert_close(out["mse"], (error**2).sum() / (5 * 4 * 2))
    torch.testing.assert_close(out["mae"], error.abs().sum() / (5 * 4 * 2))
    assert out["loss"] is out[loss]
    assert int(out["tokens"]) == 5 * 6 * 2
    out["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    assert Forecast(model).after_step(0) is None


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_errors_are_those_of_every_window(series, batch):
    """However many windows are taken at a time: the last ones are not left out."""
    model = DLinear(6, 4, window=3).eval()
    found = errors(model, series, "test", batch)
    values = torch.from_numpy(series.standardised)
    begin, end = series.edges[2:]
    firsts = range(begin, end - 4 + 1)
    seen = [model(values[None, i - 6 : i])[0] - values[i : i + 4] for i in firsts]
    each = torch.stack(seen).detach().double()
    assert (found.windows, found.channels) == (len(seen), 2)
    assert found.mse == pytest.approx(float(each.square().mean()), rel=1e-5)
    assert found.mae == pytest.approx(float(each.abs().mean()), rel=1e-5)


def test_other_windows_and_too_few(series):
    with pytest.raises(ValueError, match=r"errors: the model takes 6 steps to 3, the series is asked for"):
        errors(DLinear(6, 3), series)
    with pytest.raises(DataError, match="valid has 10 of 90 rows"):
        errors(DLinear(6, 20), Series(path=series.path, look_back=6, horizon=20), "valid")
