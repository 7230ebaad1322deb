"""What models of images and videos share: patches to vectors, and positions that are added to them.

n tokens, a axes, d model width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def sincos(places: Float[Tensor, "*b n a"], dim: int) -> Float[Tensor, "*b n d"]:
    """Fixed positions: of each axis sines, then cosines, of d / (2 a) frequencies from 1 to 1/10,000; the last axis first, as
    in MAE (He et al. 2021, arXiv 2111.06377, its published code) and DiT. Zero for tokens that lie nowhere. Raises
    ValueError."""
    axes = places.shape[-1]
    if dim % (2 * axes):
        raise ValueError(f"dim={dim} must be a multiple of {2 * axes} for sines and cosines of {axes} axes")
    count = dim // (2 * axes)
    frequency = 1e4 ** (-torch.arange(count, dtype=torch.float64, device=places.device) / count)
    angle = places.double().flip(-1)[..., None] * frequency
    made = torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
    return made.masked_fill(places[..., :1] < 0, 0).float()


def resized(table: Float[Tensor, "r s d"], rows: int, columns: int) -> Float[Tensor, "r2 s2 d"]:
    """Learned positions of a grid at another one, by bicubic interpolation (Dosovitskiy et al. 2020, section 3.2)."""
    if table.shape[:2] == (rows, columns):
        return table
    planes = table.permute(2, 0, 1)[None].float()
    made = F.interpolate(planes, (rows, columns), mode="bicubic", align_corners=False)
    return made[0].permute(1, 2, 0).to(table.dtype)


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """Rows and columns of one number or two. Raises ValueError."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or min(both) < 1:
        raise ValueError(f"{name}={value} must be one or two numbers of at least 1")
    return both[0], both[1]
