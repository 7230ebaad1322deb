"""What models of a world foresee of simulated physics a second ahead, and whether what cannot be surprises them.

    python benchmarks/foresee.py --seeds 0
    python benchmarks/foresee.py --models world-physics --set objective.normal=0.02
    python benchmarks/foresee.py --render runs/foresee

Models learn all scenes as their recipes say: one predicts embeddings, its rival of the same operations pixels; beside them stands a model
that learned nothing. A linear probe reads places, velocities and masses off what is imagined a second after the known frames, beside what
truly comes (the probe's own floor) and what was seen last. Then pairs of clips are told apart by surprise, one of which cannot be. Trained
runs and measured cells stay in --out, so that an interrupted study goes on. The measure: docs/worlds.md.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import study_results as results
import torch
from study_results import Line

from postformer.claims.imagining import GROUPS, SCENES, errors, surprises, untrained
from postformer.claims.stats import mean_interval, mean_over, share_over
from postformer.cli import positive, seed_list
from postformer.config import Run, UserError, override, parse, plain
from postformer.data.impossible import EASY, KINDS
from postformer.objectives.surprise import told_apart
from postformer.recipes import RECIPES
from postformer.train.process import threads
from postformer.train.session import open_model, train_run

MODELS = ("world-physics", "world-pixels", "untrained")


def run_of(model: str, seed: int, args: argparse.Namespace) -> Run:
    """The recipe's run; of the untrained model that of the embeddings."""
    run = RECIPES["world-physics" if model == "untrained" else model]()
    train = dataclasses.replace(run.train, threads=args.threads, steps=args.steps or run.train.steps)
    run = dataclasses.replace(run, seed=seed, train=train)
    return parse(Run, override(plain(run), args.set)) if args.set else run


def study(args: argparse.Namespace) -> None:
    """Train and measure what is not there yet."""
    path = args.out / "foresee.jsonl"
    for seed in args.seeds:
        for model in args.models:
            run = run_of(model, seed, args)
            of = results.digest(run, model, args.clips, args.pairs)
            if results.find(path, of):
                continue
            trained, seconds = _model(run, model, args)
            began = results.about(run)
            line: Line = {"model": _label(model, run, args), "seed": seed, "trained_s": seconds}
            line |= {"parameters": sum(p.numel() for p in trained.parameters())}
            with threads(args.threads):
                line["foreseen"] = {scene: errors(trained, run, scene, seed, args.clips) for scene in SCENES}
                line["surprise"] = {kind: surprises(trained, run, kind, seed, args.pairs) for kind in KINDS}
            results.add(path, of, line, began)
            print(f"{line['model']}, seed {seed}: {_brief(line)}", flush=True)


def _label(model: str, run: Run, args: argparse.Namespace) -> str:
    told = model.removeprefix("world-")
    return told if model == "untrained" else f"{told}, {run.train.steps:,} steps" + "".join(f", {word}" for word in args.set)


def _model(run: Run, model: str, args: argparse.Namespace) -> tuple[Any, float]:
    if model == "untrained":
        return untrained(run), 0.0
    folder = args.out / f"{model}-{run.seed}-{results.digest(run)[:8]}"
    summary = train_run(run, folder)
    if summary.stopped:
        sys.exit(130)
    return open_model(folder).eval(), summary.seconds


def _apart(found: dict[str, list[float]]) -> Any:
    return told_apart(torch.tensor(found["possible"]), torch.tensor(found["impossible"]))


def _brief(line: Line) -> str:
    place = line["foreseen"]["uniform"]["place"]
    means = ", ".join(f"{way} {mean_interval(place[way]).value:.3g}" for way in place)
    return f"place {means}; " + ", ".join(f"{kind} {_apart(found).pairwise:.0%}" for kind, found in line["surprise"].items())


def render(path: Path) -> str:
    """A second ahead by scene, then pairs told apart by kind; with one seed intervals are over clips (Student's) and pairs (Wilson's), with
    several over seeds."""
    lines = results.latest(results.read(path), "model", "seed")
    models = list(dict.fromkeys(line["model"] for line in lines))
    parts = ["**A second ahead**: error of what is imagined (of what truly comes; of what was seen last)", ""]
    groups = [(scene, group) for scene in SCENES for group in GROUPS if group in lines[0]["foreseen"][scene]]
    parts += [f"| scene | attribute | {' | '.join(models)} |", "|" + "---|" * (len(models) + 2)]
    for scene, group in groups:
        cells = [_error([line["foreseen"][scene][group] for line in lines if line["model"] == model]) for model in models]
        parts.append(f"| {scene} | {group}, {GROUPS[group]} | {' | '.join(cells)} |")
    parts += ["", "**Pairs told apart**: share in which the impossible clip surprises more (area under the curve)", ""]
    parts += [f"| what cannot be | {' | '.join(models)} |", "|" + "---|" * (len(models) + 1)]
    for kind in KINDS:
        cells = [_told([line["surprise"][kind] for line in lines if line["model"] == model]) for model in models]
        parts.append(f"| {kind}{' (easy)' if kind in EASY else ''} | {' | '.join(cells)} |")
    return "\n".join(parts)


def _error(seeds: list[dict[str, list[float]]]) -> str:
    found = mean_over([each["imagined"] for each in seeds])
    assert found
    beside = [np.mean([np.mean(each[way]) for each in seeds]) for way in ("floor", "last")]
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}] ({beside[0]:.3g}; {beside[1]:.3g})"


def _told(seeds: list[dict[str, list[float]]]) -> str:
    shares = [_apart(each) for each in seeds]
    auroc = np.mean([share.auroc for share in shares])
    asked = len(seeds[0]["possible"])
    found = share_over([(round(share.pairwise * asked), asked) for share in shares])
    return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}] ({auroc:.2f})"


def main() -> int:
    """Train, measure, and print the tables. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="of %(default)s")
    parser.add_argument("--seeds", type=seed_list, default=(0, 1, 2), help="default: 0,1,2")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--steps", type=positive, help="train for other steps than the recipes say")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the runs, as model.dim=64")
    parser.add_argument("--clips", type=positive, default=200, help="of a scene (default: 200)")
    parser.add_argument("--pairs", type=positive, default=200, help="of a kind (default: 200)")
    parser.add_argument("--out", type=Path, default=Path("runs/foresee"))
    parser.add_argument("--render", type=Path, metavar="FOLDER", help="print a study's tables, and measure nothing")
    args = parser.parse_args()
    if args.render:
        print(render(results.of_study(args.render, "foresee.jsonl")))
        return 0
    args.models = results.chosen("models", args.models, MODELS)
    results.folder(args.out)
    study(args)
    print(render(args.out / "foresee.jsonl"))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"foresee: {e}", file=sys.stderr)
        sys.exit(2)
