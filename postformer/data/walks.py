"""What a model of a world reads of a batch, whatever its data.

b worlds, t steps, between t + 1 frames, k numbers of an action.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor


def walks(batch: dict[str, Any]) -> tuple[Float[Tensor, "b frames c h w"], Float[Tensor, "b t k"]]:
    """What is seen, and what is done: `batch["observations"]` and `batch["actions"]`; of `batch["clips"]` Float [b, c, frames, h, w] the
    frames, in which nothing is done and k is 0."""
    if "observations" in batch:
        return batch["observations"], batch["actions"]
    seen = batch["clips"].transpose(1, 2)
    return seen, seen.new_zeros(len(seen), seen.shape[1] - 1, 0)
