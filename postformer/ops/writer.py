"""A mixer that writes each token into its state by a share of its own, which can be watched, bounded from below, or shut."""

from typing import Literal

from torch import Tensor, nn

GatesOf = Literal["token", "conv"]
"""What gates are read off: the token, or what the convolution made of it and of those before it."""


class Writer(nn.Module):
    """While `writes` is False the state stands still and is only read; each list in `observers` grows by the share [b, t, h], 0 to 1, with
    which every call wrote its tokens. `postformer.models.writing` sets both for a whole model."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = True
        self.observers: list[list[Tensor]] = []

    def observe(self, share: Tensor) -> None:
        """Tell the observers."""
        for seen_by in self.observers:
            seen_by.append(share)


def above(share: Tensor, threshold: float) -> Tensor:
    """What of a share lies above the threshold, scaled to 0 to 1."""
    return (share - threshold).relu() / (1 - threshold) if threshold else share


def checked_threshold(threshold: float) -> float:
    """Raises ValueError unless it is at least 0 and below 1."""
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold} must be at least 0 and below 1")
    return threshold
