"""A model of a world: pieces of any length are one walk, imagined steps are predictions of predictions, and costs are counted."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from postformer.config import build
from postformer.models import MODELS
from postformer.models.world import World
from postformer.state import nbytes

MIXERS = {
    "attention": {"kind": "attention", "heads": 2},
    "gated_delta": {"kind": "gated_delta", "heads": 2},
    "mamba": {"kind": "mamba"},
    "mamba2": {"kind": "mamba2", "head_dim": 8},
}


def world(mixer="gated_delta", **words):
    torch.manual_seed(0)
    model = World(2, (17, 13), 3, **{"dim": 8, "widths": (4, 6), "width": 16, "depth": 2, "mixers": (MIXERS[mixer],), **words})
    for p in (model.head.weight, model.head.bias):
        torch.nn.init.normal_(p, std=0.3)
    return model.double().eval()


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("pieces", [(5,), (1, 4), (2, 1, 2), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("carry", [False, True])
def test_a_walk_in_pieces_is_the_walk(mixer, pieces, carry):
    model = world(mixer, carry=carry)
    z, actions = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    whole, none = model.predict(z, actions)
    assert none is None
    state, out = model.init_state(2), []
    for part, act in zip(z.split(pieces, 1), actions.split(pieces, 1), strict=True):
        made, state = model.predict(part, act, state)
        out.append(made)
    assert (torch.cat(out, 1) - whole).abs().max() < 1e-10
    changed = z.clone()
    changed[:, 3:] += 1
    assert torch.equal(model.predict(changed, actions)[0][:, :3], whole[:, :3])


def test_what_is_carried_on_goes_on():
    """A predictor that tells nothing: no motion after the first embedding, and that of the last step after two; and it counts as state."""
    model = world(carry=True)
    for p in (model.head.weight, model.head.bias):
        torch.nn.init.zeros_(p)
    z, actions = torch.randn(2, 2, 8, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    first, step = z[:, :1], z[:, 1:] - z[:, :1]
    assert torch.allclose(model.foresee(first, actions)[0], first.expand(2, 4, 8))
    ahead, state = model.foresee(z, actions)
    assert torch.allclose(ahead, z[:, 1:] + step * torch.arange(1, 4)[:, None])
    assert nbytes(state) == 2 * model.cost(8).state_bytes


@pytest.mark.parametrize("carry", [False, True])
def test_imagined_steps_are_predictions_of_predictions(carry):
    model = world(carry=carry)
    z, actions = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    made, state = model.imagine(z, actions)
    seen = torch.cat([z[:, None], made[:, :-1]], 1)
    assert (model.predict(seen, actions)[0] - made).abs().max() < 1e-10
    first, after = model.imagine(z, actions[:, :2])
    rest, last = model.imagine(first[:, -1], actions[:, 2:], after)
    assert (torch.cat([first, rest], 1) - made).abs().max() < 1e-10
    for a, b in zip(state, last, strict=True):
        assert all(torch.allclose(x, y) for x, y in zip(a, b, strict=True))


def test_pictures_are_embedded_each_by_itself():
    model = world()
    seen = torch.rand(2, 3, 2, 17, 13, dtype=torch.float64)
    z = model.encode(seen)
    assert z.shape == (2, 3, 8)
    assert torch.allclose(model.encode(seen[1, 2]), z[1, 2])
    with pytest.raises(ValueError, match=r"pictures of \(2, 13, 17\); the model takes \(2, 17, 13\)"):
        model.encode(seen.mT)
    with pytest.raises(ValueError, match=r"actions: \(2, 3, 2\); expected \(2, 3, 3\)"):
        model.predict(z, torch.zeros(2, 3, 2, dtype=torch.float64))


def test_a_stem_s_operations_are_counted():
    model = world()
    with FlopCounterMode(display=False) as counter:
        model.encode(torch.rand(3, 2, 17, 13, dtype=torch.float64))
    assert counter.get_total_flops() == 3 * model.stem.flops()
    cost = model.cost(16)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.decode_flops < cost.prefill_flops


def test_a_config_makes_the_same_model():
    model = world("mamba2", depth=1)
    again = build(model.config, MODELS, "model")
    assert again.config == model.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    ("size", "first"), [((17, 13), 4), ((32, 32), 4), ((65, 65), 4), ((9, 9), 2), ((9, 17), 4), ((5, 30), 3)]
)
def test_pictures_are_drawn_in_their_own_size(size, first):
    model = World(3, size, dim=6, widths=(4, 6, 8), first=first, width=8, depth=1, look=True, mixers=(MIXERS["gated_delta"],))
    z = torch.randn(2, 3, 6)
    drawn = model.decode(z)
    assert drawn.shape == (2, 3, 3, *size)
    assert torch.allclose(model.decode(z[1, 2]), drawn[1, 2], atol=1e-6)
    with FlopCounterMode(display=False) as counter:
        model.decode(z[0])
    assert counter.get_total_flops() == 3 * model.look.flops()
    with pytest.raises(ValueError, match="without look=True"):
        world().decode(z.double())


def test_a_world_in_which_nothing_is_done():
    model = World(3, (8, 8), dim=4, widths=(4,), width=8, depth=1, mixers=(MIXERS["gated_delta"],))
    torch.nn.init.normal_(model.head.weight, std=0.5)
    z = torch.randn(2, 6, 4)
    whole, _ = model.predict(z[:, :5], torch.zeros(2, 5, 0))
    made, _ = model.foresee(z[:, :3], torch.zeros(2, 4, 0))
    assert torch.allclose(made[:, 0], whole[:, 2], atol=1e-6)
    assert made.shape == (2, 2, 4)
    assert "act.weight" not in model.state_dict()
    assert build(model.config, MODELS, "model").config == model.config


def test_distances_are_counted_in_steps():
    """Where the first number changes four times as much in a step as the second, a way along it is a quarter as far; what is still counts
    as a tenth of the mean."""
    model = world(dim=3)
    with pytest.raises(ValueError, match="never noticed"):
        model.in_steps(torch.zeros(1, 3).double())
    walk = torch.tensor([[[0.0, 0, 0], [4, 0, 0], [4, 1, 0], [0, 1, 0], [0, 0, 0]]]).double()
    model.notice(walk)
    assert torch.allclose(model.changes, torch.diag(torch.tensor([8.0, 0.5, 0])).double())
    mean = 8.5 / 3
    away = model.in_steps(torch.eye(3).double()).norm(dim=-1)
    assert torch.allclose(away, (torch.tensor([8.0, 0.5, 0]).double() + 0.1 * mean).rsqrt())
    model.notice(torch.zeros(1, 2, 3).double())
    assert model.changes[0, 0] == pytest.approx(8 * 0.98)


def test_distances_in_steps_are_the_same_however_embeddings_lie():
    """Turned embeddings are as far apart as they were."""
    one, other = world(dim=3), world(dim=3)
    walk, turn = torch.randn(2, 9, 3).double(), torch.linalg.qr(torch.randn(3, 3).double()).Q
    one.notice(walk)
    other.notice(walk @ turn)
    a, b = one.in_steps(walk), other.in_steps(walk @ turn)
    assert torch.allclose(torch.cdist(a, a), torch.cdist(b, b))
