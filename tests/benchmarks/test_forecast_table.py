"""benchmarks/forecast.py with tiny runs: what it asks for, that a rerun goes on, and its table."""

import json

import pytest
import torch

from benchmarks import forecast


@pytest.fixture
def own(tmp_path):
    """A series of the user's."""
    torch.manual_seed(0)
    lines = [f"d,{a:.4f},{b:.4f}" for a, b in torch.randn(400, 2).tolist()]
    (tmp_path / "own.csv").write_text("\n".join(["date,a,b", *lines]))
    return str(tmp_path / "own.csv")


def test_a_finished_run_is_not_trained_again(own, tmp_path, monkeypatch):
    run = forecast.asked("forecast-dlinear", own, 10, 0, 1, 6)
    assert (run.data["horizon"], run.train.steps, run.seed) == (10, 6, 0)
    line = forecast.result(run, "forecast-dlinear", tmp_path)
    assert line["best"] == 6
    assert line["valid"].keys() == {"6"}
    assert line["test"]["windows"] == 80 - 10 + 1
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []
    with (tmp_path / "results.jsonl").open("a") as f:
        f.write('{"series": ')  # cut by a kill
    monkeypatch.setattr(forecast, "train_run", None)
    assert forecast.result(run, "forecast-dlinear", tmp_path)["test"] == line["test"]
    with pytest.raises(TypeError):  # another run is trained
        forecast.result(forecast.asked("forecast-dlinear", own, 10, 1, 1, 6), "forecast-dlinear", tmp_path)


def line(horizon: int, seed: int, mse: float) -> dict:
    error = {"mse": mse, "mae": mse / 2}
    about = {"series": "ETTh1", "recipe": "r", "horizon": horizon, "seed": seed}
    return {**about, "test": error, "best": 5, "valid": {"5": error}}


def test_the_table_averages_over_horizons_and_spreads_over_seeds():
    lines = [line(h, s, 0.1 + s / 10) for h in forecast.HORIZONS for s in (0, 1)]
    head, ours, *papers = forecast.table("ETTh1", lines, forecast.HORIZONS).splitlines()
    assert head.split()[:6] == ["ETTh1", "96", "192", "336", "720", "average"]
    assert ours.split()[1:6] == ["0.1500/0.0750"] * 5
    assert ours.endswith("0.0707/0.0354, 2 seeds, valid 0.1500")
    assert any(p.startswith("DLinear") and "0.4560/0.4520" in p for p in papers)
    assert len(forecast.table("ETTh1", lines[:1], (96,)).splitlines()) == 2


def test_an_unknown_recipe(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["forecast.py", "--recipes", "parity", "--out", str(tmp_path)])
    with pytest.raises(
        forecast.UserError, match=r"--recipes: unknown 'parity'; choose from forecast-lmm, forecast-lmm-returning"
    ):
        forecast.main()


def test_a_line_is_json_that_names_its_run(own, tmp_path):
    forecast.result(forecast.asked("forecast-dlinear", own, 10, 0, 1, 2), "forecast-dlinear", tmp_path)
    saved = json.loads((tmp_path / "results.jsonl").read_text())
    assert {"series", "horizon", "recipe", "seed", "test", "valid", "best", "of", "stamp"} <= saved.keys()
