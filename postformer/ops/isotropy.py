"""How far embeddings are from a standard normal cloud, and whether they have collapsed.

SIGReg: Balestriero & LeCun 2025 (LeJEPA, arXiv 2511.08544, section 4), the test of Epps & Pulley (1983) along random directions; the sizes
of LeWorldModel (Maes et al. 2026, arXiv 2603.19312). Variance and covariance: Bardes et al. 2022 (VICReg, arXiv 2105.04906, eq. 1 to 4).
Effective rank: Roy & Vetterli 2007, as Garrido et al. 2023 take it (RankMe, arXiv 2210.02885, eq. 1).

n embeddings of d numbers, m directions.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from postformer.config import UserError

POINTS, REACH = 17, 3.0
"""Points of the characteristic function that are compared, from 0 to REACH."""


def directions(dim: int, count: int, like: Tensor) -> Float[Tensor, "d m"]:
    """Random unit vectors."""
    drawn = torch.randn(dim, count, dtype=like.dtype, device=like.device)
    return drawn / drawn.norm(dim=0)


def sigreg(z: Float[Tensor, "n d"], along: Float[Tensor, "d m"]) -> Float[Tensor, ""]:
    """n times the integral over t from -REACH to REACH of |mean of exp(i t z.a) - exp(-t²/2)|² exp(-t²/2), a mean over directions a."""
    t = torch.linspace(0, REACH, POINTS, dtype=z.dtype, device=z.device)
    bell = (-t.square() / 2).exp()
    angle = (z @ along)[..., None] * t
    apart = (angle.cos().mean(0) - bell).square() + angle.sin().mean(0).square()
    weights = torch.full_like(t, 2 * REACH / (POINTS - 1))
    weights[0], weights[-1] = weights[0] / 2, weights[-1] / 2
    return len(z) * (apart * bell * weights).sum(-1).mean()


def too_narrow(z: Float[Tensor, "n d"], floor: float = 1.0, eps: float = 1e-4) -> Float[Tensor, ""]:
    """By how much standard deviations are below `floor`, a mean over dimensions (VICReg, eq. 1)."""
    return (floor - (z.var(0) + eps).sqrt()).relu().mean()


def correlated(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The sum of the squared covariances of different dimensions, over d (VICReg, eq. 4)."""
    z = z - z.mean(0)
    covariance = z.T @ z / (len(z) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


def effective_rank(z: Float[Tensor, "n d"]) -> float:
    """The exponential of the entropy of the singular values of centred embeddings as shares: from 1, all on a line, to d; 0 where all are
    the same."""
    z = (z - z.mean(0)).double()
    values = torch.linalg.eigvalsh(z.T @ z if len(z) >= z.shape[1] else z @ z.T).clamp(min=0).sqrt()
    total = values.sum()
    if float(total) <= 1e-6:  # the root of what is left of zero in float64
        return 0.0
    share = values / total
    return float((-(share * share.clamp(min=1e-300).log()).sum()).exp())


def deviation(z: Float[Tensor, "n d"]) -> float:
    """The mean standard deviation of a dimension."""
    return float(z.double().std(0, correction=0).mean())


class Collapse(UserError):
    """Embeddings that have become alike, so that predicting them means nothing."""


class Watch(nn.Module):
    """Looks at the embeddings of each training step. `patience` steps in a row with an effective rank below `rank`, or with less than
    `share` of the deviation of the first step, are a collapse. The rank alone would not tell one in which all shrink alike.
    What it has seen is saved with a run."""

    first: Tensor
    low: Tensor

    def __init__(self, *, rank: float = 1.5, share: float = 0.1, patience: int = 50):
        super().__init__()
        self.rank, self.share, self.patience = rank, share, patience
        self.register_buffer("first", torch.zeros((), dtype=torch.float64))
        self.register_buffer("low", torch.zeros((), dtype=torch.int64))

    def look(self, rank: float, spread: float) -> None:
        """Take a step's effective rank and deviation. Raises Collapse."""
        first = float(self.first) or spread
        low = int(self.low) + 1 if rank < self.rank or spread < self.share * first else 0
        self.first.fill_(first)
        self.low.fill_(low)
        if low >= self.patience:
            raise Collapse(
                f"the embeddings collapsed: for {low} steps their effective rank was below {self.rank:g} or their deviation below "
                f"{self.share:g} of the {first:.3g} at the start; the last have {rank:.2f} and {spread:.3g}. What keeps embeddings "
                "apart has too little weight: raise objective.normal (or wide and apart), or learn slower"
            )
