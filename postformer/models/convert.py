"""Models of the transformers library as ours: `mamba`, `mamba2` and `llama` checkpoints, key by key."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from postformer.config import ConfigError, Spec

LLAMA = {
    "self_attn.q_proj": "mixer.q",
    "self_attn.k_proj": "mixer.k",
    "self_attn.v_proj": "mixer.v",
    "self_attn.o_proj": "mixer.out",
    "mlp.gate_proj": "ffn.gate",
    "mlp.up_proj": "ffn.up",
    "mlp.down_proj": "ffn.out",
    "input_layernorm": "norm",
    "post_attention_layernorm": "ffn_norm",
}
MAMBA = {
    "mixer.in_proj": "mixer.inp",
    "mixer.x_proj": "mixer.select",
    "mixer.dt_proj": "mixer.dt",
    "mixer.out_proj": "mixer.out",
    "mixer.conv1d.weight": "mixer.conv_weight",
    "mixer.conv1d.bias": "mixer.conv_bias",
    "mixer.A_log": "mixer.A_log",
    "mixer.D": "mixer.D",
    "mixer.dt_bias": "mixer.dt_bias",
    "mixer.norm.weight": "mixer.norm_weight",
    "norm": "norm",
}
LEADING = {"embed_tokens": "embed", "embeddings": "embed", "norm_f": "backbone.norm", "norm": "backbone.norm"}


def language_options(config: Mapping[str, Any]) -> Spec:
    """Keywords of `LanguageModel` for a transformers `config.json`.

    Raises ConfigError for a model type or an option that has no equal here, and for a key that is missing.
    """
    try:
        return _language_options(config)
    except KeyError as e:
        raise ConfigError(f"config.json: {e} is missing") from e


def _language_options(config: Mapping[str, Any]) -> Spec:
    kind = config.get("model_type")
    if kind not in MIXERS_OF:
        raise ConfigError(f"config.json: model_type '{kind}' cannot be converted; choose from {', '.join(MIXERS_OF)}")
    llama = kind == "llama"
    return {
        "vocab": config["vocab_size"],
        "dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "mixers": (MIXERS_OF[kind](config),),
        "ffns": ({"kind": "mlp", "hidden": config["intermediate_size"]} if llama else {"kind": "none"},),
        "tied": bool(config.get("tie_word_embeddings", kind == "mamba")),
        "norm_eps": config["rms_norm_eps" if llama else "layer_norm_epsilon"],
    }


def _mamba(config: Mapping[str, Any]) -> Spec:
    _require(config, use_bias=False, use_conv_bias=True, hidden_act="silu")
    return {
        "kind": "mamba",
        "state": config["state_size"],
        "expand": config["expand"],
        "conv": config["conv_kernel"],
        "rank": config["time_step_rank"],
    }


def _mamba2(config: Mapping[str, Any]) -> Spec:
    _require(config, use_bias=False, use_conv_bias=True, hidden_act="silu")
    limit = config.get("time_step_limit", (0.0, float("inf")))
    if not isinstance(limit, (list, tuple)) or list(limit) != [0.0, float("inf")]:
        raise ConfigError(f"config.json: time_step_limit={limit!r} cannot be converted; only (0.0, inf) can")
    heads, head_dim, expand, dim = (config[key] for key in ("num_heads", "head_dim", "expand", "hidden_size"))
    if not all(isinstance(n, int) for n in (heads, head_dim, expand, dim)) or heads * head_dim != expand * dim:
        raise ConfigError(
            f"config.json: num_heads={heads!r} times head_dim={head_dim!r} must be expand={expand!r} times hidden_size={dim!r}"
        )
    return {
        "kind": "mamba2",
        "state": config["state_size"],
        "expand": expand,
        "head_dim": head_dim,
        "groups": config["n_groups"],
        "conv": config["conv_kernel"],
        "norm_eps": config["layer_norm_epsilon"],
    }


def _attention(config: Mapping[str, Any]) -> Spec:
    _require(config, attention_bias=False, mlp_bias=False, hidden_act="silu")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ConfigError(f"config.json: rope_parameters={rope!r} cannot be converted; it must be a table")
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"config.json: rope_type '{rope['rope_type']}' cannot be converted; choose from default")
    return {
        "kind": "attention",
        "heads": config["num_attention_heads"],
        "kv_heads": config.get("num_key_value_heads"),
        "head_dim": config.get("head_dim"),
        "rope_base": rope.get("rope_theta") or config.get("rope_theta") or 1e4,
    }


MIXERS_OF = {"llama": _attention, "mamba": _mamba, "mamba2": _mamba2}
"""Model types that can be converted, and what makes their mixer."""


def language_tensors(tensors: Mapping[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """The tensors under our names. A tied head is left out. Raises ConfigError for a name that has no place here."""
    out = {}
    for name, value in tensors.items():
        if name == "lm_head.weight":
            if not tied:
                out["head.weight"] = value
            continue
        out[_rename(name)] = value.squeeze(1) if name.endswith("conv1d.weight") else value
    return out


def _rename(name: str) -> str:
    layer = re.fullmatch(r"(?:model|backbone)\.layers\.(\d+)\.(.+?)(\.weight|\.bias)?", name)
    if layer:
        index, part, suffix = layer[1], layer[2], layer[3] or ""
        for key, suffix_ in ((part + suffix, ""), (part, suffix)):
            for table in (LLAMA, MAMBA):
                if key in table:
                    return f"backbone.blocks.{index}.{table[key]}{suffix_}"
    lead = re.fullmatch(r"(?:model|backbone)\.(\w+)\.weight", name)
    if lead and lead[1] in LEADING:
        return f"{LEADING[lead[1]]}.weight"
    raise ConfigError(f"the checkpoint's tensor '{name}' has no place in a converted model")


def _require(config: Mapping[str, Any], **wanted: Any) -> None:
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ConfigError(f"config.json: {key}={config[key]} cannot be converted; only {key}={value} can")
