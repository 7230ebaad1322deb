"""Vision Transformer and its kin: an image as a row of patches, a class out.

Dosovitskiy et al. 2020 (arXiv 2010.11929, section 3.1); registers: Darcet et al. 2023 (arXiv 2309.16588); mean over patches and fixed
positions: Beyer et al. 2022 (arXiv 2205.01580); images of any sizes in one row: Dehghani et al. 2023 (arXiv 2307.06304). With the
defaults it is ViT; `mixers=({"kind": "scan", "mixer": {"kind": "mamba"}},)` makes it Vision Mamba and `ffns=({"kind": "moe"},)` V-MoE
(Riquelme et al. 2021).

b images, c channels, h rows and w columns of pixels, t tokens, d model width, k classes.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from postformer.config import Spec
from postformer.ffn import FFNS
from postformer.mixers import PICTURES
from postformer.models.backbone import Backbone, Block, Cost, complete_pattern
from postformer.models.pictures import pair, resized, sincos
from postformer.ops.layers import Linear, Norm, checked_word, norm_of
from postformer.ops.packing import Packing
from postformer.ops.spacetime import NOWHERE, grid_places
from postformer.tokens.patches import Grid, grid_of, pack, patchify

Positions = Literal["learned", "sincos", "none"]
Pool = Literal["class", "mean"]


class ViT(nn.Module):
    """Images [b, c, h, w], or a list of images of any sizes, to logits of `classes`.

    `size` is that for which positions are learned: at another they are interpolated. `pool` reads the class token, or the mean over
    patches; `registers` are further learned tokens that see all and are not read. `layer_scale` above 0 begins every branch so small
    (DINOv2: 1e-5). Raises ValueError for sizes that the patch does not divide.
    """

    tokens: None = None
    compute_dtype: torch.dtype | None = None

    def __init__(
        self,
        classes: int,
        size: tuple[int, int],
        *,
        channels: int = 3,
        patch: tuple[int, int] = (4, 4),
        dim: int = 192,
        depth: int = 6,
        mixers: tuple[Spec, ...] = ({"kind": "spacetime", "heads": 3, "rope": False, "bias": True},),
        ffns: tuple[Spec, ...] = ({"kind": "mlp", "activation": "gelu", "bias": True},),
        positions: Positions = "learned",
        pool: Pool = "class",
        registers: int = 0,
        norm: Norm = "layer",
        norm_eps: float = 1e-6,
        layer_scale: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if classes < 1 or channels < 1 or registers < 0 or layer_scale < 0:
            raise ValueError(
                f"classes={classes} and channels={channels} must be at least 1, registers={registers} and "
                f"layer_scale={layer_scale} at least 0"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be at least 0 and below 1")
        self.positions = checked_word("positions", positions, Positions)
        self.pool = checked_word("pool", pool, Pool)
        self.config: Spec = {
            "kind": "vit",
            "classes": classes,
            "size": list(size),
            "channels": channels,
            "patch": list(patch),
            "dim": dim,
            "depth": depth,
            "mixers": complete_pattern(mixers, PICTURES, "model.mixers"),
            "ffns": complete_pattern(ffns, FFNS, "model.ffns"),
            "positions": positions,
            "pool": pool,
            "registers": registers,
            "norm": norm,
            "norm_eps": norm_eps,
            "layer_scale": layer_scale,
            "dropout": dropout,
        }
        self.patch = (1, *pair(patch, "patch"))
        _, rows, columns = grid_of((1, *pair(size, "size")), self.patch)
        self.dim, self.channels = dim, channels
        self.prefix = registers + (pool == "class")
        self.embed = Linear(channels * math.prod(self.patch), dim)
        self.places = nn.Parameter(torch.randn(rows, columns, dim) * 0.02) if positions == "learned" else None
        self.first = nn.Parameter(torch.randn(self.prefix, dim) * 0.02) if self.prefix else None
        for table in (self.places, self.first):
            if table is not None:
                table.no_weight_decay = True  # type: ignore[attr-defined]
        block = functools.partial(Block, norm_eps=norm_eps, norm=norm, layer_scale=layer_scale)
        last = norm_of(norm, dim, norm_eps)
        self.backbone = Backbone(dim, depth, mixers, ffns, norm_eps, kinds=PICTURES, block=block, norm=last)
        self.dropout = nn.Dropout(dropout)
        self.head = Linear(dim, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Float[Tensor, "b c h w"] | Sequence[Tensor]) -> Float[Tensor, "b k"]:
        """Logits of each class."""
        return self.head(self.features(images)).to(torch.float32)

    def features(self, images: Float[Tensor, "b c h w"] | Sequence[Tensor]) -> Float[Tensor, "b d"]:
        """What the head reads of each image. Raises ValueError for images of other channels or sizes that the patch does not divide."""
        if not isinstance(images, Tensor):
            return self._packed(images)
        x, grid = self.hidden(images)
        return x[:, 0] if self.pool == "class" else x[:, -math.prod(grid) :].mean(1)

    def hidden(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b t d"], Grid]:
        """The last hidden vectors, of the class token and the registers first, and the grid of the patches after them."""
        self._check(images)
        patches = patchify(images[:, :, None], self.patch)
        grid = grid_of((1, *images.shape[2:]), self.patch)
        x, places = self._embedded(patches, grid), grid_places(grid, images)
        if self.first is not None:
            x = torch.cat([self.first.to(x.dtype).expand(len(x), -1, -1), x], 1)
            places = torch.cat([self._nowhere(places), places])
        return self.backbone(self.dropout(x), None, Packing(places=places[None], grid=grid))[0], grid

    def _packed(self, images: Sequence[Tensor]) -> Float[Tensor, "b d"]:
        for image in images:
            self._check(image[None])
        packed = pack([image[:, None] for image in images], self.patch, prefix=self.prefix)
        x = self.embed(packed.tokens if self.compute_dtype is None else packed.tokens.to(self.compute_dtype))
        added = torch.zeros_like(x)
        for at in packed.clips:
            if (positions := self._positions(at.grid)) is not None:
                added[at.row, at.patches] = positions.to(x.dtype)
        x = x + added
        if self.first is not None:
            begins = [slice(at.first - self.prefix, at.first) for at in packed.clips]
            x = x.clone()
            for at, begin in zip(packed.clips, begins, strict=True):
                x[at.row, begin] = self.first.to(x.dtype)
        x, _ = self.backbone(self.dropout(x), None, packed.packing)
        if self.pool == "class":
            return torch.stack([x[at.row, at.first - self.prefix] for at in packed.clips])
        return torch.stack([x[at.row, at.patches].mean(0) for at in packed.clips])

    def _embedded(self, patches: Float[Tensor, "b t p"], grid: Grid) -> Float[Tensor, "b t d"]:
        x = self.embed(patches if self.compute_dtype is None else patches.to(self.compute_dtype))
        positions = self._positions(grid)
        return x if positions is None else x + positions.to(x.dtype)

    def _positions(self, grid: Grid) -> Float[Tensor, "t d"] | None:
        if self.places is not None:
            return resized(self.places, *grid[1:]).flatten(0, 1)
        return sincos(grid_places(grid, self.embed.weight)[:, 1:], self.dim) if self.positions == "sincos" else None

    def _nowhere(self, places: Tensor) -> Tensor:
        there = places.new_zeros(self.prefix, 3)
        there[:, 0] = NOWHERE
        return there

    def _check(self, images: Tensor) -> None:
        if images.shape[1] != self.channels:
            raise ValueError(f"images: they have {images.shape[1]} channels, and the model takes {self.channels}")

    def flops(self, size: tuple[int, int]) -> int:
        """Floating-point operations of an image of (rows, columns)."""
        length = math.prod(grid_of((1, *size), self.patch))
        return round(self.cost(length).prefill_flops * (length + self.prefix))

    def cost(self, length: int) -> Cost:
        """Cost formulas of an image of `length` patches, for each of its tokens; the head reads one vector an image."""
        parameters = sum(p.numel() for p in self.parameters())
        tokens = length + self.prefix
        ends = 2 * (length * self.embed.weight.numel() + self.head.weight.numel())
        return Cost(
            parameters=parameters,
            active_parameters=parameters - self.backbone.idle_parameters(),
            prefill_flops=(self.backbone.flops(tokens) + ends) / tokens,
            decode_flops=0.0,
            state_bytes=0,
        )
