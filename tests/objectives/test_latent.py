"""What a model of a world is taught: by hand, and that without what keeps embeddings apart they collapse."""

import json

import pytest
import torch

from postformer.config import ConfigError, OptimConfig, Run, TrainConfig, UserError, build, override, parse, plain
from postformer.data.rooms import Rooms
from postformer.models.world import World
from postformer.objectives import OBJECTIVES
from postformer.objectives.latent import MOVING, Latent
from postformer.recipes import RECIPES
from postformer.train.session import check, prepare, train_run


class Known(torch.nn.Module):
    """Embeds a picture as its mean and its square, and predicts that the action is added."""

    dim, actions = 2, 2

    def encode(self, seen):
        mean = seen.mean((-3, -2, -1))
        return torch.stack([mean, mean**2], -1)

    def notice(self, z):
        self.noticed = z

    def predict(self, z, actions, state=None):
        return z + actions, state

    def foresee(self, z, actions):
        return z[:, -1:] + actions[:, z.shape[1] - 1 :].cumsum(1), None


def batch():
    torch.manual_seed(0)
    return {"observations": torch.rand(3, 5, 1, 2, 2), "actions": torch.randn(3, 4, 2)}


def test_each_part_by_hand():
    given, model = batch(), Known()
    z = model.encode(given["observations"])
    a = given["actions"]
    out = Latent(model, next=2.0, imagined=3.0, ahead=2, normal=0.0, slow=0.5)(given)
    step = ((z[:, :-1] + a - z[:, 1:]) ** 2).mean()
    imagined = ((z[:, :1] + a[:, :2].cumsum(1) - z[:, 1:3]) ** 2).mean()
    slow = ((z[:, 1:] - z[:, :-1]) ** 2).mean()
    assert out["next"].item() == pytest.approx(step.item())
    assert out["imagined"].item() == pytest.approx(imagined.item())
    assert out["loss"].item() == pytest.approx((2 * step + 3 * imagined + 0.5 * slow).item())
    assert int(out["tokens"]) == 15
    assert out.keys() == {"loss", "next", "imagined", "slow", "rank", "deviation", "tokens"}


def test_straight_is_how_much_a_step_differs_from_the_one_before():
    given = batch()
    objective = Latent(Known(), normal=0.0, straight=1.0)
    step = Known().encode(given["observations"]).diff(dim=1)
    expected = step.diff(dim=1).square().mean() / step.square().mean()
    assert objective(given)["straight"].item() == pytest.approx(expected.item())
    steady = torch.arange(5.0)[None, :, None] * torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(0))
    objective.model.encode = lambda seen: steady
    assert objective(given)["straight"].item() == pytest.approx(0, abs=1e-10)
    short = {"observations": given["observations"][:, :2], "actions": given["actions"][:, :1]}
    with pytest.raises(ValueError, match="walks of one step are neither straight nor bent"):
        objective(short)


def test_an_imagined_error_may_be_a_distance():
    """Of each step of each walk the root of the mean square, so that one that is far off counts less than by its square."""
    given, model = batch(), Known()
    z, a = model.encode(given["observations"]), given["actions"]
    far = (z[:, :1] + a.cumsum(1) - z[:, 1:]).square().mean(-1)
    out = Latent(model, next=0.0, normal=0.0, error="distance")(given)
    assert out["imagined"].item() == pytest.approx((far + 1e-4).sqrt().mean().item())
    assert Latent(model, next=0.0, normal=0.0)(given)["imagined"].item() == pytest.approx(far.mean().item())


def test_imagination_begins_after_what_is_known():
    given, model = batch(), Known()
    z, a = model.encode(given["observations"]), given["actions"]
    out = Latent(model, next=0.0, known=3, normal=0.0)(given)
    assert out["imagined"].item() == pytest.approx(((z[:, 2:3] + a[:, 2:].cumsum(1) - z[:, 3:]) ** 2).mean().item())
    clips = {"clips": given["observations"].transpose(1, 2)}
    again = Latent(World(1, (2, 2), dim=2, widths=(4,), width=8, depth=1), known=2, normal=0.0)(clips)
    assert again["imagined"] > 0


def drawing(**words):
    torch.manual_seed(0)
    return World(
        2, (9, 9), 2, dim=4, widths=(4, 6), width=8, depth=1, look=True, mixers=({"kind": "gated_delta", "heads": 2},), **words
    )


def test_a_look_learns_and_teaches_nothing():
    model = drawing()
    given = {"observations": torch.rand(3, 5, 2, 9, 9), "actions": torch.randn(3, 4, 2)}
    Latent(model, next=0.0, imagined=1e-9, normal=0.0, look=1.0)(given)["look"].item()
    objective = Latent(model, imagined=0.0, normal=0.0, look=1.0)
    alone, z = drawing(), model.encode(given["observations"])
    out = objective(given)
    assert out["look"].item() == pytest.approx((model.decode(z) - given["observations"]).square().mean().item())
    out["loss"].backward()
    Latent(alone, imagined=0.0, normal=0.0)(given)["loss"].backward()
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        if name.startswith("look"):
            assert p.grad is not None
            assert q.grad is None
        elif p.grad is not None:
            assert torch.allclose(p.grad, q.grad, atol=1e-7)


def test_what_stands_still_is_not_enough():
    """Embeddings that are one number in each walk pay for each of their dimensions, however far the walks are apart."""
    model, given = Known(), batch()
    given["observations"][:] = torch.rand(3, 1, 1, 1, 1)
    out = Latent(model, next=1e-9, imagined=0.0, normal=0.0, moving=1.0)(given)
    assert out["moving"].item() == pytest.approx(MOVING - 0.01, abs=1e-5)  # the root of VICReg's eps
    given = batch()
    z = model.encode(given["observations"])
    about = (z - z.mean(1, keepdim=True)).flatten(0, 1)
    expected = (MOVING - (about.var(0) + 1e-4).sqrt()).clamp(min=0).mean()
    assert Latent(model, next=1e-9, imagined=0.0, normal=0.0, moving=1.0)(given)["moving"].item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_ways_to_later_embeddings_are_told_and_change_no_embedding():
    torch.manual_seed(0)
    model = World(2, (9, 9), 2, dim=4, widths=(4, 6), width=8, depth=1, reach=16, mixers=({"kind": "mingru"},))
    objective = Latent(model, next=1e-9, imagined=0.0, normal=0.0, reach=1.0)
    given = {"observations": torch.rand(3, 5, 2, 9, 9), "actions": torch.randn(3, 4, 2)}
    objective(given)["loss"].backward()
    assert model.reach.inp.weight.grad.abs().sum() > 0
    assert model.stem.out.weight.grad.abs().max() < 1e-6
    one = {"observations": given["observations"][:, :2], "actions": given["actions"][:, :1]}
    z = model.encode(one["observations"])
    expected = (model.reach(z[:, 0], z[:, 1]) - one["actions"][:, 0]).square().mean()
    assert objective(one)["reach"].item() == pytest.approx(expected.item(), rel=1e-5)
    goals = []
    model.reach = Seen(goals)
    objective(given)
    z = model.encode(given["observations"])
    for t in range(4):
        found = (goals[0][:, t, None] - z).abs().amax(-1).argmin(1)
        assert (found > t).all()


class Seen(torch.nn.Module):
    def __init__(self, goals):
        super().__init__()
        self.goals = goals

    def forward(self, z, goal):
        self.goals.append(goal)
        return goal[..., :2]


def test_a_rival_predicts_pictures():
    model = drawing()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    given = {"observations": torch.rand(3, 5, 2, 9, 9), "actions": torch.randn(3, 4, 2)}
    out = Latent(model, target="pictures", normal=0.0, known=2)(given)
    z = model.encode(given["observations"])
    made, _ = model.predict(z[:, :-1], given["actions"])
    ahead, _ = model.foresee(z[:, :2], given["actions"])
    assert out["next"].item() == pytest.approx((model.decode(made) - given["observations"][:, 1:]).square().mean().item())
    assert out["imagined"].item() == pytest.approx((model.decode(ahead) - given["observations"][:, 2:]).square().mean().item())


def test_actions_are_told_from_two_embeddings_in_turn():
    objective = Latent(Known(), inverse=1.0)
    given = batch()
    z = given_z = Known().encode(given["observations"])
    told = objective.told(z[:, :-1], given_z[:, 1:])
    assert objective(given)["inverse"].item() == pytest.approx(((told - given["actions"]) ** 2).mean().item())


@pytest.mark.parametrize(("width", "linear"), [(0, True), (16, False)])
def test_actions_are_told_linearly_without_a_width(width, linear):
    objective = Latent(Known(), inverse=1.0, inverse_width=width)
    given = batch()
    z = Known().encode(given["observations"])
    a, b, c = (objective.told(part[:, :-1], part[:, 1:]) for part in (z, -z, torch.zeros_like(z)))
    assert torch.allclose(a + b, 2 * c, atol=1e-5) == linear
    assert torch.isfinite(objective(given)["loss"])


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


def test_a_collapse_stops_training(tmp_path):
    data = {"kind": "rooms", "steps": 3}
    model = {"kind": "world", "dim": 8, "widths": [4, 8], "width": 16, "mixers": [{"kind": "gated_delta", "heads": 2}]}
    words = {"kind": "latent", "normal": 0.0, "imagined": 0.0}
    run = Run(
        name="lost",
        model=model,
        objective=words,
        data=data,
        optim=OptimConfig(lr=1e-2, warmup=0),
        train=TrainConfig(steps=400, batch=8, log_every=1),
    )
    with pytest.raises(UserError, match=r"the embeddings collapsed: for 50 steps .* raise objective\.normal"):
        train_run(run, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert 50 <= len(rows) < 390
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))  # no part of the loss has that name
    assert rows[-1]["deviation"] < 0.1 * rows[0]["deviation"] or rows[-1]["rank"] < 1.5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"normal": -1}, "normal=-1"),
        ({"next": 0, "imagined": 0}, "nothing would be predicted"),
        ({"lines": 0}, "lines=0 at least 1"),
        ({"look": 1.0}, "a model that draws: model.look=true"),
        ({"reach": 1.0}, "a model that has it: model.reach=256"),
        ({"target": "pixels"}, "choose from embeddings, pictures"),
    ],
)
def test_mistakes_are_told(words, says):
    with pytest.raises(ConfigError, match=says):
        build({"kind": "latent", **words}, OBJECTIVES, "objective", model=Known())


def test_more_steps_than_there_are_are_told():
    with pytest.raises(ValueError, match="known=1, ahead=9: walks have 4 steps"):
        Latent(Known(), ahead=9)(batch())


@pytest.mark.parametrize(
    ("recipe", "words", "says"),
    [
        ("world-rooms", ["objective.ahead=99"], r"objective.known: 1 and ahead=99 are more than the 17 pictures"),
        ("world-physics", ["objective.known=20"], r"objective.known: 20 and ahead=0 are more than the 20 pictures"),
        ("world-physics", ["model.actions=3"], "model.actions: 3, but data.actions is 0; leave it out"),
        ("world-rooms", ["model.reach=0"], "model.reach=256"),
    ],
)
def test_runs_that_could_not_learn_are_refused(recipe, words, says):
    run = parse(Run, override(plain(RECIPES[recipe]()), words))
    with pytest.raises(ConfigError, match=says):
        check(run)
        prepare(run)
