"""What the processes of a group tell each other: rows with gradients, counts, and means over the batch of all of them.

R processes hold one batch together, process r the rows after those of r - 1. Each has a loss of its own, and **the mean of these losses
over the processes is the loss of the whole batch**: so a replicated parameter's gradient is the mean over the processes, and `mean_over`
gives a process that has more of what is averaged a larger loss. A group of None is a process alone.

Every process of a group must make the same calls in the same order, with no rows where it has none.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Group = dist.ProcessGroup | None


def exchange(
    rows: Shaped[Tensor, "n d"], sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Shaped[Tensor, "m d"]:
    """The first sent[0] rows to process 0, the next sent[1] to process 1, and so on; back come received[0] rows of process 0, then those
    of process 1. Gradients go the other way."""
    return _Exchange.apply(rows, sent, received, group)  # type: ignore[no-any-return]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.back = received, sent, group
        into = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(into, rows.contiguous(), received, sent, group=group)
        return into

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _Exchange.apply(gradient, *ctx.back), None, None, None  # type: ignore[return-value]


def counts_for(counts: Int[Tensor, "r e"], group: dist.ProcessGroup) -> Int[Tensor, "r e"]:
    """Row r goes to process r; back comes what each process has for this one."""
    into = torch.zeros_like(counts)
    dist.all_to_all_single(into, counts.contiguous(), group=group)
    return into


def total(counts: Shaped[Tensor, "*b"], group: Group) -> Shaped[Tensor, "*b"]:
    """The sum over the processes; no gradient."""
    if group is None:
        return counts
    counts = counts.detach().clone()
    dist.all_reduce(counts, group=group)
    return counts


def gathered(counts: Int[Tensor, "*b"], group: dist.ProcessGroup) -> Int[Tensor, "r *b"]:
    """Each process's, in their order."""
    into = [torch.zeros_like(counts) for _ in range(group.size())]
    dist.all_gather(into, counts.contiguous(), group=group)
    return torch.stack(into)


def mean_over(values: Float[Tensor, "n *b"], group: Group) -> Float[Tensor, "*b"]:
    """This process's loss of which the mean over the processes is the mean of all their values over the first dimension: the sum of its own
    times R, over how many there are. A process without values has 0, with gradients of 0."""
    if group is None:
        return values.mean(0)
    everywhere = total(torch.tensor(len(values), device=values.device), group)
    return values.sum(0) * group.size() / everywhere
