"""Long-term forecasts of ETTh1 and ETTh2: trains our recipes over seeds and prints their errors beside the published ones.

    POSTFORMER_DATA=FOLDER python benchmarks/forecast.py
    python benchmarks/forecast.py --recipes forecast-dlinear --horizons 96 --seeds 0

Each run is trained as its recipe says and judged after every `train.save_every` steps on all windows of the valid part; the checkpoint
that is best there is asked once for the test part. A finished run is a line of results.jsonl in --out, and a rerun goes on after them;
a run whose recipe or file has changed is trained anew. The protocol: docs/forecasting.md.
"""

import argparse
import dataclasses
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import study_results as results
from study_results import Line

from postformer.cli import positive, seed_list
from postformer.config import Run, UserError, build
from postformer.data import DATA
from postformer.objectives.errors import errors
from postformer.recipes import RECIPES
from postformer.train.process import threads
from postformer.train.session import open_model, train_run

HORIZONS = (96, 192, 336, 720)
SERIES = ("ETTh1", "ETTh2")
KEPT = "forecast-lmm,forecast-dlinear"
PAPERS = {
    "Titans (LMM)": {"ETTh1": (0.420, 0.421), "ETTh2": (0.336, 0.382)},
    "Simba": {"ETTh1": (0.441, 0.432), "ETTh2": (0.361, 0.391)},
    "iTransformer": {"ETTh1": (0.454, 0.447), "ETTh2": (0.383, 0.407)},
    "PatchTST": {"ETTh1": (0.469, 0.454), "ETTh2": (0.387, 0.407)},
    "DLinear": {"ETTh1": (0.456, 0.452), "ETTh2": (0.559, 0.515)},
}
"""MSE and MAE averaged over the horizons, look-back 96: Behrouz et al. 2024, table 3, and Liu et al. 2024 (arXiv 2310.06625), table 1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=KEPT, help="default: %(default)s")
    parser.add_argument("--series", default=",".join(SERIES), help="names in POSTFORMER_DATA or files (default: %(default)s)")
    parser.add_argument("--horizons", type=seed_list, default=HORIZONS, help="default: 96,192,336,720")
    parser.add_argument("--seeds", type=seed_list, default=(0, 1, 2), help="default: 0,1,2")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--steps", type=positive, help="train for fewer steps than the recipe says")
    parser.add_argument("--out", type=Path, default=Path("runs/forecast"))
    args = parser.parse_args()
    recipes, series = args.recipes.split(","), args.series.split(",")
    if unknown := [name for name in recipes if name not in RECIPES or RECIPES[name]().data["kind"] != "series"]:
        choices = ", ".join(name for name in RECIPES if RECIPES[name]().data["kind"] == "series")
        raise UserError(f"--recipes: unknown '{unknown[0]}'; choose from {choices}")
    results.folder(args.out)
    lines, began = [], time.monotonic()
    for seed in args.seeds:
        for name in series:
            for horizon in args.horizons:
                for recipe in recipes:
                    run = asked(recipe, name, horizon, seed, args.threads, args.steps)
                    lines.append(result(run, recipe, args.out))
                    print(told(lines[-1]), file=sys.stderr, flush=True)
    print("\n\n".join(table(name, lines, args.horizons) for name in series))
    print(f"\n{time.monotonic() - began:.0f} s for the runs that were not there before; {args.out / 'results.jsonl'}")


def asked(recipe: str, series: str, horizon: int, seed: int, threads: int, steps: int | None) -> Run:
    """The recipe's run on a series, with every checkpoint kept."""
    run = RECIPES[recipe]()
    steps = steps or run.train.steps
    train = dataclasses.replace(run.train, steps=steps, threads=threads, eval_every=0, keep=steps)
    return dataclasses.replace(run, seed=seed, data={**run.data, "path": series, "horizon": horizon}, train=train)


def result(run: Run, recipe: str, out: Path) -> Line:
    """The line of a run, from the file or measured now."""
    data = build(run.data, DATA, "data")
    file, of = out / "results.jsonl", results.digest(run, data.digest)
    if found := results.find(file, of):
        return found
    began, folder = results.about(run), out / of[:16]
    summary = train_run(run, folder)
    if summary.stopped:
        sys.exit(130)
    with threads(run.train.threads):
        models = {int(f.name[-8:]): open_model(f) for f in sorted((folder / "checkpoints").glob("step-*"))}
        valid = {step: errors(model, data, "valid") for step, model in models.items()}
        best = min(valid, key=lambda step: valid[step].mse)
        test = errors(models[best], data, "test")
    line = {
        "series": run.data["path"],
        "horizon": run.data["horizon"],
        "recipe": recipe,
        "seed": run.seed,
        "test": test._asdict(),
        "valid": {str(step): e._asdict() for step, e in valid.items()},
        "best": best,
        "steps": run.train.steps,
        "parameters": sum(p.numel() for p in models[best].parameters()),
        "seconds": summary.seconds,
    }
    shutil.rmtree(folder)
    return results.add(file, of, line, began)


def told(line: Line) -> str:
    return (
        f"{line['series']} {line['horizon']:>3} {line['recipe']:<16} seed {line['seed']}: mse {line['test']['mse']:.4f}, "
        f"mae {line['test']['mae']:.4f}, best after {line['best']} of {line['steps']} steps, {line['seconds']:.0f} s"
    )


def table(series: str, lines: Sequence[Line], horizons: Sequence[int]) -> str:
    """MSE/MAE of each recipe and horizon over seeds, their average with its standard deviation over seeds, and the papers' averages."""
    here = [line for line in lines if line["series"] == series]
    head = "".join(f"{h:>15}" for h in horizons)
    rows = [f"{series:<23}{head}{'average':>15}   standard deviation over seeds, valid MSE"]
    for recipe in dict.fromkeys(line["recipe"] for line in here):
        mine = [line for line in here if line["recipe"] == recipe]
        seeds = sorted({line["seed"] for line in mine})
        cells = [_pair(*(_mean(mine, m, horizon=h) for m in ("mse", "mae"))) for h in horizons]
        each = {m: [_mean(mine, m, seed=s) for s in seeds] for m in ("mse", "mae")}
        cells.append(_pair(*(statistics.fmean(each[m]) for m in each)))
        spread = _pair(*(statistics.stdev(each[m]) for m in each)) if len(seeds) > 1 else "one seed"
        valid = statistics.fmean(line["valid"][str(line["best"])]["mse"] for line in mine)
        rows.append(
            f"{recipe:<23}" + "".join(f"{c:>15}" for c in cells) + f"   {spread}, {len(seeds)} seeds, valid {valid:.4f}"
        )
    for name, averages in PAPERS.items():
        if series in averages and tuple(horizons) == HORIZONS:
            rows.append(f"{name:<23}" + " " * 15 * len(horizons) + f"{_pair(*averages[series]):>15}   published")
    return "\n".join(rows)


def _mean(lines: Sequence[Line], metric: str, **only: int) -> float:
    return statistics.fmean(line["test"][metric] for line in lines if all(line[k] == v for k, v in only.items()))


def _pair(mse: float, mae: float) -> str:
    return f"{mse:.4f}/{mae:.4f}"


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        print(f"forecast: {e}", file=sys.stderr)
        sys.exit(2)
