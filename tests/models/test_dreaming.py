"""The verbs of a video model: what is known stays, pieces join, memory does not grow."""

import pytest
import torch
from torch import nn

from postformer.models.diffusion import DiT
from postformer.models.dreaming import ahead, edited, filled, joined, rolled
from postformer.models.sampling import Sampling

HOW = Sampling(steps=2)


class Mean(nn.Module):
    """Says that all frames are the mean of those without noise, and keeps how long its clips were."""

    patch = (2, 1, 1)
    classes = 0

    def __init__(self):
        super().__init__()
        self.lengths = []

    def forward(self, clips, time, **told):
        self.lengths.append(clips.shape[2])
        clean = (time == 1) if time.ndim > 1 else torch.zeros(len(clips), clips.shape[2], dtype=torch.bool)
        share = clean / clean.sum(1, keepdim=True).clamp(min=1)
        mean = (clips * share[:, None, :, None, None]).sum(2, keepdim=True)
        return mean.expand_as(clips).clone(), None


def clip(value, frames=4):
    return torch.full((2, 1, frames, 2, 2), float(value))


def test_new_frames_lie_between_what_is_known():
    made = joined(Mean(), clip(1), clip(3), 6, HOW)
    assert made.shape == (2, 1, 6, 2, 2)
    assert (made - 2).abs().max() < 1e-5
    assert (joined(Mean(), clip(1), None, 2, HOW) - 1).abs().max() < 1e-5
    assert (joined(Mean(), None, clip(3), 2, HOW) - 3).abs().max() < 1e-5
    assert joined(Mean(), None, None, 2, HOW, like=clip(0)).shape == (2, 1, 2, 2, 2)


@pytest.mark.parametrize("backward", [False, True])
def test_a_clip_goes_on_window_by_window(backward):
    model = Mean()
    start = torch.cat([clip(1), clip(5)], 2)
    pieces = list(ahead(model, start, 20, HOW, window=8, context=2, backward=backward))
    assert [piece.shape[2] for piece in pieces] == [6, 6, 6, 6]
    assert (torch.cat(pieces, 2) - (1 if backward else 5)).abs().max() < 1e-5
    assert set(model.lengths) == {8}


def test_too_few_frames_are_filled_up_away_from_what_is_drawn():
    start = torch.cat([clip(1, 1), clip(5, 1)], 2)
    assert filled(start, 4, before=True)[0, 0, :, 0, 0].tolist() == [1, 1, 1, 5]
    assert filled(start, 4, before=False)[0, 0, :, 0, 0].tolist() == [1, 5, 5, 5]
    assert filled(start, 2, before=True) is start
    pieces = [torch.cat([*ahead(Mean(), start, 2, HOW, window=8, context=4, backward=b)], 2) for b in (False, True)]
    assert [float(piece.mean()) for piece in pieces] == pytest.approx([2, 4])


def test_steps_are_bounded():
    assert len(Sampling(steps=10_000).times()) == 10_001
    for steps in (0, 10_001, 1_000_000_000):
        with pytest.raises(ValueError, match=f"steps={steps} must be from 1 to 10,000"):
            Sampling(steps=steps)


def test_an_edit_of_little_strength_stays_near():
    model = DiT(1, patch=(2, 4, 4), dim=24, depth=1)
    x = torch.randn(1, 1, 4, 8, 8)
    generator = torch.Generator().manual_seed(0)
    near, far = (edited(model, x, strength, Sampling(steps=4), generator=generator) for strength in (0.02, 1.0))
    assert near.shape == x.shape
    assert edited(model, x, 0.5, HOW, generator=generator.manual_seed(1)).equal(
        edited(model, x, 0.5, HOW, generator=generator.manual_seed(1))
    )
    assert bool(near.isfinite().all() and far.isfinite().all())


def causal(window=2):
    torch.manual_seed(0)
    model = DiT(
        2, patch=(2, 4, 4), dim=24, depth=2, mixers=({"kind": "spacetime", "heads": 2, "reach": "past", "window": window},)
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def test_what_rolls_from_a_state_is_what_a_whole_clip_would_give():
    """The first new patch of frames, drawn in one step, against the same step over the clip with all known frames at their times."""
    model, start = causal(window=8), torch.randn(1, 2, 6, 8, 8)
    piece = next(rolled(model, start, 2, Sampling(steps=1), generator=torch.Generator().manual_seed(3)))
    noise = torch.randn(1, 2, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    time = torch.tensor([[1.0] * 6 + [0.0] * 2])
    with torch.no_grad():
        said, _ = model(torch.cat([start, noise], 2), time)
    assert (piece - said[:, :, 6:]).abs().max() < 1e-5


def test_ten_times_the_length_takes_the_same_state():
    model, sizes = causal(), []
    step = model.forward

    def watched(*args, state=None, **words):
        said, after = step(*args, state=state, **words)
        sizes.append(sum(x.numel() for layer in after for x in layer))
        return said, after

    model.forward = watched
    frames = sum(piece.shape[2] for piece in rolled(model, torch.randn(1, 2, 8, 8, 8), 80, HOW))
    assert frames == 80
    assert max(sizes) <= 2 * sizes[0] + 1
    assert len(set(sizes[20:][::3])) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: joined(Mean(), clip(1, 3), None, 2, HOW), "3 known frames before are not a multiple of the 2 frames"),
        (lambda: joined(Mean(), None, None, 2, HOW), "what size"),
        (lambda: joined(Mean(), clip(1), torch.zeros(2, 1, 4, 4, 4), 2, HOW), "clips of different sizes"),
        (lambda: next(ahead(Mean(), clip(1), 4, HOW, window=4, context=4)), "context=4 must be above 0 and below window=4"),
        (lambda: edited(Mean(), clip(1), 1.5, HOW), "strength=1.5 must be above 0"),
    ],
)
def test_what_does_not_fit_is_told(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_a_causal_model_keeps_its_text_for_ever():
    """The text is read once, before the first frame, and what is drawn far from it still depends on it."""
    torch.manual_seed(0)
    mixer = {"kind": "spacetime", "heads": 2, "reach": "past", "window": 2}
    model = DiT(1, patch=(1, 4, 4), dim=24, depth=2, mixers=(mixer,), vocab=5).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    start = torch.randn(1, 1, 2, 8, 8)
    made = [
        torch.cat([*rolled(model, start, 6, HOW, generator=torch.Generator().manual_seed(0), text=torch.tensor([[word]]))], 2)
        for word in (1, 1, 2)
    ]
    assert torch.equal(made[0], made[1])
    assert all((made[0] - made[2])[:, :, f].abs().max() > 1e-4 for f in range(6))
    unsure = rolled(model, start, 6, HOW, steady=0.9, generator=torch.Generator().manual_seed(0), text=torch.tensor([[1]]))
    assert (torch.cat([*unsure], 2) - made[0]).abs().max() > 1e-4


def test_a_time_that_steadies_is_one():
    with pytest.raises(ValueError, match=r"steady=0\.0 must be above 0 and at most 1"):
        next(rolled(DiT(1, patch=(1, 4, 4), dim=24, depth=1), torch.randn(1, 1, 2, 8, 8), 2, HOW, steady=0.0))
