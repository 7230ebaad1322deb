"""The U-Net of diffusion models, for images and videos: the rival of transformers over patches.

Ho et al. 2020 (arXiv 2006.11239, appendix B) with the changes of Dhariwal & Nichol 2021 (arXiv 2105.05233, section 3: scale and shift
by time and class, attention at low resolutions, zero last convolutions); over time as in Ho et al. 2022 (Video Diffusion Models, arXiv
2204.03458), with convolutions of three frames in place of attention over time alone. It halves rows and columns, never frames.

b clips, c channels, f frames, h rows and w columns.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from postformer.config import Spec
from postformer.mixers.spacetime import SpacetimeAttention
from postformer.models.backbone import Cost
from postformer.models.conditioned import TimeEmbedding, hinted, stride_embedding, told_of
from postformer.models.convolutions import dry_flops, groups
from postformer.ops.layers import Embedding, Linear
from postformer.ops.packing import Packing
from postformer.ops.spacetime import grid_places
from postformer.tokens.patches import Grid


class Conv(nn.Conv3d):
    """A convolution over frames, rows and columns that casts its parameters to the input's dtype; over one frame its middle frame alone
    counts."""

    def __init__(self, inputs: int, outputs: int, frames: int = 1, pixels: int = 3, stride: int = 1):
        padding = (frames // 2, pixels // 2, pixels // 2)
        super().__init__(inputs, outputs, (frames, pixels, pixels), (1, stride, stride), padding)

    def forward(self, input: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b o f h2 w2"]:
        weight, bias = self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype)
        if input.shape[2] == 1:
            middle = weight[:, :, weight.shape[2] // 2]
            return F.conv2d(input[:, :, 0], middle, bias, self.stride[1:], self.padding[1:])[:, :, None]  # type: ignore[index]
        return F.conv3d(input, weight, bias, self.stride, self.padding)  # type: ignore[arg-type]


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` of each frame by itself, in fp32, that answers in the input's dtype: what a frame is does not depend on the clip's
    length."""

    def __init__(self, channels: int):
        super().__init__(groups(channels), channels, eps=1e-6)

    def forward(self, input: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
        b, _, f, _, _ = input.shape
        flat = input.transpose(1, 2).flatten(0, 1).to(self.weight.dtype)
        return super().forward(flat).unflatten(0, (b, f)).transpose(1, 2).to(input.dtype)


class Residual(nn.Module):
    """Two convolutions; what is told scales and shifts between them, each frame by itself."""

    def __init__(self, inputs: int, outputs: int, condition: int, frames: int):
        super().__init__()
        self.norm, self.conv = GroupNorm(inputs), Conv(inputs, outputs, frames)
        self.told = Linear(condition, 2 * outputs)
        self.last_norm, self.last = GroupNorm(outputs), Conv(outputs, outputs, frames)
        self.beside = Conv(inputs, outputs, 1, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Float[Tensor, "b c f h w"], condition: Float[Tensor, "b f2 e"]) -> Float[Tensor, "b o f h w"]:
        scale, shift = self.told(F.silu(condition)).mT[..., None, None].chunk(2, 1)
        y = self.last_norm(self.conv(F.silu(self.norm(x))))
        y = self.last(F.silu(y * (1 + scale) + shift))
        return self.beside(x) + y


class Attending(nn.Module):
    """Attention among all places of all frames."""

    def __init__(self, channels: int, head: int):
        super().__init__()
        heads = next(n for n in range(max(channels // head, 1), 0, -1) if channels % n == 0)
        self.norm, self.attention = GroupNorm(channels), SpacetimeAttention(channels, heads=heads)
        nn.init.zeros_(self.attention.out.weight)

    def forward(self, x: Float[Tensor, "b c f h w"], condition: Float[Tensor, "b f2 e"]) -> Float[Tensor, "b c f h w"]:
        grid = (x.shape[2], x.shape[3], x.shape[4])
        tokens = self.norm(x).flatten(2).mT
        y, _ = self.attention(tokens, None, Packing(places=grid_places(grid, x)[None], grid=grid))
        return x + y.mT.unflatten(2, grid)


class UNet(nn.Module):
    """`widths` are the channels at full resolution, at half, and so on; `blocks` residual blocks at each on the way down, one more on
    the way up; attention, with heads about `head` wide, at the `attention` lowest of them. `frames` = 3 convolves over time, 1 sees
    each frame by itself. `stem` pixels by `stem` are one place of full resolution, which makes it `stem`² times as cheap. The interface is
    that of `DiT`, `strides` and `hints` included."""

    tokens: None = None
    compute_dtype: torch.dtype | None = None

    def __init__(
        self,
        channels: int = 3,
        *,
        widths: tuple[int, ...] = (32, 64, 128),
        blocks: int = 1,
        attention: int = 1,
        head: int = 32,
        frames: Literal[1, 3] = 3,
        stem: int = 1,
        classes: int = 0,
        strides: bool = False,
        hints: int = 0,
        outputs: int | None = None,
    ):
        super().__init__()
        outputs = channels if outputs is None else outputs
        if (
            not widths
            or min(channels, outputs, blocks, head, stem, *widths) < 1
            or min(classes, hints) < 0
            or not 0 <= attention <= len(widths)
        ):
            raise ValueError(
                f"widths={widths}, channels={channels}, outputs={outputs}, blocks={blocks}, head={head} and stem={stem} must be at least "
                f"1, classes={classes} and hints={hints} at least 0, attention={attention} from 0 to {len(widths)}, the number of widths"
            )
        self.config: Spec = {
            "kind": "unet",
            "channels": channels,
            "widths": list(widths),
            "blocks": blocks,
            "attention": attention,
            "head": head,
            "frames": frames,
            "stem": stem,
            "classes": classes,
            "strides": strides,
            "hints": hints,
            "outputs": outputs,
        }
        self.channels, self.outputs, self.classes, self.widths = channels, outputs, classes, widths
        self.patch, self.stem, self.hints = (1, 1, 1), stem, hints
        told = 4 * widths[0]
        self.time = TimeEmbedding(told)
        self.stride = stride_embedding(told) if strides else None
        self.label = Embedding(classes + 1, told) if classes else None
        self.first = Conv((channels + hints * (channels + 1)) * stem**2, widths[0], frames)
        if hints:
            with torch.no_grad():  # what is shown beside has no say at the start
                self.first.weight[:, channels * stem**2 :] = 0

        levels: tuple[Any, Any, Any] = _levels(widths, blocks, attention, head, told, frames)
        self.down, self.middle, self.up = levels
        self.norm, self.head = GroupNorm(widths[0]), Conv(widths[0], outputs * stem**2, frames)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        clips: Float[Tensor, "b c f h w"],
        time: Float[Tensor, "b *f2"],
        *,
        label: Int[Tensor, " b"] | None = None,
        text: None = None,
        stride: Float[Tensor, " b"] | None = None,
        state: None = None,
        first: int = 0,
    ) -> tuple[Float[Tensor, "b o f h w"], None]:
        """As `DiT.forward`; there is no state, and where a clip's first frame stands in a video has no say.

        Raises ValueError for sizes that cannot be halved as often as there are widths, and for what the model does not take.
        """
        self._check(clips, time, label, text, state)
        x = hinted(clips, time, self.hints) if self.hints else clips
        x = x if self.compute_dtype is None else x.to(self.compute_dtype)
        condition = told_of(self, time[:, None] if time.ndim == 1 else time, label, stride).to(x.dtype)
        x = self.first(_gathered(x, self.stem))
        kept = [x]
        for level in self.down:
            x = _through(level, x, condition)
            kept.append(x)
        x = _through(self.middle, x, condition)
        for level in self.up:
            if isinstance(level[0], Conv):
                x = level[0](F.interpolate(x, scale_factor=(1.0, 2.0, 2.0)))
            else:
                x = _through(level, torch.cat([x, kept.pop()], 1), condition)
        return _spread(self.head(F.silu(self.norm(x))), self.stem).to(clips.dtype), None

    def _check(self, clips: Tensor, time: Tensor, label: Tensor | None, text: object, state: object) -> None:
        if clips.shape[1] != self.channels:
            raise ValueError(f"clips: they have {clips.shape[1]} channels, and the model takes {self.channels}")
        if text is not None or state is not None or (label is not None and self.label is None):
            raise ValueError(f"a U-Net takes no {'text' if text is not None else 'state' if state is not None else 'label'}")
        self.grid(clips.shape[2:])
        if time.ndim > 1 and time.shape[1] != clips.shape[2]:
            raise ValueError(f"time: expected one a clip, or one for each of {clips.shape[2]} frames, got {time.shape[1]}")

    def grid(self, size: Sequence[int]) -> Grid:
        """Frames, rows and columns of a clip at the lowest resolution. Raises ValueError with the nearest sizes where rows or columns
        do not fill whole squares of `stem` pixels that can be halved as often as there are widths."""
        part = self.stem * 2 ** (len(self.widths) - 1)
        for name, n in zip(("rows", "columns"), size[1:], strict=True):
            if n % part or not n:
                raise ValueError(
                    f"{n} {name} are no multiple of {part}, as {len(self.widths)} widths and a stem of {self.stem} want: "
                    f"crop to {n // part * part} or pad to {-(-n // part) * part}"
                )
        return size[0], size[1] // part, size[2] // part

    def flops(self, size: tuple[int, int, int]) -> int:
        """Floating-point operations of a clip of (frames, rows, columns): convolutions, attention and what is told, by a dry run on no
        memory."""
        return dry_flops(self, (1, self.channels, *size), (1,))

    def cost(self, length: int) -> Cost:
        """Cost formulas of a square image of `length` pixels, for each pixel."""
        side = self.stem * 2 ** (len(self.widths) - 1)
        side *= max(round(math.sqrt(length)) // side, 1)
        parameters = sum(p.numel() for p in self.parameters())
        return Cost(
            parameters=parameters,
            active_parameters=parameters,
            prefill_flops=self.flops((1, side, side)) / side**2,
            decode_flops=0.0,
            state_bytes=0,
        )


def _gathered(x: Float[Tensor, "b c f h w"], by: int) -> Float[Tensor, "b c2 f h2 w2"]:
    """Squares of pixels as channels."""
    return F.pixel_unshuffle(x.transpose(1, 2), by).transpose(1, 2) if by > 1 else x


def _spread(x: Float[Tensor, "b c f h w"], by: int) -> Float[Tensor, "b c2 f h2 w2"]:
    """The way back."""
    return F.pixel_shuffle(x.transpose(1, 2), by).transpose(1, 2) if by > 1 else x


def _levels(
    widths: tuple[int, ...], blocks: int, attention: int, head: int, told: int, frames: int
) -> tuple[nn.ModuleList, nn.ModuleList, nn.ModuleList]:
    """The way down, what lies at the bottom, and the way up, whose blocks also take what those on the way down left."""

    def level(inputs: int, width: int, attends: bool) -> nn.ModuleList:
        return nn.ModuleList([Residual(inputs, width, told, frames), *([Attending(width, head)] if attends else [])])

    down, up = nn.ModuleList(), nn.ModuleList()
    kept, here = [widths[0]], widths[0]
    for i, width in enumerate(widths):
        attends = i >= len(widths) - attention
        for _ in range(blocks):
            down.append(level(here, width, attends))
            here = width
            kept.append(here)
        if i < len(widths) - 1:
            down.append(nn.ModuleList([Conv(here, here, 1, 3, 2)]))
            kept.append(here)
    middle = nn.ModuleList([*level(here, here, attention > 0), Residual(here, here, told, frames)])
    for i, width in reversed(list(enumerate(widths))):
        attends = i >= len(widths) - attention
        for _ in range(blocks + 1):
            up.append(level(here + kept.pop(), width, attends))
            here = width
        if i:
            up.append(nn.ModuleList([Conv(here, here, 1)]))
    return down, middle, up


def _through(level: Any, x: Tensor, condition: Tensor) -> Tensor:
    for part in level:
        x = part(x) if isinstance(part, Conv) else part(x, condition)
    return x
