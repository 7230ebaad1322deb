"""How good drawn images are, as a classifier sees them: which of them it takes for what they should be, and how far their features lie from
those of real images, beside other real images.

n images, c channels, h rows, w columns, d features.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from postformer.interval import told_share

BATCH = 256


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a classifier makes of images: its features float64 [n, d], and the class it names int64 [n]."""

    features: np.ndarray
    named: np.ndarray

    def of(self, numbers: np.ndarray) -> "Seen":
        """Some of the images."""
        return Seen(self.features[numbers], self.named[numbers])


@torch.inference_mode()
def seen(classifier: Any, images: Float[Tensor, "n c h w"]) -> Seen:
    """What `classifier`, such as a `ViT`, makes of images from -1 to 1."""
    features = [classifier.features(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    named = [classifier.head(part).argmax(-1) for part in features]
    return Seen(torch.cat(features).double().numpy(), torch.cat(named).numpy())


def frechet(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """The Fréchet distance of two Gaussians with the means and covariances of two sets of features: |m - m'|² + tr(S + S' - 2 (S S')^½)
    (Dowson & Landau 1982; of images: Heusel et al. 2017, arXiv 1706.08500). It falls with the number of images: compare equal numbers.

    Raises ValueError for sets of fewer than two.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs two images at least; there are {len(a)} and {len(b)}")
    apart = a.mean(0) - b.mean(0)
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = _root(first)
    between = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(apart @ apart + np.trace(first) + np.trace(second) - 2 * between)


def _root(matrix: np.ndarray) -> np.ndarray:
    """The square root of a symmetric matrix without negative eigenvalues, but for rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


@dataclasses.dataclass(frozen=True)
class Judged:
    """`right` of `asked` drawn images are taken for what they should be (None where nothing was told), and of as many real ones
    `real_right`; `distance` is Fréchet's of drawn images to a half of the real ones, `real` that of the other half."""

    asked: int
    right: int | None
    real_right: int
    distance: float
    real: float

    def listed(self) -> str:
        """In words."""
        lines = (
            [] if self.right is None else [f"drawn images taken for what they should be: {told_share(self.right, self.asked)}"]
        )
        lines.append(f"real images:                                   {told_share(self.real_right, self.asked)}")
        ratio = f", {self.distance / self.real:.2f} times" if self.real > 0 else ""
        lines.append(
            f"Frechet distance to {self.asked:,} real images: drawn {self.distance:.4g}, as many other real ones {self.real:.4g}{ratio}"
        )
        return "\n".join(lines)


def halves(labels: Int[np.ndarray, " n"], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of two halves of real images, each class as often in one as in the other: one that drawn images are compared with, of
    whose classes they should be, and one that stands beside them. Of a class of an odd number one image is left out."""
    order = np.random.default_rng(seed).permutation(len(labels))
    classes = [order[labels[order] == label] for label in np.unique(labels)]
    parts = [(own[: len(own) // 2], own[len(own) // 2 : len(own) // 2 * 2]) for own in classes]
    first, second = (np.concatenate(half) for half in zip(*parts, strict=True))
    return first, second


def judged(
    classifier: Any,
    drawn: Float[Tensor, "n c h w"],
    label: Int[Tensor, " n"] | None,
    real: Float[Tensor, "m c h w"],
    real_label: Int[Tensor, " m"],
    *,
    seed: int = 0,
) -> Judged:
    """Judge as many drawn images as there are in the first of the `halves` of the real ones.

    Raises ValueError where they are more or fewer.
    """
    to, other = halves(real_label.numpy(), seed)
    if len(drawn) != len(to):
        raise ValueError(f"{len(drawn)} drawn images, and a half of the real ones are {len(to)}")
    theirs, own = seen(classifier, real), seen(classifier, drawn)
    return Judged(
        asked=len(to),
        right=None if label is None else int((own.named == label.numpy()).sum()),
        real_right=int((theirs.named[other] == real_label.numpy()[other]).sum()),
        distance=frechet(own.features, theirs.of(to).features),
        real=frechet(theirs.of(other).features, theirs.of(to).features),
    )
