"""How surprised a model of a world is by what comes next, and whether what cannot be surprises it more.

The measure of Garrido et al. 2025 (arXiv 2502.11831, section 2): the error of the predicted embedding of each next frame, a mean over the
clip, compared between matched pairs. The mean is what reproduces; the greatest value of a clip much less.

b clips, t + 1 frames, n pairs.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from postformer.data.walks import walks


class Told(NamedTuple):
    """Of pairs the share in which the impossible clip surprises more (a tie counts half), and the probability that any impossible clip
    surprises more than any possible one (area under the ROC curve)."""

    pairwise: float
    auroc: float


@torch.no_grad()
def surprise(model: Any, batch: dict[str, Any], *, pictures: bool = False) -> Float[Tensor, "b t"]:
    """The squared error of each next frame as a model predicts it from all frames before, a mean over the numbers of its embedding; or,
    with `pictures`, over those of the picture that it draws."""
    seen, actions = walks(batch)
    z = model.encode(seen)
    made, _ = model.predict(z[:, :-1], actions)
    far = (model.decode(made) - seen[:, 1:]) if pictures else made - z[:, 1:]
    return far.square().flatten(2).mean(-1)


def told_apart(possible: Float[Tensor, "n"], impossible: Float[Tensor, "m"]) -> Told:
    """From the surprise of each clip of pairs. Raises ValueError where they are not pairs."""
    if possible.shape != impossible.shape or possible.ndim != 1 or not len(possible):
        raise ValueError(
            f"surprise of {tuple(possible.shape)} and {tuple(impossible.shape)} clips: give one number for each of some pairs"
        )
    more = lambda a, b: (a > b).double() + (a == b).double() / 2  # noqa: E731
    return Told(float(more(impossible, possible).mean()), float(more(impossible[:, None], possible).mean()))
