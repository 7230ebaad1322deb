"""The tables of benchmarks/foresee.py and benchmarks/plan.py."""

import dataclasses
import json

import pytest
import torch

from benchmarks import foresee, imagine, plan, plan_speed
from postformer.config import UserError
from postformer.data.impossible import KINDS
from postformer.embodied.planning import Search
from postformer.models.world import World


def test_errors_and_pairs_are_told_by_model(tmp_path):
    def line(model, seed, imagined, impossible):
        errors = {"place": {"imagined": imagined, "floor": [0.1, 0.1], "last": [1.0, 2.0]}}
        pairs = {"possible": [1.0, 2.0], "impossible": impossible}
        return {
            "model": model,
            "seed": seed,
            "foreseen": dict.fromkeys(foresee.SCENES, errors),
            "surprise": dict.fromkeys(KINDS, pairs),
            "of": f"{model}{seed}",
        }

    lines = [line("physics, 9 steps", 0, [0.2, 0.4], [3.0, 3.0]), line("physics, 9 steps", 1, [0.4, 0.6], [3.0, 1.0])]
    (tmp_path / "foresee.jsonl").write_text("\n".join(json.dumps(one) for one in lines))
    text = foresee.render(tmp_path / "foresee.jsonl").splitlines()
    assert text[2] == "| scene | attribute | physics, 9 steps |"
    assert text[4].startswith("| uniform | place, units | 0.4 [")
    assert text[4].endswith("] (0.1; 1.5) |")
    assert next(row for row in text if row.startswith("| vanishes")) == "| vanishes (easy) | 75.0% [0.0%, 100.0%] (0.81) |"


def test_what_was_reached_is_told_by_seed(tmp_path):
    def line(way, seed, at_end, **more):
        return {
            "task": "rooms",
            "way": way,
            "seed": seed,
            "at_end": at_end,
            "ever": [[1, 1]] * 2,
            "end": [1.0, 2.0],
            "of": f"{way}{seed}",
            **more,
        }

    told = {"probe": {"names": ["x", "y"], "r2": [0.5, 1.0], "rmse": [2.0, 4.0]}, "plan_s": [0.1, 0.1]}
    lines = [
        line("random", 0, [[0, 0], [1, 0]]),
        line("cem, 9 steps", 0, [[1, 0], [1, 1]], **told),
        line("cem, 9 steps", 1, [[1, 0], [1, 0]], **told),
    ]
    (tmp_path / "plan.jsonl").write_text("\n".join(json.dumps(one) for one in lines))
    text = plan.render(tmp_path / "plan.jsonl").splitlines()
    assert text[0] == "**rooms**, 2 problems"
    assert text[4].startswith("| random | 50.0% [")
    assert text[4].endswith("| - | - | - |")
    assert "(100.0%/100.0%)" in text[5]
    assert text[5].endswith("| 100 [100, 100] | x 0.5, y 1 | x 2, y 4 |")


def test_the_untrained_model_of_a_task_is_measured(tmp_path, monkeypatch):
    """The whole way of a cell, with the smallest search."""
    small = plan.TASKS["rooms"]._replace(
        steps=20, search=dataclasses.replace(plan.TASKS["rooms"].search, horizon=2, samples=4, elites=2, iterations=1)
    )
    monkeypatch.setitem(plan.TASKS, "rooms", small)
    monkeypatch.setattr(plan, "WALKS", 8)
    words = "plan --tasks rooms --seeds 0 --problems 2 --threads 1 --steps 2 --methods cem --set train.batch=2 --out"
    monkeypatch.setattr("sys.argv", [*words.split(), str(tmp_path)])
    assert plan.main() == 0
    rows = [json.loads(row) for row in (tmp_path / "plan.jsonl").read_text().splitlines()]
    assert [row["way"] for row in rows] == ["random", "straight", "oracle", "cem, 2 steps, train.batch=2", "cem, untrained"]
    assert all(len(row["at_end"]) == 2 for row in rows)
    before = (tmp_path / "plan.jsonl").read_text()
    assert plan.main() == 0
    assert (tmp_path / "plan.jsonl").read_text() == before


def test_walks_of_a_simulation_are_recorded_and_learned(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    task = plan.TASKS["pushing"]
    search = dataclasses.replace(task.search, horizon=2, samples=4, elites=2, iterations=1)
    monkeypatch.setitem(plan.TASKS, "pushing", task._replace(steps=6, search=search))
    monkeypatch.setitem(plan.SIMULATIONS, "pushing", plan.SIMULATIONS["pushing"]._replace(episodes=6, steps=9))
    monkeypatch.setattr(plan, "WALKS", 8)
    words = "plan --tasks pushing --seeds 0 --problems 2 --threads 1 --steps 2 --methods cem --set train.batch=2 --out"
    monkeypatch.setattr("sys.argv", [*words.split(), str(tmp_path)])
    assert plan.main() == 0
    rows = [json.loads(row) for row in (tmp_path / "plan.jsonl").read_text().splitlines()]
    assert [row["way"] for row in rows][2:] == ["oracle", "cem, 2 steps, train.batch=2", "cem, untrained"]
    assert rows[-1]["probe"]["names"] == ["finger x", "finger y", "block x", "block y", "cos turn", "sin turn"]
    assert "**pushing**, 2 problems" in plan.render(tmp_path / "plan.jsonl")


@pytest.mark.parametrize("looks", [1, 3])
def test_both_searches_find_the_same_plan(looks):
    torch.manual_seed(0)
    model = World(1, (8, 8), 2, dim=4, widths=(4,), width=8, depth=1, mixers=({"kind": "mingru"},)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    both = plan_speed.searches(model, looks, Search(horizon=3, samples=16, iterations=2, elites=4))
    forked, again = both["forked"](), both["read again"]()
    assert torch.allclose(forked, again, atol=1e-4)
    assert forked.abs().max() > 0.1


def test_a_recipe_without_a_world_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["plan_speed", "--recipe", "see-vit"])
    with pytest.raises(UserError, match="unknown 'see-vit'; choose from world-rooms"):
        plan_speed.main()


def test_a_predictor_alone_learns_what_pushes_make_of_the_state(monkeypatch, capsys):
    """After thirty steps it is nearer to the truth than one that learned nothing, and the true state is read off its embeddings."""
    run = imagine.RECIPES["world-rooms"]()
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, batch=16))
    monkeypatch.setitem(imagine.RECIPES, "world-rooms", lambda: run)
    monkeypatch.setattr(imagine, "ASKED", 16)
    few, many = (imagine.errors(run, steps)[0] for steps in (1, 30))
    assert many[0] < 0.8 * few[0]
    model, states = imagine.Known(run, imagine.Rooms(steps=2)), torch.tensor([[20.0, 40.0, 32.0, 18.0]])
    assert torch.allclose(model.place(model.encode(states[..., None, None])), states[:, :2], atol=1e-3)
    monkeypatch.setattr("sys.argv", ["imagine", "--ways", "plain", "--seeds", "0,1", "--steps", "2"])
    assert imagine.main() == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith("| one layer, AdamW, squares | ")
    assert row.count("[") == 5
