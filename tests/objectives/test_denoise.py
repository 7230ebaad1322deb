"""Denoising: what is drawn, what is taught, the average, and a density of two dimensions that is recovered."""

import math

import pytest
import torch
from torch import nn

from postformer.models.conditioned import TimeEmbedding
from postformer.models.diffusion import DiT
from postformer.models.sampling import Sampling, sample
from postformer.models.unet import UNet
from postformer.objectives.denoise import Denoise


class Said(nn.Module):
    """Says the same whatever it is shown, and keeps what it was shown."""

    patch = (2, 1, 1)
    classes = 0

    def __init__(self, value=0.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.shown = []

    def forward(self, clips, time, **told):
        self.shown.append((clips.detach(), time, told))
        return self.value.expand_as(clips), None


@pytest.mark.parametrize("end", ["first", "last", "both"])
def test_known_frames_lie_where_they_are_wanted(end):
    times, unknown = Denoise(Said(), known=1.0, ends=(end,), average=0.0).drawn(torch.zeros(200, 1, 8, 1, 1))
    assert torch.equal(~unknown, times == 1)
    known = ~unknown[:, ::2]  # two frames of a patch go together
    count, places = known.sum(1), torch.arange(4)
    assert sorted(set(count.tolist())) == [1, 2, 3]
    before = {"first": count, "last": 0 * count, "both": (count + 1) // 2}[end]
    after = {"first": 0 * count, "last": count, "both": count // 2}[end]
    assert torch.equal(known, (places < before[:, None]) | (places >= 4 - after[:, None]))


def test_so_many_frames_are_known_as_the_run_says():
    torch.manual_seed(0)
    objective = Denoise(Said(), known=0.5, ends=("first", "last"), known_frames=6, average=0.0)
    _, unknown = objective.drawn(torch.zeros(200, 1, 8, 1, 1))
    known = ~unknown
    assert sorted(set(known.sum(1).tolist())) == [0, 6]
    some = known[known.any(1)]
    assert 60 < len(some) < 140
    assert bool((some[:, :6].all(1) | some[:, 2:].all(1)).all())
    with pytest.raises(ValueError, match="known_frames=6 must be fewer than the 6 frames"):
        objective.drawn(torch.zeros(2, 1, 6, 1, 1))
    assert bool(objective.drawn(torch.zeros(2, 1, 2, 1, 1))[1].all())  # an image is drawn whole


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"known": 1.0, "known_frames": 3}, "multiple of 2"),
        ({"known": 1.0, "known_frames": -2}, "multiple of 2"),
        ({"known_frames": 4}, "known above 0"),
    ],
)
def test_known_frames_that_cannot_be_are_refused(words, said):
    with pytest.raises(ValueError, match=said):
        Denoise(Said(), average=0.0, **words)


def test_known_frames_are_shown_as_they_are_and_not_taught():
    torch.manual_seed(0)
    model = Said()
    objective = Denoise(model, known=1.0, average=0.0)
    x = torch.randn(200, 1, 8, 2, 2)
    loss = objective({"clips": x})
    shown, time, _ = model.shown[0]
    known = time == 1
    assert time.shape == (200, 8)
    assert torch.equal(known[:, ::2], known[:, 1::2])  # frames of one patch go together
    assert bool(known.any(1).all())
    assert bool((~known).any(1).all())
    still = known[:, None, :, None, None].expand_as(x)
    assert torch.equal(shown[still], x[still])
    assert (shown - x)[~still].abs().min() > 0
    runs = known[:, ::2]
    assert bool((runs[:, 0] & ~runs[:, -1]).any())  # first frames, last frames, both, and any
    assert bool((runs[:, -1] & ~runs[:, 0]).any())
    assert bool((runs[:, 0] & runs[:, -1]).any())
    assert bool((~runs[:, 0] & ~runs[:, -1]).any())
    weight = ((1 - time).clamp(min=0.05) ** -2)[:, None, :, None, None].expand_as(x)
    expected = (x.square() * weight)[~still].mean()
    assert loss["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss["mse"].item() == pytest.approx(x.square()[~still].mean().item(), rel=1e-5)


def test_frames_apart_have_times_of_their_own_and_others_share_one():
    torch.manual_seed(0)
    times, unknown = Denoise(Said(), apart=1.0, average=0.0).drawn(torch.zeros(50, 1, 8, 1, 1))
    assert bool(unknown.all())
    assert (times[:, ::2] == times[:, 1::2]).all()
    assert times[:, ::2].std(1).min() > 1e-3
    times, _ = Denoise(Said(), average=0.0).drawn(torch.zeros(50, 1, 8, 1, 1))
    assert (times == times[:, :1]).all()


def test_times_are_logit_normal():
    torch.manual_seed(0)
    times, _ = Denoise(Said(), mean=-0.8, spread=0.8, average=0.0).drawn(torch.zeros(20_000, 1, 2, 1, 1))
    logit = torch.logit(times[:, 0])
    assert logit.mean().item() == pytest.approx(-0.8, abs=0.02)
    assert logit.std().item() == pytest.approx(0.8, abs=0.02)


def test_labels_are_dropped_in_training_alone():
    torch.manual_seed(0)
    model = Said()
    model.classes = 5
    objective = Denoise(model, label_dropout=0.3, average=0.0)
    batch = {"images": torch.zeros(1000, 1, 2, 2), "label": torch.randint(5, (1000,))}
    model.patch = (1, 1, 1)
    objective(batch)
    dropped = (model.shown[0][2]["label"] == 5).float().mean().item()
    assert dropped == pytest.approx(0.3, abs=0.05)
    objective.eval()(batch)
    assert torch.equal(model.shown[1][2]["label"], batch["label"])


def test_the_average_follows_and_is_what_is_judged():
    model = Said(0.0)
    objective = Denoise(model, average=0.9)
    expected = 0.0
    for step in range(30):
        with torch.no_grad():
            model.value.add_(1.0)
        objective.after_step(step)
        keep = min(0.9, (2 + step) / (11 + step))
        expected = keep * expected + (1 - keep) * (step + 1)
    assert objective.average.value.item() == pytest.approx(expected, rel=1e-6)
    assert not objective.average.value.requires_grad
    objective.eval()({"clips": torch.zeros(1, 1, 2, 2, 2)})
    assert len(objective.average.shown) == 1
    names = {name for name in objective.state_dict() if not name.startswith("model.")}
    assert names == {"average.value", "averaged"}
    other = Denoise(Said(5.0), average=0.9)
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other.average.value, objective.average.value)


@pytest.mark.parametrize("path", ["linear", "cosine", "ddpm"])
@pytest.mark.parametrize("predict", ["x", "v", "noise"])
@pytest.mark.parametrize("make", [lambda: DiT(1, patch=(2, 4, 4), dim=24, depth=1), lambda: UNet(1, widths=(8, 8))])
def test_every_kind_of_prediction_teaches_and_samples(path, predict, make):
    torch.manual_seed(0)
    objective = Denoise(make(), path=path, predict=predict, loss=predict, known=0.3, apart=0.3)
    x = torch.randn(2, 1, 4, 8, 8)
    loss = objective({"clips": x})
    loss["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in objective.model.parameters())
    made = sample(objective.average, torch.randn_like(x), Sampling(path=path, predict=predict, steps=3))
    assert bool(made.isfinite().all())


class Packing(Said):
    """`Said` of several sizes: keeps what it is shown."""

    def packed(self, clips, times, **told):
        self.shown.append((clips, times, told))
        return [torch.zeros_like(clip) + self.value for clip in clips]


def test_clips_of_several_sizes_teach_each_pixel_alike():
    torch.manual_seed(0)
    model = Packing(0.5)
    model.classes = 3
    objective = Denoise(model, loss="x", average=0.0, label_dropout=0.0, known=1.0, ends=("first",), known_frames=2)
    clips = [torch.full((1, 6, 4, 8), 1.0), torch.zeros(1, 2, 2, 2)]
    out = objective({"clips": clips, "label": torch.tensor([2, 0])})
    shown, times, told = model.shown[0]
    assert torch.equal(told["label"], torch.tensor([2, 0]))
    assert torch.equal(shown[0][:, :2], clips[0][:, :2])  # the first two frames are known
    assert times[0].tolist()[:2] == [1, 1]
    assert bool((times[1] < 1).all())  # too short to know any
    pixels = (4 * 4 * 8, 2 * 2 * 2)
    expected = (0.25 * pixels[0] + 0.25 * pixels[1]) / sum(pixels)
    assert out["loss"].item() == pytest.approx(expected)
    clips[0].fill_(0.5)
    far = objective({"clips": clips, "label": torch.tensor([2, 0])})["loss"].item()
    assert far == pytest.approx(0.25 * pixels[1] / sum(pixels), abs=1e-6)


def test_several_sizes_are_as_one_where_they_are_equal():
    torch.manual_seed(0)
    objective = Denoise(DiT(1, patch=(2, 4, 4), dim=24, depth=1, classes=3), label_dropout=0.0)
    torch.nn.init.normal_(objective.model.head.weight)
    x, label = torch.randn(1, 1, 4, 8, 8), torch.tensor([1])
    found = []
    for clips in (x, list(x)):
        torch.manual_seed(1)
        objective.zero_grad()
        out = objective({"clips": clips, "label": label})
        out["loss"].backward()
        found.append((out["loss"], out["mse"], out["tokens"], objective.model.embed.weight.grad.clone()))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    with pytest.raises(ValueError, match="choose a model that packs them"):
        Denoise(UNet(1, widths=(8, 8)))({"clips": [x[0]]})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"path": "straight"}, "objective.path: 'straight' is not a choice; choose from linear, cosine, ddpm"),
        ({"known": 0.7, "ends": ()}, "ends: name at least one"),
        (
            {"known": 0.7, "ends": ("middle",)},
            "objective.ends\\[0\\]: 'middle' is not a choice; choose from first, last, both, any",
        ),
        ({"known": 0.7, "apart": 0.7}, "known=0.7 and apart=0.7 must be 1 together"),
        ({"average": 1.5}, "average=1.5 must be from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_told(words, says):
    from postformer.config import ConfigError, build
    from postformer.objectives import OBJECTIVES

    with pytest.raises(ConfigError, match=says):
        build({"kind": "denoise", **words}, OBJECTIVES, "objective", model=Said())


class Points(nn.Module):
    """A small network over points of the plane, shown as pictures of one pixel."""

    def __init__(self, strided=False, width=128):
        super().__init__()
        self.time, self.stride = TimeEmbedding(width), TimeEmbedding(width) if strided else None
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)
        self.middle = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])

    def forward(self, clips, time, stride=None):
        h = self.first(clips.flatten(1)) + self.time(time)
        if self.stride is not None:
            h = h + self.stride(torch.zeros_like(time) if stride is None else stride)
        for layer in self.middle:
            h = h + layer(torch.nn.functional.silu(h))
        return self.last(torch.nn.functional.silu(h)).view_as(clips), None


@pytest.mark.parametrize(("predict", "floor", "wide"), [("x", 0.3, 1.2), ("v", 0.05, 1.06)])
def test_a_density_of_two_dimensions_is_recovered(predict, floor, wide):
    """Eight bells on a circle, 0.15 wide and 0.77 apart: each is drawn as often as the others and about as wide as it is. A network that
    says the data draws them wider (1.17 times) the less it learned, one that says the velocity hardly (1.03)."""
    torch.manual_seed(0)
    angle = torch.arange(8) * math.pi / 4
    centres, width = torch.stack([angle.cos(), angle.sin()], 1), 0.15

    def points(n):
        return centres[torch.randint(8, (n,))] + width * torch.randn(n, 2)

    def spread(drawn):
        return torch.cdist(drawn, centres).min(1).values.square().mean().sqrt()

    objective = Denoise(Points(), predict=predict, times="uniform", floor=floor, average=0.99)
    optimizer = torch.optim.Adam(objective.model.parameters(), 5e-3)
    steps = 3000
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
        optimizer.zero_grad()
        objective({"images": points(384)[:, :, None, None]})["loss"].backward()
        optimizer.step()
        objective.after_step(step)
    noise = torch.randn(4000, 2, 1, 1, 1)
    drawn = sample(objective.average, noise, Sampling(predict=predict, steps=30, method="heun"))[:, :, 0, 0, 0]
    share = torch.bincount(torch.cdist(drawn, centres).argmin(1), minlength=8) / len(drawn)
    assert 0.95 < spread(drawn) / spread(points(20000)) < wide
    assert share.min() > 0.105
    assert share.max() < 0.145


def test_a_shortcut_s_goal_is_two_steps_of_half_its_length():
    """By hand, for a network whose answer is known: velocity z + t + 3 d."""

    class Known(nn.Module):
        patch, classes, stride = (1, 1, 1), 0, object()

        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.zeros(()))

        def forward(self, clips, time, stride):
            return clips + (time + 3 * stride).view(-1, 1, 1, 1, 1) + self.p, None

    torch.manual_seed(0)
    objective = Denoise(Known(), predict="v", loss="v", shortcut=1.0)
    x, noise = torch.randn(2, 500, 1, 1, 1, 1)
    z, times, goal, strides = objective._shortcut(x, noise, x, torch.zeros(500, 1), x, {})
    t, d = times.view(-1, 1, 1, 1, 1), strides.view(-1, 1, 1, 1, 1) / 2
    assert torch.allclose(z, t * x + (1 - t) * noise)
    assert sorted(set(strides.tolist())) == [2.0**-n for n in range(6, -1, -1)]
    assert bool((times[:, 0] / strides % 1 == 0).all())
    assert float((times[:, 0] + strides).max()) <= 1
    told = torch.where(d == 2.0**-7, 0.0, d)
    first = z + t + 3 * told
    second = z + d * first + t + d + 3 * told
    assert torch.allclose(goal, (first + second) / 2, atol=1e-5)


def test_a_student_s_goal_is_where_its_teacher_comes_to():
    """A teacher whose velocity is z: in eight steps of 1/32 a point grows by (1 + 1/32)^8."""

    class Growing(nn.Module):
        patch, classes, stride = (1, 1, 1), 0, object()

        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.zeros(()))

        def forward(self, clips, time, stride=None):
            return clips + self.p, None

    torch.manual_seed(0)
    objective = Denoise(Growing(), predict="v", loss="v", shortcut=0.5, few=4)
    x, noise = torch.randn(2, 400, 1, 1, 1, 1)
    z, times, goal, strides = objective._shortcut(x, noise, x, torch.zeros(400, 1), x, {})
    assert strides.tolist() == [0.25] * 200 + [0.0] * 200
    assert sorted(set(times[:200, 0].tolist())) == [0, 0.25, 0.5, 0.75]
    t = times[:200].view(-1, 1, 1, 1, 1)
    assert torch.allclose(z[:200], t * x[:200] + (1 - t) * noise[:200])
    assert torch.allclose(goal[:200], z[:200] * ((1 + 1 / 32) ** 8 - 1) / 0.25, atol=1e-5)
    assert torch.equal(goal[200:], x[200:])
    assert not any(p.requires_grad for p in objective.teacher.parameters())
    with pytest.raises(ValueError, match="few=3 must be one of 1, 2, 4, 8, 16, 32, 64"):
        Denoise(Growing(), predict="v", loss="v", shortcut=0.5, few=3)


def test_a_model_of_few_steps_draws_better_in_two_than_one_without():
    torch.manual_seed(0)
    found = {}
    for strided in (False, True):
        share = 0.25 if strided else 0.0
        objective = Denoise(Points(strided), predict="v", times="uniform", average=0.99, shortcut=share)
        optimizer = torch.optim.Adam(objective.model.parameters(), 5e-3)
        for step in range(1200):
            for group in optimizer.param_groups:
                group["lr"] = 5e-3 * (1 - step / 1200)
            optimizer.zero_grad()
            side = torch.randint(2, (512, 1)) * 2.0 - 1
            points = torch.cat([side, torch.zeros(512, 1)], 1) + 0.05 * torch.randn(512, 2)
            objective({"images": points[:, :, None, None]})["loss"].backward()
            optimizer.step()
            objective.after_step(step)
        drawn = sample(objective.average, torch.randn(2000, 2, 1, 1, 1), Sampling(predict="v", steps=2))[:, :, 0, 0, 0]
        found[strided] = float((drawn - torch.stack([drawn[:, 0].sign(), torch.zeros(2000)], 1)).norm(dim=1).mean())
    assert found[True] < 0.6 * found[False]
