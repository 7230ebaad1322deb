"""Classes of images: the cross-entropy of each image's class."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from postformer.models.routing import after_step, routed


class Classify(nn.Module):
    """Teaches a model from images [b, c, h, w] to logits, such as `ViT`. `smoothing` spreads that share of the target over all classes
    (Szegedy et al. 2015, arXiv 1512.00567, section 7); with `shift` above 0 training images are moved by up to so many pixels, what
    comes in is the value of the nearest edge, and with `flip` half of them are mirrored."""

    def __init__(self, model: nn.Module, *, smoothing: float = 0.0, shift: int = 0, flip: bool = False):
        super().__init__()
        if not 0 <= smoothing < 1 or shift < 0:
            raise ValueError(f"smoothing={smoothing} must be at least 0 and below 1, and shift={shift} at least 0")
        self.model, self.smoothing, self.shift, self.flip = model, smoothing, shift, flip

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`batch["images"]` is Float [b, c, h, w] and `batch["label"]` Int [b].

        Returns the loss in nats, the share of images whose likeliest class is theirs, and the images seen; of mixtures of experts also what
        `Routing.taught` tells.
        """
        images, label = batch["images"], batch["label"]
        if self.training:
            images = self.moved(images)
        with routed(self.model) as routing:
            logits = self.model(images)
        loss = F.cross_entropy(logits, label, label_smoothing=self.smoothing if self.training else 0.0)
        accuracy = (logits.argmax(-1) == label).float().mean()
        return routing.taught({"loss": loss, "accuracy": accuracy, "tokens": torch.tensor(len(label))}, self.training)

    def moved(self, images: Tensor) -> Tensor:
        """Each image somewhere else by itself, and perhaps mirrored."""
        b, _, h, w = images.shape
        if self.shift:
            at = torch.randint(0, 2 * self.shift + 1, (2, b, 1), device=images.device)
            wide = F.pad(images, (self.shift,) * 4, mode="replicate")
            rows, columns = (at[axis] + torch.arange(n, device=images.device) for axis, n in enumerate((h, w)))
            number = torch.arange(b, device=images.device)[:, None, None]
            images = wide.transpose(0, 1)[:, number, rows[:, :, None], columns[:, None, :]].transpose(0, 1)
        if self.flip:
            mirrored = torch.rand(b, 1, 1, 1, device=images.device) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        return images

    def after_step(self, step: int) -> None:
        """Mixtures of experts are corrected by where tokens were sent."""
        after_step(self.model)
