"""Tokens in space and time: rotary positions of several axes, and which tokens an attention lets see each other.

A token's place is (frame, row, column), in whatever unit; a token that lies nowhere, such as one of a class or a text, has a negative
frame: it is not rotated and all tokens of its clip see it.

b rows, t queries, s keys, a axes, h heads, e head width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Reach = Literal["all", "frame", "place", "past"]
"""What a token sees of its clip: all of it, its frame, its place in every frame, or its frame and those before."""
Pairs = Literal["halves", "tiled"]
"""Which coordinates of a head turn together: one of the first half with one of the second, or neighbours with tiled frequencies."""
NOWHERE = -1.0
"""The frame of a token that lies nowhere."""


def axis_widths(e: int, axes: int) -> tuple[int, ...]:
    """How many coordinates of a head turn with each axis, even numbers: with three axes rows and columns have 2 floor(e / 6) and frames
    the rest (Wan 2.1, 2025, arXiv 2503.20314, its published code). Raises ValueError."""
    each = 2 * (e // (2 * axes))
    if e % 2 or not each:
        raise ValueError(
            f"a head of {e} is too narrow, or odd, to turn with {axes} axes; it must be even and at least {2 * axes}"
        )
    return e - each * (axes - 1), *(each,) * (axes - 1)


def rotate(
    x: Float[Tensor, "b t h e"], places: Float[Tensor, "b2 t a"], base: float = 1e4, pairs: Pairs = "halves"
) -> Float[Tensor, "b t h e"]:
    """Rotary embedding (Su et al. 2021, arXiv 2104.09864, eq. 34) with a part of each head for each axis; coordinate i turns with i + e/2.

    Angles are computed in float64. Tokens that lie nowhere stay as they are. `pairs` "tiled" is what V-JEPA 2 has (`tiled`).
    """
    if pairs == "tiled":
        return tiled(x, places, base)
    widths = axis_widths(x.shape[-1], places.shape[-1])
    frequency = torch.cat([base ** (-torch.arange(0, w, 2, device=x.device, dtype=torch.float64) / w) for w in widths])
    axis = torch.tensor([i for i, w in enumerate(widths) for _ in range(w // 2)], device=x.device)
    angle = places.double().masked_fill(places[..., :1] < 0, 0)[..., axis] * frequency
    cos, sin = (of.to(x.dtype)[:, :, None] for of in (angle.cos(), angle.sin()))
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def tiled(x: Float[Tensor, "b t h e"], places: Float[Tensor, "b2 t a"], base: float = 1e4) -> Float[Tensor, "b t h e"]:
    """As `rotate`, in the form of V-JEPA 2 (Assran et al. 2025, arXiv 2506.09985, its published code): each axis has w = 2 floor(e / 2a)
    coordinates, the rest of a head stays, and neighbours 2i and 2i + 1 turn together, but coordinate j of an axis by its frequency j mod
    w/2, so by another one than its neighbour. That is no rotation: lengths change, and scores do not depend on distances alone. Weights
    that were published were learned with it."""
    e, axes = x.shape[-1], places.shape[-1]
    half = axis_widths(e, axes)[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = places.double().masked_fill(places[..., :1] < 0, 0)[..., None] * frequency
    angle = F.pad(torch.cat([angle, angle], -1).flatten(-2), (0, e - 2 * half * axes))
    cos, sin = (of.to(x.dtype)[:, :, None] for of in (angle.cos(), angle.sin()))
    quarter = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * cos + quarter * sin


def sees(
    reach: Reach, to: Float[Tensor, "b t a"], at: Float[Tensor, "b s a"], window: int | None = None
) -> Bool[Tensor, "b t s"]:
    """Whether queries at `to` see keys at `at`, of one clip; with a window only its last frames, the query's among them."""
    to, at = to[:, :, None], at[:, None]
    frame, key_frame = to[..., 0], at[..., 0]
    nowhere = key_frame < 0
    if reach == "all":
        return torch.ones_like(nowhere).expand(*frame.shape[:2], nowhere.shape[2])
    if reach == "past":  # what lies nowhere came before the first frame, and sees no frame
        near = key_frame <= frame
        return (near if window is None else near & (key_frame > frame - window)) | nowhere
    same = key_frame == frame if reach == "frame" else (to[..., 1:] == at[..., 1:]).all(-1)
    return same | nowhere | (frame < 0)


def documents_apart(document: Int[Tensor, "b t"], real: Bool[Tensor, "b t"] | None) -> Bool[Tensor, "b t t"]:
    """Whether tokens are of one document; keys at padding are seen by padding alone, so that no query sees nothing."""
    same = document[:, :, None] == document[:, None]
    if real is None:
        return same
    return same & (real[:, None] | ~real[:, :, None])


def grid_places(grid: tuple[int, int, int], like: Tensor | None = None) -> Float[Tensor, "t 3"]:
    """(frame, row, column) of each token of a clip, in the order of its tokens."""
    device = None if like is None else like.device
    axes = torch.meshgrid(*(torch.arange(n, device=device, dtype=torch.float32) for n in grid), indexing="ij")
    return torch.stack(axes, -1).flatten(0, 2)
