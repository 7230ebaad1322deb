"""What happens inside one token."""

from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from postformer.ffn.mlp import MLP
from postformer.ffn.moe import MoE


class FFN(Protocol):
    """The contract of a per-token network, which is also an `nn.Module`: no state, no time.

    One whose last matrix is no `Linear` called `out` has `last_weights()`, which are scaled at the start with the depth of the model.
    """

    def __init__(self, dim: int, **options: Any) -> None: ...

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]: ...

    def flops(self, length: int) -> int: ...

    def active_parameters(self) -> int: ...


FFNS: dict[str, Any] = {"mlp": MLP, "moe": MoE}
