"""llama.cpp's side of `experts_model.py`: transformers' Mixtral as its file, and the model that runs it.

The file is written here by llama.cpp's own library `gguf`, since its script wants a tokenizer and this model has none. Weights are in bf16,
norms and routers in fp32. How to install it: docs/benchmarks.md.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from postformer.files import durable_file

NEEDED = ("llama_cpp", "gguf")
ROOM = 8
"""Slots of its context beyond the text."""
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate": "ffn_gate_inp",
}
"""Of a layer, transformers' to llama.cpp's."""
IN_FP32 = ("norm", "gate_inp")


def there() -> bool:
    """Whether llama.cpp's Python binding and its library of files are installed."""
    return all(importlib.util.find_spec(name) for name in NEEDED)


def file(folder: Path) -> Path:
    """The model of transformers' folder for llama.cpp, written if it is not there."""
    path = folder.with_name(f"{folder.name}-bf16.gguf")
    if not path.exists():
        with durable_file(path) as temporary:
            _write(folder, temporary)
    return path


def _write(folder: Path, path: Path) -> None:
    import transformers

    gguf: Any = importlib.import_module("gguf")
    model: Any = transformers.MixtralForCausalLM.from_pretrained(folder, dtype=torch.float32)
    c = model.config
    out: Any = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_block_count(c.num_hidden_layers)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    out.add_rope_freq_base(c.rope_parameters["rope_theta"])
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_expert_count(c.num_local_experts)
    out.add_expert_used_count(c.num_experts_per_tok)
    out.add_vocab_size(c.vocab_size)
    out.add_tokenizer_model("no_vocab")
    for name, value in _tensors(model.state_dict(), c).items():
        whole = value.float().numpy()
        if any(part in name for part in IN_FP32):
            out.add_tensor(name, whole)
        else:
            half = gguf.GGMLQuantizationType.BF16
            out.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(whole), half), raw_dtype=half)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _tensors(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Transformers' tensors by llama.cpp's names; the head is the embedding."""
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}."
        for theirs, name in NAMES.items():
            found[f"blk.{i}.{name}.weight"] = state[f"{layer}{theirs}.weight"]
        for name, heads in (("attn_q", config.num_attention_heads), ("attn_k", config.num_key_value_heads)):
            found[f"blk.{i}.{name}.weight"] = _interleaved(found[f"blk.{i}.{name}.weight"], heads)
        gate, up = state[f"{layer}mlp.experts.gate_up_proj"].chunk(2, 1)
        found |= {f"blk.{i}.ffn_gate_exps.weight": gate, f"blk.{i}.ffn_up_exps.weight": up}
        found[f"blk.{i}.ffn_down_exps.weight"] = state[f"{layer}mlp.experts.down_proj"]
    return found


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp rotates pairs of neighbours, transformers the halves of a head."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


class LlamaCpp:
    """`begun`, `write` and `read` as of the models beside it."""

    def __init__(self, path: Path, context: int, threads: int):
        self.api: Any = importlib.import_module("llama_cpp")
        words = {"n_ctx": context + ROOM, "n_batch": context, "n_ubatch": context, "n_threads": threads}
        self.model: Any = self.api.Llama(str(path), **words, n_threads_batch=threads, verbose=False)

    def logits(self, ids: Tensor) -> Tensor:
        """Of the last token [vocab]."""
        self.read(ids)
        pointer = self.api.llama_get_logits(self.model.ctx)
        return torch.from_numpy(np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab(),)).copy())

    def begun(self, ids: Tensor) -> int:
        """The text's length: it lies in the context, and what is written after it is taken off before the next writing."""
        self.read(ids)
        return ids.shape[1]

    def write(self, ids: Tensor, state: int) -> None:
        self.model.n_tokens = state
        for token in ids[0].tolist():
            self.model.eval([token])

    def read(self, ids: Tensor) -> None:
        self.model.reset()
        self.model.eval(ids[0].tolist())
