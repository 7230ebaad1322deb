"""The tables of benchmarks/physics.py."""

import json

from benchmarks.physics import render
from postformer.objectives.continued import FIGURES


def test_the_tables_give_means_over_clips_and_seeds(tmp_path):
    def line(model, seed, split, velocity, **more):
        figures = {key: [None, None] for key in FIGURES} | {"velocity": velocity, "place": [None, 0.5], "there": [1.0, 0.0]}
        return {
            "model": model,
            "scene": "uniform",
            "seed": seed,
            "split": split,
            "figures": figures,
            "of": f"{model}{seed}{split}",
            **more,
        }

    size = {"parameters": 1000, "flops": 2.5e9}
    lines = [
        line("true clips", 0, "test", [0.01, 0.03]),
        line("dit, 9 steps", 0, "test", [1.0, 3.0], **size),
        line("dit, 9 steps", 1, "test", [None, 4.0], **size),
        line("dit, 9 steps", 0, "fast", [5.0, 5.0], **size),
        line("dit, 9 steps", 0, "test", [9.0, 9.0], **size) | {"of": "older"},
    ]
    (tmp_path / "physics.jsonl").write_text("\n".join(json.dumps(one) for one in [lines[-1], *lines[:-1]]))
    text = render(tmp_path / "physics.jsonl").splitlines()
    assert text[2] == "| | parameters | GFLOP a clip | test | fast |"
    assert text[4] == "| dit, 9 steps | 1,000 | 2.500 | 3 [-9.71, 15.7] (2/4), 3 of 4 | 5 [5, 5] |"
    assert text[5] == "| true clips |  |  | 0.02 [-0.107, 0.147] | - |"
    assert text[9] == "| | parameters | GFLOP a clip | velocity, units/s | place, units | there |"
    assert text[11].split(" | ")[4] == "0.5 [0.5, 0.5] (0.5/0.5), 2 of 4"
    assert text[12].split(" | ")[4] == "0.5, 1 of 2"
