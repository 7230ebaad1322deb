"""Experts on two processes: what a step computes is what one process computes of the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from two_processes import pair

from postformer.config import OptimConfig
from postformer.data.tasks import IGNORED
from postformer.models.hub import load_model, save_model
from postformer.models.language import LanguageModel
from postformer.models.routing import mixtures
from postformer.objectives.answers import Answers
from postformer.objectives.next_token import NextToken
from postformer.train.expert_parallel import (
    SplitError,
    average_gradients,
    expert_parameters,
    gathered,
    gradient_norm,
    own_part,
    part_of,
    save_split,
    split_experts,
)
from postformer.train.optim import make_optimizer

VOCAB, CLIP = 31, 0.05
MIXTURES = {
    "mixtral": {"experts": 4},
    "switch": {"preset": "switch", "experts": 6},
    "olmoe": {"preset": "olmoe", "experts": 8, "top": 3},
    "qwen2": {"preset": "qwen2", "experts": 4, "top": 2},
    "deepseek-v3": {"preset": "deepseek-v3", "experts": 8, "groups": 4, "top_groups": 2, "top": 2, "balance": 1e-2},
    "gpt-oss": {"preset": "gpt-oss", "experts": 4, "top": 2},
    "capacity": {"experts": 4, "capacity": 0.7},
    "two-experts": {"experts": 2, "top": 1},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    with pair(str(tmp_path_factory.mktemp("group"))) as processes:
        yield processes


def make(words, dtype=torch.float64):
    """The same model in every process, its load uneven."""
    torch.manual_seed(0)
    ffns = ({"kind": "moe", "hidden": 8, **words}, {"kind": "mlp", "hidden": 24}, {"kind": "moe", "hidden": 16, **words})
    model = LanguageModel(VOCAB, dim=16, depth=3, mixers=({"kind": "attention", "heads": 2},), ffns=ffns).to(dtype)
    for mixture in mixtures(model).values():
        mixture.router.weight.data.mul_(4)
    return model


def batch_of(rows, step=0):
    ids = torch.randint(VOCAB, (rows, 8), generator=torch.Generator().manual_seed(step))
    return {"ids": ids, "rows": [f"row {i}" for i in range(rows)]}


def group():
    world = dist.group.WORLD
    assert world is not None
    return world


def mean(value):
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


def close(ours, expected, tolerance=1e-10):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        where = lambda m, name=name: f"{name}: {m}"  # noqa: E731
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=where)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same_steps(words, rows, kind="adamw", dtype=torch.float64, steps=2, tolerance=1e-10, after=1e-10):
    """Loss, metrics, gradients, their norm, and the weights after clipped steps equal those of one process."""
    whole, split = make(words, dtype), make(words, dtype)
    split_experts(split)
    config = OptimConfig(kind=kind, warmup=0)
    ours, theirs = (NextToken(m).train() for m in (split, whole))
    optimizers = [make_optimizer(dict(m.named_parameters()), config) for m in (split, whole)]
    for step in range(steps):
        batch = batch_of(rows, step)
        expected, mine = theirs(batch), ours(part_of(batch, group()))
        expected["loss"].backward()
        mine["loss"].backward()
        for name in expected:
            if name != "tokens":
                torch.testing.assert_close(mean(mine[name].double()), expected[name].double(), rtol=tolerance, atol=tolerance)
        assert mean(mine["tokens"] * 2) == expected["tokens"]
        average_gradients(split)
        close(gradients(split), own_part(gradients(whole), split), tolerance)
        norms = [gradient_norm(split), torch.nn.utils.get_total_norm(list(gradients(whole).values()))]
        torch.testing.assert_close(norms[0], norms[1], rtol=tolerance, atol=tolerance)
        assert norms[1] > CLIP
        for optimizer, norm in zip(optimizers, norms, strict=True):
            torch.nn.utils.clip_grads_with_norm_(optimizer.parameters, CLIP, norm)
            optimizer.step(1e-2)
            optimizer.zero_grad()
        for objective in (ours, theirs):
            objective.after_step(step)
        close(split.state_dict(), own_part(whole.state_dict(), split), after)
        assert step or all(m.correction.any() for m in mixtures(split).values() if m.correction is not None)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_step_is_that_of_one_process(both, name):
    both(same_steps, MIXTURES[name], 4)


@pytest.mark.parametrize("rows", [3, 1], ids=["uneven", "one-process-has-none"])
@pytest.mark.parametrize("name", ["olmoe", "deepseek-v3", "gpt-oss", "capacity"])
def test_rows_that_do_not_come_out_even(both, name, rows):
    both(same_steps, MIXTURES[name], rows)


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3"])
def test_muon_takes_each_experts_matrix_wherever_it_lies(both, name):
    both(same_steps, MIXTURES[name], 4, "muon", torch.float64, 1, 1e-10, 1e-6)


def test_in_fp32(both):
    both(same_steps, MIXTURES["mixtral"], 4, "adamw", torch.float32, 1, 1e-6, 1e-4)


# ---------------------------------------------------------------- nothing to do


def idle_experts(first, rows):
    """All tokens are sent to two experts of one process: the other's have gradients of zero."""
    model = make(MIXTURES["deepseek-v3"] | {"groups": 1, "top_groups": 1, "shared": 0})
    for mixture in mixtures(model).values():
        mixture.correction[first : first + 2] = 10.0
    split_experts(model)
    outputs = NextToken(model).train()(part_of(batch_of(rows), group()))
    outputs["loss"].backward()
    average_gradients(model)
    assert outputs["dead_experts"] == 2 * (8 - 2)
    reached = [p.grad.flatten(1).any(1).tolist() for p in expert_parameters(model).values()]
    mine = [first <= 4 * dist.get_rank() + e < first + 2 for e in range(4)]
    assert reached == [mine] * len(reached)


@pytest.mark.parametrize("first", [0, 6])
@pytest.mark.parametrize("rows", [4, 1])
def test_a_process_whose_experts_get_no_tokens(both, first, rows):
    both(idle_experts, first, rows)


def masked(asked):
    """Processes with different numbers of targets, by rows; `write_cost` and `smoothing` are not what is tested."""
    whole, split = make(MIXTURES["olmoe"]), make(MIXTURES["olmoe"])
    split_experts(split)
    ids = batch_of(4)["ids"]
    targets = torch.where(torch.arange(8) < torch.tensor(asked)[:, None], ids, torch.tensor(IGNORED))
    batch = {"ids": ids, "targets": targets}
    expected, mine = Answers(whole, smoothing=0.1)(batch), Answers(split, smoothing=0.1)(part_of(batch, group()))
    for outputs in (expected, mine):
        outputs["loss"].backward()
    for name in ("loss", "accuracy"):
        torch.testing.assert_close(mean(mine[name]), expected[name].to(mine[name].dtype))
    average_gradients(split)
    close(gradients(split), own_part(gradients(whole), split))


@pytest.mark.parametrize("asked", [(1, 2, 5, 8), (3, 0, 0, 0), (0, 0, 4, 1)])
def test_processes_with_different_numbers_of_targets(both, asked):
    both(masked, asked)


def evaluated():
    """Without gradients, one token at a time, too: the kernel for few tokens knows no other process."""
    whole, split = make(MIXTURES["mixtral"], torch.float32).eval(), make(MIXTURES["mixtral"], torch.float32).eval()
    split_experts(split)
    ids = part_of(batch_of(3), group())["ids"]
    with torch.inference_mode():
        torch.testing.assert_close(split(ids)[0], whole(ids)[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(split(ids[:, :1])[0], whole(ids[:, :1])[0], rtol=1e-5, atol=1e-5)
        split.compute_dtype = whole.compute_dtype = torch.bfloat16
        torch.testing.assert_close(split(ids)[0], whole(ids)[0], rtol=0.05, atol=0.05)


def test_evaluation(both):
    both(evaluated)


# ---------------------------------------------------------------- checkpoints


def files(folder):
    """What is written is what one process writes, and goes on as it does."""
    folder = Path(folder)
    whole, split = make(MIXTURES["deepseek-v3"], torch.float32), make(MIXTURES["deepseek-v3"], torch.float32)
    split_experts(split)
    save_split(split, folder / "split")
    if dist.get_rank() == 0:
        save_model(whole, folder / "whole")
    dist.barrier()
    for name in ("config.json", "model.safetensors"):
        assert (folder / "split" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    again = load_model(folder / "split")
    split_experts(again)
    close(again.state_dict(), split.state_dict(), 0.0)


def test_a_saved_model_is_the_same_file(both, tmp_path):
    both(files, str(tmp_path))


def resumed(kind):
    """The whole optimizer of one process, half of it here, and together again."""
    whole, split = make(MIXTURES["mixtral"]), make(MIXTURES["mixtral"])
    config = OptimConfig(kind=kind, warmup=0)
    theirs = make_optimizer(dict(whole.named_parameters()), config)
    NextToken(whole).train()(batch_of(4))["loss"].backward()
    theirs.step(1e-2)
    split_experts(split)
    split.load_state_dict(own_part(whole.state_dict(), split))
    ours = make_optimizer(dict(split.named_parameters()), config)
    ours.load_state(own_part(theirs.state(), split))
    for model, optimizer, batch in ((whole, theirs, batch_of(4, 1)), (split, ours, part_of(batch_of(4, 1), group()))):
        optimizer.zero_grad()
        NextToken(model).train()(batch)["loss"].backward()
        if model is split:
            average_gradients(split)
        optimizer.step(1e-2)
    together = gathered(ours.state(), split), gathered(split.state_dict(), split)
    if dist.get_rank() == 0:
        close(together[0], theirs.state(), 1e-6)
        close(together[1], dict(whole.state_dict()), 1e-6)
    else:
        assert together == ({}, {})


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_goes_on_from_one_process_on_two_and_back(both, kind):
    both(resumed, kind)


# ---------------------------------------------------------------- mistakes


def refusals(folder):
    model = make({"experts": 3, "top": 1})
    with pytest.raises(SplitError, match=r"blocks\.0\.ffn: experts=3 cannot be split evenly over 2 processes"):
        split_experts(model)
    with pytest.raises(SplitError, match="are not split"):
        average_gradients(model)
    with pytest.raises(SplitError, match="has no mixture"):
        split_experts(torch.nn.Linear(2, 2))
    model = make(MIXTURES["mixtral"])
    split_experts(model)
    with pytest.raises(SplitError, match="split already"):
        split_experts(model)
    with pytest.raises(Exception, match="lie in several processes; save it with save_split"):
        save_model(model, folder)


def test_refusals(both, tmp_path):
    both(refusals, str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_without_processes_it_is_refused():
    with pytest.raises(SplitError, match="start with torchrun"):
        split_experts(make(MIXTURES["mixtral"]))


def differing():
    """Process 0's weights count."""
    model = make(MIXTURES["mixtral"])
    for p in model.parameters():
        p.data += dist.get_rank()
    split_experts(model)
    close(model.state_dict(), own_part(make(MIXTURES["mixtral"]).state_dict(), model), 0.0)


def test_processes_that_began_apart(both):
    both(differing)
