"""How many of a task's answers a model gives, reading each sequence in chunks with its state carried on."""

from typing import NamedTuple

import torch
from torch import Tensor

from postformer.data.tasks import IGNORED, Task
from postformer.models.language import LanguageModel


class Score(NamedTuple):
    """Answers that are right out of those asked for, and sequences of which every answer is right."""

    right: int
    asked: int
    rows_right: int
    rows: int
    chance: float
    """The share of a guesser's answers that are right."""

    @property
    def share(self) -> float:
        """The share of answers that are right."""
        return self.right / self.asked

    @property
    def scaled(self) -> float:
        """The share scaled so that a guesser has 0 and a perfect model 1 (Delétang et al. 2022)."""
        return scaled(self.share, self.chance)


def scaled(share: float, chance: float) -> float:
    """An accuracy on the scale from chance (0) to perfect (1)."""
    return (share - chance) / (1 - chance)


@torch.inference_mode()
def accuracy(
    model: LanguageModel, task: Task, *, rows: int, seed: int = 0, batch: int = 64, chunk: int = 1024, split: str = "test"
) -> Score:
    """The score of `rows` sequences of the task, all drawn from the seed.

    `batch` rows are read at a time, `chunk` tokens of each: memory grows with neither the length of a sequence nor `rows`,
    apart from the ids of one batch. Raises ValueError for a model of other ids than the task's, and without a row.
    """
    if model.vocab != task.vocab:
        raise ValueError(f"accuracy: the model knows {model.vocab} ids, and {type(task).__name__} has {task.vocab}")
    if min(rows, batch, chunk) < 1:
        raise ValueError(f"accuracy: rows={rows}, batch={batch} and chunk={chunk} must be at least 1")
    batches = task.batches(batch, seed, split)
    right, asked = [], []
    for step in range(-(-rows // batch)):
        drawn = batches.batch(step)
        here = min(batch, rows - step * batch)
        hits, places = _hits(model, drawn["ids"][:here], drawn["targets"][:here], chunk)
        right.append(hits)
        asked.append(places)
    hits, places = torch.cat(right), torch.cat(asked)
    return Score(int(hits.sum()), int(places.sum()), int((hits == places).sum()), rows, 1 / task.choices)


def _hits(model: LanguageModel, ids: Tensor, targets: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """How many answers of each row are right, and how many are asked for."""
    device, state = model.embed.weight.device, model.init_state(len(ids))
    hits = torch.zeros(len(ids), dtype=torch.int64)
    for piece, target in zip(ids.split(chunk, 1), targets.split(chunk, 1), strict=True):
        x, state = model.hidden(piece.to(device), state)
        asked = target != IGNORED
        if asked.any():
            answers = model.logits(x[asked.to(device)]).argmax(-1).cpu()
            hits.index_add_(0, asked.nonzero()[:, 0], (answers == target[asked]).long())
    return hits, (targets != IGNORED).sum(1)
