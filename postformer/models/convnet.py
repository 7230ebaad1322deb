"""A residual convolutional net that names images: the rival of the Vision Transformer.

He et al. 2016 (Identity Mappings in Deep Residual Networks, arXiv 1603.05027: norm and activation before each convolution), with group
norms (Wu & He 2018, arXiv 1803.08494) in place of batch norms, so that an image's class does not depend on its batch.

b images, c channels, h rows and w columns of pixels, d features, k classes.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from postformer.config import Spec
from postformer.models.backbone import Cost
from postformer.models.convolutions import dry_flops, groups
from postformer.ops.layers import Linear


class Conv(nn.Conv2d):
    """A convolution that casts its weight to the input's dtype; its norm has the bias."""

    def __init__(self, inputs: int, outputs: int, pixels: int = 3, stride: int = 1):
        super().__init__(inputs, outputs, pixels, stride, pixels // 2, bias=False)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
        return F.conv2d(input, self.weight.to(input.dtype), None, self.stride, self.padding)  # type: ignore[arg-type]


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` in its parameters' dtype that answers in the input's."""

    def __init__(self, channels: int):
        super().__init__(groups(channels), channels, eps=1e-6)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


class Residual(nn.Module):
    """Two convolutions beside the identity, or beside one of a pixel where width or resolution changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm, self.conv = GroupNorm(inputs), Conv(inputs, outputs, 3, stride)
        self.last_norm, self.last = GroupNorm(outputs), Conv(outputs, outputs)
        self.beside = Conv(inputs, outputs, 1, stride) if inputs != outputs or stride > 1 else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
        y = F.relu(self.norm(x))
        beside = x if self.beside is None else self.beside(y)
        return beside + self.last(F.relu(self.last_norm(self.conv(y))))


class ConvNet(nn.Module):
    """Images [b, c, h, w] of any size to logits of `classes`: `blocks` residual blocks of each of `widths` channels, the first block of
    each but the first width at half the resolution, then the mean over places."""

    tokens: None = None
    compute_dtype: torch.dtype | None = None

    def __init__(self, classes: int, *, channels: int = 3, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 2):
        super().__init__()
        if not widths or min(classes, channels, blocks, *widths) < 1:
            raise ValueError(f"classes={classes}, channels={channels}, widths={widths} and blocks={blocks} must be at least 1")
        self.config: Spec = {
            "kind": "convnet",
            "classes": classes,
            "channels": channels,
            "widths": list(widths),
            "blocks": blocks,
        }
        self.channels = channels
        self.first = Conv(channels, widths[0])
        parts = [Residual(widths[0], widths[0], 1) for _ in range(blocks)]
        for before, width in itertools.pairwise(widths):
            parts += [Residual(before, width, 2), *(Residual(width, width, 1) for _ in range(blocks - 1))]
        self.parts = nn.Sequential(*parts)
        self.norm, self.head = GroupNorm(widths[-1]), Linear(widths[-1], classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of each class."""
        return self.head(self.features(images)).to(torch.float32)

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """What the head reads of each image. Raises ValueError for images of other channels."""
        if images.shape[1] != self.channels:
            raise ValueError(f"images: they have {images.shape[1]} channels, and the model takes {self.channels}")
        x = images if self.compute_dtype is None else images.to(self.compute_dtype)
        return F.relu(self.norm(self.parts(self.first(x)))).mean((2, 3))

    def flops(self, size: tuple[int, int]) -> int:
        """Floating-point operations of an image of (rows, columns), by a dry run on no memory."""
        return dry_flops(self, (1, self.channels, *size))

    def cost(self, length: int) -> Cost:
        """Cost formulas of a square image of `length` pixels, for each pixel."""
        side = max(round(math.sqrt(length)), 1)
        parameters = sum(p.numel() for p in self.parameters())
        return Cost(
            parameters=parameters,
            active_parameters=parameters,
            prefill_flops=self.flops((side, side)) / side**2,
            decode_flops=0.0,
            state_bytes=0,
        )
