"""Diffusion transformers: noisy images and videos in, what they are made of out.

DiT: Peebles & Xie 2023 (arXiv 2212.09748, section 3.2); spacetime patches: Brooks et al. 2024 (Sora's report); a time of its own for
each frame: Chen et al. 2024 (diffusion forcing, arXiv 2407.01392); a bottleneck before the tokens, which large patches of pixels want:
Li & He 2025 (JiT, arXiv 2511.13720, section 4.2). Any mixer or network may stand in a layer: `ffns=({"kind": "moe"},)` is DiT-MoE
(arXiv 2407.11633), `mixers=({"kind": "scan", "mixer": {"kind": "mamba"}},)` a diffusion Mamba, `({"kind": "spacetime", "reach":
"frame"}, {"kind": "spacetime", "reach": "place"})` factorised (Latte, arXiv 2401.03048) and `reach="past"` causal over frames, with a
state.

b clips, c channels, f frames, h rows and w columns of pixels, t tokens, l tokens of a text, d model width. An image is a clip of one frame.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from postformer.config import Spec
from postformer.ffn import FFNS
from postformer.mixers import PICTURES
from postformer.mixers.spacetime import SpacetimeAttention
from postformer.models.backbone import Backbone, Cost, State, complete_pattern
from postformer.models.conditioned import (
    Condition,
    ConditionedBlock,
    Modulation,
    TimeEmbedding,
    hinted,
    stride_embedding,
    told_of,
)
from postformer.models.pictures import sincos
from postformer.ops.layers import Embedding, Linear, Norm, checked_word, norm_of
from postformer.ops.modulate import modulated_norm
from postformer.ops.packing import Packing
from postformer.ops.spacetime import NOWHERE, grid_places
from postformer.tokens.patches import Grid, Packed, grid_of, pack, patchify, unpatchify


class DiT(nn.Module):
    """`channels` of pixels in and `outputs` out, by default as many, for patches of `patch` = (frames, rows, columns).

    `classes` above 0 takes labels, of which `classes` itself means none is told; `vocab` above 0 takes texts, whose tokens stand before
    the patches; a token of `vocab` says nothing. `positions` are added to the tokens ("sincos") or left to the mixers ("none"). With
    `bottleneck` above 0 a patch is first squeezed to so many numbers. With `strides` the model is told how far a step of sampling will
    go, and can learn to take few of them (shortcut models: Frans et al. 2024, arXiv 2410.12557). With `hints` each frame is also shown so
    many of the known frames nearest to it (`hinted`); there is no state then.
    """

    tokens: None = None
    compute_dtype: torch.dtype | None = None

    def __init__(
        self,
        channels: int = 3,
        *,
        patch: tuple[int, int, int] = (1, 4, 4),
        dim: int = 192,
        depth: int = 6,
        mixers: tuple[Spec, ...] = ({"kind": "spacetime", "heads": 3, "qk_norm": True},),
        ffns: tuple[Spec, ...] = ({"kind": "mlp"},),
        classes: int = 0,
        vocab: int = 0,
        outputs: int | None = None,
        bottleneck: int = 0,
        strides: bool = False,
        hints: int = 0,
        positions: Literal["sincos", "none"] = "none",
        norm: Norm = "rms",
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        outputs = channels if outputs is None else outputs
        if min(channels, outputs, *patch) < 1 or min(classes, vocab, bottleneck, hints) < 0:
            raise ValueError(
                f"channels={channels}, outputs={outputs} and patch={patch} must be at least 1; classes={classes}, vocab={vocab}, "
                f"bottleneck={bottleneck} and hints={hints} at least 0"
            )
        self.positions = checked_word("positions", positions, Literal["sincos", "none"])
        self.config: Spec = {
            "kind": "dit",
            "channels": channels,
            "patch": list(patch),
            "dim": dim,
            "depth": depth,
            "mixers": complete_pattern(mixers, PICTURES, "model.mixers"),
            "ffns": complete_pattern(ffns, FFNS, "model.ffns"),
            "classes": classes,
            "vocab": vocab,
            "outputs": outputs,
            "bottleneck": bottleneck,
            "strides": strides,
            "hints": hints,
            "positions": positions,
            "norm": norm,
            "norm_eps": norm_eps,
        }
        self.channels, self.outputs, self.patch, self.dim = channels, outputs, patch, dim
        self.classes, self.vocab, self.hints = classes, vocab, hints
        pixels = math.prod(patch)
        inputs = pixels * (channels + hints * (channels + 1))
        self.squeeze = Linear(inputs, bottleneck, bias=False) if bottleneck else None
        self.embed = Linear(bottleneck or inputs, dim)
        if hints:
            with torch.no_grad():  # what is shown beside has no say at the start
                (self.squeeze or self.embed).weight[:, channels * pixels :] = 0
        self.time = TimeEmbedding(dim)
        self.stride = stride_embedding(dim) if strides else None
        self.label = Embedding(classes + 1, dim) if classes else None
        self.text = Embedding(vocab + 1, dim) if vocab else None
        block = functools.partial(ConditionedBlock, condition=dim, norm=norm, norm_eps=norm_eps)
        self.backbone = Backbone(dim, depth, mixers, ffns, norm_eps, kinds=PICTURES, block=block, norm=nn.Identity())
        self.norm = norm_of(norm, dim, norm_eps, affine=False)
        self.modulation = Modulation(dim, dim, 2)
        self.head = Linear(dim, outputs * pixels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def init_state(self, batch: int) -> State:
        """Nothing seen yet. Raises ValueError where a mixer sees what comes later, or known frames are shown beside others."""
        if self.hints:
            raise ValueError(f"hints={self.hints}: known frames may lie in earlier pieces of a clip, so there is no state")
        return self.backbone.init_state(batch)

    def forward(
        self,
        clips: Float[Tensor, "b c f h w"],
        time: Float[Tensor, "b *f2"],
        *,
        label: Int[Tensor, " b"] | None = None,
        text: Int[Tensor, "b l"] | None = None,
        stride: Float[Tensor, " b"] | None = None,
        state: State | None = None,
        first: int = 0,
    ) -> tuple[Float[Tensor, "b o f h w"], State | None]:
        """What the network says of clips that are noisy as of `time` (0 noise, 1 data), one time a clip or one a frame of pixels, and
        the state after them, if one was given. The first frame is the `first` of the whole video, in frames of pixels.

        Raises ValueError for a clip that the patch does not divide, for frames of one patch that have not one time, for labels and
        texts that the model does not take, and for text with a state that has read some already.
        """
        grid = self._checked(clips, time, label, text)
        times = time[:, None] if time.ndim == 1 else time[:, :: self.patch[0]]
        if state is not None and self.hints:
            raise ValueError(f"state: with hints={self.hints} there is none")
        shown = hinted(clips, time, self.hints) if self.hints else clips
        x, places = self._tokens(patchify(shown, self.patch)), grid_places(grid, clips)
        places[:, 0] += first / self.patch[0]
        values = told_of(self, times, label, stride).flatten(0, 1)
        packing, of = Packing(places=places[None], grid=grid), None
        if self.positions == "sincos":
            x = x + self._added(places).to(x.dtype)
        if self.text is not None and text is not None:
            if first:
                raise ValueError("text: it stands before the first frame; a state that goes on holds it already")
            x, packing, of = self._after_text(x, text, packing, times.shape[1])
        condition = Condition(values.to(x.dtype), of)
        x, state = self.backbone(x, state, packing, condition)
        made = self._ended(x, condition)[:, -math.prod(grid) :]
        return unpatchify(made, grid, self.patch).to(clips.dtype), state

    def packed(
        self,
        clips: Sequence[Tensor],
        times: Sequence[Tensor],
        label: Int[Tensor, " n"] | None = None,
        text: Int[Tensor, "n l"] | None = None,
        length: int | None = None,
    ) -> list[Tensor]:
        """As `forward` for clips of any sizes, side by side in rows of `length` tokens; `times` are of a clip or of its frames. Raises
        ValueError as `forward` does, and where there are not as many times, labels or texts as clips."""
        told = {"times": times, "labels": label, "texts": text}
        if wrong := [f"{len(of)} {name}" for name, of in told.items() if of is not None and len(of) != len(clips)]:
            raise ValueError(f"packed: {len(clips)} clips with {' and '.join(wrong)}; expected as many")
        for clip, t in zip(clips, times, strict=True):
            self._checked(clip[None], t[None], label, text)
        shown = clips
        if self.hints:
            pairs = zip(clips, times, strict=True)
            shown = [hinted(clip[None], t[None].expand(1, *t.shape), self.hints)[0] for clip, t in pairs]
        packed = pack(shown, self.patch, length, prefix=0 if text is None else text.shape[1])
        frames = [at.grid[0] for at in packed.clips]
        own = [t.expand(f) if t.ndim == 0 else t[:: self.patch[0]] for t, f in zip(times, frames, strict=True)]
        labels = None if label is None else label.repeat_interleave(torch.tensor(frames, device=label.device))
        values = told_of(self, torch.cat(own)[:, None], labels, None).flatten(0, 1)
        x = self._tokens(packed.tokens)
        if self.positions == "sincos" and packed.packing.places is not None:
            x = x + self._added(packed.packing.places).to(x.dtype)
        if text is not None:
            x = packed.prefixed(x, self._worded(text).to(x.dtype))
        condition = Condition(values.to(x.dtype), _condition_of(packed, frames))
        x, _ = self.backbone(x, None, packed.packing, condition)
        made = packed.unpacked(self._ended(x, condition), self.patch)
        return [clip.to(clips[0].dtype) for clip in made]

    def _tokens(self, patches: Float[Tensor, "b t p"]) -> Float[Tensor, "b t d"]:
        x = patches if self.compute_dtype is None else patches.to(self.compute_dtype)
        return self.embed(x if self.squeeze is None else self.squeeze(x))

    def _added(self, places: Float[Tensor, "*b t 3"]) -> Float[Tensor, "*b t d"]:
        """Fixed positions of rows and columns, as DiT has; frames are told apart by the mixers."""
        return sincos(places[..., 1:], self.dim)

    def _after_text(
        self, x: Float[Tensor, "b t d"], text: Int[Tensor, "b l"], packing: Packing, frames: int
    ) -> tuple[Float[Tensor, "b t2 d"], Packing, Int[Tensor, "b t2"]]:
        """The text's tokens first, which lie nowhere and are told what the first frame is."""
        assert packing.places is not None
        (b, t, _), length = x.shape, text.shape[1]
        before = self._worded(text).to(x.dtype)
        nowhere = packing.places.new_zeros(1, length, 3)
        nowhere[..., 0] = NOWHERE
        frame = torch.arange(frames, device=x.device).repeat_interleave(t // frames)
        of = torch.cat([frame.new_zeros(length), frame]) + frames * torch.arange(b, device=x.device)[:, None]
        return torch.cat([before, x], 1), packing._replace(places=torch.cat([nowhere, packing.places], 1)), of

    def _worded(self, text: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """The tokens of texts, which are told in which order they stand."""
        assert self.text is not None
        place = torch.arange(text.shape[1], device=text.device, dtype=torch.float32)[:, None]
        return self.text(text) + sincos(place, self.dim)

    def _ended(self, x: Float[Tensor, "b t d"], condition: Condition) -> Float[Tensor, "b t p"]:
        shift, scale = condition.parts(self.modulation, 2, len(x))
        return self.head(modulated_norm(self.norm, x, shift, scale))

    def _checked(self, clips: Tensor, time: Tensor, label: Tensor | None, text: Tensor | None) -> Grid:
        if clips.shape[1] != self.channels:
            raise ValueError(f"clips: they have {clips.shape[1]} channels, and the model takes {self.channels}")
        if (label is not None and self.label is None) or (text is not None and self.text is None):
            raise ValueError(f"the model takes no {'label' if text is None or self.text is not None else 'text'}")
        grid = self.grid(clips.shape[2:])
        if time.ndim > 1:
            if time.shape[1] != clips.shape[2]:
                raise ValueError(f"time: expected one a clip, or one for each of {clips.shape[2]} frames, got {time.shape[1]}")
            runs = time.unflatten(1, (grid[0], self.patch[0]))
            if self.patch[0] > 1 and not bool((runs == runs[..., :1]).all()):
                raise ValueError(f"time: the {self.patch[0]} frames of a patch must have one time")
        return grid

    def grid(self, size: Sequence[int]) -> Grid:
        """The patches of a clip of (frames, rows, columns). Raises ValueError with the nearest sizes where they do not fill it."""
        return grid_of(size, self.patch)

    def flops(self, size: Sequence[int]) -> int:
        """Floating-point operations of a clip of (frames, rows, columns)."""
        grid = self.grid(size)
        length = math.prod(grid)
        parted = [block.mixer for block in self.backbone.blocks if isinstance(block.mixer, SpacetimeAttention)]
        spared = sum(mixer.flops(length) - mixer.clip_flops(grid) for mixer in parted)
        return round(self.cost(length).prefill_flops * length) - spared

    def cost(self, length: int) -> Cost:
        """Cost formulas of a clip of `length` patches, for each; time, label and modulation are once a clip, or a frame."""
        parameters = sum(p.numel() for p in self.parameters())
        ends = [self.embed, self.head, *([] if self.squeeze is None else [self.squeeze])]
        once = (
            sum(m.weight.numel() for m in self.modules() if isinstance(m, Modulation))
            + self.time.up.weight.numel()
            + self.time.out.weight.numel()
        )
        each = 2 * sum(m.weight.numel() for m in ends)
        return Cost(
            parameters=parameters,
            active_parameters=parameters - self.backbone.idle_parameters(),
            prefill_flops=(self.backbone.flops(length) + 2 * once) / length + each,
            decode_flops=0.0,
            state_bytes=self.backbone.state_bytes(length, self.embed.weight.element_size()),
        )


def _condition_of(packed: Packed, frames: list[int]) -> Int[Tensor, "b n"]:
    """For each token the number of its clip's frame among all frames; 0 at padding."""
    assert packed.packing.places is not None
    begins = torch.tensor([0, *frames], device=packed.clip.device).cumsum(0)
    frame = packed.packing.places[..., 0].long().clamp(min=0)
    return torch.where(packed.clip < 0, 0, begins[packed.clip.clamp(min=0)] + frame)
