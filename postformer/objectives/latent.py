"""The next embedding as what is taught: predicted from this one and an action, alone or many steps ahead, and kept from collapsing
without a teacher.

SIGReg keeps all embeddings near a standard normal cloud (LeJEPA: Balestriero & LeCun 2025, arXiv 2511.08544; LeWorldModel: Maes et al.
2026, arXiv 2603.19312); variance and covariance, slowness and the action told from two embeddings are PLDM's (Sobal et al. 2025, arXiv
2502.14819, section 3) and EB-JEPA's (Terver et al. 2026, arXiv 2602.03604).

b worlds, t steps, d numbers of an embedding, k of an action.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postformer.models.routing import after_step
from postformer.ops.isotropy import correlated, directions, effective_rank, sigreg, too_narrow
from postformer.ops.layers import Linear


class Latent(nn.Module):
    """Teaches a `World`: the squared error of the next embedding (`step`) and of `ahead` imagined ones from the first (`imagined`), with
    the weights of what keeps embeddings apart: `normal` of SIGReg along `lines` directions at each step, `wide` and `apart` of variance
    and covariance, `slow` of how far embeddings move in a step, and `inverse` of the error of actions that are told from two embeddings in
    turn by a small network."""

    def __init__(
        self,
        model: nn.Module,
        *,
        step: float = 1.0,
        imagined: float = 1.0,
        ahead: int = 0,
        normal: float = 0.1,
        lines: int = 256,
        wide: float = 0.0,
        apart: float = 0.0,
        slow: float = 0.0,
        inverse: float = 0.0,
    ):
        super().__init__()
        weights = {"step": step, "imagined": imagined, "normal": normal, "wide": wide, "apart": apart, "slow": slow}
        if min(*weights.values(), inverse) < 0 or lines < 1 or ahead < 0:
            told = ", ".join(f"{name}={value:g}" for name, value in weights.items())
            raise ValueError(f"{told}, inverse={inverse:g} and ahead={ahead} must be at least 0, lines={lines} at least 1")
        if step == imagined == 0:
            raise ValueError("step=0 and imagined=0: nothing would be predicted")
        self.model: Any = model
        self.weights, self.inverse, self.ahead, self.lines = weights, inverse, ahead, lines
        self.told = _Told(self.model.dim, self.model.actions) if inverse else None

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`batch["observations"]` is Float [b, t + 1, c, h, w], `batch["actions"]` Float [b, t, k].

        Returns the loss, its parts, the effective rank of the embeddings and the tokens. Raises ValueError where more steps are to be
        imagined than there are.
        """
        actions = batch["actions"]
        ahead = self.ahead or actions.shape[1]
        if ahead > actions.shape[1]:
            raise ValueError(f"ahead={ahead}: walks have {actions.shape[1]} steps")
        z = self.model.encode(batch["observations"])
        parts = self._parts(z, actions, ahead)
        weights = self.weights | {"inverse": self.inverse}
        loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        rank = torch.tensor(effective_rank(z.detach().flatten(0, 1)[: 4 * z.shape[-1]]))
        told = {name: value.detach() for name, value in parts.items()}
        return {"loss": loss, **told, "rank": rank, "tokens": torch.tensor(z.shape[0] * z.shape[1])}

    def after_step(self, step: int) -> None:
        """Mixtures of experts are corrected."""
        after_step(self.model)

    def _parts(self, z: Tensor, actions: Tensor, ahead: int) -> dict[str, Tensor]:
        """What has a weight."""
        flat = z.flatten(0, 1)
        parts = {
            "step": lambda: F.mse_loss(self.model.predict(z[:, :-1], actions)[0], z[:, 1:]),
            "imagined": lambda: F.mse_loss(self.model.imagine(z[:, 0], actions[:, :ahead])[0], z[:, 1 : ahead + 1]),
            "normal": lambda: self._normal(z),
            "wide": lambda: too_narrow(flat),
            "apart": lambda: correlated(flat),
            "slow": lambda: (z[:, 1:] - z[:, :-1]).square().mean(),
        }
        out = {name: part() for name, part in parts.items() if self.weights[name]}
        if self.told is not None:
            out["inverse"] = F.mse_loss(self.told(z[:, :-1], z[:, 1:]), actions)
        return out

    def _normal(self, z: Tensor) -> Tensor:
        along = directions(z.shape[-1], self.lines, z)
        return torch.stack([sigreg(z[:, t], along) for t in range(z.shape[1])]).mean()


class _Told(nn.Module):
    """The action that leads from one embedding to the next."""

    def __init__(self, dim: int, actions: int, width: int = 256):
        super().__init__()
        self.up, self.out = Linear(2 * dim, width), Linear(width, actions)

    def forward(self, z: Tensor, after: Tensor) -> Tensor:
        return self.out(F.silu(self.up(torch.cat([z, after], -1))))
