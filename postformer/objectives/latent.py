"""The next embedding as what is taught: predicted from this one and an action, alone or many steps ahead, and kept from collapsing
without a teacher.

SIGReg keeps all embeddings near a standard normal cloud (LeJEPA: Balestriero & LeCun 2025, arXiv 2511.08544; LeWorldModel: Maes et al.
2026, arXiv 2603.19312); variance and covariance, slowness and the action told from two embeddings are PLDM's (Sobal et al. 2025, arXiv
2502.14819, section 3) and EB-JEPA's (Terver et al. 2026, arXiv 2602.03604); that embeddings go straight is asked by Wang et al. 2026 (arXiv
2603.12231, there of their direction alone).

b worlds, t steps, d numbers of an embedding, k of an action.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postformer.data.walks import walks
from postformer.models.routing import after_step
from postformer.ops.isotropy import Watch, correlated, deviation, directions, effective_rank, sigreg, too_narrow
from postformer.ops.layers import Linear, checked_word

Target = Literal["embeddings", "pictures"]
Error = Literal["square", "distance"]
LEAST = 1e-4
"""What is added to a square whose root is taken, and the least square that something is divided by."""
MOVING = 0.3
"""Of a number's deviation within walks the least."""


class Latent(nn.Module):
    """Teaches a `World`: the squared error of the `next` embedding and of `ahead` imagined ones after `known` pictures (`imagined`;
    0: as many as there are), with the weights of what keeps embeddings apart: `normal` of SIGReg along `lines` directions at each step,
    `wide` and `apart` of variance and covariance, `moving` of the deviation from each walk's own mean, which may not be below MOVING (so
    that what stands still in a walk cannot be all that is embedded), `slow` of how far embeddings move in a step, `straight` of how much
    that differs from the step before, as a share of it, and `inverse` of the error of actions that are told from two embeddings in turn,
    by a network of `inverse_width`, or where that is 0 by a linear map. `look` is the weight of what is drawn of embeddings, and `reach`
    that of what was done first between two of them, any number of steps apart: both learn from embeddings and do not change them.

    The imagined error is a mean of squares, or with error="distance" of their roots, one of each step, so that the few walks whose future
    hangs on a hair do not outweigh the rest.

    With target="pictures" both errors are those of the pictures that are drawn of predicted embeddings: a rival that predicts pixels.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        target: Target = "embeddings",
        error: Error = "square",
        next: float = 1.0,
        imagined: float = 1.0,
        known: int = 1,
        ahead: int = 0,
        normal: float = 0.1,
        lines: int = 256,
        wide: float = 0.0,
        apart: float = 0.0,
        moving: float = 0.0,
        slow: float = 0.0,
        straight: float = 0.0,
        inverse: float = 0.0,
        inverse_width: int = 256,
        look: float = 0.0,
        reach: float = 0.0,
    ):
        super().__init__()
        weights = {"next": next, "imagined": imagined, "normal": normal, "wide": wide, "apart": apart, "moving": moving}
        weights |= {"slow": slow, "straight": straight, "inverse": inverse, "look": look, "reach": reach}
        if min(weights.values()) < 0 or min(lines, known) < 1 or min(ahead, inverse_width) < 0:
            told = ", ".join(f"{name}={value:g}" for name, value in weights.items())
            raise ValueError(
                f"{told}, inverse_width={inverse_width} and ahead={ahead} must be at least 0, known={known} and lines={lines} at least 1"
            )
        if next == imagined == 0:
            raise ValueError("next=0 and imagined=0: nothing would be predicted")
        self.model: Any = model
        if (look or target == "pictures") and not getattr(model, "look", None):
            raise ValueError("look and target='pictures' ask for a model that draws: model.look=true")
        if reach and not getattr(model, "reach", None):
            raise ValueError("reach asks for a model that has it: model.reach=256")
        if inverse and not self.model.actions:
            raise ValueError(f"inverse={inverse:g}: nothing is done in this world; take 0")
        self.target, self.error = checked_word("target", target, Target), checked_word("error", error, Error)
        self.weights, self.known, self.ahead, self.lines = weights, known, ahead, lines
        self.told = _Told(self.model.dim, self.model.actions, inverse_width) if inverse else None
        self.watch = Watch() if target == "embeddings" else None  # those that draw pictures may have any size

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`batch["observations"]` is Float [b, t + 1, c, h, w] and `batch["actions"]` Float [b, t, k]; or, where nothing is done,
        `batch["clips"]` Float [b, c, t + 1, h, w].

        Returns the loss, its parts, the effective rank and the mean standard deviation of the embeddings, and the tokens. Raises ValueError
        where more steps are to be imagined than there are, and for walks of one step with `straight`.
        """
        seen, actions = walks(batch)
        if self.weights["straight"] and actions.shape[1] < 2:
            raise ValueError("straight: walks of one step are neither straight nor bent; take 0, or longer ones")
        ahead = self.ahead or actions.shape[1] + 1 - self.known
        if ahead < 1 or self.known + ahead > actions.shape[1] + 1:
            raise ValueError(f"known={self.known}, ahead={self.ahead}: walks have {actions.shape[1]} steps")
        z = self.model.encode(seen)
        if self.training:
            self.model.notice(z)
        parts = {name: part() for name, part in self._parts(seen, z, actions, ahead).items() if self.weights[name]}
        loss = torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()
        told = {name: value.detach() for name, value in parts.items()}
        flat = z.detach().flatten(0, 1)[: 8 * z.shape[-1]]
        self.last = effective_rank(flat), deviation(flat)
        measured = {"rank": torch.tensor(self.last[0]), "deviation": torch.tensor(self.last[1])}
        return {"loss": loss, **told, **measured, "tokens": torch.tensor(z.shape[0] * z.shape[1])}

    def after_step(self, step: int) -> None:
        """Mixtures of experts are corrected. Raises Collapse where embeddings have become alike."""
        after_step(self.model)
        if self.watch is not None:
            self.watch.look(*self.last)

    def _parts(self, seen: Tensor, z: Tensor, actions: Tensor, ahead: int) -> dict[str, Any]:
        """What can have a weight, each to be called."""
        known, model = self.known, self.model
        flat = z.flatten(0, 1)
        goals = z if self.target == "embeddings" else seen
        drawn = (lambda z: z) if self.target == "embeddings" else model.decode

        def imagined() -> Tensor:
            made, _ = model.foresee(z[:, :known], actions[:, : known - 1 + ahead])
            far = (drawn(made) - goals[:, known : known + ahead]).square()
            return far.mean() if self.error == "square" else (far.flatten(2).mean(-1) + LEAST).sqrt().mean()

        return {
            "next": lambda: F.mse_loss(drawn(model.predict(z[:, :-1], actions)[0]), goals[:, 1:]),
            "imagined": imagined,
            "normal": lambda: self._normal(z),
            "wide": lambda: too_narrow(flat),
            "apart": lambda: correlated(flat),
            "moving": lambda: too_narrow((z - z.mean(1, keepdim=True)).flatten(0, 1), MOVING),
            "slow": lambda: (z[:, 1:] - z[:, :-1]).square().mean(),
            "straight": lambda: _bent(z),
            "inverse": lambda: F.mse_loss(self.told(z[:, :-1], z[:, 1:]), actions),  # type: ignore[misc]
            "look": lambda: F.mse_loss(model.decode(z.detach()), seen),
            "reach": lambda: self._reached(z.detach(), actions),
        }

    def _reached(self, z: Tensor, actions: Tensor) -> Tensor:
        """Of each step, what was done there on the way to a later one, any of which is as likely."""
        b, steps = actions.shape[:2]
        now = torch.arange(steps, device=z.device)
        later = now + 1 + (torch.rand(b, steps, device=z.device) * (steps - now)).long()
        goal = z.take_along_dim(later[..., None], 1)
        return F.mse_loss(self.model.reach(z[:, :-1], goal), actions)

    def _normal(self, z: Tensor) -> Tensor:
        along = directions(z.shape[-1], self.lines, z)
        return torch.stack([sigreg(z[:, t], along) for t in range(z.shape[1])]).mean()


def _bent(z: Tensor) -> Tensor:
    """Of embeddings [b, t + 1, d] the mean square by which steps differ from those before them, as a share of the steps' own mean square
    (a number): 0 at a steady pace straight on."""
    step = z[:, 1:] - z[:, :-1]
    return (step[:, 1:] - step[:, :-1]).square().mean() / step.square().mean().clamp(min=LEAST)


class _Told(nn.Module):
    """The action that leads from one embedding to the next; without a width by a linear map, so that where actions move something its place
    is embedded as a place."""

    def __init__(self, dim: int, actions: int, width: int):
        super().__init__()
        self.up = Linear(2 * dim, width) if width else None
        self.out = Linear(width or 2 * dim, actions)

    def forward(self, z: Tensor, after: Tensor) -> Tensor:
        both = torch.cat([z, after], -1)
        return self.out(both if self.up is None else F.silu(self.up(both)))
