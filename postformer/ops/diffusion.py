"""Noise that is added and taken away: paths between noise and data, what a network may predict, and the steps of sampling.

    z = a(t) x + s(t) e        x the data, e standard normal noise, t from 0 (noise) to 1 (data)

| path | a(t) | s(t) | v | source |
|---|---|---|---|---|
| linear | t | 1 - t | x - e | Lipman et al. 2022, arXiv 2210.02747, eq. 20 to 23 |
| cosine | sin(pi t / 2) | cos(pi t / 2) | a e - s x | Albergo & Vanden-Eijnden 2022, arXiv 2209.15571 |
| ddpm | sqrt(prod of 1 - beta) | sqrt(1 - a^2) | a e - s x | Ho et al. 2020, arXiv 2006.11239, eq. 4 |

v of the second and third: Salimans & Ho 2022 (arXiv 2202.00512, section 4). DDPM's beta grows from 1e-4 to 0.02 in 1,000 steps (its
section 4).

`Scales` are a and s at some times, shaped to be multiplied with clips.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Path = Literal["linear", "cosine", "ddpm"]
Kind = Literal["x", "v", "noise"]
"""What is predicted: the data, the velocity, the noise."""
DDPM_STEPS, DDPM_BETAS = 1000, (1e-4, 0.02)


class Scales(NamedTuple):
    """Of the data and of the noise."""

    a: Tensor
    s: Tensor


def _linear(t: Tensor) -> Scales:
    return Scales(t, 1 - t)


def _cosine(t: Tensor) -> Scales:
    return Scales((t * math.pi / 2).sin(), (t * math.pi / 2).cos())


@functools.cache
def _log_a() -> Tensor:
    """log a before the first step of DDPM, where there is no noise, and after each of its steps."""
    betas = torch.linspace(*DDPM_BETAS, DDPM_STEPS, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), (1 - betas).log().cumsum(0) / 2])


def _ddpm(t: Tensor) -> Scales:
    """Step n of N (n = 1 is the first that adds noise) lies at t = 1 - n / N; log a is linear between steps."""
    table = _log_a().to(t.device)
    at = ((1 - t.double()) * DDPM_STEPS).clamp(0, DDPM_STEPS)
    below = at.floor().long().clamp(max=DDPM_STEPS - 1)
    log_a = torch.lerp(table[below], table[below + 1], at - below)
    return Scales(log_a.exp().to(t.dtype), (-torch.expm1(2 * log_a)).sqrt().to(t.dtype))


PATHS: dict[Path, Callable[[Tensor], Scales]] = {"linear": _linear, "cosine": _cosine, "ddpm": _ddpm}


def scales(path: Path, t: Float[Tensor, "*b"], axes: int = 0) -> Scales:
    """a and s at times t, with `axes` dimensions of size 1 behind."""
    return Scales(*(of.reshape((*of.shape, *[1] * axes)) for of in PATHS[path](t)))


def noised(x: Tensor, noise: Tensor, at: Scales) -> Tensor:
    """z = a x + s e."""
    return at.a * x + at.s * noise


def target(kind: Kind, path: Path, x: Tensor, noise: Tensor, at: Scales) -> Tensor:
    """What a network that predicts this kind should say."""
    if kind == "x":
        return x
    if kind == "noise":
        return noise
    return x - noise if path == "linear" else at.a * noise - at.s * x


LEAST = 1e-4
"""The least a or s that is divided by."""
FINEST = 7
"""Shortcut models take paths of 1, 2, 4 ... 2^6 steps whose length they are told; 2^7 are as good as the flow itself (Frans et al.
2024, section 3)."""


def data_of(kind: Kind, path: Path, said: Tensor, z: Tensor, at: Scales) -> Tensor:
    """The data that a prediction means."""
    if kind == "x":
        return said
    if kind == "noise":
        return (z - at.s * said) / at.a.clamp(min=LEAST)
    return z + at.s * said if path == "linear" else at.a * z - at.s * said


def noise_of(x: Tensor, z: Tensor, at: Scales) -> Tensor:
    """The noise that data means: (z - a x) / s."""
    return (z - at.a * x) / at.s.clamp(min=LEAST)


def in_data(kind: Kind, at: Scales, floor: float) -> Tensor:
    """By what an error of a prediction is multiplied to be one of the data, but for its sign: 1, s, or s / a. `floor` bounds what is
    divided by from below."""
    return {"x": lambda: torch.ones_like(at.a), "v": lambda: at.s, "noise": lambda: at.s / at.a.clamp(min=floor)}[kind]()


def weight_of(kind: Kind, loss: Kind, at: Scales, floor: float) -> Tensor:
    """By what the squared error of a prediction of this kind is multiplied to be that of another (JiT, arXiv 2511.13720, eq. 6 for x in v,
    whose floor is 0.05). 1 where they are the same."""
    if kind == loss:
        return torch.ones_like(at.a)
    back = {
        "x": lambda: torch.ones_like(at.a),
        "v": lambda: at.s.clamp(min=floor),
        "noise": lambda: in_data("noise", at, floor).clamp(min=floor),
    }
    return (in_data(kind, at, floor) / back[loss]()).square()


# ---------------------------------------------------------------- steps from one time to the next


def step(z: Tensor, x: Tensor, now: Scales, after: Scales) -> Tensor:
    """The point at the next time if the data were x: Euler's step on the linear path, DDIM's on the others (Song et al. 2020, arXiv
    2010.02502, eq. 12 without noise)."""
    ratio = after.s / now.s.clamp(min=LEAST)
    return ratio * z + (after.a - ratio * now.a) * x


def ancestral(z: Tensor, x: Tensor, now: Scales, after: Scales, noise: Tensor) -> Tensor:
    """A draw of the point at the next time given z and the data (Ho et al. 2020, eq. 6 and 7, whose variance it has; on any path as in
    Kingma et al. 2021, arXiv 2107.00630, eq. 26 to 31)."""
    variance = now.s.square().clamp(min=LEAST**2)
    ratio = now.a / after.a
    added = (variance - ratio.square() * after.s.square()).clamp(min=0)
    mean = after.a * added / variance * x + ratio * after.s.square() / variance * z
    return mean + (after.s.square() * added / variance).sqrt() * noise


def multistep(z: Tensor, x: Tensor, before: Tensor | None, times: tuple[Scales | None, Scales, Scales]) -> Tensor:
    """DPM-Solver++ of second order with the data of the step before (Lu et al. 2022, arXiv 2211.01095, algorithm 2), `times` are those
    of the step before, of now and of the next. Of first order where there is no step before, and where the noise ends."""
    last, now, after = times
    if before is not None and last is not None and bool((after.s > LEAST).all()):
        lam = [(of.a / of.s).log() for of in (last, now, after)]
        h, h_before = lam[2] - lam[1], lam[1] - lam[0]
        x = x + (h / h_before) / 2 * (x - before)
    return step(z, x, now, after)


def guided(told: Tensor, untold: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6 with w = guidance - 1)."""
    return torch.lerp(untold, told, guidance)


def shifted(t: Float[Tensor, "*b"], shift: float) -> Float[Tensor, "*b"]:
    """Times with more noise where shift is above 1 (Esser et al. 2024, arXiv 2403.03206, eq. 23, in noise-time 1 - t)."""
    u = 1 - t
    return 1 - shift * u / (1 + (shift - 1) * u)


def stride_told(steps: int) -> float:
    """The length of each of so many steps that a shortcut model is told; 0, the flow itself, where it learned none such."""
    return 1 / steps if steps in {2**n for n in range(FINEST)} else 0.0
