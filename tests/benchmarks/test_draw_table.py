"""The tables of benchmarks/draw.py."""

import json

import numpy as np
import torch

from benchmarks.draw import _real_seen, render
from postformer.data.images import Labelled


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
    assert text[6] == "| real images, of one half |  |  |  |  | 99.0% [94.6, 99.8] | 2, range 2 to 2 | 1.00 |"


def line_of(halves, **more):
    sets = [{"asked": 100, "right": 90, "real_right": n, "distance": 4.0, "real": distance} for n, distance in halves]
    how = {"data": "digits", "model": "dit", "seed": 0, "steps": 50, "method": "euler", "guidance": 1.0}
    return {**how, "parameters": 1000, "flops": 2.5e6, "sets": sets, "of": "a", **more}


def test_halves_of_the_same_real_images_are_not_counted_thrice(tmp_path):
    halves = [(97, 1.0), (98, 2.0), (99, 4.0)]
    file = tmp_path / "draw.jsonl"
    file.write_text(json.dumps(line_of(halves)))
    assert render(file).splitlines()[-1] == (
        "| real images, of one half |  |  |  |  | 98.0% [93.0, 99.4] | 2.33, range 1 to 4 | 1.00 |"  # n is 100 and not 300
    )
    newer = line_of(halves, model="unet", real_seen={"right": 195, "asked": 200})
    file.write_text("\n".join(map(json.dumps, [newer, line_of(halves)])))
    assert render(file).splitlines()[-1] == (
        "| real images, each once |  |  |  |  | 97.5% [94.3, 98.9] | 2.33, range 1 to 4 | 1.00 |"
    )


def test_each_real_image_of_the_test_part_is_seen_once():
    class Bright:
        """Takes bright images for class 1."""

        def features(self, images):
            return images.flatten(1)

        def head(self, features):
            return torch.stack([-features.mean(1), features.mean(1)], 1)

    pixels = np.repeat(np.array([0, 255, 255, 0], np.uint8), 16).reshape(4, 1, 4, 4)
    real = Labelled(pixels, np.array([0, 1, 0, 0]), ["dark", "bright"])
    assert _real_seen(Bright(), real) == {"right": 3, "asked": 4}
