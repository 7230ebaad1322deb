"""What is foreseen of physics: a model that knows it has the floor's errors, and one that stands still those of the last frame."""

import pytest
import torch

from postformer.data.physics import Physics
from postformer.objectives.foreseen import attributes, foreseen


class Sees:
    """Embeds a frame as the moments of each colour: places, so that the truth is linear in it. Predicts that what moved goes on, or not."""

    def __init__(self, moves):
        self.moves = moves

    def encode(self, seen):
        weight = ((seen + 1) / 2).double()
        total = weight.sum((-1, -2)).clamp(min=1e-6)
        centres = torch.arange(seen.shape[-1]).double() + 0.5
        x, y = (weight.sum(-2) * centres).sum(-1) / total, (weight.sum(-1) * centres).sum(-1) / total
        return torch.cat([x, y, total.sqrt()], -1)

    def foresee(self, z, actions):
        ahead = torch.arange(1, actions.shape[1] + 2 - z.shape[1]).view(1, -1, 1)
        return z[:, -1:] + self.moves * ahead * (z[:, -1:] - z[:, -2:-1]), None


@pytest.mark.parametrize("scene", ["uniform"])
def test_one_that_knows_physics_has_the_floor_s_errors(scene):
    physics = Physics(scene=scene, frames=12)
    knows, stands = (foreseen(Sees(moves), physics, 4, seed=0, clips=60) for moves in (1.0, 0.0))
    places = [i for i, name in enumerate(knows.names) if name.startswith("place")]
    assert knows.names == ("place x1", "place y1", "velocity x1", "velocity y1")
    assert knows.imagined.shape == knows.floor.shape == knows.last.shape == (60, 8, 4)
    inside = knows.floor[..., places].abs().max() < 0.6
    assert inside
    assert knows.imagined[..., places].square().mean().sqrt() < 2.5 * knows.floor[..., places].square().mean().sqrt() + 0.05
    assert torch.equal(knows.last, stands.last)
    assert stands.imagined[:, -1, 0].abs().mean() > 10 * knows.imagined[:, -1, 0].abs().mean()
    assert stands.last[:, -1, 0].abs().mean() > 1.0


def test_attributes_are_the_track_s():
    scenario = Physics(scene="collision", frames=6).scenario(3, seed=0)
    names, told = attributes(scenario)
    assert names[:4] == ("place x1", "place y1", "place x2", "place y2")
    assert names[-1] == "mass ratio"
    assert told.shape == (6, 9)
    assert told[2, 2] == scenario.track.position[2, 1, 0]
    assert told[4, 7] == scenario.track.velocity[4, 1, 1]
    assert told[0, -1] == pytest.approx(2 * torch.tensor(scenario.track.radius[0] / scenario.track.radius[1]).log().item())


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="scene='all' must be one scene"):
        foreseen(Sees(1.0), Physics(scene="all"), 4, seed=0)
    with pytest.raises(ValueError, match="known=1 from 2 to below the 16 frames"):
        foreseen(Sees(1.0), Physics(), 1, seed=0)
