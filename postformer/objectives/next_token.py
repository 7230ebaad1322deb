"""Next-token prediction: the mean cross-entropy of each token given those before it."""

import torch
from torch import Tensor, nn

from postformer.models.routing import after_step, group_of, routed
from postformer.ops.exchange import mean_over
from postformer.ops.loss import cross_entropy


class NextToken(nn.Module):
    """Teaches a model with `hidden(ids)` and `logits(hidden)`, such as `LanguageModel`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, object]) -> dict[str, Tensor]:
        """`batch["ids"]` is Int [b, t+1], and `batch["starts"]`, if it is there, Bool [b, t]: where documents of a packed row begin.

        Returns the loss in nats a token (fp32 or wider), and the tokens predicted; of mixtures of experts also what `Routing.taught` tells.
        Where experts are split over processes, the mean of the losses over them is that of the whole batch.
        """
        ids = batch["ids"]
        assert isinstance(ids, Tensor)
        words = {"starts": batch["starts"]} if "starts" in batch else {}
        with routed(self.model) as routing:
            x, _ = self.model.hidden(ids[:, :-1], **words)  # type: ignore[operator]
        target = ids[:, 1:].reshape(-1)
        logits: Tensor = self.model.logits(x.flatten(0, 1))  # type: ignore[operator]
        loss = mean_over(cross_entropy(logits, target), group_of(self.model))
        outputs = {"loss": loss, "tokens": torch.tensor(target.numel())}
        return routing.taught(outputs, self.training)

    def after_step(self, step: int) -> None:
        """Mixtures of experts are corrected by where tokens were sent."""
        after_step(self.model)
