"""What a model of a world foresees of physics: attributes read off the embeddings that it imagines, beside those of what truly comes and of
the last frames that it saw.

A linear probe that learned on other clips reads them, of two frames in turn, since one does not tell a velocity.

n clips, f frames, k attributes, a frames ahead.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from postformer.data.physics import Physics, Scenario
from postformer.models.probes import probe

CHUNK = 50
"""Clips that are embedded at once."""


class Foreseen(NamedTuple):
    """Of each attribute the errors Float [n, a, k] of what is imagined, of what truly comes (the floor: what the probe does not tell), and
    of what was seen last, as if nothing moved on; and the names."""

    names: tuple[str, ...]
    imagined: Tensor
    floor: Tensor
    last: Tensor


def attributes(scenario: Scenario) -> tuple[tuple[str, ...], Float[np.ndarray, "f k"]]:
    """Places (units) and velocities (units/s) of each disc, and of two discs the logarithm of the ratio of their masses."""
    moved = scenario.track
    frames, discs = moved.position.shape[:2]
    names = [f"{kind} {axis}{i + 1}" for kind in ("place", "velocity") for i in range(discs) for axis in "xy"]
    told = [moved.position.reshape(frames, -1), moved.velocity.reshape(frames, -1)]
    if discs == 2:
        names.append("mass ratio")
        told.append(np.full((frames, 1), 2 * np.log(moved.radius[0] / moved.radius[1])))
    return tuple(names), np.concatenate(told, 1)


@torch.no_grad()
def foreseen(model: Any, physics: Physics, known: int, *, seed: int, split: str = "test", clips: int = 200) -> Foreseen:
    """What a model foresees after `known` frames of clips of a scene. The probe learns on as many clips of the training split. Raises
    ValueError for all scenes at once, whose clips have different attributes, and for fewer than two known frames."""
    if physics.scene == "all" or not 2 <= known < physics.frames:
        raise ValueError(
            f"scene={physics.scene!r} must be one scene, and known={known} from 2 to below the {physics.frames} frames"
        )
    taught, truth, names = _embedded(model, physics, seed, "train", clips)
    reads = probe(_pairs(taught).flatten(0, 1), truth[:, 1:].flatten(0, 1), ridge=1e-4)
    z, truth, _ = _embedded(model, physics, seed, split, clips)
    done = z.new_zeros(len(z), physics.frames - 1, 0)
    made, _ = model.foresee(z[:, :known], done)
    ahead = truth[:, known:]
    stood = reads(_pairs(z[:, known - 2 : known])).expand_as(ahead)
    return Foreseen(
        names,
        imagined=reads(_pairs(torch.cat([z[:, known - 1 : known], made], 1))) - ahead,
        floor=reads(_pairs(z[:, known - 1 :])) - ahead,
        last=stood - ahead,
    )


def _pairs(z: Float[Tensor, "n f d"]) -> Float[Tensor, "n g e"]:
    """Each frame with the one before."""
    return torch.cat([z[:, :-1], z[:, 1:]], -1)


def _embedded(model: Any, physics: Physics, seed: int, split: str, clips: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    scenarios = [physics.scenario(i, seed=seed, split=split) for i in range(clips)]
    parts = []
    for begin in range(0, clips, CHUNK):
        seen = np.stack([physics.shown(scenario) for scenario in scenarios[begin : begin + CHUNK]])
        parts.append(model.encode(torch.from_numpy(seen).transpose(1, 2)))
    told = [attributes(scenario) for scenario in scenarios]
    return torch.cat(parts), torch.from_numpy(np.stack([values for _, values in told])), told[0][0]
