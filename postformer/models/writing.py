"""What the neural memories inside of a model write while it reads: kept from it, or watched."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from postformer.mixers.titans import LMM


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Meanwhile no LMM inside of the model writes while it reads: each answers with the weights that its state holds, or the learned ones
    where nothing was read, and leaves them and their surprise as they are."""
    memories = [m for m in model.modules() if isinstance(m, LMM)]
    before = [m.writes for m in memories]
    for m in memories:
        m.writes = False
    try:
        yield
    finally:
        for m, writes in zip(memories, before, strict=True):
            m.writes = writes


@contextmanager
def observed(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Meanwhile the lists grow by how much of each token every LMM inside of the model, by its name, writes: 0 to 1 of theta's bound
    [b, t, h], a tensor for each call, with gradients where there are any."""
    found: dict[str, list[Tensor]] = {}
    memories = {name: m for name, m in model.named_modules() if isinstance(m, LMM)}
    for name, m in memories.items():
        m.observers.append(found.setdefault(name, []))
    try:
        yield found
    finally:
        for name, m in memories.items():
            m.observers = [seen_by for seen_by in m.observers if seen_by is not found[name]]
