"""Plans to what a picture shows, searched for in a model's imagination: what is reached, beside rivals that know nothing or all.

    python benchmarks/plan.py --tasks rooms --seeds 0
    python benchmarks/plan.py --tasks rooms,moving --methods cem,mppi --problems 200
    python benchmarks/plan.py --render runs/plan

A model learns walks as its recipe says and plans from what it sees to what it is shown. Beside it: the same search with a model that
learned nothing and in the simulator itself (an oracle), going straight for the goal with the true state known, and actions at random. No
problem is solved at its beginning. Walks of simulations (reacher, pushing) are recorded once, in --out. Success is the task's rule at the
end of an episode, and a stricter one beside it; how well a linear probe reads the state off embeddings is told too. Trained runs and
measured cells stay in --out, so that an interrupted study goes on. The measure: docs/worlds.md.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import study_results as results
import torch
from study_results import Line

from postformer.claims.stats import median_interval, share_over
from postformer.cli import positive, seed_list
from postformer.config import Run, UserError, override, parse, plain
from postformer.embodied.environment import Environment
from postformer.embodied.recording import record_walks
from postformer.embodied.simulations import SIMULATIONS
from postformer.embodied.tasks import METHODS, OTHERS, TASKS, Task, policy
from postformer.embodied.trials import Policy, Problems, problems, tried
from postformer.models.probes import probe
from postformer.recipes import RECIPES
from postformer.train.process import threads
from postformer.train.session import open_model, prepare, train_run

SEED = 1000
"""Problems that are posed are those of SEED and more."""
WALKS = 64
"""Walks off which a probe learns to read the state, and as many on which it is judged."""
TIMED = 9


def run_of(name: str, seed: int, args: argparse.Namespace) -> Run:
    """The recipe's run on a task's data, which is recorded where it is not there yet."""
    task = TASKS[name]
    run = RECIPES[task.recipe]()
    if own := SIMULATIONS.get(name):
        path = args.out / f"{name}.h5"
        if new := record_walks(own.env(), own.episodes, path, steps=own.steps, stride=own.stride):
            print(f"{path}: {new:,} walks recorded", flush=True)
        task = task._replace(data={**task.data, "path": str(path)})
    train = dataclasses.replace(run.train, threads=args.threads, steps=args.steps or run.train.steps)
    run = dataclasses.replace(run, seed=seed, data={**run.data, **task.data}, train=train)
    return parse(Run, override(plain(run), args.set)) if args.set else run


def study(args: argparse.Namespace) -> None:
    """Train and measure what is not there yet."""
    for name in args.tasks:
        task = TASKS[name]
        for way in args.others:
            _measured(name, task, Run(name=way, model={}, seed=0, data={"kind": name}), way, None, args)
        for seed in args.seeds:
            run = run_of(name, seed, args)
            trained, seconds = _model(run, name, args)
            told = f"{run.train.steps:,} steps" + "".join(f", {word}" for word in args.set)
            for method in args.methods:
                _measured(name, task, run, f"{method}, {told}", trained, args, method=method, trained_s=seconds)
            if "untrained" in args.models:
                untrained = _untrained(run)
                _measured(name, task, run, "cem, untrained", untrained, args, method="cem", trained_s=0.0)


def _model(run: Run, name: str, args: argparse.Namespace) -> tuple[Any, float]:
    folder = args.out / f"{name}-{run.seed}-{results.digest(run)[:8]}"
    summary = train_run(run, folder)
    if summary.stopped:
        sys.exit(130)
    return open_model(folder).eval(), summary.seconds


def _untrained(run: Run) -> Any:
    """A model that learned nothing, but how its embeddings change."""
    _, objective, data = prepare(run)[:3]
    model: Any = objective.eval().model
    model.notice(model.encode(data.batches(WALKS, run.seed).batch(0)["observations"]))
    return model


def _measured(name: str, task: Task, run: Run, way: str, model: Any, args: argparse.Namespace, **more: Any) -> None:
    method = more.get("method", way)
    search = dataclasses.asdict(task.searching(method) if model is not None else task.search)
    path, settings = args.out / "plan.jsonl", plain({**task._asdict(), "env": name, "search": search})
    of = results.digest(run, way, settings, args.problems)
    if results.find(path, of):
        return
    env, began = task.env(), results.about(run)
    posed = problems(env, range(SEED, SEED + args.problems))
    with threads(args.threads):
        clock = time.perf_counter()
        found = tried(env, policy(task, env, method, model), posed, task.steps)
        line: Line = {"task": name, "way": way, "seed": run.seed, "seconds": time.perf_counter() - clock, **more}
        line |= {"at_end": found.at_end.astype(int).tolist(), "ever": found.ever.astype(int).tolist()}
        line["end"] = found.end[:, 0].round(4).tolist()
        if model is not None:
            line |= {"parameters": sum(p.numel() for p in model.parameters()), "probe": _probed(model, run, env)}
            line["plan_s"] = _plan_times(lambda: policy(task, env, method, model), posed)
    results.add(path, of, line, began)
    print(
        f"{name}, {way}, seed {run.seed}: {_share([line], 0)} at the end, {_share([line], 1)} by the stricter rule", flush=True
    )


@torch.no_grad()
def _probed(model: Any, run: Run, env: Environment) -> dict[str, Any]:
    """R2 and RMSE of the state's numbers that change from walk to walk or within one and can be seen; and their names."""
    data = prepare(run)[2]
    parts = []
    for split in ("train", "test"):
        batch = data.batches(WALKS, SEED, split).batch(0)
        parts.append((model.encode(batch["observations"]).flatten(0, 1), batch["states"].flatten(0, 1)))
    (z, truth), (other, told) = parts
    kept = [i for i, name in enumerate(env.names) if truth[:, i].std() > 0 and "speed" not in name]
    score = probe(z, truth[:, kept]).score(other, told[:, kept])
    return {"names": [env.names[i] for i in kept], "r2": score.r2.tolist(), "rmse": score.rmse.tolist()}


def _plan_times(acting: Callable[[], Policy], posed: Problems) -> list[float]:
    """Seconds to the first actions of one problem, each time from nothing."""
    times = []
    for i in range(TIMED + 1):
        one, own = [i % len(posed.start)], acting()
        clock = time.perf_counter()
        own(posed.start[one], posed.goal[one])
        times.append(time.perf_counter() - clock)
    return times[1:]


def render(path: Path) -> str:
    """For each task what was reached, by all seeds, and what embeddings tell of the state."""
    lines = results.latest(results.read(path), "task", "way", "seed")
    parts: list[str] = []
    for task in dict.fromkeys(line["task"] for line in lines):
        own = [line for line in lines if line["task"] == task]
        parts += [f"**{task}**, {len(own[0]['end'])} problems", ""]
        parts += ["| | reached at the end | stricter | ever | ms a plan | R2 of the state | RMSE |", "|" + "---|" * 7]
        for way in dict.fromkeys(line["way"] for line in own):
            rows = [line for line in own if line["way"] == way]
            cells = [
                _share(rows, 0),
                _share(rows, 1),
                _share(rows, 0, "ever"),
                _ms(rows),
                *(_probe(rows, name) for name in ("r2", "rmse")),
            ]
            parts.append("| " + " | ".join([way, *cells]) + " |")
        parts.append("")
    return "\n".join(parts)


def _share(lines: list[Line], rule: int, when: str = "at_end") -> str:
    counts = [(sum(row[rule] for row in line[when]), len(line[when])) for line in lines]
    found = share_over(counts)
    each = f" ({'/'.join(f'{k / n:.1%}' for k, n in counts)})" if len(counts) > 1 else ""
    return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]{each}"


def _ms(lines: list[Line]) -> str:
    times = [1000 * second for line in lines for second in line.get("plan_s", ())]
    if not times:
        return "-"
    found = median_interval(times)
    return f"{found.value:.0f} [{found.low:.0f}, {found.high:.0f}]"


def _probe(lines: list[Line], name: str) -> str:
    if "probe" not in lines[0]:
        return "-"
    values = np.array([line["probe"][name] for line in lines]).mean(0)
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(lines[0]["probe"]["names"], values, strict=True))


def main() -> int:
    """Train, measure, and print the tables. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), help="of %(default)s")
    parser.add_argument("--methods", default="reach,cem,mppi", help=f"of {','.join(METHODS)} (default: %(default)s)")
    parser.add_argument("--models", default="trained,untrained", help="of %(default)s")
    parser.add_argument("--others", default=",".join(OTHERS), help="of %(default)s")
    parser.add_argument("--seeds", type=seed_list, default=(0, 1, 2), help="default: 0,1,2")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--steps", type=positive, help="train for other steps than the recipes say")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the runs, as model.dim=64")
    parser.add_argument("--problems", type=positive, default=200, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/plan"))
    parser.add_argument("--render", type=Path, metavar="FOLDER", help="print a study's tables, and measure nothing")
    args = parser.parse_args()
    if args.render:
        print(render(results.of_study(args.render, "plan.jsonl")))
        return 0
    for word, choices in (("tasks", TASKS), ("methods", METHODS), ("models", ("trained", "untrained")), ("others", OTHERS)):
        setattr(args, word, results.chosen(word, getattr(args, word), choices))
    results.folder(args.out)
    study(args)
    print(render(args.out / "plan.jsonl"))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"plan: {e}", file=sys.stderr)
        sys.exit(2)
