"""How tokens exchange information along time."""

from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from postformer.mixers.attention import Attention
from postformer.mixers.delta import GatedDelta
from postformer.mixers.mamba import Mamba
from postformer.mixers.mamba2 import Mamba2
from postformer.mixers.mamba3 import Mamba3
from postformer.mixers.mingru import MinGRU
from postformer.mixers.scan_order import Scan
from postformer.mixers.spacetime import SpacetimeAttention
from postformer.mixers.titans import LMM
from postformer.mixers.titans_attention import MAC, MAG, MAL
from postformer.ops.packing import Packing


class Mixer(Protocol):
    """The contract of a mixer, which is also an `nn.Module`; the laws of its state stand in `postformer.state`.

    A class may also have `Steps`, whose objects take one token through several layers in one call, those that its `layers(blocks)` names
    (see `MambaSteps` and `BlockSteps`).
    """

    def __init__(self, dim: int, **options: Any) -> None: ...

    def init_state(self, batch: int) -> Any:
        """A fresh state: zeros, made from shapes only."""
        ...

    def forward(
        self, x: Float[Tensor, "b t d"], state: Any = None, packing: Packing = ...
    ) -> tuple[Float[Tensor, "b t d"], Any]:
        """One path for training, prefill, decoding and resuming; without a state none is returned. `packing` tells where
        documents begin and rows end."""
        ...

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of one row's `length` new tokens after `past` others."""
        ...

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """Bytes of one row's state after `length` tokens."""
        ...


MIXERS: dict[str, Any] = {
    "attention": Attention,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "mamba3": Mamba3,
    "gated_delta": GatedDelta,
    "mingru": MinGRU,
    "lmm": LMM,
    "mac": MAC,
    "mag": MAG,
    "mal": MAL,
}
"""Mixers along one line, causal, with a state."""

PICTURES: dict[str, Any] = {"spacetime": SpacetimeAttention, "scan": Scan, **MIXERS}
"""Mixers of images and videos, most of which see what comes later."""
