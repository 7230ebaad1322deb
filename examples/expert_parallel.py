"""A mixture of experts on two processes, which each hold half of the experts and read half of each batch, beside one process that has all.

python examples/expert_parallel.py
torchrun --nproc-per-node 2 examples/expert_parallel.py
"""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from postformer.config import OptimConfig
from postformer.models.hub import load_model
from postformer.models.language import LanguageModel
from postformer.objectives.next_token import NextToken
from postformer.train.expert_parallel import average_gradients, gradient_norm, part_of, save_split, split_experts
from postformer.train.optim import make_optimizer

TEXT = Path(__file__).read_bytes()
STEPS, ROWS, LENGTH, CLIP = 20, 8, 64, 1.0


def make() -> NextToken:
    """A small model with 8 experts, 2 of them a token, in each of two layers."""
    torch.manual_seed(0)
    moe = {"kind": "moe", "experts": 8, "top": 2}
    return NextToken(LanguageModel(257, dim=48, depth=2, mixers=({"kind": "attention", "heads": 4},), ffns=(moe,))).train()


def batch(step: int) -> dict[str, torch.Tensor]:
    """Rows of this file's own text."""
    first = torch.randint(len(TEXT) - LENGTH, (ROWS,), generator=torch.Generator().manual_seed(step))
    return {"ids": torch.stack([torch.tensor(list(TEXT[i : i + LENGTH + 1])) for i in first.tolist()])}


def train(objective: NextToken, group: dist.ProcessGroup | None) -> list[float]:
    """The losses of the whole batch, on the processes of a group or alone."""
    model, losses = objective.model, []
    optimizer = make_optimizer(dict(model.named_parameters()), OptimConfig(kind="muon"))
    for step in range(STEPS):
        loss = objective(batch(step) if group is None else part_of(batch(step), group))["loss"]
        loss.backward()
        told = loss.detach().clone()
        if group is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        else:
            average_gradients(model)
            norm = gradient_norm(model)
            dist.all_reduce(told, group=group)
            told /= group.size()
        torch.nn.utils.clip_grads_with_norm_(optimizer.parameters, CLIP, norm)
        optimizer.step(1e-2)
        optimizer.zero_grad()
        objective.after_step(step)
        losses.append(told.item())
    return losses


def work(rank: int, processes: int, store: str, folder: str) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    group = dist.group.WORLD
    split = make()
    split_experts(split.model, group)
    losses = train(split, group)
    save_split(split.model, folder)
    if rank == 0:
        alone = make()
        expected = train(alone, None)
        mine, all_of_them = (sum(p.numel() for p in o.model.parameters()) for o in (split, alone))
        print(f"{processes} processes hold {mine:,} parameters each, one alone {all_of_them:,}")
        for step in (0, STEPS // 2, STEPS - 1):
            print(f"step {step + 1:>2}: loss {losses[step]:.6f} on {processes} processes, {expected[step]:.6f} on one")
        theirs, ours = alone.model.state_dict(), load_model(folder).state_dict()
        furthest = max(float((ours[name] - value).abs().max()) for name, value in theirs.items())
        print(f"saved weights: at most {furthest:.0e} apart")
        assert furthest < 1e-3 and abs(losses[-1] - expected[-1]) < 1e-4
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if "RANK" in os.environ:  # torchrun started this
            work(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "env://", folder)
        else:
            spawn(work, (2, f"file://{folder}/store", f"{folder}/model"), nprocs=2)


if __name__ == "__main__":
    main()
