"""The tables of benchmarks/draw.py."""

import json

from benchmarks.draw import render


def test_the_table_pools_sets_and_seeds(tmp_path):
    def line(seed, steps, right, distance):
        sets = [{"asked": 100, "right": n, "real_right": 99, "distance": distance, "real": 2.0} for n in right]
        how = {"data": "digits", "model": "dit, 9 steps", "seed": seed, "steps": steps, "method": "euler", "guidance": 1.0}
        return {**how, "parameters": 1000, "flops": 2.5e6, "sets": sets, "of": f"{seed}{steps}"}

    lines = [line(0, 50, [80, 90], 4.0), line(1, 50, [100, 90], 6.0), line(0, 4, [50, 50], 8.0)]
    (tmp_path / "draw.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = render(tmp_path / "draw.jsonl").splitlines()
    assert text[0] == "**digits**"
    assert text[4].startswith(
        "| dit, 9 steps, seeds 0, 1 | 1,000 | 0.003 | 50 euler | 1 | 90.0% [86.7, 92.6] | 5 [-7.71, 17.7] | 2.50 |"
    )
    assert text[5].startswith("| dit, 9 steps, seed 0 | 1,000 | 0.003 | 4 euler | 1 | 50.0% [43.1, 56.9] | 8 [8, 8] | 4.00 |")
    assert text[6] == "| the other half of the real images | | | | | 99.0% [94.6, 99.8] | 2 | 1.00 |"
