"""Experts on several processes: each mixture's are split over the processes of a group, and everything else lies in each of them.

Process r of R holds the E / R experts from r E / R on, and its own rows of each batch; tokens go to their experts and come back (GShard,
Lepikhin et al. 2020, arXiv 2006.16668, section 3). A step on several processes is that of one process on all rows:

    split_experts(model)                    once, before the optimizer is made
    objective(part_of(batch, group))        forward and backward: the mean of the losses over processes is that of the batch
    average_gradients(model)                replicated ones are averaged; an expert's has all processes' tokens in it already
    gradient_norm(model)                    of all experts, for clipping
    objective.after_step(step)              corrections move by the loads of all processes

Every process makes each of these calls. `gathered` and `own_part` translate a model's tensors or an optimizer's between the whole and this
process's part.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from postformer.config import UserError
from postformer.models.hub import save_model
from postformer.models.routing import group_of, mixtures


class SplitError(UserError):
    """Experts that cannot be split, or that are not split where they must be."""


@torch.no_grad()
def split_experts(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Keep this process's experts of every mixture inside of the model, of which every process has a whole one: process 0's weights count.

    `group` defaults to all processes. Raises SplitError where there is no mixture, no group, or a number of experts that the processes do
    not divide.
    """
    if not dist.is_initialized():
        raise SplitError("split_experts: there is no group of processes; start with torchrun and call init_process_group first")
    found = mixtures(model)
    if not found:
        raise SplitError("split_experts: the model has no mixture of experts")
    group = group or dist.group.WORLD
    assert group is not None
    for name, mixture in found.items():
        if mixture.group is not None:
            raise SplitError(f"{name or 'the mixture'}: its experts are split already")
        if len(mixture.loads) % group.size():
            raise SplitError(
                f"{name or 'the mixture'}: experts={len(mixture.loads)} cannot be split evenly over {group.size()} processes"
            )
    for mixture in found.values():
        mixture.group = group
    split = set(expert_parameters(model).values())
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor in split:
            parts = [part.contiguous() for part in tensor.data.chunk(group.size())]
            tensor.data = torch.empty_like(parts[0])
            dist.scatter(tensor.data, parts if group.rank() == 0 else None, group=group, group_src=0)
        else:
            dist.broadcast(tensor.data, group=group, group_src=0)


def _own(whole: Tensor, group: dist.ProcessGroup) -> Tensor:
    return whole.chunk(group.size())[group.rank()].clone()


def part_of(batch: Mapping[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """This process's rows of a batch, whose tensors and lists have one entry a row: consecutive ones, the first processes' one more where
    they do not come out even."""
    rows = next(len(value) for value in batch.values() if isinstance(value, Tensor))
    mine = torch.arange(rows).tensor_split(group.size())[group.rank()].tolist()
    return {name: value[mine[0] : mine[-1] + 1] if mine else value[:0] for name, value in batch.items()}


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of which this process holds a part, by their names."""
    parts = {
        f"{name}.{part}.".lstrip(".") for name, m in mixtures(model).items() if m.group is not None for part in ("up", "out")
    }
    return {name: p for name, p in model.named_parameters() if name.startswith(tuple(parts))}


# ---------------------------------------------------------------- a step


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Make every gradient that of the mean of the losses over processes. A parameter that got a gradient in one process has it in all."""
    group, experts = _group(model), set(expert_parameters(model).values())
    parameters = [p for p in model.parameters() if p.requires_grad]
    reached = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    dist.all_reduce(reached, dist.ReduceOp.MAX, group=group)
    for p, anywhere in zip(parameters, reached.tolist(), strict=True):
        if anywhere:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            if p not in experts:
                dist.all_reduce(p.grad, group=group)
            p.grad /= group.size()


@torch.no_grad()
def gradient_norm(model: nn.Module) -> Tensor:
    """The norm of the whole model's gradient: of every process's experts, and of what is replicated once. After `average_gradients`."""
    group, experts = _group(model), set(expert_parameters(model).values())
    grads = [(p in experts, p.grad) for p in model.parameters() if p.grad is not None]
    mine, replicated = (nn.utils.get_total_norm([g for is_expert, g in grads if is_expert is kind]) for kind in (True, False))
    squares = mine.square().to(next(model.parameters()).device)
    dist.all_reduce(squares, group=group)
    return (squares + replicated.square()).sqrt()


# ---------------------------------------------------------------- the whole and its parts


def gathered(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The whole of a model's `state_dict()` or of an optimizer's `state()`, on the CPU of process 0; elsewhere nothing is returned."""
    group, split = _group(model), expert_parameters(model)
    whole: dict[str, Tensor] = {}
    for name, value in tensors.items():
        parts = [value]
        if _is_part(name, value, split):
            parts = [torch.empty_like(value) for _ in range(group.size())] if group.rank() == 0 else []
            dist.gather(value.detach().contiguous(), parts or None, group=group, group_dst=0)
        if group.rank() == 0:
            whole[name] = torch.cat([part.detach().cpu() for part in parts]) if len(parts) > 1 else value.detach().cpu()
    return whole


def own_part(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """This process's part of what `gathered` gave, or of the model's file: what `load_state_dict` and `load_state` take here."""
    group, split = _group(model), expert_parameters(model)
    return {name: _own(value, group) if _is_part(name, value, split) else value for name, value in tensors.items()}


def _is_part(name: str, value: Tensor, split: Mapping[str, Tensor]) -> bool:
    """Whether a tensor, of an optimizer called "parameter:key", is as long as there are experts; the count of steps is a number."""
    return name.partition(":")[0] in split and value.ndim > 0


def save_split(model: nn.Module, folder: str | Path) -> None:
    """`save_model` of the whole, by process 0; the others wait until it is done or has failed there."""
    whole = gathered(model.state_dict(), model)
    group = _group(model)
    try:
        if group.rank() == 0:
            save_model(model, folder, whole)
    finally:
        dist.barrier(group)


def _group(model: nn.Module) -> dist.ProcessGroup:
    group = group_of(model)
    if group is None:
        raise SplitError("the model's experts are not split; call split_experts first")
    return group
