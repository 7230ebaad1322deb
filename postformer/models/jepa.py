"""A model that predicts in latent space what it does not see: an encoder of some patches, and a narrow predictor of the others' embeddings.

I-JEPA: Assran et al. 2023 (arXiv 2301.08243, section 3), with `positions="sincos"` and mixers of `rope` false. V-JEPA: Bardes et al. 2024
(arXiv 2404.08471, section 3). V-JEPA 2: Assran et al. 2025 (arXiv 2506.09985, section 2), whose wiring the defaults have, with rotary
positions of three axes; weights that were published want `rope_pairs="tiled"` (`postformer.models.convert_pictures`). Any mixer may stand
in a layer of either.

b clips, c channels, f frames, h rows and w columns of pixels; n patches of a clip, k of them seen, q predicted; d model width. An image
is a clip of one frame, which is repeated to fill a patch.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from postformer.config import ConfigError, Spec
from postformer.ffn import FFNS
from postformer.mixers import PICTURES
from postformer.mixers.spacetime import SpacetimeAttention
from postformer.models.backbone import Backbone, Block, Cost, complete_pattern
from postformer.models.pictures import sincos
from postformer.ops.layers import Linear, Norm, checked_word, norm_of
from postformer.ops.packing import Packing
from postformer.ops.spacetime import grid_places
from postformer.tokens.patches import Grid, grid_of, patchify

ATTENTION: Spec = {"kind": "spacetime", "heads": 3, "bias": True}
NETWORK: Spec = {"kind": "mlp", "activation": "gelu", "bias": True}


class Jepa(nn.Module):
    """`encode` embeds patches of clips, all or some, in `dim` numbers; `predict` tells from those that were seen the embeddings of others,
    in `predictor_depth` layers of `predictor_dim`. What is predicted begins as one of `masks` learned tokens, one for each way of masking.
    `positions` are added to the tokens of both ("sincos": of rows and columns, and of frames where there are several) or left to the
    mixers ("none")."""

    tokens: None = None
    compute_dtype: torch.dtype | None = None

    def __init__(
        self,
        channels: int = 3,
        *,
        patch: tuple[int, int, int] = (2, 4, 4),
        dim: int = 192,
        depth: int = 6,
        mixers: tuple[Spec, ...] = (ATTENTION,),
        ffns: tuple[Spec, ...] = (NETWORK,),
        predictor_dim: int = 96,
        predictor_depth: int = 3,
        predictor_mixers: tuple[Spec, ...] = (ATTENTION,),
        predictor_ffns: tuple[Spec, ...] = (NETWORK,),
        masks: int = 2,
        positions: Literal["sincos", "none"] = "none",
        norm: Norm = "layer",
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        if min(channels, predictor_dim, masks, *patch) < 1:
            raise ValueError(
                f"channels={channels}, predictor_dim={predictor_dim}, masks={masks} and patch={patch} must be at least 1"
            )
        self.positions = checked_word("positions", positions, Literal["sincos", "none"])
        self.config: Spec = {
            "kind": "jepa",
            "channels": channels,
            "patch": list(patch),
            "dim": dim,
            "depth": depth,
            "mixers": complete_pattern(mixers, PICTURES, "model.mixers"),
            "ffns": complete_pattern(ffns, FFNS, "model.ffns"),
            "predictor_dim": predictor_dim,
            "predictor_depth": predictor_depth,
            "predictor_mixers": complete_pattern(predictor_mixers, PICTURES, "model.predictor_mixers"),
            "predictor_ffns": complete_pattern(predictor_ffns, FFNS, "model.predictor_ffns"),
            "masks": masks,
            "positions": positions,
            "norm": norm,
            "norm_eps": norm_eps,
        }
        self.channels, self.patch, self.dim = channels, patch, dim
        self.embed = Linear(channels * math.prod(patch), dim)
        stack = functools.partial(_stack, norm=norm, norm_eps=norm_eps)
        self.backbone = stack(dim, depth, mixers, ffns)
        self.squeeze = Linear(dim, predictor_dim)
        self.mask = nn.Parameter(torch.randn(masks, predictor_dim) * 0.02)
        self.mask.no_weight_decay = True  # type: ignore[attr-defined]
        try:
            self.predictor = stack(predictor_dim, predictor_depth, predictor_mixers, predictor_ffns)
        except ConfigError as e:
            raise ConfigError(str(e).replace("model.", "model.predictor_", 1)) from e
        self.head = Linear(predictor_dim, dim)

    def forward(self, clips: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b n d"]:
        """The embeddings of all patches."""
        return self.encode(clips)

    def encode(self, clips: Float[Tensor, "b c f h w"], seen: Int[Tensor, "b k"] | None = None) -> Float[Tensor, "b k d"]:
        """The embeddings of the patches that are `seen`, told by number in the order of the grid, or of all; they know nothing of the
        others. Raises ValueError for clips of other channels or sizes that the patch does not divide."""
        if clips.shape[1] != self.channels:
            raise ValueError(f"clips: they have {clips.shape[1]} channels, and the model takes {self.channels}")
        grid = self.grid(clips.shape[2:])
        patches = patchify(clips.expand(-1, -1, max(clips.shape[2], self.patch[0]), -1, -1), self.patch)
        packing = Packing(places=grid_places(grid, clips)[None], grid=grid)
        if seen is not None:
            patches = patches.gather(1, seen[..., None].expand(-1, -1, patches.shape[-1]))
            packing = Packing(places=grid_places(grid, clips)[seen])
        x = self.embed(self._cast(patches))
        x, _ = self.backbone(self._placed(x, packing, grid), None, packing)
        return x.to(clips.dtype)

    def predict(
        self, z: Float[Tensor, "b k d"], seen: Int[Tensor, "b k"], unseen: Int[Tensor, "b q"], grid: Grid, which: int = 0
    ) -> Float[Tensor, "b q d"]:
        """The embeddings of patches that are `unseen` from those that were `seen`; `which` of the learned tokens they begin as, counted
        around. Mixers read all in the order of the grid."""
        at = torch.cat([seen, unseen], 1)
        order = at.argsort(dim=1, stable=True)
        known = self.squeeze(self._cast(z))
        unknown = self.mask[which % len(self.mask)].to(known.dtype).expand(*unseen.shape, -1)
        packing = Packing(places=grid_places(grid, z)[at.gather(1, order)])
        x = torch.cat([known, unknown], 1).gather(1, order[..., None].expand(-1, -1, known.shape[-1]))
        x, _ = self.predictor(self._placed(x, packing, grid), None, packing)
        back = order.argsort(1)[:, seen.shape[1] :]
        return self.head(x.gather(1, back[..., None].expand(-1, -1, x.shape[-1]))).to(z.dtype)

    def grid(self, size: Sequence[int]) -> Grid:
        """The patches of a clip of (frames, rows, columns); one frame alone fills a patch. Raises ValueError with the nearest sizes where
        others do not."""
        return grid_of((self.patch[0] if size[0] == 1 else size[0], *size[1:]), self.patch)

    def _cast(self, x: Tensor) -> Tensor:
        return x if self.compute_dtype is None else x.to(self.compute_dtype)

    def _placed(self, x: Float[Tensor, "b t d"], packing: Packing, grid: Grid) -> Float[Tensor, "b t d"]:
        """With what is added for their places."""
        if self.positions == "none" or packing.places is None:
            return x
        return x + sincos(packing.places[..., 1 if grid[0] == 1 else 0 :], x.shape[-1]).to(x.dtype)

    def flops(self, size: Sequence[int]) -> int:
        """Floating-point operations of encoding a clip of (frames, rows, columns)."""
        grid = self.grid(size)
        length = math.prod(grid)
        parted = [block.mixer for block in self.backbone.blocks if isinstance(block.mixer, SpacetimeAttention)]
        spared = sum(mixer.flops(length) - mixer.clip_flops(grid) for mixer in parted)
        return round(self.cost(length).prefill_flops * length) - spared

    def predict_flops(self, seen: int, unseen: int) -> int:
        """Floating-point operations of predicting so many patches of a clip from so many."""
        ends = 2 * (seen * self.squeeze.weight.numel() + unseen * self.head.weight.numel())
        return self.predictor.flops(seen + unseen) + ends

    def cost(self, length: int) -> Cost:
        """Cost formulas of encoding `length` patches of a clip, for each, whether they are all or those that are seen; parameters are also
        those of the predictor, whose operations `predict_flops` tells."""
        parameters = sum(p.numel() for p in self.parameters())
        idle = self.backbone.idle_parameters() + self.predictor.idle_parameters()
        return Cost(
            parameters=parameters,
            active_parameters=parameters - idle,
            prefill_flops=self.backbone.flops(length) / length + 2 * self.embed.weight.numel(),
            decode_flops=0.0,
            state_bytes=0,
        )


def _stack(dim: int, depth: int, mixers: tuple[Spec, ...], ffns: tuple[Spec, ...], *, norm: Norm, norm_eps: float) -> Backbone:
    block = functools.partial(Block, norm=norm, norm_eps=norm_eps)
    return Backbone(dim, depth, mixers, ffns, norm_eps, kinds=PICTURES, block=block, norm=norm_of(norm, dim, norm_eps))
