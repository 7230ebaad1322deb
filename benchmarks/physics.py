"""Videos of simulated physics: diffusion transformers on spacetime patches beside U-Nets, judged by velocities, places and what is kept.

    python benchmarks/physics.py --seeds 0
    python benchmarks/physics.py --scenes collision,several --models physics-dit,physics-unet
    python benchmarks/physics.py --models physics-dit --set model.dim=64 --set model.depth=4
    python benchmarks/physics.py --render runs/physics

Each model learns a scene as its recipe says and goes on from four frames of clips that it never saw, in and out of the ranges that it
learned from. Beside it stand the true clips, whose score is the error of measuring, a straight line through the last two known frames,
and the last frame for ever. Trained runs and measured cells stay in --out, so that an interrupted study goes on; what was changed is
trained and asked anew. The measure: docs/diffusion.md.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import study_results as results
from study_results import Line

from postformer.claims.stats import mean_interval
from postformer.cli import positive, seed_list
from postformer.config import Run, UserError, build, override, parse, plain
from postformer.data import DATA
from postformer.data.physics import COUNTS, SPLITS
from postformer.objectives.continued import FIGURES, UNITS, Continued, by_model, continued, rivals, told_by
from postformer.recipes import RECIPES
from postformer.train.painter import Painter
from postformer.train.process import threads
from postformer.train.session import train_run

MODELS = ("physics-dit", "physics-frames", "physics-causal", "physics-unet")
ASKED = ("test", "slow", "fast", "small", "large")
SEED = 1000
"""Clips that are asked are those of SEED and more: others than those with which a recipe was tried."""


MEASURES = {"collision": ("momentum and energy beside the true ones",)}
"""What a scene is measured by now where older cells were measured by something else: these are asked anew."""


def run_of(model: str, scene: str, seed: int, args: argparse.Namespace) -> Run:
    """The recipe's run on a scene."""
    run = RECIPES[model]()
    train = dataclasses.replace(run.train, threads=args.threads, steps=args.steps or run.train.steps)
    run = dataclasses.replace(run, seed=seed, data={**run.data, "scene": scene}, train=train)
    return parse(Run, override(plain(run), args.set)) if args.set else run


def label(model: str, run: Run, args: argparse.Namespace) -> str:
    """The model's name in the table, with what is set and for how many steps it learned."""
    told = f"{model.removeprefix('physics-')}, {run.train.steps:,} steps"
    return told + "".join(f", {word.removeprefix('model.')}" for word in args.set)


def study(args: argparse.Namespace) -> None:
    """Train and measure what is not there yet."""
    path = args.out / "physics.jsonl"
    for scene in args.scenes:
        for seed in args.seeds:
            for model in args.models:
                _measured(run_of(model, scene, seed, args), model, path, args)
        _anyone(run_of(args.models[0], scene, args.seeds[0], args), path, args)


def _measured(run: Run, model: str, path: Path, args: argparse.Namespace) -> None:
    wanted = {
        split: results.digest(run, split, args.clips, args.sampled, *MEASURES.get(run.data["scene"], ()))
        for split in args.splits
    }
    if all(results.find(path, of) for of in wanted.values()):
        return
    folder = args.out / f"{run.name}-{run.data['scene']}-{run.seed}-{results.digest(run)[:8]}"
    summary = train_run(run, folder)
    if summary.stopped:
        sys.exit(130)
    painter = Painter.of(folder)
    how = painter.sampling(steps=args.sampled)
    about = {"model": label(model, run, args), "scene": run.data["scene"], "seed": run.seed, "steps": run.train.steps}
    about |= {"parameters": sum(p.numel() for p in painter.model.parameters())}
    about |= {"flops": painter.model.flops(painter.data.clip_size), "trained_s": summary.seconds}
    for split, of in wanted.items():
        began = results.about(run)
        with threads(args.threads):
            told = told_by(painter.data, seed=SEED + run.seed, split=split)
            own = by_model(painter.model, how, told=told)
            found = continued(own, painter.data, clips=args.clips, seed=SEED + run.seed, split=split)
        results.add(path, of, {**about, "split": split, "figures": found.figures}, began)
        print(f"{about['model']}, {about['scene']}, seed {run.seed}, {split}: {_brief(found)}", flush=True)


def _anyone(run: Run, path: Path, args: argparse.Namespace) -> None:
    """The ways that need no model, on the clips of the first seed."""
    run = Run(name="anyone", model={}, seed=run.seed, data=run.data)
    physics = build(run.data, DATA, "data")
    for split in args.splits:
        for name, way in rivals(physics, seed=SEED + run.seed, split=split).items():
            of = results.digest(run, name, split, args.clips, *MEASURES.get(physics.scene, ()))
            if results.find(path, of):
                continue
            began = results.about(run)
            found = continued(way, physics, clips=args.clips, seed=SEED + run.seed, split=split)
            line = {"model": name, "scene": physics.scene, "seed": run.seed, "steps": 0, "split": split}
            results.add(path, of, {**line, "figures": found.figures}, began)


def _brief(found: Continued) -> str:
    told = {name: found.mean(name) for name in ("velocity", "place", "there", "whole")}
    return ", ".join(f"{name} {value:.3g}" for name, value in told.items() if value is not None)


def render(path: Path) -> str:
    """For each scene the velocity's error by split, then every figure in the range that was learned: means over clips and seeds with the
    interval over seeds, or over clips where there is one, and how many clips of how many tell it where that is not all."""
    lines = results.latest(results.read(path), "model", "scene", "seed", "split")
    parts: list[str] = []
    for scene in dict.fromkeys(line["scene"] for line in lines):
        own = [line for line in lines if line["scene"] == scene]
        splits = [split for split in SPLITS if any(line["split"] == split for line in own)]
        parts += [f"**{scene}**, velocity error in units/s", "", *_rows(own, [("velocity", split) for split in splits], splits)]
        figures = [name for name in FIGURES if any(v is not None for line in own for v in line["figures"][name])]
        heads = [f"{name}, {UNITS[name]}" if UNITS[name] else name for name in figures]
        parts += ["", f"**{scene}**, `{splits[0]}`", "", *_rows(own, [(name, splits[0]) for name in figures], heads), ""]
    return "\n".join(parts)


def _rows(lines: Sequence[Line], columns: Sequence[tuple[str, str]], heads: Sequence[str]) -> list[str]:
    out = ["| | parameters | GFLOP a clip | " + " | ".join(heads) + " |", "|" + "---|" * (len(heads) + 3)]
    for model in sorted(dict.fromkeys(line["model"] for line in lines), key=lambda name: "steps" not in name):
        own = [line for line in lines if line["model"] == model]
        cells = [_cell([line["figures"][name] for line in own if line["split"] == split]) for name, split in columns]
        size = f"{own[0]['parameters']:,}" if "parameters" in own[0] else ""
        flops = f"{own[0]['flops'] / 1e9:.3f}" if "flops" in own[0] else ""
        out.append("| " + " | ".join([model, size, flops, *cells]) + " |")
    return out


def _cell(seeds: Sequence[Sequence[float | None]]) -> str:
    told = [[v for v in clips if v is not None] for clips in seeds]
    asked, count = sum(map(len, seeds)), sum(map(len, told))
    told = [clips for clips in told if clips]
    if not told:
        return "-"
    of = f", {count} of {asked}" if count < asked else ""
    means = [statistics.fmean(clips) for clips in told]
    if len(means) == 1 and len(told[0]) < 2:
        return f"{means[0]:.3g}{of}"
    found = mean_interval(means if len(means) > 1 else told[0])
    each = f" ({'/'.join(f'{m:.3g}' for m in means)})" if len(means) > 1 else ""
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]{each}{of}"


def main() -> int:
    """Train, measure, and print the tables. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default=",".join(COUNTS), help="of %(default)s")
    parser.add_argument("--models", default=",".join(MODELS), help="of %(default)s")
    parser.add_argument("--seeds", type=seed_list, default=(0, 1, 2), help="default: 0,1,2")
    parser.add_argument("--splits", default=",".join(ASKED), help="of %(default)s")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--steps", type=positive, help="train for other steps than the recipe says")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the run, as model.dim=64")
    parser.add_argument("--clips", type=positive, default=100, help="of a split (default: 100)")
    parser.add_argument("--sampled", type=positive, default=10, help="steps in which a clip is drawn (default: 10)")
    parser.add_argument("--out", type=Path, default=Path("runs/physics"))
    parser.add_argument("--render", type=Path, metavar="FOLDER", help="print a study's tables, and measure nothing")
    args = parser.parse_args()
    if args.render:
        print(render(results.of_study(args.render, "physics.jsonl")))
        return 0
    for word, choices in (("scenes", COUNTS), ("models", MODELS), ("splits", SPLITS)):
        setattr(args, word, results.chosen(word, getattr(args, word), choices))
    results.folder(args.out)
    study(args)
    print(render(args.out / "physics.jsonl"))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"physics: {e}", file=sys.stderr)
        sys.exit(2)
