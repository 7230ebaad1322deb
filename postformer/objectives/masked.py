"""The embeddings of what is hidden as what is taught: predicted from the embeddings of what is seen, with a teacher or without one.

With a teacher: Assran et al. 2023 (I-JEPA, arXiv 2301.08243, section 3: `masks="blocks"`, `loss="smooth-l1"`, momentum from 0.996 to 1);
Bardes et al. 2024 (V-JEPA, arXiv 2404.08471, section 3: `masks="tubes"`, momentum from 0.998 to 1); Assran et al. 2025 (V-JEPA 2, arXiv
2506.09985, momentum 0.99925). Without one embeddings are kept apart by SIGReg (LeJEPA: Balestriero & LeCun 2025, arXiv 2511.08544) or by
variance and covariance (VICReg: Bardes et al. 2022, arXiv 2105.04906).

b clips, n patches of a clip, d numbers of an embedding, m sets of targets, k patches that are seen, q of a set of targets.
"""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postformer.models.routing import after_step, routed
from postformer.ops.isotropy import Watch, correlated, directions, effective_rank, sigreg, too_narrow
from postformer.ops.layers import checked_word
from postformer.tokens.masks import Blocks, Mask, Tubes

Masks = Literal["tubes", "blocks"]
Loss = Literal["l1", "smooth-l1"]
PLACES = 16
"""SIGReg looks at so many places of a clip in each step, drawn anew."""


class Masked(nn.Module):
    """Teaches a `Jepa` by masks of each of its `tubes` (count, scale), or by I-JEPA's blocks: `targets` of a share `scale` of a frame, and
    a square of a share `context` without them. All have this `aspect`, and leave a share `least` of a frame to be seen.

    With a `teacher`, a slow average of the model whose momentum goes from the first to the second one `over` so many steps (0: it stays the
    first), targets are its embeddings of whole clips, normalised over their numbers. Without one they are the model's own, as they are, and
    gradients flow through them. `normal` is the weight of SIGReg along `lines` directions over the batch, at each place by itself; `wide`
    and `apart` are those of variance and covariance about the mean of each place. They are of the model's embeddings of whole clips, which
    beside a teacher cost a pass more. That places can be told from each other never counts: an encoder that gives nothing but
    the place has collapsed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        masks: Masks = "tubes",
        tubes: tuple[tuple[int, float], ...] = ((8, 0.15), (2, 0.7)),
        targets: int = 4,
        scale: tuple[float, float] = (0.15, 0.2),
        context: tuple[float, float] = (0.85, 1.0),
        aspect: tuple[float, float] = (0.75, 1.5),
        least: float = 0.05,
        loss: Loss = "l1",
        teacher: bool = True,
        momentum: tuple[float, float] = (0.998, 1.0),
        over: int = 0,
        normal: float = 0.0,
        lines: int = 256,
        wide: float = 0.0,
        apart: float = 0.0,
    ):
        super().__init__()
        checked_word("masks", masks, Masks)
        self.loss = checked_word("loss", loss, Loss)
        if not 0 <= min(momentum) <= max(momentum) <= 1 or over < 0:
            raise ValueError(f"momentum={momentum} must be from 0 to 1, and over={over} steps at least 0")
        if min(normal, wide, apart) < 0 or lines < 1:
            raise ValueError(
                f"normal={normal:g}, wide={wide:g} and apart={apart:g} must be at least 0, lines={lines} at least 1"
            )
        if masks == "tubes" and not tubes:
            raise ValueError("tubes: name at least one (count, scale)")
        self.recipes: list[Blocks | Tubes] = [Blocks(targets=targets, scale=scale, context=context, aspect=aspect, least=least)]
        if masks == "tubes":
            self.recipes = [Tubes(count=count, scale=share, aspect=aspect, least=least) for count, share in tubes]
        self.model: Any = model
        self.average: Any = copy.deepcopy(model).requires_grad_(False) if teacher else None
        self.momentum, self.over, self.lines = momentum, over, lines
        self.watch, self.last = Watch(), None
        self.weights = {"normal": normal, "wide": wide, "apart": apart}

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`batch["clips"]` is Float [b, c, f, h, w] or `batch["images"]` Float [b, c, h, w].

        Returns the loss; its parts, `predicted` of the targets and those that have a weight; of the targets' embeddings the effective
        `rank` and the `deviation`, a mean over dimensions and places of the standard deviation over the batch, both 0 for a batch of one;
        and the tokens. Of mixtures of experts also what `Routing.taught` tells. Raises ValueError for clips of several sizes, and where
        masks leave nothing to be seen.
        """
        clips = batch["images"][:, :, None] if "images" in batch else batch["clips"]
        if isinstance(clips, list):
            raise ValueError("clips of several sizes in one batch have no mask of one size: give them one, data.shape='crop'")
        regularised = any(self.weights.values())
        with routed(self.model) as routing:
            own: Any = self.model.encode(clips) if self.average is None or regularised else None
            embedded: Any = own if self.average is None else self._taught(clips)
            goal = embedded if self.average is None else F.layer_norm(embedded, embedded.shape[-1:])
            parts = {"predicted": self._predicted(clips, goal)}
            if own is not None:
                parts |= self._kept_apart(own)
        loss = torch.stack([self.weights.get(name, 1.0) * value for name, value in parts.items()]).sum()
        spread = _spread(embedded.detach())
        self.last = (float(spread["rank"]), float(spread["deviation"])) if len(clips) > 1 else None
        told = {name: value.detach() for name, value in parts.items()} | spread
        out = {"loss": loss, **told, "tokens": torch.tensor(embedded.shape[0] * embedded.shape[1])}
        return routing.taught(out, self.training)

    def masks(self, rows: int, grid: tuple[int, int, int], generator: torch.Generator | None = None) -> list[Mask]:
        """One of each recipe, by torch's generator where none is given. Raises ValueError where nothing is left to be seen."""
        return [recipe.draw(rows, grid, generator) for recipe in self.recipes]

    @torch.no_grad()
    def _taught(self, clips: Tensor) -> Tensor:
        """The teacher's embeddings, computed as the model's are."""
        self.average.compute_dtype = self.model.compute_dtype
        return self.average.encode(clips)

    def _predicted(self, clips: Tensor, goal: Tensor) -> Tensor:
        """The error of each set of targets, a mean over them."""
        grid, wrong = self.model.grid(clips.shape[2:]), []
        error = F.l1_loss if self.loss == "l1" else F.smooth_l1_loss
        for which, mask in enumerate(self.masks(len(clips), grid)):
            seen, (b, m, q) = mask.context.to(clips.device), mask.targets.shape
            unseen = mask.targets.to(clips.device).flatten(0, 1)
            z = self.model.encode(clips, seen)
            told = self.model.predict(z.repeat_interleave(m, 0), seen.repeat_interleave(m, 0), unseen, grid, which)
            at = unseen.view(b, m * q, 1).expand(-1, -1, goal.shape[-1])
            wrong.append(error(told.view(b, m * q, -1), goal.gather(1, at)))
        return torch.stack(wrong).mean()

    def _kept_apart(self, z: Tensor) -> dict[str, Tensor]:
        """What has a weight of what keeps embeddings [b, n, d] apart."""
        about = (z - z.mean(0)).flatten(0, 1)
        parts = {
            "normal": lambda: self._normal(z),
            "wide": lambda: too_narrow(about),
            "apart": lambda: correlated(about),
        }
        return {name: part() for name, part in parts.items() if self.weights[name]}

    def _normal(self, z: Tensor) -> Tensor:
        along = directions(z.shape[-1], self.lines, z)
        places = torch.randperm(z.shape[1])[:PLACES].tolist()
        return torch.stack([sigreg(z[:, place], along) for place in places]).mean()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Mixtures of experts are corrected, and the teacher takes a step towards the model: step 0 with the first momentum. Raises
        Collapse where embeddings have become alike."""
        after_step(self.model)
        if self.last is not None:
            self.watch.look(*self.last)
        if self.average is None:
            return
        first, last = self.momentum
        keep = first + (last - first) * min(step / self.over, 1.0) if self.over else first
        pairs = zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True)
        for mine, theirs in pairs:
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - keep)


def _spread(z: Tensor) -> dict[str, Tensor]:
    """How far embeddings [b, n, d] differ from clip to clip."""
    about = (z - z.mean(0)).flatten(0, 1).float()
    some = about[:: max(len(about) // (4 * z.shape[-1]), 1)]
    return {"rank": torch.tensor(effective_rank(some)), "deviation": z.float().std(0, correction=0).mean()}
