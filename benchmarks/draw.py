"""Images drawn by their class: diffusion transformers beside U-Nets, and students of few steps, as a classifier trained here sees them.

    python benchmarks/draw.py --seeds 0
    python benchmarks/draw.py --data tiles --models draw-dit --set data.flip=true
    python benchmarks/draw.py --models draw-dit --set model.strides=true --set objective.shortcut=0.25 --sampled 50,4,1
    python benchmarks/draw.py --render runs/draw

The classifier (`see-vit`) learns the training part; each model learns the same and draws as many images as half of the test part has, of
its classes, three times. The table tells how many are taken for what they should be, and the Frechet distance of the classifier's
features to that half, beside the other half of the real images. The three halves share images: of real ones each is counted once, and
their distances have a range and no interval. Trained runs and judged cells stay in --out, so that an interrupted study goes on.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import study_results as results
from study_results import Line

from postformer.claims.stats import mean_interval, wilson
from postformer.cli import positive, seed_list
from postformer.config import Run, UserError, override, parse, plain
from postformer.data.images import NAMED, Labelled
from postformer.models.sampling import Sampling
from postformer.objectives.drawn import seen
from postformer.recipes import RECIPES
from postformer.train.painter import Painter
from postformer.train.process import threads
from postformer.train.session import open_model, train_run

MODELS, CLASSIFIER = ("draw-dit", "draw-unet"), "see-vit"
SETS = 3
"""Sets of images that each model draws, each beside halves of the real ones of its own."""


def run_of(recipe: str, data: str, seed: int, args: argparse.Namespace) -> Run:
    """The recipe's run on images of a name or a path."""
    run = RECIPES[recipe]()
    train = dataclasses.replace(run.train, threads=args.threads)
    steps = args.steps if recipe != CLASSIFIER else args.classifier_steps
    train = dataclasses.replace(train, steps=steps or train.steps)
    run = dataclasses.replace(run, seed=seed, data={**run.data, "path": data}, train=train)
    words = args.set if recipe != CLASSIFIER else []
    return parse(Run, override(plain(run), words)) if words else run


def trained(run: Run, args: argparse.Namespace) -> tuple[Path, float]:
    """The run's folder after all of its steps, trained now or before, and the seconds that took."""
    folder = args.out / f"{run.name}-{Path(run.data['path']).stem}-{run.seed}-{results.digest(run)[:8]}"
    summary = train_run(run, folder)
    if summary.stopped:
        sys.exit(130)
    return folder, summary.seconds


def study(args: argparse.Namespace) -> None:
    """Train and judge what is not there yet."""
    path = args.out / "draw.jsonl"
    for data in args.data:
        judge = run_of(CLASSIFIER, data, 0, args)
        for seed in args.seeds:
            for model in args.models:
                run = run_of(model, data, seed, args)
                wanted = {
                    n: results.digest(run, results.digest(judge), n, args.method, args.guidance, SETS, "halves by class")
                    for n in args.sampled
                }
                if not all(results.find(path, of) for of in wanted.values()):
                    _judged(run, judge, model, wanted, path, args)


def _judged(run: Run, judge: Run, model: str, wanted: dict[int, str], path: Path, args: argparse.Namespace) -> None:
    classifier = open_model(trained(judge, args)[0])
    folder, seconds = trained(run, args)
    painter = Painter.of(folder, seed=run.seed)
    about = {"data": run.data["path"], "model": _label(model, run, args), "seed": run.seed, "trained_s": seconds}
    about |= {"parameters": sum(p.numel() for p in painter.model.parameters())}
    about |= {"flops": painter.model.flops(painter.data.clip_size)}
    for steps, of in wanted.items():
        began = results.about(run)
        with threads(args.threads):
            how = painter.sampling(steps=steps, method=args.method, guidance=args.guidance)
            sets = [painter.judged_by(classifier, how, seed=i) for i in range(SETS)]
            about["real_seen"] = _real_seen(classifier, painter.data.part("test"))
        told = {"steps": steps, "method": args.method, "guidance": args.guidance}
        results.add(path, of, {**about, **told, "sets": [dataclasses.asdict(one) for one in sets]}, began)
        told = ", ".join(f"{one.right} of {one.asked}, {one.distance:.3g}" for one in sets)
        print(
            f"{about['data']}, {about['model']}, seed {run.seed}, {steps} steps: {told} (real {sets[0].real:.3g})", flush=True
        )


def _real_seen(classifier: Any, real: Labelled) -> dict[str, int]:
    """How many of all images of the test part are taken for what they are."""
    return {"right": int((seen(classifier, real.values()).named == real.labels).sum()), "asked": len(real.labels)}


def _label(model: str, run: Run, args: argparse.Namespace) -> str:
    told = f"{model.removeprefix('draw-')}, {run.train.steps:,} steps"
    return told + "".join(f", {word.removeprefix('model.')}" for word in args.set)


def render(path: Path) -> str:
    """A table for each data, a row for each model, number of steps and guidance: over all seeds and sets."""
    lines = results.latest(results.read(path), "data", "model", "seed", "steps", "method", "guidance")
    parts: list[str] = []
    for data in dict.fromkeys(line["data"] for line in lines):
        own = [line for line in lines if line["data"] == data]
        parts += [f"**{data}**", "", *_rows(own), ""]
    return "\n".join(parts)


def _rows(lines: Sequence[Line]) -> list[str]:
    head = ("", "parameters", "GFLOP an image", "drawn in", "guidance", "right", "distance", "distance / real")
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    keys = dict.fromkeys((line["model"], line["steps"], line["method"], line["guidance"]) for line in lines)
    for model, steps, method, guidance in keys:
        own = [v for v in lines if (v["model"], v["steps"], v["method"], v["guidance"]) == (model, steps, method, guidance)]
        sets = [one for line in own for one in line["sets"]]
        distances = [statistics.fmean(one["distance"] for one in line["sets"]) for line in own]
        distances = distances if len(own) > 1 else [one["distance"] for one in sets]
        cells = (
            f"{model}, seed{'s' if len(own) > 1 else ''} {', '.join(str(line['seed']) for line in own)}",
            f"{own[0]['parameters']:,}",
            f"{own[0]['flops'] / 1e9:.3f}",
            f"{steps} {method}",
            f"{guidance:g}",
            *_judgement([one["right"] for one in sets], sets, distances),
        )
        out.append("| " + " | ".join(cells) + " |")
    return [*out, _real_row(lines)]


def _real_row(lines: Sequence[Line]) -> str:
    """Real images: how many are right, each counted once, and the range of their halves' distances. Lines from before `real_seen` tell of
    halves alone: then it is their mean share, with the interval of one."""
    halves = list({(one["real"], one["real_right"]): one for line in lines for one in line["sets"]}.values())
    whole = [line["real_seen"] for line in lines if "real_seen" in line]
    right = whole[-1]["right"] if whole else round(statistics.fmean(one["real_right"] for one in halves))
    distances = [one["real"] for one in halves]
    cells = (
        f"real images, {'each once' if whole else 'of one half'}",
        *[""] * 4,
        _share(right, whole[-1]["asked"] if whole else halves[0]["asked"]),
        f"{statistics.fmean(distances):.3g}, range {min(distances):.3g} to {max(distances):.3g}",
        "1.00",
    )
    return "| " + " | ".join(cells) + " |"


def _judgement(right: Sequence[int], sets: Sequence[Line], distances: Sequence[float]) -> tuple[str, str, str]:
    """How many are right, how far they are, and how much farther than real images."""
    distance, real = mean_interval(list(distances)), statistics.fmean(one["real"] for one in sets)
    return (
        _share(sum(right), sum(one["asked"] for one in sets)),
        f"{distance.value:.3g}" + (f" [{distance.low:.3g}, {distance.high:.3g}]" if distance.low is not None else ""),
        f"{distance.value / real:.2f}" if real > 0 else "-",
    )


def _share(right: int, asked: int) -> str:
    share = wilson(right, asked)
    return f"{100 * share.value:.1f}% [{100 * (share.low or 0):.1f}, {100 * (share.high or 1):.1f}]"


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for a way to draw that there is not, before anything is trained."""
    try:
        for steps in args.sampled:
            Sampling(steps=steps, method=args.method, guidance=args.guidance)
    except ValueError as e:
        raise UserError(f"--sampled, --guidance: {e}") from e


def main() -> int:
    """Train, judge, and print the tables. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help=f"of {', '.join(NAMED)} or paths, with commas (default: %(default)s)")
    parser.add_argument("--models", default=",".join(MODELS), help="of %(default)s")
    parser.add_argument("--seeds", type=seed_list, default=(0, 1, 2), help="default: 0,1,2")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--steps", type=positive, help="train for other steps than the recipe says")
    parser.add_argument("--classifier-steps", type=positive, help="the same of the classifier")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the models that draw, as model.dim=64"
    )
    parser.add_argument("--sampled", type=seed_list, default=(50,), help="steps in which images are drawn (default: 50)")
    parser.add_argument("--method", choices=("euler", "heun", "multistep"), default="euler")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("runs/draw"))
    parser.add_argument("--render", type=Path, metavar="FOLDER", help="print a study's tables, and measure nothing")
    args = parser.parse_args()
    if args.render:
        print(render(results.of_study(args.render, "draw.jsonl")))
        return 0
    args.data, args.models = args.data.split(","), results.chosen("models", args.models, MODELS)
    _check(args)
    results.folder(args.out)
    study(args)
    print(render(args.out / "draw.jsonl"))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"draw: {e}", file=sys.stderr)
        sys.exit(2)
