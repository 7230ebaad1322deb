"""Experiments on small synthetic tasks that claims share: learn in what the budget allows, and answer at other lengths."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from postformer.claims import sequences
from postformer.claims.ledger import Context, Number, Real
from postformer.claims.stats import interleaved, share_over
from postformer.claims.together import Job, all_of, workers
from postformer.config import Run, build
from postformer.data import DATA
from postformer.data.tasks import Task
from postformer.models.language import LanguageModel
from postformer.objectives.accuracy import accuracy, scaled
from postformer.state import clone, nbytes
from postformer.train import process
from postformer.train.session import open_model

SAMPLED = 24
"""Steps of a run that are timed before it: their sequences have many lengths."""
STARTUP_S = 3.0
"""About what a process takes before it trains."""


def fitted(
    ctx: Context,
    runs: Mapping[str, Run],
    seconds: Real,
    sampled: int = SAMPLED,
    choose: Callable[[Mapping[str, Run], Mapping[str, Real]], Mapping[str, Run]] = lambda runs, step_s: runs,
) -> dict[str, Run]:
    """The runs with the same share of their steps, all of them if the seconds, the timing's included, allow it for every seed.

    A task that grows with the steps grows faster then. What a step takes is the mean over `sampled` of them, evenly from all of the run,
    with as many runs at once as `learn` trains; by that `choose` says which runs, and of how many steps, are wanted.
    """
    step_s = ctx.step("speed of training: " + ", ".join(runs), lambda: _step_s(ctx, runs, sampled))
    runs = choose(runs, step_s)
    whole_s = [step_s[name] * run.train.steps for name, run in runs.items()] * len(ctx.seeds)
    count = workers(len(whole_s), ctx.threads)
    begun_s = STARTUP_S * math.ceil(len(whole_s) / count) if count > 1 else 0.0
    left_s = max(0.0, seconds - ctx.steps[-1]["seconds"] - begun_s)
    share = min(1.0, left_s / max(sum(whole_s) / count, *whole_s))
    return {name: shortened(run, share, ctx.threads // count) for name, run in runs.items()}


def _step_s(ctx: Context, runs: Mapping[str, Run], sampled: int) -> dict[str, float]:
    """Seconds of a step of each run, while as many go on as `learn` trains."""
    if workers(len(runs) * len(ctx.seeds), ctx.threads) == 1:
        with process.threads(ctx.threads), process.freed_memory_kept():
            return {
                name: statistics.fmean([*sequences.training_steps(run, _at(run, sampled))][2:]) for name, run in runs.items()
            }
    names = (list(runs) * len(ctx.seeds))[: max(len(runs), ctx.threads)]
    taken = all_of([Job(runs[name], ctx.files, _at(runs[name], sampled)) for name in names], ctx.threads)
    return {
        name: statistics.fmean(s for n, own in zip(names, taken, strict=True) if n == name for s in own[2:]) for name in runs
    }


def _at(run: Run, sampled: int) -> list[int]:
    """The last step twice, to warm up, and so many evenly from all of them."""
    return [run.train.steps - 1] * 2 + [i * run.train.steps // sampled for i in range(sampled)]


def shortened(run: Run, share: Real, threads: int) -> Run:
    """The run with this share of its steps, at least ten."""
    steps = max(10, round(share * run.train.steps))
    data = {**run.data, "grow": run.data["grow"] * steps // run.train.steps} if "grow" in run.data else run.data
    train = dataclasses.replace(
        run.train, steps=steps, threads=threads, eval_every=0, save_every=max(10, steps // 4), keep=1, log_every=50
    )
    return dataclasses.replace(run, data=data, train=train)


def learn(ctx: Context, runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """Train each run with each seed, as many at once as there are threads; what each summary says, by run and seed."""
    jobs = [Job(dataclasses.replace(run, seed=seed), folder(ctx, run, seed)) for run in runs for seed in ctx.seeds]
    names = [f"{job.run.name}, seed {job.run.seed}" for job in jobs]

    def train() -> dict[str, Any]:
        if workers(len(jobs), ctx.threads) > 1:
            return dict(zip(names, all_of(jobs, ctx.threads, ctx.progress), strict=True))
        return {name: sequences.train_one(ctx, job.run, job.folder) for name, job in zip(names, jobs, strict=True)}

    return ctx.step("train " + "; ".join(names), train)


def folder(ctx: Context, run: Run, seed: int) -> Path:
    """Where a run of this claim lies."""
    return ctx.files / f"{run.name}-{seed}"


def answers(ctx: Context, run: Run, length: int, rows: int, batch: int = 64, first: int = 0, **words: Any) -> dict[str, Any]:
    """How many answers at a length are right, over all seeds' models and of each: `rows` sequences each, drawn from its seed
    beyond `first`. `words` are the task's."""
    task: Task = build({**run.data, "length": length, "shortest": length, "start": None, "grow": 0, **words}, DATA, "data")
    total: dict[str, Any] = {"length": length, "right": 0, "asked": 0, "rows_right": 0, "rows": 0, "chance": 0.0, "each": []}
    with process.threads(ctx.threads), process.freed_memory_kept():
        for seed in ctx.seeds:
            score = accuracy(open_model(folder(ctx, run, seed)), task, rows=rows, batch=batch, seed=first + seed)
            total["chance"] = score.chance
            total["each"].append(score._asdict())
            for key in ("right", "asked", "rows_right", "rows"):
                total[key] += getattr(score, key)
    return total


def scaled_share(score: Mapping[str, Any], seeds: Sequence[int] = ()) -> Number:
    """The share of answers that are right, in per cent of the way from a guesser's to all, with the interval of `share_over`."""
    right = share_over([(each["right"], each["asked"]) for each in score["each"]])
    low, high = right.low or 0.0, 1.0 if right.high is None else right.high
    value, low, high = (100 * scaled(v, score["chance"]) for v in (right.value, low, high))
    return Number(value, "%", "measured", low, high, right.n, tuple(seeds))


# ---------------------------------------------------------------- a state along a stream


@torch.inference_mode()
def states_along(model: LanguageModel, lengths: Sequence[int], seed: int, chunk: int = 2048) -> Iterator[tuple[int, Any]]:
    """The state after each of the ascending lengths of one stream of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    state, seen = model.init_state(1), 0
    for length in lengths:
        while seen < length:
            ids = torch.randint(model.vocab, (1, min(chunk, length - seen)), generator=generator)
            _, state = model.hidden(ids, state)
            seen += ids.shape[1]
        yield length, clone(state)


@torch.inference_mode()
def times_along(ctx: Context, run: Run, lengths: Sequence[int], reading: int = 256, steps: int = 8) -> dict[str, Any]:
    """Seconds a token to read on and to write on after each length, timed in turns, and the bytes of the state there."""
    model = open_model(folder(ctx, run, ctx.seeds[0]))
    with process.threads(ctx.threads), process.freed_memory_kept():
        states = dict(states_along(model, lengths, ctx.seeds[0]))
        more = torch.randint(model.vocab, (1, reading), generator=torch.Generator().manual_seed(1))
        found: dict[str, Any] = {"lengths": list(lengths), "state_bytes": [nbytes(s) for s in states.values()]}
        for name, ids, repeats in (("reading", more, 1), ("writing", more[:, :1], steps)):
            functions = {
                str(n): lambda s=s, i=ids, r=repeats: [model.hidden(i, s) for _ in range(r)] for n, s in states.items()
            }
            timing = interleaved(functions, 40, warmup=2)
            tokens = ids.shape[1] * repeats
            found[name] = {
                "samples": [[t / tokens for t in timing.samples[str(n)]] for n in lengths],
                "control": [t / tokens for t in timing.control],
            }
    return found
