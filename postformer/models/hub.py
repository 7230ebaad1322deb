"""Models as folders: config.json + model.safetensors (or shards and their index) + tokenizer.json, the layout of model hubs.

A folder is untrusted: nothing in it is executed, its configuration may name only our own kinds, and no memory is taken for a
tensor that the file does not hold.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from postformer.config import ConfigError, UserError, build, foreign_kinds, read
from postformer.ffn.moe import MoE
from postformer.files import durable_file, write_durably
from postformer.models import MODELS
from postformer.models.convert import language_options, language_tensors
from postformer.models.convert_pictures import vit_options, vit_tensors, vjepa2_options, vjepa2_tensors
from postformer.models.expert_store import ExpertMemory, ExpertStore, expert_names
from postformer.models.routing import group_of
from postformer.tokens.patches import grid_of
from postformer.tokens.text import load_tokens

FORMAT = "postformer-model-1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INDEX = "model.safetensors.index.json"
FILES = ["config.json", "model.safetensors", INDEX, "model-*-of-*.safetensors", "tokenizer.json"]

MARKS = ("no_weight_decay", "matrices")
"""What optimizers ask of a parameter, which loading another in its place would lose."""


class ModelError(UserError):
    """A model folder that is missing, damaged, or not what its configuration says."""


def save_model(model: nn.Module, folder: str | Path, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write the model, and its tokenizer if it has one, into a folder, which is made if it is missing.

    `tensors` are the model's where it holds but a part of them. Raises ModelError where they are missing then.
    """
    if tensors is None and group_of(model) is not None:
        raise ModelError(f"{folder}: the model's experts lie in several processes; save it with save_split of postformer.train")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if getattr(model, "elsewhere", {}):
        raise UserError(f"{folder}: the model's experts are on disk; load it without expert memory to save it")
    own = model.state_dict() if tensors is None else tensors
    tensors = {name: value.detach().cpu().contiguous() for name, value in own.items()}
    with durable_file(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    tokens = getattr(model, "tokens", None)
    if tokens is not None:
        tokens.save(folder)
    write_durably(folder / "config.json", json.dumps({"format": FORMAT, **model.config}, indent=1) + "\n")  # type: ignore[dict-item]


def load_model(folder: str | Path, *, trust_kinds: bool = False, experts: ExpertMemory | None = None) -> Any:
    """The model of a folder, in evaluation mode on the CPU; also folders of the transformers library: `llama`, `mamba`, `mamba2`,
    `mixtral`, `qwen2_moe`, `qwen3_moe`, `olmoe`, `vit` and `vjepa2`.

    `trust_kinds` allows a configuration that names classes of other packages, which are then imported. With `experts` the experts stay in
    the file and are read as they are needed. Raises ModelError, ExpertsError or ConfigError, each with the file and what is wrong with it.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder}: is no run, checkpoint or model folder: it has no config.json")
    config = read(folder / "config.json")
    tensors = {name: t for file in _files(folder) for name, t in _tensors(folder / file).items()}
    if config.get("format") == FORMAT:
        words = {k: v for k, v in config.items() if k != "format"}
    elif config.get("model_type") == "vit":
        words = {"kind": "vit", **vit_options(config)}
        tensors = vit_tensors(tensors, grid_of((1, *words["size"]), (1, *words["patch"]))[1:])
    elif config.get("model_type") == "vjepa2":
        words, tensors = {"kind": "jepa", **vjepa2_options(config)}, vjepa2_tensors(tensors)
    elif "model_type" in config:
        options = language_options(config)
        words, tensors = {"kind": "language", **options}, language_tensors(tensors, options["tied"])
    else:
        raise ModelError(f"{folder}/config.json: neither a {FORMAT} nor a transformers configuration")
    foreign = foreign_kinds(words)
    if foreign and not trust_kinds:
        raise ConfigError(
            f"{folder}/config.json: {foreign[0]} names code of another package; pass trust_kinds=True to import it"
        )
    model = _assemble(words, tensors, folder, experts is not None)
    if experts is not None:
        model.experts = ExpertStore(model, folder / "model.safetensors", experts)
    if (folder / "tokenizer.json").exists() and config.get("format") == FORMAT:
        model.tokens = load_tokens(folder)
        if model.tokens.vocab != model.vocab:
            raise ModelError(f"{folder}/tokenizer.json: {model.tokens.vocab} tokens, but the model has {model.vocab}")
    return model.eval()


def fetch(name: str, **options: Any) -> Path:
    """The local copy of the model folder `owner/name`; `options` are those of `huggingface_hub.snapshot_download`.

    Raises ModelError when it is neither in the cache nor can be fetched.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=FILES, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise ModelError(f"{name}: no such folder here, and no such model could be fetched: {reason}") from e


def _files(folder: Path) -> list[str]:
    """The files that hold the tensors. Raises ModelError for an index that names anything but files of the folder."""
    if (folder / "model.safetensors").exists() or not (folder / INDEX).exists():
        return ["model.safetensors"]
    shards = read(folder / INDEX).get("weight_map")
    names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
    if odd := sorted(n for n in names if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", n)):
        raise ModelError(f"{folder / INDEX}: '{odd[0]}' is no file of the folder")
    if not names:
        raise ModelError(f"{folder / INDEX}: names no files in its weight_map")
    return sorted(names)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except OSError as e:
        raise ModelError(f"{path}: {e.strerror or ('cannot be read' if path.exists() else 'No such file')}") from e
    except SafetensorError as e:
        raise ModelError(f"{path}: not a readable safetensors file: {e}") from e


def _assemble(words: dict[str, Any], tensors: dict[str, Tensor], folder: Path, without_experts: bool = False) -> Any:
    """Build without memory, compare names and shapes, then put the file's tensors in; those of experts stay without memory where it is
    `without_experts`."""
    depth = words.get("depth", 1)
    if isinstance(depth, int) and depth > len(tensors):
        raise ModelError(f"{folder}/config.json: depth={depth}, but model.safetensors holds only {len(tensors)} tensors")
    with torch.device("meta"):
        model = build(words, MODELS, f"{folder}/config.json")
    wanted = model.state_dict()
    if odd := sorted(wanted.keys() ^ tensors.keys()):
        where = "is missing" if odd[0] in wanted else "has no place in the model"
        raise ModelError(f"{folder}/model.safetensors: '{odd[0]}' {where}")
    for name, value in wanted.items():
        if tensors[name].shape != value.shape:
            got, want = tuple(tensors[name].shape), tuple(value.shape)
            raise ModelError(f"{folder}/model.safetensors: '{name}' has shape {got}, but config.json asks for {want}")
        if tensors[name].dtype not in DTYPES:
            choices = ", ".join(map(str, DTYPES))
            raise ModelError(f"{folder}/model.safetensors: '{name}' is {tensors[name].dtype}; choose from {choices}")
    if without_experts:
        tensors = {**tensors, **{name: tensors[name].to("meta") for name in expert_names(model)}}
    marked = {name: [mark for mark in MARKS if hasattr(p, mark)] for name, p in model.named_parameters()}
    model.load_state_dict(tensors, assign=True)
    for name, marks in marked.items():
        for mark in marks:
            setattr(model.get_parameter(name), mark, True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and isinstance(module, MoE):  # its loads, which begin at 0
                module.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype), persistent=False)
            elif buffer.is_meta:
                raise ModelError(
                    f"{folder}: the buffer '{name}' of {type(module).__name__} is in no file; register it as a persistent one"
                )
    return model
