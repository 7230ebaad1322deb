"""The model of benchmarks/experts_disk.py: a mixture that is trained briefly, and then made wide without a change of where tokens go.

Every channel of an expert is copied, and its row of the way out divided by the number of copies: the same answers, and so the same routes
as a trained model has, from weights of any size.
"""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from postformer.config import OptimConfig, Run, TrainConfig, build
from postformer.data import DATA, default_corpus
from postformer.models import MODELS
from postformer.models.expert_store import ExpertMemory
from postformer.models.hub import save_model
from postformer.models.routing import mixtures
from postformer.train.session import open_model, train_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A byte model with OLMoE's router in every layer."""

    dim: int = 128
    depth: int = 8
    experts: int = 64
    top: int = 8
    hidden: int = 64
    """Channels of an expert while it is trained."""
    copies: int = 16
    """Of each channel, in the model that is measured."""
    steps: int = 300
    length: int = 256
    text: int = 4_000_000
    """Bytes of the corpus to train on."""

    @property
    def expert_bytes(self) -> int:
        """Of all experts in fp32."""
        return self.depth * self.experts * 3 * self.dim * self.hidden * self.copies * 4


FULL = Shape()
TINY = Shape(dim=16, depth=3, experts=32, top=2, hidden=16, copies=4, steps=2, length=32, text=60_000)


def made(shape: Shape, folder: Path, threads: int) -> Path:
    """The folder of the wide model; what is there already is not made again."""
    wide = folder / "model"
    if not (wide / "config.json").exists():
        save_model(widened(open_model(trained(shape, folder, threads)), shape.copies), wide)
    return wide


def trained(shape: Shape, folder: Path, threads: int) -> Path:
    """The run of the narrow model."""
    corpus = default_corpus(folder / "corpus", "bytes", shape.text)
    ffn = {"kind": "moe", "preset": "olmoe", "experts": shape.experts, "top": shape.top, "hidden": shape.hidden}
    mixer = {"kind": "attention", "heads": max(shape.dim // 32, 1)}
    run = Run(
        name="experts-disk",
        model={"kind": "language", "dim": shape.dim, "depth": shape.depth, "mixers": [mixer], "ffns": [ffn]},
        data={"kind": "text", "path": str(corpus), "length": shape.length},
        optim=OptimConfig(lr=2e-3, warmup=min(50, shape.steps)),
        train=TrainConfig(steps=shape.steps, batch=8, threads=threads, save_every=shape.steps, keep=1),
    )
    train_run(run, folder / "run")
    return folder / "run"


@torch.no_grad()
def widened(model: Any, copies: int) -> Any:
    """The model with `copies` of each channel of its experts."""
    config = copy.deepcopy(model.config)
    for spec in config["ffns"]:
        spec["hidden"] *= copies
    wide = build(config, MODELS, "model")
    tensors = dict(model.state_dict())
    for name in mixtures(model):
        gate, up = tensors[f"{name}.up.weight"].chunk(2, 1)
        tensors[f"{name}.up.weight"] = torch.cat([part.repeat_interleave(copies, 1) for part in (gate, up)], 1)
        tensors[f"{name}.out.weight"] = tensors[f"{name}.out.weight"].repeat_interleave(copies, 2) / copies
    wide.load_state_dict(tensors)
    wide.tokens = model.tokens
    return wide.eval()


@torch.inference_mode()
def rounding_error(shape: Shape, model: Path, cap: int, dtype: Any, batches: int = 1) -> dict[str, Any]:
    """What rounding experts does to the logits of held-out text."""
    data: Any = build({"kind": "text", "path": str(model.parent / "corpus"), "length": shape.length}, DATA, "data")
    source = data.batches(batch=4, seed=0, split="valid")
    ids = torch.cat([source.batch(i)["ids"] for i in range(batches)])
    exact, near = (open_model(model, experts=e)(ids[:, :-1])[0] for e in (None, ExpertMemory(cap=cap, dtype=dtype)))
    bits = [float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())) / math.log(2) for logits in (exact, near)]
    return {
        "dtype": dtype,
        "bytes": ids[:, 1:].numel(),
        "largest": float((near - exact).abs().max() / exact.abs().max()),
        "rms": float((near - exact).square().mean().sqrt() / exact.square().mean().sqrt()),
        "same_best": float((near.argmax(-1) == exact.argmax(-1)).float().mean()),
        "bits": bits[0],
        "bits_rounded": bits[1],
    }
