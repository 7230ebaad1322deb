"""Images and videos as tokens and back: a token is a patch of some frames, rows and columns.

Image patches: Dosovitskiy et al. 2020 (arXiv 2010.11929, eq. 1); spacetime patches: Arnab et al. 2021 (arXiv 2103.15691, section 3.2,
tubelets); clips of any size side by side in one row: Dehghani et al. 2023 (NaViT, arXiv 2307.06304).

b clips, c channels, t frames, h rows and w columns of pixels; n tokens, p numbers in one, in the order (channel, frame, row, column),
which is that of a convolution's weights. An image is a clip of one frame.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from postformer.ops.packing import Packing
from postformer.ops.spacetime import NOWHERE, grid_places

Patch = tuple[int, int, int]
"""Frames, rows and columns of a patch."""
Grid = tuple[int, int, int]
"""How many patches a clip has along time, height and width."""


def grid_of(size: Sequence[int], patch: Patch) -> Grid:
    """The grid of a clip of (frames, rows, columns). Raises ValueError with the nearest sizes where the patch does not divide it."""
    for name, n, p in zip(("frames", "rows", "columns"), size, patch, strict=True):
        if p < 1 or n < 1 or n % p:
            near = f"crop to {n // p * p} or pad to {-(-n // p) * p}" if p > 0 and n > 0 else "both must be at least 1"
            raise ValueError(f"{n} {name} are not a multiple of the patch's {p}: {near}")
    return size[0] // patch[0], size[1] // patch[1], size[2] // patch[2]


def patchify(clips: Float[Tensor, "b c t h w"], patch: Patch) -> Float[Tensor, "b n p"]:
    """Clips as tokens, frame by frame, each row by row. Raises ValueError for a size that the patch does not divide."""
    b, c, *size = clips.shape
    (f, r, s), (pt, ph, pw) = grid_of(size, patch), patch
    parts = clips.reshape(b, c, f, pt, r, ph, s, pw)
    return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, f * r * s, c * pt * ph * pw)


def unpatchify(tokens: Float[Tensor, "b n p"], grid: Grid, patch: Patch) -> Float[Tensor, "b c t h w"]:
    """The clips of tokens. Raises ValueError for tokens that are not those of the grid and the patch."""
    (b, n, p), (f, r, s), (pt, ph, pw) = tokens.shape, grid, patch
    if n != f * r * s or p % (pt * ph * pw):
        raise ValueError(f"{n} tokens of {p} numbers are no clips of {f} x {r} x {s} patches of {pt} x {ph} x {pw} pixels")
    parts = tokens.reshape(b, f, r, s, p // (pt * ph * pw), pt, ph, pw)
    return parts.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(b, -1, f * pt, r * ph, s * pw)


class Placed(NamedTuple):
    """Where a clip lies in packed rows; `first` is its first patch."""

    row: int
    first: int
    grid: Grid

    @property
    def patches(self) -> slice:
        """Of its row."""
        return slice(self.first, self.first + math.prod(self.grid))


class Packed(NamedTuple):
    """Clips of any sizes side by side in rows of one width; `clips` are in the order in which they were given."""

    tokens: Float[Tensor, "b n p"]
    packing: Packing
    clip: Int[Tensor, "b n"]
    """The number of each token's clip; -1 at padding."""
    clips: list[Placed]
    prefix: int
    """Tokens before each clip's patches, zeros that lie nowhere."""

    def prefixed(self, tokens: Float[Tensor, "b n d"], before: Float[Tensor, "c l d"]) -> Float[Tensor, "b n d"]:
        """These tokens with those that stand before each clip in their places."""
        rows = torch.tensor([at.row for at in self.clips], device=tokens.device)[:, None]
        firsts = torch.tensor([at.first - self.prefix for at in self.clips], device=tokens.device)[:, None]
        return tokens.index_put((rows, firsts + torch.arange(self.prefix, device=tokens.device)), before)

    def unpacked(self, tokens: Float[Tensor, "b n q"], patch: Patch) -> list[Tensor]:
        """The clips of tokens that lie as these do."""
        return [unpatchify(tokens[at.row : at.row + 1, at.patches], at.grid, patch)[0] for at in self.clips]


def pack(clips: Sequence[Tensor], patch: Patch, length: int | None = None, prefix: int = 0) -> Packed:
    """Clips in rows of `length` tokens, by default as many as the longest has; each in the first row that has room for it, the longest
    first. Each has `prefix` tokens before its patches.

    Raises ValueError where there are no clips, where one is longer than a row, and for sizes that the patch does not divide.
    """
    if not clips:
        raise ValueError("clips: there are none to pack")
    grids = [grid_of(clip.shape[1:], patch) for clip in clips]
    counts = [prefix + math.prod(grid) for grid in grids]
    length = max(counts) if length is None else length
    if max(counts) > length:
        at = counts.index(max(counts))
        raise ValueError(f"clips[{at}]: {max(counts)} tokens are more than a row's {length}")
    used: list[int] = []
    placed: dict[int, Placed] = {}
    for i in sorted(range(len(clips)), key=lambda i: -counts[i]):
        row = next((row for row, taken in enumerate(used) if taken + counts[i] <= length), len(used))
        if row == len(used):
            used.append(0)
        placed[i] = Placed(row, used[row] + prefix, grids[i])
        used[row] += counts[i]
    return _filled(clips, patch, length, prefix, used, [placed[i] for i in range(len(clips))])


def _filled(clips: Sequence[Tensor], patch: Patch, length: int, prefix: int, used: list[int], placed: list[Placed]) -> Packed:
    device, shape = clips[0].device, (len(used), length)
    tokens = clips[0].new_zeros(*shape, clips[0].shape[0] * math.prod(patch))
    places = torch.zeros(*shape, 3, device=device)
    starts: Bool[Tensor, "b n"] = torch.zeros(shape, dtype=torch.bool, device=device)
    clip = torch.full(shape, -1, device=device)
    for i, (pixels, at) in enumerate(zip(clips, placed, strict=True)):
        begin = at.first - prefix
        tokens[at.row, at.patches] = patchify(pixels[None], patch)[0]
        places[at.row, at.patches] = grid_places(at.grid, tokens)
        places[at.row, begin : at.first, 0] = NOWHERE
        clip[at.row, begin : at.patches.stop] = i
        starts[at.row, begin] = True
    return Packed(tokens, Packing(starts, torch.tensor(used, device=device), places), clip, placed, prefix)
