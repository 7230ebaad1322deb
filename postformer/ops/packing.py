"""Rows of tokens that hold several documents, or fewer tokens than the row is wide.

b batch, t time.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


class Packing(NamedTuple):
    """What a mixer is told of its rows. Outputs at padding are finite and mean nothing."""

    starts: Bool[Tensor, "b t"] | None = None
    """True at the first token of a document: it and what follows see nothing before it, the state included."""
    lengths: Int[Tensor, " b"] | None = None
    """How many tokens of each row are real; the rest, at its end, is padding and leaves the state alone."""
    places: Float[Tensor, "b t a"] | None = None
    """Where each token lies in time, height and width (`postformer.ops.spacetime`); one row of them may stand for all rows."""
    grid: tuple[int, int, int] | None = None
    """Frames, rows and columns of patches, where each row is one clip of them in this order, after what lies nowhere."""

    @property
    def whole(self) -> bool:
        """Whether each row is one text without padding."""
        return self.starts is None and self.lengths is None

    def real(self, t: int) -> Bool[Tensor, "b t"] | None:
        """Which tokens are real; None when all are."""
        if self.lengths is None:
            return None
        return torch.arange(t, device=self.lengths.device) < self.lengths[:, None]

    def silence(self, x: Float[Tensor, "b t *c"]) -> Float[Tensor, "b t *c"]:
        """x with zeros at padding."""
        real = self.real(x.shape[1])
        return x if real is None else x.masked_fill(~real.reshape(*real.shape, *[1] * (x.ndim - 2)), 0)

    def last(self, x: Shaped[Tensor, "b t *c"], before: Shaped[Tensor, "b *c"]) -> Shaped[Tensor, "b *c"]:
        """What x holds at each row's last real token, as a copy that keeps no text alive; `before` for a row without any."""
        if not x.shape[1]:
            return before
        if self.lengths is None:
            return x[:, -1].clone()
        at = self.lengths.clamp(min=1) - 1
        found = x[torch.arange(len(x), device=x.device), at]
        return torch.where((self.lengths > 0).reshape(-1, *[1] * (before.ndim - 1)), found, before)

    def between(self, i: int, j: int) -> "Packing":
        """Of the tokens i ... j - 1."""
        starts = None if self.starts is None else self.starts[:, i:j]
        places = None if self.places is None else self.places[:, i:j]
        return Packing(starts, None if self.lengths is None else (self.lengths - i).clamp(0, j - i), places)

    def begun(self, t: int) -> Int[Tensor, "b t"] | None:
        """The place in the row of the last start at or before each token; -1 before the first start. None without starts."""
        if self.starts is None:
            return None
        places = torch.where(self.starts, torch.arange(t, device=self.starts.device), -1)
        return places.cummax(1).values

    def documents(self, t: int) -> Int[Tensor, "b t"]:
        """The number of each token's document: 0 before the first start."""
        assert self.starts is not None or self.lengths is not None
        if self.starts is not None:
            return self.starts.cumsum(1)
        return torch.zeros(len(self.lengths), t, dtype=torch.long, device=self.lengths.device)  # type: ignore[arg-type]

    def positions(self, seen: Int[Tensor, " b"], t: int) -> Int[Tensor, "b t"]:
        """Each token's place in its document, of which `seen` tokens came before the row."""
        now = torch.arange(t, device=seen.device)
        begun = self.begun(t)
        if begun is None:
            return seen[:, None] + now
        return torch.where(begun >= 0, now - begun, seen[:, None] + now)


WHOLE = Packing()
"""One document in each row, of its full width."""


def to_the_left(mask: Bool[Tensor, "b t"]) -> tuple[Int[Tensor, "b t"], Int[Tensor, " b"]]:
    """The order that brings each row's real tokens to its front and leaves them in theirs, and how many they are."""
    return (~mask).long().argsort(dim=1, stable=True), mask.sum(1)


def starts_after_the_last(starts: Bool[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Bool[Tensor, " b"]:
    """The rows of which a document starts at padding after the last real token: what the next call reads begins it."""
    places = torch.arange(1, starts.shape[1] + 1, device=starts.device)
    start, real = ((places * m).amax(1) if starts.shape[1] else m.sum(1) for m in (starts, mask))
    return start > real


def starts_to_the_left(
    starts: Bool[Tensor, "b t"], mask: Bool[Tensor, "b t"], order: Int[Tensor, "b t"]
) -> Bool[Tensor, "b t"]:
    """Where documents begin among the real tokens that `order` puts first; a start at padding is the next real token's."""
    seen = starts.cumsum(1).gather(1, order)
    return (seen > torch.cat([torch.zeros_like(seen[:, :1]), seen[:, :-1]], 1)) & mask.gather(1, order)
