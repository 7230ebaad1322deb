"""How models go on from known frames, scored: what knows the truth scores the floor, and clips that tell nothing are left out."""

import pytest
import torch

from postformer.data.physics import Physics
from postformer.models.diffusion import DiT
from postformer.models.sampling import Sampling
from postformer.objectives.continued import Continued, by_model, continued, rivals, table, told_by

PHYSICS = Physics(frames=8, size=16)


class Oracle:
    """A denoiser that knows the clips that are asked."""

    patch = (1, 1, 1)

    def __init__(self, clips):
        self.clips = clips

    def __call__(self, z, time, **told):
        return self.clips[: len(z)], None


def true(count=5):
    return torch.stack([torch.from_numpy(PHYSICS.clip(i, seed=3, split="fast")) for i in range(count)])


def test_a_model_that_draws_the_truth_scores_as_true_clips():
    own = continued(by_model(Oracle(true()), Sampling(steps=2)), PHYSICS, clips=5, seed=3, split="fast")
    floor = continued(
        rivals(PHYSICS, seed=3, split="fast")["true clips"], PHYSICS, clips=5, seed=3, split="fast", after_batch=lambda n: None
    )
    assert own.figures.keys() == floor.figures.keys()
    for name, values in own.figures.items():
        assert values == pytest.approx(floor.figures[name], abs=1e-6), name
    assert own.mean("there") == 1
    assert own.mean("energy") is None


def test_a_model_is_told_what_it_takes_and_nothing_else():
    """A class for one that knows classes; to one that knows none they are not told, though the data has them."""
    every = Physics(scene="all", frames=8, size=16)
    clips = torch.from_numpy(every.clip(1, seed=0, split="test"))[None]
    made = []
    for classes in (5, 0):
        torch.manual_seed(0)
        model = DiT(3, patch=(2, 8, 8), dim=24, depth=1, classes=classes)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(0))
        told = [told_by(every), lambda first, count: {"label": torch.full((count,), 3)}]
        made.append([by_model(model, Sampling(steps=1), told=each)(clips, 1) for each in told])
    assert not torch.equal(*made[0])
    assert torch.equal(*made[1])


def test_the_rivals_stand_in_their_order_and_a_table_tells_them():
    found = {name: continued(way, PHYSICS, clips=6) for name, way in rivals(PHYSICS).items()}
    errors = [each.mean("velocity") for each in found.values()]
    assert errors[0] < errors[1] < errors[2]
    lines = table(found).splitlines()
    assert lines[0].split()[:2] == ["velocity,", "units/s"]
    assert [line.split("  ")[0] for line in lines[1:]] == list(found)


def test_a_disc_that_is_gone_counts_as_one_that_stands_still():
    gone = continued(lambda clips, first: torch.full_like(clips, -1), PHYSICS, clips=4)
    still = continued(rivals(PHYSICS)["last frame"], PHYSICS, clips=4)
    for name in ("velocity", "place"):
        assert gone.figures[name] == pytest.approx(still.figures[name], abs=0.02), name
    assert gone.mean("there") == 0 and gone.mean("whole") is None
    assert table({"gone": gone, "one": Continued({**gone.figures, "there": [1.0]})}).splitlines()[1].count(" 0 (0 to 0)") == 1


def test_known_frames_are_the_clip_s_and_the_noise_depends_on_the_seed():
    torch.manual_seed(0)
    model, clips = DiT(3, patch=(2, 8, 8), dim=24, depth=1), true(2)
    torch.nn.init.normal_(model.head.weight)  # zero before it learns
    made = [by_model(model, Sampling(steps=1), seed=seed)(clips, 0) for seed in (0, 0, 1)]
    assert all(bool((clip[:, :, :4] == clips[:, :, :4]).all()) for clip in made)
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=0)
    assert not torch.equal(made[0], made[2])
    with pytest.raises(ValueError, match="known=8 must be at least 1 and below the 8 frames"):
        continued(lambda clips, first: clips, PHYSICS, clips=1, known=8)
