"""Denoising: a model is shown clips with noise and says what they are made of.

Flow matching: Lipman et al. 2022 (arXiv 2210.02747); logit-normal times: Esser et al. 2024 (arXiv 2403.03206, section 3.1); data
predicted, and its error weighed as one of velocities: Li & He 2025 (JiT, arXiv 2511.13720); DDPM: Ho et al. 2020 (arXiv 2006.11239, eq.
14: `path="ddpm", predict="noise", loss="noise", times="uniform"`). Frames that are known: Zheng et al. 2024 (Open-Sora 1.1's report); a
time for each frame: Chen et al. 2024 (diffusion forcing, arXiv 2407.01392); the averaged model: Ho et al. 2020, section 4.

b clips, c channels, f frames, h rows and w columns.
"""

import copy
import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from postformer.models.routing import after_step, routed
from postformer.ops.diffusion import (
    FINEST,
    LEAST,
    Kind,
    Path,
    Scales,
    data_of,
    noise_of,
    noised,
    scales,
    stride_told,
    target,
    weight_of,
)
from postformer.ops.layers import checked_word

Times = Literal["logit-normal", "uniform"]
Ends = Literal["first", "last", "both", "any"]
TAUGHT = 8
"""Steps of a teacher in one step of its student."""
WARMING = 10
"""The average follows the model closely in the first steps: after n of them it keeps at most (1 + n) / (10 + n)."""


class Denoise(nn.Module):
    """Teaches a model such as `DiT` or `UNet`, which `predict`s the data "x", the velocity "v" or the "noise" of a `path`; its error is
    weighed as one of the kind `loss`. Times are drawn uniformly, or as the logistic function of a normal number of this `mean` and
    `spread`; what is divided by is at least `floor`.

    `label_dropout` of the labels (and texts) are not told, which guidance needs. Of clips of several frames a share `known` has some
    whole frames without noise, at one of its `ends` (the first, the last, both, or any): `known_frames` of them, fewer than a clip has, or
    any number where that is 0. A share `apart` has a time of its own for each frame. A share `shortcut` teaches a model with strides that
    one long step is two of half its length; with `few` above 0 a step of a path of so many is instead where a teacher, the model with the
    weights that a run begins with, comes to in TAUGHT steps (distillation as of Salimans & Ho 2022, arXiv 2202.00512, section 3, in one
    stage). `average` above 0 keeps a slow average of the weights, by which samples are drawn.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        path: Path = "linear",
        predict: Kind = "x",
        loss: Kind = "v",
        times: Times = "logit-normal",
        mean: float = -0.8,
        spread: float = 0.8,
        floor: float = 0.05,
        label_dropout: float = 0.1,
        known: float = 0.0,
        ends: tuple[Ends, ...] = ("first", "last", "both", "any"),
        known_frames: int = 0,
        apart: float = 0.0,
        shortcut: float = 0.0,
        few: int = 0,
        average: float = 0.999,
    ):
        super().__init__()
        _check_words(path, predict, loss, times, ends)
        _check_shares(label_dropout=label_dropout, known=known, apart=apart, shortcut=shortcut, average=average)
        if known + apart > 1 or spread <= 0 or not 0 < floor < 1 or average == 1:
            raise ValueError(
                f"known={known} and apart={apart} must be 1 together at most, spread={spread} above 0, floor={floor} between 0 and 1, and "
                f"average={average} below 1"
            )
        _check_known(known_frames, known, getattr(model, "patch", (1,))[0])
        _check_student(shortcut, few, path == "linear" and average > 0 and getattr(model, "stride", None) is not None)
        self.model = model
        self.path: Path = path
        self.predict: Kind = predict
        self.loss: Kind = loss
        self.times, self.mean, self.spread, self.floor = times, mean, spread, floor
        self.few = few
        self.teacher = copy.deepcopy(model).requires_grad_(False) if few else None
        self.label_dropout, self.known, self.apart, self.decay = label_dropout, known, apart, average
        self.ends: tuple[Ends, ...] = tuple(ends)
        self.shortcut, self.known_frames = shortcut, known_frames
        self.average = copy.deepcopy(model).requires_grad_(False) if average else None
        self.register_buffer("averaged", torch.zeros((), dtype=torch.long) if average else None)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`batch["clips"]` is Float [b, c, f, h, w] with values from about -1 to 1, or a list of clips [c, f, h, w] of several sizes, or
        `batch["images"]` Float [b, c, h, w]; `batch["label"]` Int [b] and `batch["text"]` Int [b, l] where the model takes them.

        Returns the loss, the mean squared error of the data that the prediction means, and the tokens; of mixtures of experts also what
        `Routing.taught` tells.
        """
        model: Any = self.model if self.training or self.average is None else self.average
        words = {name: self._dropped(batch[name], size) for name, size in self._told(model) if name in batch}
        if isinstance(batch.get("clips"), list):
            return self._of_sizes(model, batch["clips"], words)
        x = batch["images"][:, :, None] if "images" in batch else batch["clips"]
        times, unknown = self.drawn(x)
        at = scales(self.path, times[:, None], axes=2)
        noise = torch.randn_like(x)
        z = noised(x, noise, at)
        goal = target(self.predict, self.path, x, noise, at)
        if self.shortcut and self.training:
            z, times, goal, words["stride"] = self._shortcut(x, noise, z, times, goal, words)
            at = scales(self.path, times[:, None], axes=2)
            unknown = unknown | (words["stride"] > 0)[:, None]
        with routed(model) as routing:
            said, _ = model(z, times if self._by_frame() else times[:, 0], **words)
        return routing.taught(self._wrong([(said, goal, at, unknown)]), self.training)

    def _of_sizes(self, model: Any, clips: list[Tensor], words: dict[str, Tensor]) -> dict[str, Tensor]:
        """Clips of several sizes, packed side by side; each pixel counts as much as another."""
        if not hasattr(model, "packed") or self.shortcut:
            raise ValueError("clips of several sizes in one batch: choose a model that packs them, dit, and no shortcut")
        parts, noisy = [], []
        for clip in clips:
            times, unknown = self.drawn(clip[None], short=True)
            at, noise = scales(self.path, times[:, None], axes=2), torch.randn_like(clip)[None]
            noisy.append((noised(clip[None], noise, at)[0], times[0] if self._by_frame() else times[0, 0]))
            parts.append((target(self.predict, self.path, clip[None], noise, at), at, unknown))
        with routed(model) as routing:
            said = model.packed([z for z, _ in noisy], [t for _, t in noisy], **words)
        return routing.taught(self._wrong([(made[None], *part) for made, part in zip(said, parts, strict=True)]), self.training)

    def _wrong(self, parts: list[tuple[Tensor, Tensor, Scales, Tensor]]) -> dict[str, Tensor]:
        """The mean errors over all pixels that are unknown, of what was said, its goal, the scales, and which frames are unknown."""
        sums, pixels = torch.zeros(3, device=parts[0][1].device), 0
        for said, goal, at, unknown in parts:
            wrong = (said - goal).square()
            share = unknown[:, None, :, None, None].to(goal.dtype).expand_as(wrong)
            loss = (wrong * weight_of(self.predict, self.loss, at, self.floor) * share).sum()
            mse = (wrong.detach() * weight_of(self.predict, "x", at, self.floor) * share).sum()
            sums, pixels = sums + torch.stack([loss, mse, share.sum()]), pixels + goal[:, 0].numel()
        tokens = torch.tensor(pixels // math.prod(getattr(self.model, "patch", (1,))))
        return {"loss": sums[0] / sums[2], "mse": sums[1].detach() / sums[2], "tokens": tokens}

    @torch.no_grad()
    def _shortcut(
        self, x: Tensor, noise: Tensor, z: Tensor, times: Tensor, goal: Tensor, words: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first clips of the batch are asked for a step of 2 d, which should be two steps of d of the averaged model (Frans et al.
        2024, eq. 5 and algorithm 1): their points, times, goals, and the strides of all, 0 for the others."""
        assert self.average is not None
        model: Any = self.average
        n = max(round(self.shortcut * len(x)), 1)
        if self.teacher is not None:
            return self._taught(n, (x, noise, z, times, goal), words)
        count = 2 ** torch.randint(1, FINEST + 1, (n,), device=x.device)  # steps of d that a whole path has
        d = 1.0 / count
        t = (torch.rand(n, device=x.device) * (count // 2)).floor() * 2 * d
        told = torch.where(count == 2**FINEST, 0.0, d)  # the shortest are steps of the flow itself
        own = {name: value[:n] for name, value in words.items()}

        def velocity(z: Tensor, t: Tensor) -> Tensor:
            said, _ = model(z, t, stride=told, **own)
            here = scales("linear", t, axes=4)
            return (data_of(self.predict, "linear", said, z, here) - z) / here.s.clamp(min=LEAST)

        here = scales("linear", t, axes=4)
        first = noised(x[:n], noise[:n], here)
        v = velocity(first, t)
        both = (v + velocity(first + d.view(-1, 1, 1, 1, 1) * v, t + d)) / 2
        return self._together((first, t, both, 2 * d), (z, times, goal))

    def _together(
        self, strided: tuple[Tensor, Tensor, Tensor, Tensor], others: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The batch's first clips as points, times, mean velocities and strides, and the rest of its points, times and goals."""
        (first, t, both, strides), (z, times, goal) = strided, others
        here, n = scales("linear", t, axes=4), len(first)
        data = first + here.s * both
        said = {"x": data, "v": both, "noise": noise_of(data, first, here)}[self.predict]
        parts = ((first, z), (t[:, None].expand(-1, times.shape[1]), times), (said, goal))
        z, times, goal = (torch.cat([mine, theirs[n:]]) for mine, theirs in parts)
        return z, times, goal, torch.cat([strides, strides.new_zeros(len(z) - n)])

    def _taught(
        self, n: int, batch: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], words: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `_shortcut`, with a step of a path of `few` whose end is the teacher's."""
        teacher: Any = self.teacher
        x, noise, z, times, goal = batch
        stride = 1 / self.few
        t = torch.randint(self.few, (n,), device=x.device) * stride
        own = {name: value[:n] for name, value in words.items()}
        first = point = noised(x[:n], noise[:n], scales("linear", t, axes=4))
        for i in range(TAUGHT):
            now = t + i * stride / TAUGHT
            here = scales("linear", now, axes=4)
            said, _ = teacher(point, now, **own)
            v = (data_of(self.predict, "linear", said, point, here) - point) / here.s.clamp(min=LEAST)
            point = point + stride / TAUGHT * v
        return self._together((first, t, (point - first) / stride, torch.full_like(t, stride)), (z, times, goal))

    def drawn(self, x: Float[Tensor, "b c f h w"], *, short: bool = False) -> tuple[Float[Tensor, "b f"], Bool[Tensor, "b f"]]:
        """A time for each frame, and which frames carry noise at all: those of a known frame are 1 and not taught. Frames of one patch
        share all. Of clips that are too `short` to know frames none is known; else they raise ValueError."""
        b, frames, together = len(x), x.shape[2], getattr(self.model, "patch", (1,))[0]
        runs = frames // together
        times = self._time((b, runs), x.device)
        kind = torch.rand(b, device=x.device)
        times = torch.where((kind < self.apart)[:, None], times, times[:, :1])
        unknown = torch.ones(b, runs, dtype=torch.bool, device=x.device)
        given = self.known_frames // together
        if runs > 1 and not (short and given >= runs):
            if given >= runs:
                raise ValueError(f"known_frames={self.known_frames} must be fewer than the {frames} frames of a clip")
            low, high = (given, given + 1) if given else (1, runs)
            pattern = _lying(runs, torch.randint(low, high, (b, 1), device=x.device), self.ends)
            unknown = torch.where((kind > 1 - self.known)[:, None], ~pattern, unknown)
        times = times.masked_fill(~unknown, 1.0)
        return times.repeat_interleave(together, 1), unknown.repeat_interleave(together, 1)

    def _time(self, shape: tuple[int, int], device: torch.device) -> Tensor:
        if self.times == "uniform":
            return torch.rand(shape, device=device)
        return torch.sigmoid(self.mean + self.spread * torch.randn(shape, device=device))

    def _by_frame(self) -> bool:
        return self.known > 0 or self.apart > 0

    def _told(self, model: Any) -> list[tuple[str, int]]:
        """What the model takes beside clips, and what says nothing of it."""
        return [
            (name, size)
            for name, size in (("label", getattr(model, "classes", 0)), ("text", getattr(model, "vocab", 0)))
            if size
        ]

    def _dropped(self, told: Tensor, nothing: int) -> Tensor:
        if not self.training or not self.label_dropout:
            return told
        silent = torch.rand(len(told), device=told.device) < self.label_dropout
        return torch.where(silent.reshape(-1, *[1] * (told.ndim - 1)), nothing, told)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The average takes a step towards the model, and mixtures of experts are corrected."""
        after_step(self.model)
        if self.average is None or self.averaged is None:
            return
        self.averaged += 1
        n = int(self.averaged)
        keep = min(self.decay, (1 + n) / (WARMING + n))
        pairs = zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True)
        for mine, theirs in pairs:
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - keep)


def _lying(runs: int, count: Int[Tensor, "b 1"], ends: tuple[Ends, ...]) -> Bool[Tensor, "b f"]:
    """Where a clip's `count` known frames lie among its `runs`: at one of the ends, drawn for each clip."""
    b, device = len(count), count.device
    place = torch.arange(runs, device=device)
    patterns: dict[Ends, Tensor] = {
        "first": place < count,
        "last": place >= runs - count,
        "both": (place < (count + 1) // 2) | (place >= runs - count // 2),
        "any": torch.rand(b, runs, device=device).argsort(1).argsort(1) < count,
    }
    choice = torch.randint(len(ends), (b, 1), device=device)
    return torch.stack([patterns[end] for end in ends]).take_along_dim(choice[None], 0)[0]


def _check_words(path: str, predict: str, loss: str, times: str, ends: tuple[str, ...]) -> None:
    for name, word, choices in (
        ("path", path, Path),
        ("predict", predict, Kind),
        ("loss", loss, Kind),
        ("times", times, Times),
    ):
        checked_word(name, word, choices)
    for end in ends:
        checked_word("ends", end, Ends)
    if not ends:
        raise ValueError("ends: name at least one of first, last, both, any")


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share} must be from 0 to 1")


def _check_known(frames: int, known: float, together: int) -> None:
    if frames < 0 or frames % together:
        raise ValueError(f"known_frames={frames} must be a multiple of {together}, the frames of a patch, or 0 for any number")
    if frames and not known:
        raise ValueError(f"known_frames={frames} says how many frames clips know: give known above 0")


def _check_student(shortcut: float, few: int, able: bool) -> None:
    if shortcut and not able:
        raise ValueError(f"shortcut={shortcut} goes with path='linear', an average, and a model with strides=true")
    if few and (not shortcut or stride_told(few) == 0):
        choices = ", ".join(str(2**n) for n in range(FINEST))
        raise ValueError(f"few={few} must be one of {choices}, and goes with shortcut above 0")
