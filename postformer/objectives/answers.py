"""Answers at certain places: the mean cross-entropy where a target is given, and nothing elsewhere."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from postformer.data.tasks import IGNORED
from postformer.models.routing import after_step, group_of, routed
from postformer.models.writing import observed
from postformer.ops.exchange import mean_over
from postformer.ops.loss import cross_entropy


class Answers(nn.Module):
    """Teaches a model with `hidden(ids)` and `logits(hidden)`, such as `LanguageModel`, to give the answers of a task.

    `smoothing` is the share of each target that is spread over all ids (Szegedy et al. 2016, section 7). The best answer is then
    given with the same confidence near and far, which keeps a solved task teaching: what fades or drifts with length costs.

    `write_cost` is what a row whose answers are all right pays, in nats, for neural memories that wrote every token in full. What is not
    written cannot wear out what is known, and so it learns to leave noise alone, but nothing is saved before something is learned. With
    `write_length` a row of fewer tokens than that pays less, by the third power of its length, so that where texts grow a high price waits
    until something is learned.
    """

    def __init__(self, model: nn.Module, *, smoothing: float = 0.0, write_cost: float = 0.0, write_length: int = 0):
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing={smoothing} must be at least 0 and below 1")
        if write_cost < 0:
            raise ValueError(f"write_cost={write_cost} must be at least 0")
        if write_length < 0:
            raise ValueError(f"write_length={write_length} must be at least 0")
        if write_length and not write_cost:
            raise ValueError(f"write_length={write_length} says when writing costs its full price: give a write_cost above 0")
        self.model, self.smoothing, self.write_cost, self.write_length = model, smoothing, write_cost, write_length

    def forward(self, batch: dict[str, object]) -> dict[str, Tensor]:
        """`batch["ids"]` and `batch["targets"]` are Int [b, t]; the target after a token that has none is IGNORED.

        Returns the loss in nats an answer (fp32 or wider), the share of answers that are right, and the tokens read; with a `write_cost`
        also how much of each token was written, and of mixtures of experts what `Routing.taught` tells. Where experts are split over
        processes, the mean of each over them is that of the whole batch.
        """
        ids, targets = batch["ids"], batch["targets"]
        assert isinstance(ids, Tensor) and isinstance(targets, Tensor)
        with observed(self.model) if self.write_cost else nullcontext({}) as writes, routed(self.model) as routing:
            x, _ = self.model.hidden(ids)  # type: ignore[operator]
        asked = targets != IGNORED
        logits: Tensor = self.model.logits(x[asked])  # type: ignore[operator]
        target = targets[asked]
        nats = cross_entropy(logits, target)
        if self.smoothing:
            spread = -logits.to(nats.dtype).log_softmax(-1).mean(-1)
            nats = torch.lerp(nats, spread, self.smoothing)
        hits = logits.detach().argmax(-1) == target
        group = group_of(self.model)
        accuracy = mean_over(hits.float(), group)
        found = {"loss": mean_over(nats, group), "accuracy": accuracy, "tokens": torch.tensor(ids.numel())}
        if shares := [torch.cat([share.mean(2) for share in each], 1).mean(1) for each in writes.values() if each]:
            solved = torch.ones_like(asked).masked_scatter(asked, hits).all(1)
            written = torch.stack(shares).mean(0)
            cost = self._cost(ids.shape[1]) * mean_over(solved * written, group)
            found |= {"loss": found["loss"] + cost, "written": mean_over(written.detach(), group)}
        return routing.taught(found, self.training)

    def _cost(self, length: int) -> float:
        return self.write_cost * min(1.0, length / self.write_length) ** 3 if self.write_length else self.write_cost

    def after_step(self, step: int) -> None:
        """Mixtures of experts are corrected by where tokens were sent."""
        after_step(self.model)
