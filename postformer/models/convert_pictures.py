"""Weights of ViT, DiT and V-JEPA 2 in the layouts of the transformers, timm and diffusers libraries, as ours.

What differs: a convolution's weights are our linear layer's, the class token's position is added to it once and for all, and DiT's last
layer has its channels last within a pixel where ours has them first.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from postformer.config import ConfigError, Spec

Tensors = Mapping[str, Tensor]
VIT_NAMES = {
    r"layernorm_before": "norm",
    r"layernorm_after": "ffn_norm",
    r"attention\.(?:attention\.)?(?:query|q_proj)": "mixer.q",
    r"attention\.(?:attention\.)?(?:key|k_proj)": "mixer.k",
    r"attention\.(?:attention\.)?(?:value|v_proj)": "mixer.v",
    r"attention\.(?:output\.dense|o_proj)": "mixer.out",
    r"intermediate\.dense|mlp\.fc1": "ffn.up",
    r"output\.dense|mlp\.fc2": "ffn.out",
}
"""Of a layer, as files and as modules of transformers name them."""
VIT_LAYER = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)")


def vit_options(config: Mapping[str, Any]) -> Spec:
    """Our keywords for a `vit` configuration of transformers. Raises ConfigError for what we have not."""
    if config.get("hidden_act", "gelu") != "gelu" or not config.get("qkv_bias", True):
        raise ConfigError(
            f"vit: hidden_act={config.get('hidden_act')!r} and qkv_bias={config.get('qkv_bias')} are not read; 'gelu' and true are"
        )
    side, patch = config.get("image_size", 224), config.get("patch_size", 16)
    heads, hidden = config.get("num_attention_heads", 12), config.get("intermediate_size", 3072)
    return {
        "classes": len(config.get("id2label") or "12"),
        "size": _both(side),
        "channels": config.get("num_channels", 3),
        "patch": _both(patch),
        "dim": config.get("hidden_size", 768),
        "depth": config.get("num_hidden_layers", 12),
        "mixers": ({"kind": "spacetime", "heads": heads, "rope": False, "bias": True},),
        "ffns": ({"kind": "mlp", "hidden": hidden, "activation": "gelu", "bias": True},),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
    }


def vit_tensors(theirs: Tensors, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Our tensors for those of a ViT of transformers with patches of this grid. Raises ConfigError for a name that is none of its."""
    named = {name.removeprefix("vit."): value for name, value in theirs.items() if "pooler" not in name}
    positions, kernel = (
        named.pop("embeddings.position_embeddings")[0],
        named.pop("embeddings.patch_embeddings.projection.weight"),
    )
    found = {
        "first": named.pop("embeddings.cls_token")[0] + positions[:1],
        "places": positions[1:].unflatten(0, grid),
        "embed.weight": kernel.flatten(1),
        "embed.bias": named.pop("embeddings.patch_embeddings.projection.bias"),
    }
    for name, value in named.items():
        if layer := VIT_LAYER.fullmatch(name):
            ours = next((ours for pattern, ours in VIT_NAMES.items() if re.fullmatch(pattern, layer[2])), None)
            place = None if ours is None else f"backbone.blocks.{layer[1]}.{ours}.{layer[3]}"
        else:
            ends = {"layernorm": "backbone.norm", "classifier": "head"}
            part, _, leaf = name.rpartition(".")
            place = f"{ends[part]}.{leaf}" if part in ends else None
        if place is None:
            raise ConfigError(f"vit: '{name}' is no tensor of a ViT that is read")
        found[place] = value
    return found


TIMM_NAMES = {
    "norm1": "norm",
    "norm2": "ffn_norm",
    "attn.proj": "mixer.out",
    "attn.q_norm": "mixer.q_norm",
    "attn.k_norm": "mixer.k_norm",
    "mlp.fc1": "ffn.up",
    "mlp.fc2": "ffn.out",
}
"""Of a layer of timm's `VisionTransformer`, without its joint queries, keys and values."""
TIMM_LAYER = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias|gamma)")


def timm_tensors(theirs: Tensors, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Our tensors for those of timm's `VisionTransformer` with patches of this grid, with or without a class token, registers and scales
    of layers. Raises ConfigError for a name that is none of its."""
    named = dict(theirs)
    positions = named.pop("pos_embed")[0]
    first = [named.pop(name)[0] for name in ("cls_token", "reg_token") if name in named]
    count = sum(map(len, first))
    before = len(positions) - math.prod(grid)  # positions of tokens that come first: of all of them, or of none
    found = {
        "places": positions[before:].unflatten(0, grid),
        "embed.weight": named.pop("patch_embed.proj.weight").flatten(1),
        "embed.bias": named.pop("patch_embed.proj.bias"),
    }
    if first:
        found["first"] = torch.cat(first) + (positions[:before] if before == count else 0)
    for name, value in named.items():
        if layer := TIMM_LAYER.fullmatch(name):
            block, part, leaf = f"backbone.blocks.{layer[1]}", layer[2], layer[3]
            if part == "attn.qkv":
                found |= {f"{block}.mixer.{own}.{leaf}": piece for own, piece in zip("qkv", value.chunk(3), strict=True)}
                continue
            place = {"ls1": f"{block}.scale", "ls2": f"{block}.ffn_scale"}.get(part)
            place = place or (f"{block}.{TIMM_NAMES[part]}.{leaf}" if part in TIMM_NAMES else None)
        else:
            ends = {"norm": "backbone.norm", "head": "head"}
            part, _, leaf = name.rpartition(".")
            place = f"{ends[part]}.{leaf}" if part in ends else None
        if place is None:
            raise ConfigError(f"vit: '{name}' is no tensor of a ViT of timm that is read")
        found[place] = value
    return found


def dit_options(config: Mapping[str, Any]) -> Spec:
    """Our keywords for a configuration of diffusers' `DiTTransformer2DModel`. Raises ConfigError for what we have not."""
    wanted = {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_elementwise_affine": False, "dropout": 0.0}
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise ConfigError(f"dit: {name}={config[name]!r} is not read; {value!r} is")
    heads, channels, patch = config["num_attention_heads"], config["in_channels"], config["patch_size"]
    dim = heads * config["attention_head_dim"]
    return {
        "channels": channels,
        "outputs": config.get("out_channels") or channels,
        "patch": (1, patch, patch),
        "dim": dim,
        "depth": config["num_layers"],
        "mixers": ({"kind": "spacetime", "heads": heads, "rope": False, "bias": True},),
        "ffns": ({"kind": "mlp", "hidden": 4 * dim, "activation": "gelu-tanh", "bias": True},),
        "classes": config["num_embeds_ada_norm"],
        "positions": "sincos",
        "norm": "layer",
        "norm_eps": 1e-6,
    }


DIT_NAMES = {
    "norm1.linear": "modulation",
    "attn1.to_q": "mixer.q",
    "attn1.to_k": "mixer.k",
    "attn1.to_v": "mixer.v",
    "attn1.to_out.0": "mixer.out",
    "ff.net.0.proj": "ffn.up",
    "ff.net.2": "ffn.out",
}
DIT_TOLD = {
    "timestep_embedder.linear_1": "time.up",
    "timestep_embedder.linear_2": "time.out",
    "class_embedder.embedding_table": "label",
}


def dit_tensors(theirs: Tensors, outputs: int) -> dict[str, Tensor]:
    """Our tensors for those of a DiT of diffusers, which tells every layer the same by the first layer's embeddings (as the checkpoints
    that were published do). Raises ConfigError for a name that is none of its."""
    found = {}
    for name, value in theirs.items():
        part, _, leaf = name.rpartition(".")
        layer = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", part)
        if layer and layer[2].startswith("norm1.emb."):
            if layer[1] == "0":
                found[f"{DIT_TOLD[layer[2].removeprefix('norm1.emb.')]}.{leaf}"] = value
        elif layer and layer[2] in DIT_NAMES:
            found[f"backbone.blocks.{layer[1]}.{DIT_NAMES[layer[2]]}.{leaf}"] = value
        elif part == "pos_embed.proj":
            found[f"embed.{leaf}"] = value.flatten(1) if value.ndim > 1 else value
        elif part == "proj_out_1":
            found[f"modulation.{leaf}"] = value
        elif part == "proj_out_2":
            found[f"head.{leaf}"] = value.unflatten(0, (-1, outputs)).transpose(0, 1).flatten(0, 1)
        else:
            raise ConfigError(f"dit: '{name}' is no tensor of a DiT that is read")
    return found


def vjepa2_options(config: Mapping[str, Any]) -> Spec:
    """Our keywords of `jepa` for a `vjepa2` configuration of transformers. Raises ConfigError for what we have not."""
    if config.get("hidden_act", "gelu") != "gelu" or not config.get("qkv_bias", True):
        raise ConfigError(
            f"vjepa2: hidden_act={config.get('hidden_act')!r} and qkv_bias={config.get('qkv_bias')} are not read; 'gelu' and true are"
        )
    dim, predictor_dim = config.get("hidden_size", 1024), config.get("pred_hidden_size", 384)

    def mixers(heads: int) -> tuple[Spec, ...]:
        return ({"kind": "spacetime", "heads": heads, "bias": True, "rope_pairs": "tiled"},)

    def ffns(width: int, ratio: float) -> tuple[Spec, ...]:
        return ({"kind": "mlp", "hidden": int(width * ratio), "activation": "gelu", "bias": True},)

    return {
        "channels": config.get("in_chans", 3),
        "patch": (config.get("tubelet_size", 2), *_both(config.get("patch_size", 16))),
        "dim": dim,
        "depth": config.get("num_hidden_layers", 24),
        "mixers": mixers(config.get("num_attention_heads", 16)),
        "ffns": ffns(dim, config.get("mlp_ratio", 4.0)),
        "predictor_dim": predictor_dim,
        "predictor_depth": config.get("pred_num_hidden_layers", 12),
        "predictor_mixers": mixers(config.get("pred_num_attention_heads", 12)),
        "predictor_ffns": ffns(predictor_dim, config.get("pred_mlp_ratio", 4.0)),
        "masks": config.get("pred_num_mask_tokens", 10),
        "norm_eps": config.get("layer_norm_eps", 1e-6),
    }


VJEPA2_NAMES = {
    "norm1": "norm",
    "norm2": "ffn_norm",
    "attention.query": "mixer.q",
    "attention.key": "mixer.k",
    "attention.value": "mixer.v",
    "attention.proj": "mixer.out",
    "mlp.fc1": "ffn.up",
    "mlp.fc2": "ffn.out",
}
VJEPA2_ENDS = {
    "encoder.embeddings.patch_embeddings.proj": "embed",
    "encoder.layernorm": "backbone.norm",
    "predictor.embeddings.predictor_embeddings": "squeeze",
    "predictor.layernorm": "predictor.norm",
    "predictor.proj": "head",
}


def vjepa2_tensors(theirs: Tensors) -> dict[str, Tensor]:
    """Our tensors for those of transformers' `VJEPA2Model`, or of a classifier on it without its pooler and its head. Raises ConfigError
    for a name that is none of its."""
    found = {}
    for name, value in theirs.items():
        part, _, leaf = name.removeprefix("vjepa2.").rpartition(".")
        if part.startswith(("pooler", "classifier")):
            continue
        layer = re.fullmatch(r"(encoder|predictor)\.layer\.(\d+)\.(.+)", part)
        if layer and layer[3] in VJEPA2_NAMES:
            stack = {"encoder": "backbone", "predictor": "predictor"}[layer[1]]
            found[f"{stack}.blocks.{layer[2]}.{VJEPA2_NAMES[layer[3]]}.{leaf}"] = value
        elif part in VJEPA2_ENDS:
            found[f"{VJEPA2_ENDS[part]}.{leaf}"] = value.flatten(1) if value.ndim > 2 else value
        elif leaf == "mask_tokens":
            found["mask"] = value[:, 0, 0]
        else:
            raise ConfigError(f"vjepa2: '{name}' is no tensor of a V-JEPA 2 that is read")
    return found


def _both(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
