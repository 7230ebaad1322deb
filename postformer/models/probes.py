"""What embeddings tell: attributes read off them by a linear map, and how well.

The usual test of what was learned without labels (Alain & Bengio 2016, arXiv 1610.01644): least squares, nothing trained but the map.

n embeddings of d numbers, k attributes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Score(NamedTuple):
    """How well attributes are told, each Float [k]: the share of their variance, and the root of the mean square error in their units."""

    r2: Tensor
    rmse: Tensor


class Probe(NamedTuple):
    """A linear map with an offset, in float64."""

    weight: Tensor
    offset: Tensor

    def __call__(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        """What embeddings tell."""
        return z.double() @ self.weight + self.offset

    def score(self, z: Float[Tensor, "n d"], truth: Float[Tensor, "n k"]) -> Score:
        """How well that is the truth."""
        truth = truth.double()
        error = (self(z) - truth).square().mean(0)
        return Score(1 - error / (truth - truth.mean(0)).square().mean(0), error.sqrt())


def probe(z: Float[Tensor, "n d"], truth: Float[Tensor, "n k"], *, ridge: float = 1e-6) -> Probe:
    """The map with the least square error plus `ridge` times, in units of the embeddings' mean variance, that of its weights. Raises
    ValueError for no more embeddings than their numbers, which a map tells without having learned anything."""
    if len(z) <= z.shape[1] + 1:
        raise ValueError(f"{len(z)} embeddings of {z.shape[1]} numbers: a probe takes more of them than they have numbers")
    z, truth = z.double(), truth.double()
    centre, middle = z.mean(0), truth.mean(0)
    around = z - centre
    gram = around.T @ around
    gram.diagonal().add_(ridge * gram.diagonal().mean().clamp(min=1e-12))
    weight = torch.linalg.solve(gram, around.T @ (truth - middle))
    return Probe(weight, middle - centre @ weight)
