"""A mixer of texts over images and videos: the patches in another order, or read backward, or both ways.

Both ways: Zhu et al. 2024 (Vision Mamba, arXiv 2401.09417, section 3.3); another order in each layer: Hu et al. 2024 (ZigMa, arXiv
2403.13802, section 3.2).

b batch, t tokens, d model width.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from postformer import mixers
from postformer.config import Spec, build
from postformer.ops.layers import checked_word
from postformer.ops.packing import WHOLE, Packing

Order = Literal["rows", "columns", "frames"]
"""Which patch comes next: the one to the right, the one below, or the same of the next frame."""
Direction = Literal["forward", "backward", "both"]
AXES: dict[str, tuple[int, int, int]] = {"rows": (0, 1, 2), "columns": (0, 2, 1), "frames": (1, 2, 0)}
"""The axes of a grid (frames, rows, columns) from the slowest to the fastest."""


class Scan(nn.Module):
    """`mixer` reads the patches in this order; "both" has a second mixer of the kind that reads them backward, and adds what both say.

    It has no state: what is read backward comes later."""

    def __init__(self, dim: int, *, mixer: Spec, order: Order = "rows", direction: Direction = "both"):
        super().__init__()
        self.order = checked_word("order", order, Order)
        self.direction = checked_word("direction", direction, Direction)
        names = ("forward", "backward") if direction == "both" else (direction,)
        self.ways: Any = nn.ModuleDict({f"{name}_way": build(mixer, mixers.MIXERS, ".mixer", dim=dim) for name in names})

    def init_state(self, batch: int) -> None:
        """Raises ValueError: there is none."""
        raise ValueError("a scan over a picture has no state: it may be read backward")

    def forward(
        self, x: Float[Tensor, "b t d"], state: None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], None]:
        """Raises ValueError for an order other than rows where the rows of the batch are not one clip each, and for a state."""
        if state is not None:
            raise ValueError("a scan over a picture takes no state")
        y = torch.zeros_like(x)
        for name, mixer in self.ways.items():
            order, told = self._order(x, packing, name == "backward_way")
            there = x.gather(1, order[..., None].expand_as(x))
            words = {} if told.whole else {"packing": told}
            made, _ = mixer(there, None, **words)
            y = y.scatter_add(1, order[..., None].expand_as(x), made)
        return y, None

    def _order(self, x: Tensor, packing: Packing, backward: bool) -> tuple[Int[Tensor, "b t"], Packing]:
        """The tokens in the order of reading, and where clips begin and rows end in it."""
        b, t, _ = x.shape
        order = torch.arange(t, device=x.device)
        if self.order != "rows":
            if packing.grid is None or not packing.whole:
                raise ValueError(
                    f"order={self.order!r} reads rows that are one clip each; packed ones are read by order='rows'"
                )
            before = t - packing.grid[0] * packing.grid[1] * packing.grid[2]
            patches = order[before:].view(packing.grid).permute(AXES[self.order]).flatten()
            order = torch.cat([order[:before], patches])
        order = order.expand(b, t)
        if not backward:
            return order, packing
        if packing.whole:
            return order.flip(1), packing
        lengths = torch.full((b,), t, device=x.device) if packing.lengths is None else packing.lengths
        order = torch.where(order < lengths[:, None], lengths[:, None] - 1 - order, order)
        if packing.starts is None:
            return order, packing
        last = torch.cat([packing.starts[:, 1:], torch.ones_like(packing.starts[:, :1])], 1)
        last = last | (torch.arange(1, t + 1, device=x.device) == lengths[:, None])
        return order, Packing(last.gather(1, order), packing.lengths)

    def last_weights(self) -> list[Tensor]:
        """The matrices whose products are added to the residual stream."""
        found = []
        for mixer in self.ways.values():
            own = [mixer.out.weight] if isinstance(getattr(mixer, "out", None), nn.Linear) else []
            found += mixer.last_weights() if hasattr(mixer, "last_weights") else own
        return found

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of one row's tokens."""
        return sum(mixer.flops(length, past) for mixer in self.ways.values())

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """There is no state."""
        return 0
