"""One token through as many layers as go in one call: which they are is found once, and again when one of their modules has changed."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from postformer.ops import _cpu
from postformer.ops.layers import RMSNorm, unaltered, watched

CONTAINERS = (dict, list, set)


class Unchanged:
    """Whether modules are as they were: their classes and what these do, attributes, parameters, parts and hooks, each the same object as
    before or equal to it. What is written to a tensor is no change."""

    def __init__(self, modules: Sequence[nn.Module]):
        self._modules = modules
        self._now = [m.__dict__ for m in modules]
        self._then = [{name: _copied(value) for name, value in own.items()} for own in self._now]
        self._did = self._does()

    def _does(self) -> list[Any]:
        return [(kind := type(m), kind.forward) for m in self._modules]

    def __bool__(self) -> bool:
        try:
            return self._now == self._then and self._does() == self._did
        except (RuntimeError, ValueError):  # a tensor or an array took another's place: whether it is equal has no one answer
            return False


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, CONTAINERS) else value


class Stepping:
    """What takes a token through a stack's layers, from each layer on. Copies and pickles begin anew."""

    def __init__(self) -> None:
        self._stack: nn.ModuleList | None = None
        self._runs: dict[int, tuple[Unchanged, type | None, list[Any]]] = {}
        self._steps: dict[tuple[int, type], Any] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Stepping, ()

    def run(
        self, x: Float[Tensor, "b 1 d"], first: int, stack: nn.ModuleList, plain: Callable[[nn.Module], bool]
    ) -> tuple[Any, list[Any]]:
        """The `Steps` of the first layer's mixer, and what it takes of the layers from the first on: None and an empty list where it has no
        `Steps`, takes not even the first, or no kernel takes such tokens. Layers must be `plain`, with norms of ours, and nobody may
        listen."""
        if watched() or not _cpu.direct(x[:, 0]):
            return None, []
        known = self._runs.get(first)
        if self._stack is not stack or (known is not None and not known[0]):
            known, self._stack, self._runs, self._steps = None, stack, {}, {}  # nothing keeps old weights alive
        if known is None:
            known = self._runs[first] = _found(first, stack, plain)
        _, kind, layers = known
        if kind is None or not layers:
            return None, []
        if (first, kind) not in self._steps:
            self._steps[first, kind] = kind()
        return self._steps[first, kind], layers


def _found(first: int, stack: nn.ModuleList, plain: Callable[[nn.Module], bool]) -> tuple[Unchanged, type | None, list[Any]]:
    blocks: list[Any] = list(stack)[first:]
    kind = getattr(blocks[0]._modules["mixer"], "Steps", None) if plain(blocks[0]) else None

    def own(block: Any) -> bool:
        if not plain(block):
            return False
        parts: dict[str, Any] = block._modules
        norms = [norm for norm in (parts["norm"], parts.get("ffn_norm")) if norm is not None]
        return all(unaltered(norm, RMSNorm) for norm in norms) and not watched(block, *norms, parts["mixer"])

    layers = [] if kind is None else kind.layers(list(itertools.takewhile(own, blocks)))
    # the block after the last that is taken: it may become one that is
    seen = [stack, *(m for block in blocks[: len(layers) + 1] for m in block.modules())]
    return Unchanged(seen), kind, layers
