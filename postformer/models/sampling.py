"""Drawing images and videos from a model that was taught to denoise, from noise or from something that is known.

b clips, c channels, f frames, h rows and w columns.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from postformer.ops.diffusion import (
    Kind,
    Path,
    Scales,
    ancestral,
    data_of,
    guided,
    multistep,
    noise_of,
    noised,
    scales,
    shifted,
    step,
    stride_told,
)
from postformer.ops.layers import checked_word

Method = Literal["euler", "heun", "multistep", "ancestral"]
MOST_STEPS = 10_000
LEAST_DATA = 0.01
"""The first time of models that predict the noise: by less of the data than this their errors would be more than a hundredfold."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How samples are drawn, of a model that `predict`s on a `path`: `steps` by a `method` ("ancestral" is DDPM's own). `guidance`
    above 1 pushes towards what was told, at times within `between`; `shift` above 1 takes more of the steps at much noise."""

    path: Path = "linear"
    predict: Kind = "x"
    steps: int = 50
    method: Method = "euler"
    guidance: float = 1.0
    between: tuple[float, float] = (0.0, 1.0)
    shift: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("path", Path), ("predict", Kind), ("method", Method)):
            checked_word(name, getattr(self, name), choices)
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"steps={self.steps} must be from 1 to {MOST_STEPS:,}")
        if not 0 <= self.guidance < math.inf or self.shift <= 0:
            raise ValueError(f"guidance={self.guidance} must be a number of at least 0 and shift={self.shift} above 0")
        if not 0 <= self.between[0] <= self.between[1] <= 1:
            raise ValueError(f"between={self.between} must be two times from 0 to 1, the earlier first")
        if self.method == "heun" and self.path == "ddpm":
            raise ValueError(
                "method='heun' goes with path='linear' or 'cosine'; with 'ddpm' take multistep, euler or ancestral"
            )

    def times(self, begin: float = 0.0) -> list[float]:
        """The times from `begin` to 1 between which the steps lie. Predicted noise tells nothing of data where there is none of them, so
        there they begin a little later."""
        if self.predict == "noise" and self.path != "ddpm":
            begin = max(begin, LEAST_DATA)
        start = float(shifted(torch.tensor(begin, dtype=torch.float64), 1 / self.shift))
        line = shifted(torch.linspace(start, 1.0, self.steps + 1, dtype=torch.float64), self.shift)
        return [begin, *line[1:].tolist()]


@torch.no_grad()
def sample(
    model: Any,
    noise: Float[Tensor, "b c f h w"],
    how: Sampling,
    *,
    known: Float[Tensor, "b c f h w"] | None = None,
    where: Bool[Tensor, " f"] | None = None,
    begin: float = 0.0,
    generator: torch.Generator | None = None,
    after_step: Callable[[int], object] = lambda done: None,
    **told: Any,
) -> Float[Tensor, "b c f h w"]:
    """Clips of the shape of `noise`, which is standard normal where nothing is known.

    Frames of `known` that `where` names stay as they are, and the others are drawn to go with them. With `begin` above 0 the clip
    `known` is only noised as of that time and drawn anew from there (SDEdit: Meng et al. 2021, arXiv 2108.01073). What else is `told`,
    label, text, state and first frame, goes to the model.

    Raises ValueError for frames that are named and not known, and for a time that is no time.
    """
    if (where is not None or begin) and known is None:
        raise ValueError("known: give the clip whose frames are known, or that is to be changed")
    if not 0 <= begin < 1:
        raise ValueError(f"begin={begin} must be at least 0 and below 1")
    of = _Denoiser(model, how, known if where is not None else None, where, told)
    times = how.times(begin)
    z = noise if not begin or known is None else noised(known, noise, _at(how, begin, noise))
    z, before, last = of.with_known(z), None, None
    stride = stride_told(how.steps) if how.method == "euler" and how.shift == 1 and not begin else 0.0
    for i, (now, after) in enumerate(itertools.pairwise(times)):
        here, there = _at(how, now, z), _at(how, after, z)
        x = of.data(z, now, stride)
        if how.method == "heun" and after < 1:
            z = _heun(of, z, x, (now, after))
        elif how.method == "multistep":
            z = multistep(z, x, before, (last, here, there))
        elif how.method == "ancestral" and after < 1:
            drawn = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
            z = ancestral(z, x, here, there, drawn)
        else:
            z = step(z, x, here, there)
        z, before, last = of.with_known(z), x, here
        after_step(i + 1)
    return z


def _at(how: Sampling, time: float, like: Tensor) -> Scales:
    """a and s at one time, in the dtype of the clips."""
    at = scales(how.path, torch.tensor(time, dtype=torch.float64, device=like.device))
    return Scales(at.a.to(like.dtype), at.s.to(like.dtype))


def _heun(of: "_Denoiser", z: Tensor, x: Tensor, times: tuple[float, float]) -> Tensor:
    """Heun's step: the mean of the slopes here and where Euler's step leads."""
    now, after = times
    slope = of.slope(z, x, now)
    ahead = of.with_known(z + (after - now) * slope)
    return z + (after - now) * (slope + of.slope(ahead, of.data(ahead, after), after)) / 2


class _Denoiser:
    """A model as a function from noisy clips to the data that they mean."""

    def __init__(self, model: Any, how: Sampling, known: Tensor | None, where: Tensor | None, told: dict[str, Any]):
        self.model, self.how, self.told = model, how, dict(told)
        self.known, self.where = known, None if where is None else where[:, None, None]
        self.guides = how.guidance != 1 and any(told.get(name) is not None for name in ("label", "text"))

    def with_known(self, z: Tensor) -> Tensor:
        return z if self.known is None or self.where is None else torch.where(self.where, self.known, z)

    def data(self, z: Tensor, time: float, stride: float = 0.0) -> Tensor:
        times = torch.full((len(z),), time, dtype=torch.float64, device=z.device)
        if self.where is not None:
            times = times[:, None].expand(-1, len(self.where)).masked_fill(self.where[None, :, 0, 0], 1.0)
        low, high = self.how.between
        if getattr(self.model, "stride", None) is not None:
            self.told["stride"] = torch.full((len(z),), stride, dtype=torch.float64, device=z.device)
        if self.guides and low <= time <= high:
            untold = {name: self._nothing(name, value) for name, value in self.told.items()}
            both = {name: _doubled(value, untold[name]) for name, value in self.told.items()}
            said, _ = self.model(torch.cat([z, z]), torch.cat([times, times]), **both)
            with_it, without = said.chunk(2)
            said = guided(with_it, without, self.how.guidance)
        else:
            said, _ = self.model(z, times, **self.told)
        x = data_of(self.how.predict, self.how.path, said, z, _at(self.how, time, z))
        return self.with_known(x)

    def slope(self, z: Tensor, x: Tensor, time: float) -> Tensor:
        """dz/dt where the data is x."""
        at = _at(self.how, time, z)
        noise = noise_of(x, z, at)
        if self.how.path == "linear":
            return x - noise
        return (at.s * x - at.a * noise) * (math.pi / 2)

    def _nothing(self, name: str, value: Any) -> Any:
        size = {"label": "classes", "text": "vocab"}.get(name)
        return torch.full_like(value, getattr(self.model, size)) if size and value is not None else value


def _doubled(told: Any, untold: Any) -> Any:
    if isinstance(told, Tensor):
        return torch.cat([told, untold])
    if told is None or isinstance(told, int):
        return told
    raise ValueError("guidance of a model with a state is not built: sample it with guidance 1")
