"""Experts that a file of the transformers library holds one by one, put together as they lie in memory.

Of E experts of width f in a model of width d there are:

    model.layers.3.block_sparse_moe.experts.0.w1.weight, ...       Mixtral on the hub: w1 the gate, w2 the output, w3 the values
    model.layers.3.mlp.experts.0.gate_proj.weight, ...             the others on the hub
    model.layers.3.mlp.experts.gate_up_proj, down_proj             in memory: [E, 2f, d], the gate's rows first, and [E, d, f]
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from postformer.config import ConfigError

PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
HALVES = ("gate_proj", "up_proj")
ONE = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(\d{1,6})\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
SHARED = re.compile(r"(model\.layers\.\d+\.mlp\.shared_expert)\.(gate_proj|up_proj)\.weight")


def fused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with every layer's experts in one `gate_up_proj` and `down_proj`, and a shared network's gate and values in one.

    Raises ConfigError where an expert or a part of one is missing, or where shapes differ.
    """
    out: dict[str, Tensor] = {}
    experts: dict[str, dict[tuple[int, str], Tensor]] = {}
    shared: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        name = name.replace(".block_sparse_moe.", ".mlp.")
        if one := ONE.fullmatch(name):
            experts.setdefault(one[1], {})[int(one[2]), PARTS.get(one[3], one[3])] = value
        elif half := SHARED.fullmatch(name):
            shared.setdefault(half[1], {})[half[2]] = value
        else:
            out[name] = value
    for place, parts in experts.items():
        count = 1 + max(expert for expert, _ in parts)
        if len(parts) < count * len(PARTS):
            expert, part = next((e, part) for e in range(count) for part in PARTS.values() if (e, part) not in parts)
            raise ConfigError(f"the checkpoint's tensor '{place}.{expert}.{part}' is missing")
        _one_shape(place, [t for (_, part), t in parts.items() if part != "down_proj"])
        _one_shape(place, [t for (_, part), t in parts.items() if part == "down_proj"])
        out[f"{place}.gate_up_proj"] = torch.stack([torch.cat([parts[e, half] for half in HALVES]) for e in range(count)])
        out[f"{place}.down_proj"] = torch.stack([parts[e, "down_proj"] for e in range(count)])
    for place, parts in shared.items():
        if missing := [half for half in HALVES if half not in parts]:
            raise ConfigError(f"the checkpoint's tensor '{place}.{missing[0]}.weight' is missing")
        _one_shape(place, list(parts.values()))
        out[f"{place}.gate_up_proj.weight"] = torch.cat([parts[half] for half in HALVES])
    return out


def _one_shape(place: str, tensors: list[Tensor]) -> None:
    """Raises ConfigError unless the tensors are matrices of one shape and dtype."""
    if len({(t.shape, t.dtype) for t in tensors}) > 1 or tensors[0].ndim != 2:
        raise ConfigError(f"the checkpoint's tensors under '{place}' are not matrices of one shape and dtype")
