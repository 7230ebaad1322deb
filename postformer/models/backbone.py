"""The stack: a pattern of mixers and per-token networks tiled over depth, pre-norm, with its cost formulas."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from postformer.config import ConfigError, Spec, UserError, build, complete
from postformer.ffn import FFNS
from postformer.mixers import MIXERS
from postformer.models.stepping import Stepping
from postformer.ops.layers import Norm, RMSNorm, norm_of, unaltered
from postformer.ops.packing import WHOLE, Packing

State = tuple[Any, ...]
DEEPEST = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model costs by formula, for one row of text."""

    parameters: int
    active_parameters: int
    """Parameters that one token uses."""
    prefill_flops: float
    """Floating-point operations a token while reading `length` tokens at once."""
    decode_flops: float
    """Floating-point operations of the one token after `length` others."""
    state_bytes: int
    """Bytes of the state after `length` tokens."""


class Block(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x)) where the pattern has one. With `layer_scale` each branch is multiplied by learned
    channels that begin there (Touvron et al. 2021, arXiv 2103.17239, eq. 3)."""

    mixer: Any
    ffn: Any

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        ffn: nn.Module | None,
        norm_eps: float,
        *,
        norm: Norm = "rms",
        layer_scale: float = 0.0,
    ):
        super().__init__()
        self.norm, self.mixer = norm_of(norm, dim, norm_eps), mixer
        # a mixer of another package may know nothing of packed rows
        self.packs = "packing" in inspect.signature(mixer.forward).parameters
        self.ffn_norm, self.ffn = (norm_of(norm, dim, norm_eps), ffn) if ffn is not None else (None, None)
        scales = [torch.full((dim,), layer_scale) if layer_scale and part is not None else None for part in (mixer, ffn)]
        self.scale, self.ffn_scale = (None if s is None else nn.Parameter(s) for s in scales)

    def forward(
        self, x: Float[Tensor, "b t d"], state: Any = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], Any]:
        """Residual stream in, residual stream and new state out."""
        y, state = self.mixer(self.norm(x), state, **told(self, packing))
        x = x + (y if self.scale is None else y * self.scale.to(y.dtype))
        if self.ffn is not None and self.ffn_norm is not None:
            y = self.ffn(self.ffn_norm(x))
            x = x + (y if self.ffn_scale is None else y * self.ffn_scale.to(y.dtype))
        return x, state


def told(block: Any, packing: Packing) -> dict[str, Packing]:
    """What a block's mixer is told of its rows. Raises UserError for rows that it cannot read."""
    if not packing.whole and not block.packs:
        raise UserError(
            f"{type(block.mixer).__name__}: its forward takes no `packing`, so it cannot read packed or padded rows"
        )
    return {"packing": packing} if block.packs and packing is not WHOLE else {}


def _plain(block: nn.Module) -> bool:
    return unaltered(block, Block) and block._parameters.get("scale") is None and block._parameters.get("ffn_scale") is None


class Backbone(nn.Module):
    """`mixers` and `ffns` are tiled over `depth`; `{"kind": "none"}` in `ffns` leaves a layer without one (as in Mamba).

    Three Mamba layers for each attention layer are `mixers=({"kind": "mamba"},) * 3 + ({"kind": "attention"},)`. `kinds` are the mixers
    to choose from; `block` makes another layer of a mixer and a network than `Block`, and `norm` is another last norm.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        mixers: tuple[Spec, ...],
        ffns: tuple[Spec, ...],
        norm_eps: float = 1e-5,
        *,
        kinds: Mapping[str, Any] = MIXERS,
        block: Callable[[int, nn.Module, nn.Module | None], nn.Module] | None = None,
        norm: nn.Module | None = None,
    ):
        super().__init__()
        if dim < 1 or not 1 <= depth <= DEEPEST:
            raise ConfigError(f"model: dim={dim} must be at least 1 and depth={depth} from 1 to {DEEPEST}")
        if not mixers or not ffns:
            raise ConfigError(f"model.{'ffns' if mixers else 'mixers'}: must not be empty")
        self.dim = dim
        self.blocks: Any = nn.ModuleList()
        for i in range(depth):
            m, f = i % len(mixers), i % len(ffns)
            mixer = build(mixers[m], kinds, f"model.mixers[{m}]", dim=dim)
            ffn = None if ffns[f].get("kind") == "none" else build(ffns[f], FFNS, f"model.ffns[{f}]", dim=dim)
            self.blocks.append(Block(dim, mixer, ffn, norm_eps) if block is None else block(dim, mixer, ffn))
        self.norm = RMSNorm(dim, norm_eps) if norm is None else norm
        self._stepping = Stepping()
        self._scale_residual_branches()

    @torch.no_grad()
    def _scale_residual_branches(self) -> None:
        """Divide each branch's last matrix by sqrt(number of branches) (Radford et al. 2019, section 2.3)."""
        branches = [b for block in self.blocks for b in (block.mixer, block.ffn) if b is not None]
        for branch in branches:
            last = [branch.out.weight] if isinstance(getattr(branch, "out", None), nn.Linear) else []
            for weight in branch.last_weights() if hasattr(branch, "last_weights") else last:
                weight.div_(len(branches) ** 0.5)

    def init_state(self, batch: int) -> State:
        """A fresh state: one entry a layer."""
        return tuple(block.mixer.init_state(batch) for block in self.blocks)

    def forward(
        self, x: Float[Tensor, "b t d"], state: State | None = None, packing: Packing = WHOLE, *more: Any
    ) -> tuple[Float[Tensor, "b t d"], State | None]:
        """Through all layers, each of which is given what there is `more`, and the last norm.

        Raises ValueError for a state of another number of layers, and when `packing` says that a row has more tokens than there are.
        """
        if state is not None and len(state) != len(self.blocks):
            raise ValueError(f"state: it is of {len(state)} layers, and the model has {len(self.blocks)}")
        if packing.lengths is not None and not bool(((packing.lengths >= 0) & (packing.lengths <= x.shape[1])).all()):
            raise ValueError(f"packing.lengths: expected 0 to {x.shape[1]} tokens a row, got {packing.lengths.tolist()}")
        blocks, after = list(self.blocks), []
        token = state is not None and packing.whole and packing.places is None and x.shape[1] == 1
        while (i := len(after)) < len(blocks):
            step, layers = self._stepping.run(x, i, self.blocks, _plain) if token else (None, [])
            here = blocks[i : i + max(len(layers), 1)]
            before = [None] * len(here) if state is None else state[i : i + len(here)]
            if step is not None and (stepped := step(x, before, layers)) is not None:
                x, states = stepped
                after += states
                continue
            for block, s in zip(here, before, strict=True):
                x, s = block(x, s, packing, *more)
                after.append(s)
        return self.norm(x), None if state is None else tuple(after)

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of `length` new tokens after `past` others; norms and residual sums are left out."""
        return sum(b.mixer.flops(length, past) + (b.ffn.flops(length) if b.ffn is not None else 0) for b in self.blocks)

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """Bytes of one row's state after `length` tokens."""
        return sum(b.mixer.state_bytes(length, itemsize) for b in self.blocks)

    def touched_parameters(self, batch: int) -> float:
        """Parameters that a step of one token in each of `batch` rows reads, where tokens choose experts evenly and apart: of E experts of
        which a token takes k, E (1 - (1 - k/E)^batch)."""
        ffns = [b.ffn for b in self.blocks if b.ffn is not None]
        idle = 0.0
        for ffn in ffns:
            unused = sum(p.numel() for p in ffn.parameters()) - ffn.active_parameters()
            share = getattr(ffn, "chosen_share", 1.0)
            idle += unused * (1 - share) ** (batch - 1)
        return sum(p.numel() for p in self.parameters()) - idle

    def idle_parameters(self) -> int:
        """Parameters that a token does not use (experts that it is not sent to)."""
        ffns = [b.ffn for b in self.blocks if b.ffn is not None]
        return sum(sum(p.numel() for p in f.parameters()) - f.active_parameters() for f in ffns)


def complete_pattern(pattern: tuple[Spec, ...], table: dict[str, Any], where: str) -> list[Spec]:
    """The pattern with every default written out."""
    return [s if s.get("kind") == "none" else complete(s, table, f"{where}[{i}]", "dim") for i, s in enumerate(pattern)]
