"""What a model of a world is taught: by hand, and that without what keeps embeddings apart they collapse."""

import pytest
import torch

from postformer.config import ConfigError, build
from postformer.data.rooms import Rooms
from postformer.models.world import World
from postformer.objectives import OBJECTIVES
from postformer.objectives.latent import Latent


class Known(torch.nn.Module):
    """Embeds a picture as its mean and its square, and predicts that the action is added."""

    dim, actions = 2, 2

    def encode(self, seen):
        mean = seen.mean((-3, -2, -1))
        return torch.stack([mean, mean**2], -1)

    def predict(self, z, actions, state=None):
        return z + actions, state

    def imagine(self, z, actions, state=None):
        return z[:, None] + actions.cumsum(1), state


def batch():
    torch.manual_seed(0)
    return {"observations": torch.rand(3, 5, 1, 2, 2), "actions": torch.randn(3, 4, 2)}


def test_each_part_by_hand():
    given, model = batch(), Known()
    z = model.encode(given["observations"])
    a = given["actions"]
    out = Latent(model, step=2.0, imagined=3.0, ahead=2, normal=0.0, slow=0.5)(given)
    step = ((z[:, :-1] + a - z[:, 1:]) ** 2).mean()
    imagined = ((z[:, :1] + a[:, :2].cumsum(1) - z[:, 1:3]) ** 2).mean()
    slow = ((z[:, 1:] - z[:, :-1]) ** 2).mean()
    assert out["step"].item() == pytest.approx(step.item())
    assert out["imagined"].item() == pytest.approx(imagined.item())
    assert out["loss"].item() == pytest.approx((2 * step + 3 * imagined + 0.5 * slow).item())
    assert int(out["tokens"]) == 15
    assert out.keys() == {"loss", "step", "imagined", "slow", "rank", "tokens"}


def test_actions_are_told_from_two_embeddings_in_turn():
    objective = Latent(Known(), inverse=1.0)
    given = batch()
    z = given_z = Known().encode(given["observations"])
    told = objective.told(z[:, :-1], given_z[:, 1:])
    assert objective(given)["inverse"].item() == pytest.approx(((told - given["actions"]) ** 2).mean().item())


def learned(**words):
    torch.manual_seed(0)
    model = World(2, (65, 65), 2, dim=8, widths=(4, 8, 8), width=16, depth=1, mixers=({"kind": "gated_delta", "heads": 2},))
    objective, batches = Latent(model, **words), Rooms(steps=4).batches(16, 0)
    optimizer = torch.optim.AdamW(objective.parameters(), 3e-3)
    for i in range(60):
        optimizer.zero_grad()
        objective(batches.batch(i))["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        return model.encode(Rooms(steps=4).batches(32, 0, "test").batch(0)["observations"]).flatten(0, 1)


def test_embeddings_collapse_without_what_keeps_them_apart():
    kept, lost = learned(normal=1.0, imagined=0.0), learned(normal=0.0, imagined=0.0)
    assert kept.std(0).mean() > 0.5
    assert lost.std(0).mean() < 0.1 * kept.std(0).mean()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"normal": -1}, "normal=-1"),
        ({"step": 0, "imagined": 0}, "nothing would be predicted"),
        ({"lines": 0}, "lines=0 at least 1"),
    ],
)
def test_mistakes_are_told(words, says):
    with pytest.raises(ConfigError, match=says):
        build({"kind": "latent", **words}, OBJECTIVES, "objective", model=Known())


def test_more_steps_than_there_are_are_told():
    with pytest.raises(ValueError, match="ahead=9: walks have 4 steps"):
        Latent(Known(), ahead=9)(batch())
