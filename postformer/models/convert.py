"""Models of the transformers library as ours, key by key: `llama`, `mamba` and `mamba2` checkpoints, and the mixtures of experts `mixtral`,
`qwen2_moe`, `qwen3_moe` and `olmoe`, whose files hold each expert by itself or all in one."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from postformer.config import ConfigError, Spec
from postformer.models.backbone import DEEPEST
from postformer.models.fuse import fused

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
MIXTURE = {
    "self_attn.q_norm": "mixer.q_norm",
    "self_attn.k_norm": "mixer.k_norm",
    "mlp.gate": "ffn.router",
    "mlp.experts.gate_up_proj": "ffn.up.weight",
    "mlp.experts.down_proj": "ffn.out.weight",
    "mlp.shared_expert.gate_up_proj": "ffn.shared.up",
    "mlp.shared_expert.down_proj": "ffn.shared.out",
    "mlp.shared_expert_gate": "ffn.shared.gate",
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
        raise ConfigError(f"config.json: model_type '{kind}' cannot be converted; choose from {', '.join(MIXERS_OF)}, vit")
    mamba = kind.startswith("mamba")
    return {
        "vocab": config["vocab_size"],
        "dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "mixers": (MIXERS_OF[kind](config),),
        "ffns": _ffns(config),
        "tied": bool(config.get("tie_word_embeddings", kind == "mamba")),
        "norm_eps": config["layer_norm_epsilon" if mamba else "rms_norm_eps"],
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


def _attention(config: Mapping[str, Any], base: float = 1e4) -> Spec:
    _require(config, attention_bias=False, mlp_bias=False, hidden_act="silu")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ConfigError(f"config.json: rope_parameters={rope!r} cannot be converted; it must be a table")
    if (rope_type := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise ConfigError(f"config.json: rope_type '{rope_type}' cannot be converted; choose from default")
    return {
        "kind": "attention",
        "heads": config["num_attention_heads"],
        "kv_heads": config.get("num_key_value_heads"),
        "head_dim": config.get("head_dim"),
        "rope_base": rope.get("rope_theta") or config.get("rope_theta") or base,
    }


def _mixtral(config: Mapping[str, Any]) -> Spec:
    return {**_attention(config, base=1e6), "window": config.get("sliding_window")}


def _qwen2(config: Mapping[str, Any]) -> Spec:
    _require(config, use_sliding_window=False)
    return {**_attention(config), "bias": bool(config.get("qkv_bias", True))}


def _qwen3(config: Mapping[str, Any]) -> Spec:
    _require(config, use_sliding_window=False)
    return {**_attention(config), "qk_norm": True, "norm_eps": config["rms_norm_eps"]}


def _olmoe(config: Mapping[str, Any]) -> Spec:
    _require(config, clip_qkv=None)
    return {**_attention(config), "qk_norm": "whole", "norm_eps": config["rms_norm_eps"]}


MIXERS_OF = {
    "llama": _attention,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2,
    "qwen3_moe": _qwen3,
    "olmoe": _olmoe,
}
"""Model types that can be converted, and what makes their mixer."""


def _ffns(config: Mapping[str, Any]) -> tuple[Spec, ...]:
    """The pattern of networks: a layer may be dense where others have experts. What makes loads even is the preset's."""
    kind, depth = config["model_type"], config["num_hidden_layers"]
    if kind in ("mamba", "mamba2"):
        return ({"kind": "none"},)
    dense: Spec = {"kind": "mlp", "hidden": config["intermediate_size"]}
    if kind == "llama":
        return (dense,)
    moe: Spec = {
        "kind": "moe",
        "preset": {"qwen2_moe": "qwen2", "qwen3_moe": "qwen3"}.get(kind, kind),
        "experts": config["num_experts" if "num_experts" in config else "num_local_experts"],
        "top": config["num_experts_per_tok"],
        "hidden": config["moe_intermediate_size" if kind.startswith("qwen") else "intermediate_size"],
        "renormalise": kind == "mixtral" or bool(config.get("norm_topk_prob", False)),
    }
    if kind == "qwen2_moe":
        moe["shared"] = config["shared_expert_intermediate_size"]
    every, only_dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if every == 1 and not only_dense:
        return (moe,)
    if not isinstance(every, int) or every < 1 or not isinstance(only_dense, list) or not isinstance(depth, int):
        raise ConfigError(
            f"config.json: decoder_sparse_step={every!r}, mlp_only_layers={only_dense!r} and num_hidden_layers={depth!r} "
            "must be a whole number, a list and a whole number"
        )
    has_experts = [i not in only_dense and (i + 1) % every == 0 for i in range(min(depth, DEEPEST))]
    return tuple(moe if experts else dense for experts in has_experts)


def language_tensors(tensors: Mapping[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """The tensors under our names. A tied head is left out. Raises ConfigError for a name that has no place here."""
    out = {}
    for name, value in fused(tensors).items():
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
            for table in (LLAMA, MIXTURE, MAMBA):
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
