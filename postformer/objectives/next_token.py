"""Next-token prediction: the mean cross-entropy of each token given those before it."""

import torch
from torch import Tensor, nn

from postformer.ops.loss import cross_entropy


class NextToken(nn.Module):
    """Teaches a model with `hidden(ids)` and `logits(hidden)`, such as `LanguageModel`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, object]) -> dict[str, Tensor]:
        """`batch["ids"]` is Int [b, t+1], and `batch["starts"]`, if it is there, Bool [b, t]: where documents of a packed row begin.

        Returns the loss in nats a token (fp32 or wider), and the tokens predicted.
        """
        ids = batch["ids"]
        assert isinstance(ids, Tensor)
        words = {"starts": batch["starts"]} if "starts" in batch else {}
        x, _ = self.model.hidden(ids[:, :-1], **words)  # type: ignore[operator]
        target = ids[:, 1:].reshape(-1)
        logits: Tensor = self.model.logits(x.flatten(0, 1))  # type: ignore[operator]
        return {"loss": cross_entropy(logits, target).mean(), "tokens": torch.tensor(target.numel())}

    def after_step(self, step: int) -> None:
        """Nothing follows an optimizer step."""
