"""A tiny objective and tiny data that keep to the training loop's contracts."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from postformer.config import OptimConfig, Run, TrainConfig
from postformer.train import Summary, train


class ToyModel(nn.Module):
    """Next-token logits from the current token alone."""

    def __init__(self, vocab: int = 13, dim: int = 8, dropout: float = 0.0):
        super().__init__()
        self.config = {"vocab": vocab, "dim": dim}
        self.compute_dtype: torch.dtype | None = None
        self.embed = nn.Embedding(vocab, dim)
        self.hidden = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = self.dropout(torch.tanh(self.hidden(x))) + x
        return self.head(x)


class ToyObjective(nn.Module):
    """Cross-entropy, dropout (so that the generator's state matters), and an averaged teacher of its own."""

    def __init__(self, dropout: float = 0.1):
        super().__init__()
        self.model = ToyModel(dropout=dropout)
        self.register_buffer("teacher", torch.zeros(8, 8))
        self.steps_seen: list[int] = []

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        ids = batch["ids"]
        logits = self.model(ids[:, :-1])
        target = ids[:, 1:].reshape(-1)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target)
        right = (logits.argmax(-1).reshape(-1) == target).float().mean()
        return {"loss": loss, "accuracy": right.detach(), "tokens": torch.tensor(target.numel())}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.steps_seen.append(step)
        self.teacher.lerp_(self.model.hidden.weight, 0.1)


@dataclasses.dataclass
class ToyBatches:
    size: int
    seed: int
    split: str

    def batch(self, step: int) -> dict[str, Any]:
        g = torch.Generator()
        rows = range(step * self.size, (step + 1) * self.size)
        ids = [
            torch.randint(13, (7,), generator=g.manual_seed(hash((self.seed, self.split == "train", r)) % 2**31)) for r in rows
        ]
        return {"ids": torch.stack(ids).sort(1).values, "rows": [f"{self.split}.bin:{r}" for r in rows]}


class ToyData:
    def batches(self, *, batch: int, seed: int, split: str) -> ToyBatches:
        return ToyBatches(batch, seed, split)


def toy_run(optim: dict[str, Any] | None = None, **changes: Any) -> Run:
    """A run of 6 steps; `changes` are fields of Run or of its TrainConfig."""
    top = {"name": "toy", "seed": 3, "model": {"kind": "toy", "sizes": [8, 13]}, "data": {"kind": "toy"}}
    settings = {"steps": 6, "batch": 4, "save_every": 2, "log_every": 1, "threads": 1}
    for key, value in changes.items():
        (top if key in top else settings)[key] = value
    return Run(**top, optim=OptimConfig(**{"warmup": 2, "lr": 1e-2, **(optim or {})}), train=TrainConfig(**settings))


def train_toy(
    run: Run, out: Path, *, objective: nn.Module | None = None, data: Any = None, dropout: float = 0.1, **options: Any
) -> Summary:
    """Train a freshly seeded toy."""
    if objective is None:
        torch.manual_seed(run.seed)
        objective = ToyObjective(dropout)
    options.setdefault("warn", lambda line: None)
    return train(run, out, objective=objective, data=data or ToyData(), save_model=saver(objective), **options)


def saver(objective: nn.Module) -> Any:
    def save_model(folder: Path) -> None:
        (folder / "config.json").write_text('{"kind": "toy"}\n')
        save_file(objective.model.state_dict(), folder / "model.safetensors")

    return save_model


def tensors_sha256(checkpoint: Path) -> dict[str, str]:
    """The hashes of the files that hold tensors."""
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(checkpoint.glob("*.safetensors"))}
