"""A run that begins with the weights of a model that is there: what fits is taken, and the rest is told."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from postformer.config import ConfigError

AVERAGE = "average."
LEAST = 0.5
"""Of a model's numbers so many must be taken."""
NAMED = 4


def averaged(folder: Path) -> dict[str, Tensor] | None:
    """The averaged weights that training kept beside the model of a checkpoint; None where there are none."""
    path = folder / "objective.safetensors"
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        found = {name.removeprefix(AVERAGE): file.get_tensor(name) for name in file.keys() if name.startswith(AVERAGE)}  # noqa: SIM118
    return found or None


def begin_with(objective: Any, weights: dict[str, Tensor], name: str) -> list[str]:
    """The model of an objective, its average and its teacher get the weights that they have a place of the same shape for; the others stay
    as they were drawn, and a line that is returned tells them.

    Raises ConfigError where that is less than LEAST of the model.
    """
    model: nn.Module = objective.model
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    fits = {key for key, value in own.items() if key in weights and weights[key].shape == value.shape}
    with torch.no_grad():
        for key in fits:
            own[key].copy_(weights[key])
    share = sum(own[key].numel() for key in fits) / max(sum(value.numel() for value in own.values()), 1)
    left = sorted(own.keys() - fits)
    told = f"{', '.join(left[:NAMED])}{f' and {len(left) - NAMED} more' if len(left) > NAMED else ''}"
    if share < LEAST:
        raise ConfigError(
            f"begin: {name}: only {share:.0%} of the model have a weight of the same name and shape there; give it that model's settings"
        )
    for copy in ("average", "teacher"):
        if getattr(objective, copy, None) is not None:
            getattr(objective, copy).load_state_dict(model.state_dict())
    return [f"begin: {name}: {share:.1%} of the model are taken from there; as drawn: {told}"] if left else []
