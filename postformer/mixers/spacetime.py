"""Attention among the patches of images and videos, whose positions have several axes.

Full attention over spacetime patches: Brooks et al. 2024 (Sora's report) and Peebles & Xie 2023 (arXiv 2212.09748); factorised into space
and time: Arnab et al. 2021 (arXiv 2103.15691, model 3); causal over frames, as diffusion forcing rolls out: Chen et al. 2024 (arXiv
2407.01392). Rotary positions of each axis: `postformer.ops.spacetime`. Without them it is ViT's attention (Dosovitskiy et al. 2020, arXiv
2010.11929), whose positions are added to the tokens.

b batch, t tokens, h query heads, g key/value heads, e head width, s tokens of the cache, a axes.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from postformer.ops.attention import read_whole
from postformer.ops.layers import Linear, RMSNorm, checked_eps, checked_word, head_width
from postformer.ops.packing import WHOLE, Packing
from postformer.ops.spacetime import Pairs, Reach, documents_apart, grid_places, rotate, sees


class SpacetimeState(NamedTuple):
    """Keys (rotated) and values of the tokens of whole frames that were read, and their places."""

    k: Float[Tensor, "b s g e"]
    v: Float[Tensor, "b s g e"]
    places: Float[Tensor, "b s a"]


class SpacetimeAttention(nn.Module):
    """`reach` says what a token sees of its clip: "all" of it, its "frame", its "place" in every frame, or the "past": its frame and those
    before, of which a `window` keeps the last frames, its own among them. `kv_heads` divides `heads`; `qk_norm` normalises queries and keys
    of each head; `bias` gives queries, keys, values and the output biases; without `rope` tokens carry their positions themselves;
    `rope_pairs` "tiled" turns coordinates as V-JEPA 2 does (`postformer.ops.spacetime.tiled`).

    Only "past" has a state, and its laws hold for pieces that are whole frames: a frame's tokens see each other.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        reach: Reach = "all",
        window: int | None = None,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        bias: bool = False,
        rope: bool = True,
        rope_base: float = 1e4,
        rope_pairs: Pairs = "halves",
    ):
        super().__init__()
        self.heads, self.groups = heads, kv_heads or heads
        self.width = head_width(dim, heads, kv_heads, head_dim)
        self.reach: Reach = checked_word("reach", reach, Reach)  # type: ignore[assignment]
        if window is not None and (reach != "past" or window < 1):
            raise ValueError(f"window={window} must be at least 1 frame, and goes with reach='past'; reach is {reach!r}")
        if rope_base <= 0:
            raise ValueError(f"rope_base={rope_base} must be above 0")
        self.window, self.rope, self.rope_base = window, rope, rope_base
        self.rope_pairs: Pairs = checked_word("rope_pairs", rope_pairs, Pairs)  # type: ignore[assignment]
        self.q = Linear(dim, heads * self.width, bias=bias)
        self.k = Linear(dim, self.groups * self.width, bias=bias)
        self.v = Linear(dim, self.groups * self.width, bias=bias)
        self.out = Linear(heads * self.width, dim, bias=bias)
        eps = checked_eps(norm_eps)
        self.q_norm, self.k_norm = (RMSNorm(self.width, eps) if qk_norm else nn.Identity() for _ in "qk")

    def init_state(self, batch: int) -> SpacetimeState:
        """Nothing read yet. Raises ValueError where tokens see what comes after them."""
        if self.reach != "past":
            raise ValueError(f"a mixer with reach={self.reach!r} sees what comes later and has no state; take reach='past'")
        like = {"device": self.out.weight.device, "dtype": self.out.weight.dtype}
        k, v = (torch.zeros(batch, 0, self.groups, self.width, **like) for _ in "kv")
        return SpacetimeState(k, v, torch.zeros(batch, 0, 3, device=like["device"]))

    def forward(
        self, x: Float[Tensor, "b t d"], state: SpacetimeState | None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], SpacetimeState | None]:
        """Attend among the tokens and, with a state, to those that it holds; `packing.places` says where they lie (without it they are one
        line). Raises ValueError for a state that is given to a mixer that sees the future, or with packed rows."""
        if not x.numel():
            return x, state
        q, k, v = (m(x).unflatten(-1, (-1, self.width)) for m in (self.q, self.k, self.v))
        q, k = self.q_norm(q), self.k_norm(k)
        places = packing.places if packing.places is not None else grid_places((1, 1, x.shape[1]), x)[None]
        if self.rope:
            turned = rotate(torch.cat([q, k], 2), places, self.rope_base, self.rope_pairs)
            q, k = turned.split([self.heads, self.groups], 2)
        if state is not None:
            y, state = self._after(q, k, v, places.expand(len(x), -1, -1), state, packing)
        elif self.reach in ("frame", "place") and packing.whole and packing.grid and math.prod(packing.grid) == x.shape[1]:
            y = self._by_parts(q, k, v, packing.grid)
        else:
            y = read(q, k, v, self._mask(places, packing))
        return self.out(y.flatten(2)), state

    def _mask(self, places: Float[Tensor, "b t a"], packing: Packing) -> Bool[Tensor, "b t t"] | None:
        """Who sees whom; None where all see all."""
        within = None if packing.whole else documents_apart(packing.documents(places.shape[1]), packing.real(places.shape[1]))
        one_frame = packing.grid is not None and packing.grid[0] == 1
        if self.reach == "all" or (one_frame and self.reach != "place"):
            return within
        reached = sees(self.reach, places, places, self.window)
        return reached if within is None else reached & within

    def _by_parts(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int, int]) -> Float[Tensor, "b t h e"]:
        """Each frame, or each place over time, as a row of its own."""
        frames, patches = grid[0], grid[1] * grid[2]
        parts = [m.unflatten(1, (frames, patches)) for m in (q, k, v)]
        if self.reach == "place":
            parts = [m.transpose(1, 2) for m in parts]
        y = read(*(m.flatten(0, 1) for m in parts), None).unflatten(0, parts[0].shape[:2])
        return (y.transpose(1, 2) if self.reach == "place" else y).flatten(1, 2)

    def _after(
        self, q: Tensor, k: Tensor, v: Tensor, places: Tensor, state: SpacetimeState, packing: Packing
    ) -> tuple[Tensor, SpacetimeState]:
        """Read the state and the new tokens, then keep the last frames. New tensors each time: the old state stays as it was."""
        if self.reach != "past" or not packing.whole:
            what = f"reach={self.reach!r}" if self.reach != "past" else "packed or padded rows"
            raise ValueError(f"spacetime attention with {what} takes no state")
        before = state.places if state.k.shape[1] else places[:, :0]
        k, v = torch.cat([state.k.to(k.dtype), k], 1), torch.cat([state.v.to(v.dtype), v], 1)
        at = torch.cat([before, places], 1)
        y = read(q, k, v, sees("past", places, at, self.window))
        return y, self._kept(SpacetimeState(k, v, at))

    def _kept(self, state: SpacetimeState) -> SpacetimeState:
        """Of a window's frames what the next frame can see: one frame less, and what lies nowhere."""
        if self.window is None:
            return state
        frame = state.places[..., 0]
        seen = (frame > frame[:, -1:] - (self.window - 1)) | (frame < 0)
        if not bool((seen == seen[:1]).all()):
            raise ValueError(
                "rows of one state must hold as many tokens a frame; keep clips of other sizes in states of their own"
            )
        return SpacetimeState(*(x[:, seen[0]] for x in state))

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of `length` tokens of one frame after `past` others; of "frame" and "place" as if all were seen."""
        weights = sum(m.weight.numel() for m in (self.q, self.k, self.v, self.out))
        return 2 * length * weights + 4 * length * (past + length) * self.heads * self.width

    def clip_flops(self, grid: tuple[int, int, int]) -> int:
        """Floating-point operations of a clip of (frames, rows, columns) of tokens: a frame, or a place over time, is a row of its own."""
        frames, patches = grid[0], grid[1] * grid[2]
        if self.reach == "frame":
            return frames * self.flops(patches)
        return patches * self.flops(frames) if self.reach == "place" else self.flops(frames * patches)

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """Bytes of one row's state after `length` tokens, were all kept; 0 where there is none."""
        return length * (2 * self.groups * self.width * itemsize + 12) if self.reach == "past" else 0


def read(
    q: Float[Tensor, "b t h e"], k: Float[Tensor, "b s g e"], v: Float[Tensor, "b s g e"], mask: Bool[Tensor, "b2 t s"] | None
) -> Float[Tensor, "b t h e"]:
    """softmax(q k^T / sqrt(e)) v over the keys that the mask lets be seen."""
    shared = q.shape[2] // k.shape[2]
    if shared > 1:
        k, v = k.repeat_interleave(shared, 2), v.repeat_interleave(shared, 2)
    return read_whole(q, k, v, mask)
