"""What a model of videos can do beside drawing them: go on from a picture or a clip, forward or backward, join two clips, close a loop,
change a clip.

The verbs of Brooks et al. 2024 (Video generation models as world simulators, Sora's report). Frames that are known are shown to the
model without noise, so one model does all of them; a long video is drawn window by window, each with the last frames of the one before,
or, by a model that is causal over frames, frame by frame from its state (diffusion forcing: Chen et al. 2024, arXiv 2407.01392). Memory
does not grow with its length.

b clips, c channels, f frames, h rows and w columns.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from postformer.models.sampling import Sampling, sample

Clip = Float[Tensor, "_ _ _ _ _"]
"""[b, c, f, h, w]."""
Step = Callable[[int], object]


def nothing(done: int) -> None:
    """What is told after a step where nobody asks."""


def together(model: Any) -> int:
    """Frames of one patch, which are drawn at once."""
    return getattr(model, "patch", (1,))[0]


def joined(
    model: Any,
    before: Clip | None,
    after: Clip | None,
    between: int,
    how: Sampling,
    *,
    generator: torch.Generator | None = None,
    like: Clip | None = None,
    after_step: Step = nothing,
    **told: Any,
) -> Clip:
    """`between` new frames that follow `before` and lead to `after`, of which either may be missing; of `like`'s shape where both are.

    Raises ValueError where frames do not fill whole patches of the model, or the clips are of different sizes.
    """
    ends = [clip for clip in (before, after, like) if clip is not None]
    if not ends:
        raise ValueError("before, after and like are all missing: what size should the frames have?")
    if len({(*clip.shape[:2], *clip.shape[3:]) for clip in ends}) > 1:
        raise ValueError(f"clips of different sizes: {' and '.join(str(tuple(clip.shape)) for clip in ends)}")
    first, last = (0 if clip is None else clip.shape[2] for clip in (before, after))
    part = together(model)
    for name, count in (("known frames before", first), ("new frames", between), ("known frames after", last)):
        if count % part:
            raise ValueError(f"{count} {name} are not a multiple of the {part} frames of the model's patch")
    b, c, _, h, w = ends[0].shape
    frames = first + between + last
    noise = torch.randn(b, c, frames, h, w, generator=generator, dtype=ends[0].dtype, device=ends[0].device)
    known = noise.clone()
    where = torch.zeros(frames, dtype=torch.bool, device=noise.device)
    if before is not None and first:
        known[:, :, :first], where[:first] = before, True
    if after is not None and last:
        known[:, :, -last:], where[-last:] = after, True
    words = {"known": known, "where": where} if bool(where.any()) else {}
    made = sample(model, noise, how, generator=generator, after_step=after_step, **words, **told)
    return made[:, :, first : first + between]


def ahead(
    model: Any,
    clip: Clip,
    frames: int,
    how: Sampling,
    *,
    window: int,
    context: int,
    backward: bool = False,
    generator: torch.Generator | None = None,
    after_step: Step = nothing,
    **told: Any,
) -> Iterator[Clip]:
    """At least `frames` new frames after a clip, or before it, in pieces as they are drawn: each window of `window` frames knows the
    `context` frames next to it. Pieces before a clip come nearest first.

    Raises ValueError for a context that is no shorter than the window, and for frames that do not fill whole patches.
    """
    part = together(model)
    if not 0 < context < window or context % part or window % part:
        raise ValueError(
            f"context={context} must be above 0 and below window={window}, and both multiples of the {part} frames of the model's patch"
        )
    clip = filled(clip, context, before=not backward)
    near, done = (clip[:, :, :context] if backward else clip[:, :, -context:]), 0
    while done < frames:
        ends = (None, near) if backward else (near, None)
        made = joined(model, *ends, window - context, how, generator=generator, after_step=after_step, **told)
        done += made.shape[2]
        both = torch.cat([made, near], 2) if backward else torch.cat([near, made], 2)
        near = both[:, :, :context] if backward else both[:, :, -context:]
        yield made


def filled(clip: Clip, frames: int, *, before: bool) -> Clip:
    """A clip of at least so many frames: one that goes `before` what is drawn begins with more of its first frame, another ends with more
    of its last, so that the end next to what is drawn moves as it did."""
    missing = frames - clip.shape[2]
    if missing <= 0:
        return clip
    more = (clip[:, :, :1] if before else clip[:, :, -1:]).expand(-1, -1, missing, -1, -1)
    return torch.cat([more, clip] if before else [clip, more], 2)


def rolled(
    model: Any,
    clip: Clip,
    frames: int,
    how: Sampling,
    *,
    steady: float = 1.0,
    generator: torch.Generator | None = None,
    after_step: Step = nothing,
    **told: Any,
) -> Iterator[Clip]:
    """At least `frames` new frames after a clip, one patch of them at a time, by a model that is causal over frames: what was drawn is
    read into its state, as clean as of the time `steady` (a little noise keeps small errors from growing: Chen et al. 2024, section
    3.3), and forgotten.

    Raises ValueError for a model that has no state, and for a clip that does not fill whole patches.
    """
    part = together(model)
    if not 0 < steady <= 1:
        raise ValueError(f"steady={steady} must be above 0 and at most 1")
    if clip.shape[2] % part:
        raise ValueError(f"{clip.shape[2]} known frames are not a multiple of the {part} frames of the model's patch")
    b, c, first, h, w = clip.shape
    with torch.no_grad():
        state = model.init_state(b)
        clean = torch.full((b,), steady, dtype=torch.float64, device=clip.device)
        for i in range(0, first, part):
            _, state = model(clip[:, :, i : i + part], clean, state=state, first=i, **told)
            told.pop("text", None)  # it stands before the first frame
    for at in range(first, first + frames, part):
        noise = torch.randn(b, c, part, h, w, generator=generator, dtype=clip.dtype, device=clip.device)
        made = sample(model, noise, how, state=state, first=at, generator=generator, after_step=after_step, **told)
        with torch.no_grad():
            _, state = model(made, clean, state=state, first=at, **told)
        told.pop("text", None)
        yield made


def edited(
    model: Any,
    clip: Clip,
    strength: float,
    how: Sampling,
    *,
    generator: torch.Generator | None = None,
    after_step: Step = nothing,
    **told: Any,
) -> Clip:
    """The clip drawn anew from its noised self (SDEdit): a `strength` of 0 keeps it, 1 keeps nothing. Raises ValueError for another
    strength."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength={strength} must be above 0 and at most 1")
    noise = torch.randn(clip.shape, generator=generator, dtype=clip.dtype, device=clip.device)
    return sample(model, noise, how, known=clip, begin=1 - strength, generator=generator, after_step=after_step, **told)
