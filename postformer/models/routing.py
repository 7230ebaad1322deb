"""What the mixtures of experts inside of a model do with the tokens that it reads: watched, made even, and told."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from postformer.ffn.moe import MoE, Routed
from postformer.ops.exchange import Group
from postformer.ops.routing import load, max_violation


def mixtures(model: nn.Module) -> dict[str, MoE]:
    """The mixtures inside of a model by their names, the first layer's first."""
    return {name: m for name, m in model.named_modules() if isinstance(m, MoE)}


def group_of(model: nn.Module) -> Group:
    """The processes over which the model's experts are split; None where they are not."""
    return next((m.group for m in mixtures(model).values()), None)


class Routing:
    """What each mixture did in the calls that were observed."""

    def __init__(self, found: dict[str, MoE]):
        self.mixtures = found
        self.calls: dict[str, list[Routed]] = {name: [] for name in found}

    def taught(self, outputs: dict[str, Tensor], training: bool) -> dict[str, Tensor]:
        """An objective's outputs with the mixtures' losses added to the loss where it trains, and with what the losses and loads are; as
        they are where there is no mixture.

        Each layer's loss is of its own load: collapsed layers cannot hide each other.
        """
        if not self.mixtures:
            return outputs
        losses: dict[str, Tensor] = {}
        for name, mixture in self.mixtures.items():
            for routed in self.calls[name]:
                for kind, loss in mixture.losses(routed).items():
                    losses[kind] = losses.get(kind, 0.0) + loss / len(self.calls[name])
        loads = [self.loads(name) for name in self.mixtures if self.calls[name]]
        added = {f"router_{kind}": loss.detach() for kind, loss in losses.items()}
        added["max_violation"] = torch.stack([max_violation(of) for of in loads]).max()
        added["dead_experts"] = torch.stack([(of == 0).sum() for of in loads]).sum()
        loss = outputs["loss"] + sum(losses.values()) if training else outputs["loss"]
        return {**outputs, "loss": loss, **added}

    def loads(self, name: str) -> Tensor:
        """How many pairs each expert of a mixture had [e]; where experts are split, of all processes."""
        group = self.mixtures[name].group
        return sum(load(routed.experts, routed.logits.shape[-1], group) for routed in self.calls[name])  # type: ignore[return-value]


@contextmanager
def routed(model: nn.Module) -> Iterator[Routing]:
    """Meanwhile what every mixture inside of the model does is kept, with gradients where there are any."""
    routing = Routing(mixtures(model))
    for name, mixture in routing.mixtures.items():
        mixture.observers.append(routing.calls[name])
    try:
        yield routing
    finally:
        for name, mixture in routing.mixtures.items():
            mixture.observers = [seen_by for seen_by in mixture.observers if seen_by is not routing.calls[name]]


def after_step(model: nn.Module) -> None:
    """What every mixture inside of the model does after a step of training."""
    for mixture in mixtures(model).values():
        mixture.after_step()
