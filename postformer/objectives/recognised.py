"""How many images of each class a classifier recognises."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from postformer.data.images import Labelled
from postformer.interval import told_share

BATCH = 256


@dataclasses.dataclass(frozen=True)
class Recognised:
    """Of each class how many images were asked and how many were named rightly, and which class each wrong one was taken for most often."""

    classes: list[str]
    right: list[int]
    asked: list[int]
    taken_for: list[str | None]

    def listed(self) -> str:
        """A line for all, and one for each class."""
        lines = [f"{'all':<16} {told_share(sum(self.right), sum(self.asked))}"]
        for name, right, asked, other in zip(self.classes, self.right, self.asked, self.taken_for, strict=True):
            if asked:
                lines.append(f"{name:<16} {told_share(right, asked)}" + (f", else most often {other}" if other else ""))
        return "\n".join(lines)


@torch.inference_mode()
def recognised(model: Any, images: Labelled, after_batch: Callable[[int], object] = lambda done: None) -> Recognised:
    """What `model`, such as a `ViT`, says of every image."""
    n, k = len(images.labels), len(images.classes)
    table = np.zeros((k, k), np.int64)
    for i in range(0, n, BATCH):
        said = model(images.values(slice(i, i + BATCH))).argmax(-1).numpy()
        np.add.at(table, (images.labels[i : i + BATCH], said), 1)
        after_batch(min(i + BATCH, n))
    wrong = table - np.diag(np.diag(table))
    others = [images.classes[int(row.argmax())] if row.any() else None for row in wrong]
    return Recognised(images.classes, np.diag(table).tolist(), table.sum(1).tolist(), others)
