"""What the kernel of one token through whole blocks (csrc/block_step.cpp) reads, and how it takes it.

d model width, h query heads, g key/value heads, e head width.
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from postformer.ops import _cpu
from postformer.ops.experts import GATED


class AttentionPart(NamedTuple):
    """The first half of a block; `window` 0 is none, and a norm of `whole` is one of all heads at once."""

    norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    q_bias: Tensor | None
    k_bias: Tensor | None
    v_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float
    head_eps: float
    base: float
    heads: int
    groups: int
    width: int
    window: int
    whole: bool


class NetworkPart(NamedTuple):
    """The second half. Without a router: `up` and `down`, and `gate` where the activation gates. With one, `up` and `down` of all experts,
    the gate's rows first."""

    norm: Tensor
    up: Tensor
    down: Tensor
    gate: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    router: Tensor | None = None
    router_bias: Tensor | None = None
    correction: Tensor | None = None
    shared_up: Tensor | None = None
    shared_down: Tensor | None = None
    shared_gate: Tensor | None = None
    eps: float = 1e-5
    scale: float = 1.0
    activation: int = 0
    """By `postformer.ops.experts.KINDS`."""
    top: int = 1
    router_kind: int = 0
    """By `ROUTERS`."""
    renormalise: bool = False
    parts: int = 1
    top_parts: int = 1


ROUTERS = {"softmax": 0, "sigmoid": 1, "chosen": 2}
TENSORS, REALS = (10, 12), (3, 2)
"""How many fields of the two are tensors, which come first, and real numbers, which come next."""
BlockParts = tuple[AttentionPart, NetworkPart | None]
ATTENTION_MATRICES = {"q", "k", "v", "out"}
NETWORK_MATRICES = {"router", "gate", "up", "down", "shared_up", "shared_down", "shared_gate"}
CORRECTION = "correction"
"""It is fp32 whatever the rest is."""


class Plan(NamedTuple):
    """Blocks as the kernel reads them."""

    width: int
    halves: tuple[bool, bool]
    """Whether matrices are bf16, and whether all else is."""
    caches: list[tuple[int, int, int]]
    """g, e and the window of each block, 0 for none."""
    table: array
    """COLUMNS numbers of each block, 0 for its cache."""


COLUMNS = 45
CACHE = 4
"""The last columns of a block: keys, values, seen, slots."""


def tensors_of(blocks: Sequence[BlockParts]) -> list[Tensor]:
    """All of their tensors."""
    parts = [part[:count] for block in blocks for part, count in zip(block, TENSORS, strict=True) if part is not None]
    return [t for part in parts for t in part if isinstance(t, Tensor)]


def plan(blocks: Sequence[BlockParts], tensors: Sequence[Tensor]) -> Plan | None:
    """None where the kernel cannot read the weights as they lie. Raises ValueError for shapes that do not belong together."""
    matrices, small, corrections = set(), set(), {torch.float32}
    for attention, network in blocks:
        for part, named in ((attention, ATTENTION_MATRICES), (network, NETWORK_MATRICES)):
            for name, t in () if part is None else part._asdict().items():
                if isinstance(t, Tensor):
                    (corrections if name == CORRECTION else matrices if name in named else small).add(t.dtype)
    readable = all(type(t) in (Tensor, nn.Parameter) and t.is_contiguous() and t.is_cpu for t in tensors)
    alike = len(matrices) == len(small) == len(corrections) == 1 and matrices | small <= _cpu.HALF_OR_SINGLE
    if not (_cpu.BUILT and readable and alike):
        return None
    d = len(blocks[0][0].norm)
    table = array("q")
    for attention, network in blocks:
        table.extend(_attention_columns(attention, d))
        table.extend(NO_NETWORK if network is None else _network_columns(network, d))
        table.extend([0] * CACHE)
    caches = [(a.groups, a.width, a.window) for a, _ in blocks]
    half, half_small = (found == {torch.bfloat16} for found in (matrices, small))
    return Plan(d, (half, half_small), caches, table)


def _attention_columns(part: AttentionPart, d: int) -> list[int]:
    if part.heads % part.groups:
        raise ValueError(f"block_step: {part.heads} heads in {part.groups} groups")
    queries, shared = part.heads * part.width, part.groups * part.width
    normed = (queries, shared) if part.whole else (part.width, part.width)
    _check(
        part,
        norm=(d,),
        q=(queries, d),
        k=(shared, d),
        v=(shared, d),
        out=(d, queries),
        q_bias=(queries,),
        k_bias=(shared,),
        v_bias=(shared,),
        q_norm=normed[:1],
        k_norm=normed[1:],
    )
    return _columns(part, 0)


def _network_columns(part: NetworkPart, d: int) -> list[int]:
    """With how many experts there are, their width and that of the shared network."""
    experts = 0 if part.router is None else len(part.router)
    hidden, w = part.down.shape[-1], part.up.shape[-2]
    shared = 0 if part.shared_down is None else part.shared_down.shape[1]
    shared_w = 0 if part.shared_up is None else len(part.shared_up)
    gates = part.activation in GATED
    doubled = 2 if gates and experts else 1
    if (w, shared_w) != (hidden * doubled, shared * doubled) or (not experts and gates != (part.gate is not None)):
        raise ValueError(f"block_step: up is {tuple(part.up.shape)} and down {tuple(part.down.shape)}")
    within = 0 if part.parts < 1 or experts % part.parts else experts // part.parts * part.top_parts
    if experts and not (1 <= part.top <= within and 1 <= part.top_parts <= part.parts):
        raise ValueError(f"block_step: {part.top} of {part.top_parts} of {part.parts} groups of {experts} experts")
    of = (experts,) if experts else ()
    _check(
        part,
        norm=(d,),
        router=(experts, d),
        router_bias=(experts,),
        correction=(experts,),
        gate=(hidden, d),
        up=(*of, w, d),
        down=(*of, d, hidden),
        up_bias=(experts, w),
        down_bias=(experts, d),
        shared_up=(shared_w, d),
        shared_down=(d, shared),
        shared_gate=(1, d),
    )
    return [*_columns(part, 1), experts, hidden, shared]


NO_NETWORK = [0] * (len(NetworkPart._fields) + 3)


def _columns(part: AttentionPart | NetworkPart, half: int) -> list[int]:
    """Addresses, the bits of real numbers, and whole numbers."""
    tensors, reals = TENSORS[half], TENSORS[half] + REALS[half]
    addresses = [0 if t is None else t.data_ptr() for t in part[:tensors]]  # type: ignore[union-attr]
    return [*addresses, *(_cpu.bits(float(n)) for n in part[tensors:reals]), *(int(n) for n in part[reals:])]  # type: ignore[arg-type]


def _check(part: AttentionPart | NetworkPart, **expected: tuple[int, ...]) -> None:
    for name, shape in expected.items():
        t = getattr(part, name)
        if t is not None and t.shape != shape:
            raise ValueError(f"block_step: {name} is {tuple(t.shape)}; expected {shape}")
