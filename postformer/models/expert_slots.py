"""Slots in memory for experts of one shape, and what fills them from a file."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Float, Int8, UInt8
from torch import Tensor

from postformer.models.expert_file import ExpertFile, Place
from postformer.ops.expert_parts import Part
from postformer.ops.experts import Activation, Networks

PARTS = ("up.weight", "out.weight", "up.bias", "out.bias")
"""Of an expert, as they are called below a mixture's name; not all have biases."""
ROWS = 64
"""Rows of a matrix that are rounded at once."""


class Shape(NamedTuple):
    """What experts have in common that can lie in each other's slots."""

    places: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
    """Each part's name, shape without experts, and dtype."""
    activation: Activation

    @staticmethod
    def of(places: dict[str, Place], activation: Activation) -> "Shape":
        """Of a mixture whose parts lie at these places."""
        return Shape(tuple((part, place.shape[1:], place.dtype) for part, place in places.items()), activation)


class Slots:
    """`count` slots in the file's dtype."""

    def __init__(self, shape: Shape, count: int):
        self.shape, self.count = shape, count
        self.parts = {part: torch.empty(count, *sizes, dtype=dtype) for part, sizes, dtype in shape.places}

    @classmethod
    def refusal(cls, shape: Shape) -> str | None:
        """Why these experts do not fit, where they do not."""
        return None

    @classmethod
    def slot_bytes(cls, shape: Shape) -> int:
        """Of one slot."""
        return sum(torch.Size(sizes).numel() * dtype.itemsize for _, sizes, dtype in shape.places)

    @classmethod
    def fixed_bytes(cls, shape: Shape, readers: int) -> int:
        """What is needed besides slots, with so many threads that read."""
        return 0

    def fill(self, file: ExpertFile, names: dict[str, str], expert: int, slot: int) -> None:
        """Read an expert, whose parts have these names in the file, into a slot. Several threads may do so, of different slots."""
        for part, tensor in self.parts.items():
            file.read(names[part], expert, tensor[slot])

    def fill_all(self, file: ExpertFile, names: dict[str, str], experts: list[tuple[int, int]]) -> None:
        """The same for each (expert, slot)."""
        for expert, slot in experts:
            self.fill(file, names, expert, slot)

    def groups(self, experts: list[int], slots: list[int], count: int) -> Iterator[Part]:
        """These experts of `count`, which lie in these slots, as `by_parts` takes them."""
        places = torch.full((count,), -1)
        places[experts] = torch.tensor(slots)
        yield Part(_networks(self.parts, self.shape), places)


class RoundedSlots(Slots):
    """Matrices in fewer bits, with scales. Each is made the file's dtype again where it is used, in one slot that all share."""

    group: int
    """A scale is of so many columns of a row at most, 0 for the whole row."""
    packed: torch.dtype
    per_byte: int
    scale: torch.dtype
    filling: int
    """Bytes that each number of ROWS rows takes on its way into a slot,"""
    using: int
    """and out of it."""

    def __init__(self, shape: Shape, count: int):
        self.shape, self.count = shape, count
        self.parts, self.scales = {}, {}
        for part, (o, *i), dtype in shape.places:
            matrix = part.endswith("weight")
            sizes = (o, i[0] // self.per_byte) if matrix else (o,)
            self.parts[part] = torch.empty(count, *sizes, dtype=self.packed if matrix else dtype)
            if matrix:
                self.scales[part] = torch.empty(count, o, self._groups(i[0]), dtype=self.scale)
        self.used = {part: torch.empty(1, *sizes, dtype=dtype) for part, sizes, dtype in shape.places}

    @classmethod
    def _groups(cls, columns: int) -> int:
        return columns // math.gcd(columns, cls.group)

    @classmethod
    def slot_bytes(cls, shape: Shape) -> int:
        found = 0
        for part, (o, *i), dtype in shape.places:
            row = i[0] // cls.per_byte + cls.scale.itemsize * cls._groups(i[0]) if part.endswith("weight") else dtype.itemsize
            found += o * row
        return found

    @classmethod
    def fixed_bytes(cls, shape: Shape, readers: int) -> int:
        """The slot in which an expert is used, for each thread that reads the largest matrix, and what a few rows take on the way."""
        whole = max(torch.Size(sizes).numel() * dtype.itemsize for _, sizes, dtype in shape.places)
        rows = ROWS * max(sizes[-1] for _, sizes, _ in shape.places)
        return Slots.slot_bytes(shape) + cls.using * rows + readers * (whole + cls.filling * rows)

    def fill(self, file: ExpertFile, names: dict[str, str], expert: int, slot: int) -> None:
        for part, sizes, dtype in self.shape.places:
            if part not in self.scales:
                file.read(names[part], expert, self.parts[part][slot])
                continue
            whole = torch.empty(sizes, dtype=dtype)
            file.read(names[part], expert, whole)
            for i in range(0, len(whole), ROWS):
                rows = slice(i, i + ROWS)
                self.parts[part][slot, rows], self.scales[part][slot, rows] = self.rounded(whole[rows].float())

    def groups(self, experts: list[int], slots: list[int], count: int) -> Iterator[Part]:
        for expert, slot in zip(experts, slots, strict=True):
            for part, tensor in self.parts.items():
                if part in self.scales:
                    self.restore(tensor[slot], self.scales[part][slot], self.used[part][0])
                else:
                    self.used[part][0] = tensor[slot]
            places = torch.full((count,), -1)
            places[expert] = 0
            yield Part(_networks(self.used, self.shape), places)

    @classmethod
    def rounded(cls, w: Float[Tensor, "o i"]) -> tuple[Tensor, Tensor]:
        """Rows of a matrix in few bits, and their scales."""
        raise NotImplementedError

    @classmethod
    def restore(cls, packed: Tensor, scales: Tensor, into: Float[Tensor, "o i"]) -> None:
        """The matrix again."""
        raise NotImplementedError


class Int8Slots(RoundedSlots):
    """round(w / scale) with scale = max |w| / 127 of the row."""

    group, packed, per_byte, scale = 0, torch.int8, 1, torch.float32
    filling, using = 8, 0

    @classmethod
    def rounded(cls, w: Float[Tensor, "o i"]) -> tuple[Int8[Tensor, "o i"], Float[Tensor, "o 1"]]:
        scale = torch.linalg.vector_norm(w, torch.inf, 1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        return (w / scale).round_().to(torch.int8), scale

    @classmethod
    def restore(cls, packed: Int8[Tensor, "o i"], scales: Float[Tensor, "o 1"], into: Float[Tensor, "o i"]) -> None:
        torch.mul(packed, scales.to(into.dtype), out=into)


class Int4Slots(RoundedSlots):
    """Sixteen steps for each 32 columns of a row, or the largest part of 32 that divides it: round(w / scale) from -8 to 7 with scale =
    -w / 8 of the w that is largest in size, so that it is one of the steps. A byte holds two: of the group's first half in its lower bits,
    of the second in the upper ones. 4.5 bits a weight with groups of 32."""

    group, packed, per_byte, scale = 32, torch.uint8, 2, torch.bfloat16
    filling, using = 16, 2

    @classmethod
    def refusal(cls, shape: Shape) -> str | None:
        odd = [sizes[-1] for part, sizes, _ in shape.places if part.endswith("weight") and sizes[-1] % 2]
        return f"int4 takes matrices with an even number of columns; one of these has {odd[0]}" if odd else None

    @classmethod
    def rounded(cls, w: Float[Tensor, "o i"]) -> tuple[UInt8[Tensor, "o half"], BFloat16[Tensor, "o g"]]:
        groups = w.unflatten(1, (cls._groups(w.shape[1]), -1))
        scales = (groups.gather(2, groups.abs().argmax(2, keepdim=True)) / -8).to(cls.scale)
        steps = (groups / torch.where(scales == 0, 1, scales).float()).round_().clamp_(-8, 7).add_(8).to(torch.uint8)
        low, high = steps.chunk(2, 2)
        return (low | high << 4).flatten(1), scales[..., 0]

    @classmethod
    def restore(cls, packed: UInt8[Tensor, "o half"], scales: BFloat16[Tensor, "o g"], into: Float[Tensor, "o i"]) -> None:
        for i in range(0, len(into), ROWS):
            rows = slice(i, i + ROWS)
            groups = into[rows].unflatten(1, (scales.shape[1], 2, -1))
            steps = packed[rows].unflatten(1, (scales.shape[1], -1))
            groups[:, :, 0], groups[:, :, 1] = steps & 15, steps >> 4
            groups.sub_(8).mul_(scales[rows, :, None, None].to(into.dtype))


DTYPES: dict[str, type[Slots]] = {"own": Slots, "int8": Int8Slots, "int4": Int4Slots}


def _networks(parts: dict[str, Tensor], shape: Shape) -> Networks:
    return Networks(parts["up.weight"], parts["out.weight"], shape.activation, parts.get("up.bias"), parts.get("out.bias"))
