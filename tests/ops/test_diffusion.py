"""Noise and its removal beside closed forms: Gaussian data, whose best prediction and whose flow are known, and DDPM's published steps."""

import math

import pytest
import torch

from postformer.models.sampling import Sampling, sample
from postformer.ops import diffusion
from postformer.ops.diffusion import PATHS, Scales, ancestral, data_of, noised, scales, shifted, target, weight_of

MEAN, SPREAD = 0.7, 0.5


class Gaussian:
    """The best that can be said of data that are normal: the mean of x given z, as x, velocity or noise."""

    def __init__(self, path, predict):
        self.path, self.predict, self.calls = path, predict, 0

    def __call__(self, z, time):
        self.calls += 1
        at = scales(self.path, time, axes=4)
        x = MEAN + at.a * SPREAD**2 / (at.a**2 * SPREAD**2 + at.s**2) * (z - at.a * MEAN)
        noise = (z - at.a * x) / at.s.clamp(min=1e-12)
        return target(self.predict, self.path, x, noise, at), None


def flow(z, path, begin=0.0):
    """Where the flow of Gaussian data ends that is at z at the time `begin`."""
    at = scales(path, torch.tensor(begin, dtype=torch.float64))
    return MEAN + SPREAD * (z - at.a * MEAN) / (at.a**2 * SPREAD**2 + at.s**2).sqrt()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["x", "v", "noise"])
def test_a_right_prediction_means_the_data(path, kind):
    torch.manual_seed(0)
    x, noise, t = (
        torch.randn(50, 3, dtype=torch.float64),
        torch.randn(50, 3, dtype=torch.float64),
        torch.rand(50, dtype=torch.float64),
    )
    at = scales(path, t * 0.98 + 0.01, axes=1)
    z = noised(x, noise, at)
    assert (data_of(kind, path, target(kind, path, x, noise, at), z, at) - x).abs().max() < 1e-6


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["x", "v", "noise"])
@pytest.mark.parametrize("loss", ["x", "v", "noise"])
def test_an_error_is_weighed_as_one_of_another_kind(path, kind, loss):
    """What is wrong in one kind, said in another: the ratio of squared errors is the weight."""
    torch.manual_seed(0)
    x, noise = torch.randn(2, 40, 1, dtype=torch.float64)
    at = scales(path, torch.rand(40, dtype=torch.float64) * 0.6 + 0.3, axes=1)
    z = noised(x, noise, at)
    right = target(kind, path, x, noise, at)
    said = right + 0.1 * torch.randn_like(right)
    x_said = data_of(kind, path, said, z, at)
    noise_said = (z - at.a * x_said) / at.s
    wrong = target(loss, path, x_said, noise_said, at) - target(loss, path, x, noise, at)
    expected = (said - right).square() * weight_of(kind, loss, at, floor=1e-3)
    assert torch.allclose(wrong.square(), expected, rtol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_goes_from_noise_to_data(path):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    at = scales(path, t)
    assert bool((at.a.diff() > 0).all())
    assert bool((at.s.diff() < 0).all())
    assert at.a[0] < 0.007
    assert at.s[0] > 0.99
    assert abs(float(at.a[-1]) - 1) < 1e-9
    assert float(at.s[-1]) < 1e-9
    if path != "linear":
        assert (at.a**2 + at.s**2 - 1).abs().max() < 1e-12


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("predict", ["x", "v", "noise"])
@pytest.mark.parametrize("method", ["euler", "heun", "multistep"])
def test_samples_of_gaussian_data_follow_their_flow(path, predict, method):
    """Errors fall with the steps as the order of the method says; a noise prediction says nothing of x where there is no data."""
    if method == "heun" and path == "ddpm":
        with pytest.raises(ValueError, match="heun"):
            Sampling(path=path, method=method)
        return
    z = torch.randn(6, 1, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wrong = []
    for steps in (80, 320):
        how = Sampling(path=path, predict=predict, steps=steps, method=method)
        begin = 0.05 if predict == "noise" else 0.0
        known = None if not begin else torch.zeros_like(z)
        made = sample(Gaussian(path, predict), z, how, known=known, begin=begin)
        start = scales(path, torch.tensor(begin, dtype=torch.float64)).s * z if begin else z
        wrong.append(float((made - flow(start, path, begin)).abs().max()))
    order = math.log2(wrong[0] / wrong[1]) / 2
    assert order > (0.9 if method == "euler" else 1.4)
    assert wrong[1] < (0.02 if method == "euler" else 0.001)


@pytest.mark.parametrize(("path", "predict"), [(path, "x") for path in PATHS] + [("ddpm", "noise"), ("linear", "v")])
def test_ancestral_samples_have_the_data_s_spread(path, predict):
    z = torch.randn(4000, 1, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    how = Sampling(path=path, predict=predict, steps=200, method="ancestral")
    made = sample(Gaussian(path, predict), z, how, generator=torch.Generator().manual_seed(1))
    assert abs(float(made.mean()) - MEAN) < 0.03
    assert abs(float(made.std()) - SPREAD) < 0.03


def test_ddpm_is_the_published_one():
    """Its noise, and its step but for the noise that is added, beside diffusers."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)
    t = 1 - torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert (scales("ddpm", t).a.square() - theirs.alphas_cumprod).abs().max() < 1e-6
    torch.manual_seed(0)
    z, said = torch.randn(2, 3, 4, 4)
    for n in (999, 500, 1):
        now, after = (scales("ddpm", 1 - torch.tensor(float(m)) / 1000) for m in (n + 1, n))
        x = data_of("noise", "ddpm", said, z, now)
        mean = ancestral(z, x, now, after, torch.zeros_like(z))
        theirs_mean = theirs.step(said, n, z, generator=torch.Generator().manual_seed(3))
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
        assert (ancestral(z, x, now, after, noise) - theirs_mean.prev_sample).abs().max() < 2e-4
        assert (mean - ancestral(z, x, now, after, noise)).abs().max() > 1e-4


def test_known_frames_stay_and_steer():
    """A model that says the mean of the known frames: the others come out as it."""

    def model(z, time, **told):
        known = time == 1
        mean = (z * known[:, None, :, None, None]).sum(2, keepdim=True) / known.sum(1)[:, None, None, None, None]
        return mean.expand_as(z), None

    clip = torch.randn(2, 1, 4, 2, 2)
    where = torch.tensor([True, False, False, True])
    made = sample(model, torch.randn(2, 1, 4, 2, 2), Sampling(steps=8), known=clip, where=where)
    assert torch.equal(made[:, :, where], clip[:, :, where])
    assert (made[:, :, 1:3] - clip[:, :, where].mean(2, keepdim=True)).abs().max() < 1e-5


def test_an_edit_keeps_what_little_noise_keeps():
    model, how = Gaussian("linear", "x"), Sampling(steps=40)
    clip = torch.randn(200, 1, 1, 1, 1, dtype=torch.float64)
    noise = torch.randn(200, 1, 1, 1, 1, dtype=torch.float64)
    apart = [float((sample(model, noise, how, known=clip, begin=begin) - clip).abs().mean()) for begin in (0.95, 0.5, 0.05)]
    assert apart[0] < apart[1] < apart[2]


def test_guidance_goes_further_than_what_is_told():
    class Told:
        classes = 2

        def __call__(self, z, time, label):
            return label.to(z.dtype)[:, None, None, None, None].expand_as(z), None

    for guidance, expected in ((1.0, 0.0), (3.0, -4.0)):
        made = sample(
            Told(), torch.randn(3, 1, 1, 2, 2), Sampling(steps=4, guidance=guidance), label=torch.zeros(3, dtype=torch.long)
        )
        assert (made - expected).abs().max() < 1e-5
    between = sample(
        Told(),
        torch.randn(1, 1, 1, 2, 2),
        Sampling(steps=4, guidance=3.0, between=(0.0, 0.5)),
        label=torch.zeros(1, dtype=torch.long),
    )
    assert between.abs().max() < 1e-5


def test_shifted_times_have_more_noise():
    """Esser et al. 2024: t_m = a t_n / (1 + (a - 1) t_n) of noise times."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    u = 1 - t
    assert torch.allclose(1 - shifted(t, 3.0), 3 * u / (1 + 2 * u))
    assert shifted(t, 1.0).tolist() == pytest.approx(t.tolist())
    assert Sampling(steps=4, shift=3.0).times() == pytest.approx(shifted(torch.linspace(0, 1, 5), 3.0).tolist())
    late = Sampling(steps=4, shift=3.0).times(0.5)  # an edit's: the same shift over what is left
    assert late[0] == 0.5 and late[-1] == 1.0
    assert shifted(torch.tensor(late), 1 / 3).diff().tolist() == pytest.approx([0.0625] * 4, abs=1e-6)
    for between in ((0.5, 0.2), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(ValueError, match="must be two times from 0 to 1"):
            Sampling(between=between)


def test_dpm_solver_of_two_steps_by_hand():
    """Algorithm 2 of Lu et al. 2022 written out, from lambda and h."""
    torch.manual_seed(0)
    z, x, before = torch.randn(3, 5, dtype=torch.float64)
    last, now, after = (scales("cosine", torch.tensor(t, dtype=torch.float64)) for t in (0.3, 0.5, 0.6))
    lam = [float((at.a / at.s).log()) for at in (last, now, after)]
    h, r = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
    d = (1 + 1 / (2 * r)) * x - 1 / (2 * r) * before
    expected = after.s / now.s * z - after.a * (math.exp(-h) - 1) * d
    assert torch.allclose(diffusion.multistep(z, x, before, (last, now, after)), expected)
    assert isinstance(now, Scales)
