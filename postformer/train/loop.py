"""The training loop: seeded, resumable to the bit, and stopped before a bad step rather than after it.

It knows an objective (a module whose `forward(batch)` returns `{"loss": scalar, **metrics}`, with the trained `model` and
`after_step(step)`) and data (`batches(...).batch(index)`, a pure function of seed and index), and nothing else of them.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from postformer.config import MOST_THREADS, ConfigError, Run
from postformer.data.sources import DataError
from postformer.train import checkpoint
from postformer.train.checkpoint import Environment, Record, Warn
from postformer.train.log import JsonLog, Log, Progress, Row, finite
from postformer.train.manifest import CheckpointError
from postformer.train.optim import learning_rate, make_optimizer
from postformer.train.process import TrainingError, freed_memory_kept, lock, stop_signals, threads

ROWS_NAMED = 16
"""How many data rows an error names."""

Batch = dict[str, Any]


@runtime_checkable
class Batches(Protocol):
    """A source of batches; `rows` in each names the data of its rows, for errors."""

    def batch(self, step: int) -> Batch: ...


@runtime_checkable
class Data(Protocol):
    """Data with a `train` and a `valid` split."""

    def batches(self, *, batch: int, seed: int, split: str) -> Batches: ...


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How training ended."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float
    checkpoint: Path
    stopped: bool = False
    """A signal ended it before its last step; the same call goes on from the checkpoint."""
    valid: dict[str, Any] = field(default_factory=dict)


def to_stderr(line: str) -> None:
    """Print a warning."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


def train(
    run: Run,
    out: Path,
    *,
    objective: nn.Module,
    data: Data,
    save_model: Callable[[Path], None],
    on_step: Callable[[Progress], None] | None = None,
    resume: bool = True,
    logs: Sequence[Log] = (),
    warn: Warn = to_stderr,
) -> Summary:
    """Train `objective` on `data` as `run` says, in the directory `out`, from its last whole checkpoint on.

    `save_model(folder)` writes the model as `model.safetensors` and what it needs to be opened. Rows go to
    `out/log.jsonl` and to `logs`, which are closed at the end. SIGTERM and SIGINT end training after the current step with a
    checkpoint; a second SIGINT ends it at once.

    Raises ConfigError for a setting out of range, CheckpointError when a checkpoint cannot be used or written, and
    TrainingError when a loss or gradient is not finite or another process trains in `out`.
    """
    check_settings(run)
    with ExitStack() as stack:
        stack.enter_context(lock(out))
        stack.enter_context(threads(run.train.threads))
        stack.enter_context(freed_memory_kept())
        stop = stack.enter_context(stop_signals())
        trainer = _Trainer(run, out, objective, data, save_model, warn)
        trainer.start(resume)
        for log in (JsonLog(out / "log.jsonl", trainer.record.step), *logs):
            trainer.logs.append(stack.enter_context(closing(log)))
        while trainer.record.step < run.train.steps:
            progress = trainer.step_or_save()
            if on_step:
                on_step(progress)
            stopping = bool(stop)
            trainer.finish_step(stopping)
            if stopping:
                break
        stopped = trainer.record.step < run.train.steps
        if stopped:
            warn(f"stopped by {stop[0]} after step {trainer.record.step}; the same command goes on from there")
        return trainer.summary(stopped)


class _Trainer:
    """One session of training: what `train` needs between two steps."""

    def __init__(self, run: Run, out: Path, objective: nn.Module, data: Data, save_model: Callable[[Path], None], warn: Warn):
        self.run, self.out, self.data, self.save_model, self.warn = run, out, data, save_model, warn
        self.device = device(run.train.device)
        self.objective = objective.to(self.device)
        if run.train.dtype == "bf16":
            objective.model.compute_dtype = torch.bfloat16  # type: ignore[union-attr]
        self.optimizer = make_optimizer(dict(objective.named_parameters()), run.optim)
        self.batches = data.batches(batch=run.train.batch, seed=run.seed, split="train")
        self.checkpoint: Path | None = None
        self.logs: list[Log] = []

    def start(self, resume: bool) -> None:
        """Seed, or restore the last whole checkpoint."""
        torch.manual_seed(self.run.seed)
        self.record = Record(environment=Environment(device=self.run.train.device))
        self.checkpoint = checkpoint.latest(self.out, self.warn)
        if self.checkpoint and not resume:
            raise CheckpointError(f"{self.out}: has checkpoints; resume from them, or train in another directory")
        if self.checkpoint:
            self.record = checkpoint.restore(self.checkpoint, self.run, self.objective, self.optimizer, self.warn)
            checkpoint.set_aside(self.out, self.record.step)
        self.restored, self.began, self.saved = self.record, time.perf_counter(), self.record.step

    def step_or_save(self) -> Progress:
        """As `step`; where data cannot be read, what was learned is saved first."""
        try:
            return self.step()
        except DataError as e:
            if self.record.step == 0:
                raise
            if self.saved != self.record.step:
                self.save()
            raise DataError(f"{e}; step {self.record.step} is saved, and the same command goes on from there") from e

    def step(self) -> Progress:
        """One optimizer step over `accumulate` forward passes."""
        self.objective.train()
        step, accumulate = self.record.step, self.run.train.accumulate
        outputs, rows = [], []
        for index in range(step * accumulate, (step + 1) * accumulate):
            batch = self.batches.batch(index)
            outputs.append(self._backward(batch))
            rows.append(batch["rows"])
        norm = nn.utils.get_total_norm([p.grad for p in self.optimizer.parameters if p.grad is not None])
        _check_finite(step + 1, [float(o["loss"]) for o in outputs], float(norm), rows)
        if self.run.optim.clip:
            nn.utils.clip_grads_with_norm_(self.optimizer.parameters, self.run.optim.clip, norm)
        lr = learning_rate(step, self.run.optim, self.run.train.steps)
        self.optimizer.step(lr)
        self.optimizer.zero_grad()
        self.objective.after_step(step)  # type: ignore[operator]
        return self._advance(_averages(outputs), lr, float(norm))

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        outputs = self.objective(_to(batch, self.device))
        (outputs["loss"] / self.run.train.accumulate).backward()
        return {name: value.detach() for name, value in outputs.items()}

    def _advance(self, metrics: Row, lr: float, norm: float) -> Progress:
        tokens = self.record.tokens + metrics.get("tokens", 0)
        session = time.perf_counter() - self.began
        seconds = self.restored.seconds + session
        self.record = replace(self.record, step=self.record.step + 1, tokens=tokens, seconds=seconds, loss=metrics["loss"])
        step, steps = self.record.step, self.run.train.steps
        progress = Progress(
            step=step,
            steps=steps,
            loss=metrics["loss"],
            lr=lr,
            grad_norm=norm,
            tokens=tokens,
            tokens_per_s=(tokens - self.restored.tokens) / session,
            eta_s=(steps - step) * session / (step - self.restored.step),
        )
        if step % self.run.train.log_every == 0 or step == steps:
            timing = {"seconds": seconds, "tokens_per_s": progress.tokens_per_s}
            self._log({"step": step, **metrics, "lr": lr, "grad_norm": norm, "tokens": tokens, **timing})
        return progress

    def finish_step(self, stopping: bool) -> None:
        """Evaluate and save where it is due."""
        config, step = self.run.train, self.record.step
        last = step == config.steps
        if config.eval_every and (step % config.eval_every == 0 or last):
            batches = self.data.batches(batch=config.batch, seed=self.run.seed, split="valid")
            metrics = evaluate(self.objective, batches, config.eval_batches, seed=self.run.seed, device=self.device)
            row = finite({"step": step, **{f"valid_{name}": value for name, value in metrics.items()}})
            self.record = replace(self.record, valid=row)
            self._log(row)
        if stopping or last or (config.save_every and step % config.save_every == 0):
            self.save()

    def save(self) -> None:
        """Write a checkpoint. Raises TrainingError where the directory is gone."""
        if not (self.out / "lock").exists():
            raise TrainingError(
                f"{self.out}: was removed at or before step {self.record.step}, so nothing is saved; train again"
            )
        for log in self.logs:
            log.sync()
        self.checkpoint = checkpoint.save(self.out, self.run, self.record, self.objective, self.optimizer, self.save_model)
        self.saved = self.record.step

    def summary(self, stopped: bool) -> Summary:
        """How the session ended."""
        r = self.record
        assert self.checkpoint
        numbers = {"step": r.step, "steps": self.run.train.steps, "loss": r.loss, "tokens": r.tokens, "seconds": r.seconds}
        return Summary(**numbers, checkpoint=self.checkpoint, stopped=stopped, valid=r.valid)

    def _log(self, row: Row) -> None:
        for log in self.logs:
            log.write(finite(row))


@torch.no_grad()
def evaluate(objective: nn.Module, batches: Batches, count: int, *, seed: int = 0, device: Any = "cpu") -> Row:
    """The averages of the objective's metrics over batches 0 .. count - 1, in eval mode; `tokens` is the sum.

    What it draws at random depends on `seed` alone, and torch's generators are left as they were.
    """
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        training = objective.training
        objective.eval()
        outputs = [objective(_to(batches.batch(i), device)) for i in range(count)]
        objective.train(training)
    return _averages(outputs)


def _averages(outputs: Sequence[dict[str, Tensor]]) -> Row:
    """The mean of each metric over forward passes, and the sum of `tokens`."""
    sums = {name: sum(float(o[name]) for o in outputs) for name in outputs[0]}
    return {name: int(total) if name == "tokens" else total / len(outputs) for name, total in sums.items()}


def _to(batch: Batch, device: torch.device) -> Batch:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


# ---------------------------------------------------------------- what stops it


def check_settings(run: Run) -> None:
    lowest = {"steps": 1, "batch": 1, "accumulate": 1, "threads": 0, "save_every": 0, "keep": 1}
    lowest |= {"eval_every": 0, "eval_batches": 1, "log_every": 1}
    if run.train.threads > MOST_THREADS:
        raise ConfigError(f"train.threads: {run.train.threads} must be at most {MOST_THREADS}")
    for name, least in lowest.items():
        if (value := getattr(run.train, name)) < least:
            raise ConfigError(f"train.{name}: {value} must be at least {least}")


def device(name: str) -> torch.device:
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0]
        reason = (
            "; choose such as cpu, cuda or cuda:0" if "device type" in reason or "Invalid device" in reason else f": {reason}"
        )
        raise ConfigError(f"train.device: '{name}' cannot be used here{reason}") from e


def _check_finite(step: int, losses: list[float], norm: float, rows: list[list[str]]) -> None:
    """Raise TrainingError naming the step and the data rows when a loss or the gradient's norm is not finite."""
    bad = [j for j, loss in enumerate(losses) if not math.isfinite(loss)]
    if not bad and math.isfinite(norm):
        return
    what = f"the loss is {losses[bad[0]]}" if bad else f"the gradient's norm is {norm}"
    named = [row for j in bad or range(len(rows)) for row in rows[j]]
    more = f" and {len(named) - ROWS_NAMED} more" if len(named) > ROWS_NAMED else ""
    raise TrainingError(f"step {step}: {what}; the step was not taken; data rows: {', '.join(named[:ROWS_NAMED])}{more}")
