"""Build, train, run and measure what comes after the Transformer.

`load(path)` opens a model and `save(model, folder)` writes one; everything else stands in the package's modules.
"""

from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def load(path: str | Path, *, trust_kinds: bool = False, experts: Any = None) -> Any:
    """Open a model, in evaluation mode on the CPU.

    `path` is a run directory (its last whole checkpoint), a checkpoint, a folder with config.json and model.safetensors (ours,
    or a `mamba` or `llama` of the transformers library), or a hub's `owner/name`. Nothing in it is executed; `trust_kinds`
    allows a configuration that names classes of other packages. `experts`, an `ExpertMemory` of `postformer.models.expert_store`, leaves
    a mixture's experts on disk. Raises `postformer.config.UserError`.
    """
    from postformer.train.session import open_model

    return open_model(path, trust_kinds=trust_kinds, experts=experts)


def save(model: Any, folder: str | Path) -> None:
    """Write config.json, model.safetensors and tokenizer.json, the layout that `load` and model hubs read."""
    from postformer.models.hub import save_model

    save_model(model, folder)
