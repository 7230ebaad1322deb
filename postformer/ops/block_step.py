"""One token through whole blocks of attention and a network, in one call: the kernel of csrc/block_step.cpp.

The formulas, and the reference in operations of torch, are `Block.forward` (postformer/models/backbone.py) with `Attention.forward`
(postformer/mixers/attention.py) and `MLP.forward` or `MoE.forward` (postformer/ffn). The residual stream, queries and routing are in fp32;
keys and values are rounded to the dtype of the tokens.

b rows, d model width, h query heads, g key/value heads, e head width, s slots of the cache.
"""

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from postformer.ops import _cpu
from postformer.ops.block_parts import CACHE, COLUMNS, BlockParts, Plan, plan, tensors_of

NO_ROOM, ODD = 2, 3
"""What the kernel answers beside 0 and 1."""


class Stepper:
    """One token through blocks that follow each other, past torch's dispatcher. Weights are read where they lie, and checked once and again
    when they are other ones or lie elsewhere. Copies and pickles begin anew."""

    def __init__(self) -> None:
        self._seen: tuple[Sequence[BlockParts], list[Tensor], tuple[list[Any], ...], Plan | None] | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Stepper, ()

    def __call__(
        self, x: Float[Tensor, "b d"], states: Sequence[Any], blocks: Sequence[BlockParts]
    ) -> tuple[Float[Tensor, "b d"], list[Any]] | None:
        """What the blocks make of a token, and their states after it. A state has keys `k` and values `v` [b, g, s, e], which are written
        in place, `seen` [b], and `with_room()` for one more token. None outside of inference and where the kernel cannot take it.
        Raises ValueError for weights that do not belong together."""
        if not _cpu.direct(x):
            return None
        b, known = len(x), self._plan(blocks)
        if known is None or x.shape != (b, known.width):
            return None
        for _ in range(2):
            kept = [_cache(state, b, x.dtype, of) for state, of in zip(states, known.caches, strict=True)]
            if any(cache is None for cache in kept):
                return None
            table = known.table[:]
            for column, addressed in enumerate(zip(*kept, strict=True), COLUMNS - CACHE):  # type: ignore[arg-type]
                table[column::COLUMNS] = array("q", [a if isinstance(a, int) else a.data_ptr() for a in addressed])
            y = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            halves = *known.halves, x.dtype == torch.bfloat16
            said = _cpu.asked("block_steps", table.buffer_info()[0], y.data_ptr(), len(blocks), *halves, b, known.width)
            if said == NO_ROOM:
                states = [state.with_room() for state in states]
                continue
            if said == ODD:
                return None
            if said:
                raise MemoryError("the kernel block_steps ran out of memory")
            seen = torch._foreach_add([cache[2] for cache in kept], 1)  # type: ignore[index]
            after = zip(states, kept, seen, strict=True)
            return y.to(x.dtype), [state._replace(k=cache[0], v=cache[1], seen=n) for state, cache, n in after]  # type: ignore[index]
        return None

    def _plan(self, blocks: Sequence[BlockParts]) -> Plan | None:
        """Anew where the parts are other objects than before, or the tensors lie elsewhere or otherwise."""
        before = self._seen
        tensors = tensors_of(blocks) if before is None or before[0] is not blocks else before[1]
        lie = _cpu.lying(tensors)
        if before is None or before[0] is not blocks or before[2] != lie:
            before = self._seen = blocks, tensors, lie, plan(blocks, tensors)
        return before[3]


def _cache(state: Any, b: int, dtype: torch.dtype, of: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, int] | None:
    """A state's keys, values, counts and slots as the kernel takes them; None where it cannot."""
    k, v, seen = state.k, state.v, state.seen
    if not type(k) is type(v) is type(seen) is Tensor or not (k.is_cpu and v.is_cpu and seen.is_cpu):
        return None
    groups, width, window = of
    shape, slots = k.shape, k.shape[2]
    if shape != (b, groups, slots, width) or shape != v.shape or slots != (window or slots):
        return None
    if seen.shape != (b,) or seen.dtype is not torch.long:
        return None
    if k.dtype is not dtype or v.dtype is not dtype:
        k, v = k.to(dtype), v.to(dtype)
    return k.contiguous(), v.contiguous(), seen.contiguous(), slots


class BlockSteps:
    """One token through blocks that follow each other: on a CPU, under inference.

    A mixer says what it is by `step_part(norm)`, and so does a network; None, or no such method, has the block called by itself.
    """

    def __init__(self) -> None:
        self._step = Stepper()

    @staticmethod
    def layers(blocks: Sequence[Any]) -> list[BlockParts]:
        """What `__call__` takes of the first of these blocks, as many as go in one call."""
        found: list[BlockParts] = []
        for block in blocks:
            parts: dict[str, Any] = block._modules
            mixer, network = parts["mixer"], parts.get("ffn")
            if getattr(mixer, "Steps", None) is not BlockSteps or (attention := mixer.step_part(parts["norm"])) is None:
                break
            through = None
            if network is not None and parts.get("ffn_norm") is not None:
                asked = getattr(network, "step_part", None)
                through = None if asked is None else asked(parts["ffn_norm"])
                if through is None:
                    break
            found.append((attention, through))
        return found

    def __call__(
        self, x: Float[Tensor, "b 1 d"], states: Sequence[Any], layers: Sequence[BlockParts]
    ) -> tuple[Float[Tensor, "b 1 d"], list[Any]] | None:
        """The residual stream and the states after the blocks; None where they must be called one by one."""
        stepped = self._step(x[:, 0], states, layers)
        if stepped is None:
            return None
        y, after = stepped
        return y[:, None], after
