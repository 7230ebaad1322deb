"""Pictures of discs, capsules and boxes seen from above, drawn without OpenGL: what a shape covers of each pixel, from its signed distance.

A pixel at an edge has the share of it that the shape covers as if the edge ran along the pixel's side: places are seen to some hundredths
of a pixel, areas to pi / 12 of a pixel for round ends. Every pixel is computed from the shape alone, so pictures are the same bits
wherever they are drawn in a batch.

n pictures, h rows from the top, w columns; lengths in units of the scene, x to the right, y upward, the origin in the middle.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

SIDE = 64
"""Pixels of a picture's side."""
AT_ONCE = 16
"""Pictures that are drawn at a time: their layers stay in the cache."""

Places = Float[np.ndarray, "n 2"]
Cover = Float[np.ndarray, "n h w"]
Layer = tuple[Cover, Sequence[float]]
"""What a shape covers of the pixels, and its red, green and blue from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class View:
    """Pictures that show the square from -half to half in x and y."""

    half: float

    @property
    def pixel(self) -> float:
        """A pixel's side."""
        return 2 * self.half / SIDE

    def disc(self, place: Places, radius: float) -> Cover:
        """Of discs."""
        x, y = self._from(place)
        return _inside(radius / self.pixel - np.sqrt((x * x)[:, None, :] + (y * y)[:, :, None]))

    def capsule(self, begin: Places, end: Places, radius: float) -> Cover:
        """Of capsules: all that is no farther than the radius from the line between two places, which differ."""
        way = end - begin
        length = np.hypot(way[:, 0], way[:, 1])
        along, across = self._turned(begin, way / length[:, None])
        along -= np.clip(along, 0, (length / self.pixel).astype(np.float32)[:, None, None])
        return _inside(radius / self.pixel - np.sqrt(along * along + across * across))

    def box(self, place: Places, ahead: Places, half: tuple[float, float]) -> Cover:
        """Of boxes with half sides `half`, the first of which points along the unit vectors `ahead`."""
        along, across = (np.abs(part) for part in self._turned(place, ahead))
        return _inside(half[0] / self.pixel - along) * _inside(half[1] / self.pixel - across)

    def _from(self, place: Places) -> tuple[Float[np.ndarray, "n w"], Float[np.ndarray, "n h"]]:
        """Of pixels' columns and rows how far they are from places, in pixels."""
        line = (np.arange(SIDE) + 0.5) - SIDE / 2
        at = place / self.pixel
        return (line - at[:, :1]).astype(np.float32), (-line - at[:, 1:]).astype(np.float32)

    def _turned(self, place: Places, ahead: Places) -> tuple[Cover, Cover]:
        """Of pixels how far they are from places, along directions and across them, in pixels."""
        x, y = self._from(place)
        cos, sin = (ahead[:, i, None].astype(np.float32) for i in (0, 1))
        return (x * cos)[:, None, :] + (y * sin)[:, :, None], (y * cos)[:, :, None] - (x * sin)[:, None, :]


def _inside(depth: Cover) -> Cover:
    """What is covered of pixels whose centres lie so deep in a shape, in pixels."""
    return np.clip(depth + np.float32(0.5), 0, 1)


def joined(*covers: Cover) -> Cover:
    """Of shapes that touch and do not overlap, as one."""
    return np.minimum(sum(covers[1:], covers[0]), 1)


def painted(
    states: Float[np.ndarray, "*n s"],
    layers: Callable[[Float[np.ndarray, "m s"]], list[Layer]],
    ground: Float[np.ndarray, "3 h w"] | None = None,
) -> UInt8[np.ndarray, "*n 3 h w"]:
    """Pictures of states: `layers` draws some of them, later layers above earlier ones and above the `ground`, which is black if not
    given."""
    rows = states.reshape(-1, states.shape[-1])
    out = np.empty((len(rows), 3, SIDE, SIDE), np.uint8)
    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        picture = np.zeros((3, len(some), SIDE, SIDE), np.float32)
        if ground is not None:
            picture += ground[:, None]
        for cover, colour in layers(some):
            for channel, value in zip(picture, colour, strict=True):
                channel += cover * (np.float32(value) - channel)
        out[first : first + AT_ONCE] = (picture * 255 + np.float32(0.5)).swapaxes(0, 1)
    return out.reshape(*states.shape[:-1], 3, SIDE, SIDE)
