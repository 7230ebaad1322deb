"""Slots in memory for experts of one shape, and what fills them from a file."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
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

    @staticmethod
    def slot_bytes(shape: Shape) -> int:
        """Of one slot."""
        return sum(torch.Size(sizes).numel() * dtype.itemsize for _, sizes, dtype in shape.places)

    @staticmethod
    def fixed_bytes(shape: Shape, readers: int) -> int:
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


class Int8Slots(Slots):
    """Matrices as int8 with a scale for each row: round(w / scale), scale = max |w| / 127 of the row. Each is made the file's dtype again
    where it is used, in one slot that all share."""

    def __init__(self, shape: Shape, count: int):
        self.shape, self.count = shape, count
        self.parts, self.scales = {}, {}
        for part, sizes, dtype in shape.places:
            matrix = part.endswith("weight")
            self.parts[part] = torch.empty(count, *sizes, dtype=torch.int8 if matrix else dtype)
            if matrix:
                self.scales[part] = torch.empty(count, sizes[0])
        self.used = {part: torch.empty(1, *sizes, dtype=dtype) for part, sizes, dtype in shape.places}

    @staticmethod
    def slot_bytes(shape: Shape) -> int:
        found = 0
        for part, sizes, dtype in shape.places:
            found += torch.Size(sizes).numel() + 4 * sizes[0] if part.endswith("weight") else sizes[0] * dtype.itemsize
        return found

    @staticmethod
    def fixed_bytes(shape: Shape, readers: int) -> int:
        """The slot in which an expert is used, and for each thread that reads the largest matrix and a few rows of it twice in fp32."""
        largest = max(torch.Size(sizes).numel() * dtype.itemsize + 8 * ROWS * sizes[-1] for _, sizes, dtype in shape.places)
        return Slots.slot_bytes(shape) + readers * largest

    def fill(self, file: ExpertFile, names: dict[str, str], expert: int, slot: int) -> None:
        for part, sizes, dtype in self.shape.places:
            if part not in self.scales:
                file.read(names[part], expert, self.parts[part][slot])
                continue
            whole = torch.empty(sizes, dtype=dtype)
            file.read(names[part], expert, whole)
            for i in range(0, len(whole), ROWS):
                rows = slice(i, i + ROWS)
                self.parts[part][slot, rows], self.scales[part][slot, rows] = rounded(whole[rows].float())

    def groups(self, experts: list[int], slots: list[int], count: int) -> Iterator[Part]:
        for expert, slot in zip(experts, slots, strict=True):
            for part, tensor in self.parts.items():
                if part in self.scales:
                    torch.mul(tensor[slot], self.scales[part][slot, :, None].to(self.used[part].dtype), out=self.used[part][0])
                else:
                    self.used[part][0] = tensor[slot]
            places = torch.full((count,), -1)
            places[expert] = 0
            yield Part(_networks(self.used, self.shape), places)


DTYPES: dict[str, Callable[[Shape, int], Slots]] = {"own": Slots, "int8": Int8Slots}


def rounded(w: Float[Tensor, "o i"]) -> tuple[Int8[Tensor, "o i"], Float[Tensor, " o"]]:
    """A matrix as int8 and the scale of each row."""
    scale = torch.linalg.vector_norm(w, torch.inf, 1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (w / scale[:, None]).round_().to(torch.int8), scale


def _networks(parts: dict[str, Tensor], shape: Shape) -> Networks:
    return Networks(parts["up.weight"], parts["out.weight"], shape.activation, parts.get("up.bias"), parts.get("out.bias"))
