"""Which patches a model sees and which it predicts: masks of images and videos.

Blocks: Assran et al. 2023 (I-JEPA, arXiv 2301.08243, section 3 and its published code). Tubes: Bardes et al. 2024 (V-JEPA, arXiv
2404.08471, section 3.2 and its published code); V-JEPA 2 has the same. What differs: a block may touch every border of the grid, where
I-JEPA's code never reaches the last row and column; where rows are cut to the least count, the places left out are drawn, each over the
full time, where the published code leaves out the last patches; and a context that is too small is drawn again, never let overlap.

n rows of a batch, m sets of targets, k patches of a context, q of a set of targets, p places of a frame. A patch is told by its number
in the order of the grid: frame by frame, each row by row.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

TRIES, SIZES = 50, 50
"""So often rows whose context is too small are drawn again, and then with blocks of another size."""
Draw = Callable[[int], tuple[Tensor, Tensor]]
"""For so many rows the places of their contexts [n, p] and targets [n, m, p]."""


class Mask(NamedTuple):
    """The patches that are seen, and sets of those to predict, each by itself; none is in both. Numbers rise within a row."""

    context: Int[Tensor, "n k"]
    targets: Int[Tensor, "n m q"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """I-JEPA's: `targets` blocks of a share `scale` of a frame and an `aspect` (rows to columns), which may overlap; seen is a square block
    of a share `context`, without the targets. Sizes are drawn for a batch and places for each row. All frames have the same mask. At least
    a share `least` of a frame is seen, and one patch."""

    targets: int = 4
    scale: tuple[float, float] = (0.15, 0.2)
    context: tuple[float, float] = (0.85, 1.0)
    aspect: tuple[float, float] = (0.75, 1.5)
    least: float = 0.05

    def __post_init__(self) -> None:
        if self.targets < 1:
            raise ValueError(f"targets={self.targets} must be at least 1")
        _check(self.least, self.aspect, scale=self.scale, context=self.context)

    def draw(self, rows: int, grid: tuple[int, int, int], generator: torch.Generator | None = None) -> Mask:
        """A mask of `rows` images or clips of (frames, rows, columns) of patches. Raises ValueError where too little is left to be seen."""

        def sized() -> Draw:
            size = _size(grid, self.scale, self.aspect, generator)
            seen = _size(grid, self.context, (1.0, 1.0), generator)

            def places(n: int) -> tuple[Tensor, Tensor]:
                targets = _boxes(n, self.targets, size, grid, generator)
                return _boxes(n, 1, seen, grid, generator)[:, 0] & ~targets.any(1), targets

            return places

        what = f"{self.targets} blocks of scale {self.scale[0]:g} to {self.scale[1]:g}"
        return _mask(rows, grid, sized, self.least, what, generator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tubes:
    """V-JEPA's: `count` blocks of a share `scale` of a frame and an `aspect`, each over the full time, are together what is predicted, and
    all else is seen. Their size is drawn for a batch and their places for each row. At least a share `least` of a frame is seen, and one
    patch."""

    count: int = 8
    scale: float = 0.15
    aspect: tuple[float, float] = (0.75, 1.5)
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} of tubes must be at least 1")
        _check(self.least, self.aspect, scale=(self.scale, self.scale))

    def draw(self, rows: int, grid: tuple[int, int, int], generator: torch.Generator | None = None) -> Mask:
        """A mask of `rows` clips of (frames, rows, columns) of patches. Raises ValueError where too little is left to be seen."""

        def sized() -> Draw:
            size = _size(grid, (self.scale, self.scale), self.aspect, generator)

            def places(n: int) -> tuple[Tensor, Tensor]:
                hidden = _boxes(n, self.count, size, grid, generator).any(1)
                return ~hidden, hidden[:, None]

            return places

        return _mask(rows, grid, sized, self.least, f"{self.count} tubes of scale {self.scale:g}", generator)


def _check(least: float, aspect: tuple[float, float], **scales: tuple[float, float]) -> None:
    for name, (low, high) in scales.items():
        if not 0 < low <= high <= 1:
            raise ValueError(f"{name}={low:g} to {high:g} must be shares of a frame above 0, the smaller one first")
    if not 0 < aspect[0] <= aspect[1] or not 0 <= least < 1:
        raise ValueError(f"aspect={aspect} must be above 0, the smaller one first, and least={least} at least 0 and below 1")


def _size(
    grid: tuple[int, int, int], scale: tuple[float, float], aspect: tuple[float, float], generator: torch.Generator | None
) -> tuple[int, int]:
    """Rows and columns of a block of a share of a frame and a ratio that are drawn."""
    _, rows, columns = grid
    share, ratio = (
        low + drawn * (high - low)
        for drawn, (low, high) in zip(_random((2,), generator).tolist(), (scale, aspect), strict=True)
    )
    area = int(rows * columns * share)
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(max(height, 1), rows), min(max(width, 1), columns)


def _boxes(
    n: int, count: int, size: tuple[int, int], grid: tuple[int, int, int], generator: torch.Generator | None
) -> Bool[Tensor, "n m p"]:
    """Blocks of one size at places that are drawn."""
    inside = []
    for length, extent in zip(grid[1:], size, strict=True):
        begin = torch.randint(length - extent + 1, (n, count, 1), generator=generator, device="cpu")
        at = torch.arange(length, device="cpu")
        inside.append((at >= begin) & (at < begin + extent))
    return (inside[0][..., :, None] & inside[1][..., None, :]).flatten(-2)


def _mask(
    n: int,
    grid: tuple[int, int, int],
    sized: Callable[[], Draw],
    least: float,
    what: str,
    generator: torch.Generator | None,
) -> Mask:
    """The mask over time of what is drawn in blocks of sizes that are drawn, again where a context is too small."""
    frames, places = grid[0], grid[1] * grid[2]
    wanted = max(math.ceil(least * places), 1)
    for _ in range(SIZES):
        draw = sized()
        context, targets = draw(n)
        for _ in range(TRIES):
            poor = context.sum(1) < wanted
            if not bool(poor.any()):
                return Mask(*(_over_time(_cut(part, generator), frames, places) for part in (context, targets)))
            context[poor], targets[poor] = draw(int(poor.sum()))
    raise ValueError(
        f"{what} leave fewer than {wanted} of the {grid[1]} x {grid[2]} patches of a frame to be seen: take fewer or smaller ones"
    )


def _cut(mask: Bool[Tensor, "n *m p"], generator: torch.Generator | None) -> Int[Tensor, "n *m k"]:
    """The places of a mask in order, as many in each row as the least has: which ones are left out is drawn."""
    count = int(mask.sum(-1).min())
    last = _random(tuple(mask.shape), generator) + (~mask).float()
    return last.argsort(-1)[..., :count].sort(-1).values


def _over_time(places: Int[Tensor, "n *m k"], frames: int, per_frame: int) -> Int[Tensor, "n *m k2"]:
    """The same places in each frame."""
    first = torch.arange(frames, device="cpu")[:, None] * per_frame
    return (first + places[..., None, :]).flatten(-2)


def _random(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, device="cpu")
