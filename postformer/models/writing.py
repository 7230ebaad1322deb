"""What the memories inside of a model write while it reads: kept from it, or watched. They are its mixers with gates that write: neural
memories, the gated delta rule, and Mamba-2."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from postformer.ops.writer import Writer


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Meanwhile no memory inside of the model writes while it reads: each answers with what its state holds, a neural memory that has read
    nothing with its learned weights, and leaves it as it is, but for the last inputs of convolutions."""
    memories = [m for m in model.modules() if isinstance(m, Writer)]
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
    """Meanwhile the lists grow by how much of each token every memory inside of the model, by its name, writes [b, t, h], a tensor for each
    call, with gradients where there are any: 0 to 1 of theta's bound, of beta's, or 1 - exp(-dt)."""
    found: dict[str, list[Tensor]] = {}
    memories = {name: m for name, m in model.named_modules() if isinstance(m, Writer)}
    for name, m in memories.items():
        m.observers.append(found.setdefault(name, []))
    try:
        yield found
    finally:
        for name, m in memories.items():
            m.observers = [seen_by for seen_by in m.observers if seen_by is not found[name]]
