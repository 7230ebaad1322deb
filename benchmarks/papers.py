"""The papers' small synthetic tables with our code: trains a task's recipes over seeds and prints our figures beside the paper's.

    python benchmarks/papers.py induction --seeds 0,1,2

Each line is what trained models answer on sequences drawn for the test alone, each seed's model on its own. Shares are in percent,
over all seeds, with Wilson's 95% interval, in which a sequence counts as one sample however many answers it asks for; with several
seeds, Student's over their shares where that is wider. Tracking tasks are asked for their last answer and scaled as in the paper (0 a
guesser, 100 perfect). An interrupted study goes on in --out.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from postformer.claims.stamp import closed, stamp
from postformer.claims.stats import share_over
from postformer.claims.tasks import shortened
from postformer.cli import positive, seed_list
from postformer.config import UserError, build
from postformer.data import DATA
from postformer.objectives.accuracy import Score, accuracy, scaled
from postformer.recipes import RECIPES
from postformer.train.process import threads
from postformer.train.session import open_model, train_run

CHUNK = 2048
AT_ONCE = 1 << 16
"""Tokens of a chunk over all rows: bounds memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of a paper, and what it is measured with here."""

    recipe: str
    length: int
    rows: int
    paper: float
    """In percent."""
    source: str
    words: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of the task besides its length."""
    scaled: bool = False


def induction(tokens: int) -> list[Figure]:
    """Table 11 of Gu & Dao 2023: trained at 256, tested at every power of two to 2^20."""
    source = "100 in table 11"
    rows = {2**k: max(8, min(1000, tokens // 2**k)) for k in range(6, 21)}
    return [Figure(recipe="induction", length=n, rows=r, paper=100.0, source=source) for n, r in rows.items()]


def copying(tokens: int) -> list[Figure]:
    """Table 1 of Gu & Dao 2023, whose length is 4096."""
    return [Figure(recipe="selective-copying", length=256, rows=2000, paper=99.8, source="at length 4096, table 1")]


def tracking(recipe: str, paper: float, row: str, **words: str) -> Figure:
    """A cell of table 5b of Lahoti et al. 2026."""
    words, source = {"answers": "last", **words}, f"table 5b, {row}"
    return Figure(recipe=recipe, length=256, rows=2000, paper=paper, source=source, words=words, scaled=True)


TABLES = {
    "induction": induction,
    "selective-copying": copying,
    "parity": lambda tokens: [
        tracking("parity", 100.0, "Mamba-3", ones="even"),
        tracking("parity-real", 2.27, "Mamba-3 without rotation", ones="even"),
    ],
    "modular-arithmetic": lambda tokens: [tracking("modular-arithmetic", 98.51, "Mamba-3")],
}
"""What can be asked for, and its figures when about that many tokens may be read for each."""


def trained(recipe: str, seed: int, args: argparse.Namespace) -> Any:
    """The recipe's model after all of its steps, trained now or before."""
    run = RECIPES[recipe]()
    if args.steps:
        run = shortened(run, args.steps / run.train.steps, args.threads)
    run = dataclasses.replace(run, seed=seed, train=dataclasses.replace(run.train, threads=args.threads))
    out = args.out / f"{recipe}-{seed}"
    summary = train_run(run, out)
    if summary.stopped:
        sys.exit(130)
    print(f"{recipe}, seed {seed}: {summary.steps} steps in {summary.seconds:.0f} s", file=sys.stderr, flush=True)
    return open_model(out)


def measure(model: Any, figure: Figure, seed: int) -> Score:
    """The model's score on the figure's sequences, which are drawn from the seed."""
    spec = {
        **RECIPES[figure.recipe]().data,
        "length": figure.length,
        "shortest": None,
        "start": None,
        "grow": 0,
        **figure.words,
    }
    batch = max(1, min(figure.rows, AT_ONCE // min(figure.length, CHUNK)))
    return accuracy(model, build(spec, DATA, "data"), rows=figure.rows, batch=batch, chunk=CHUNK, seed=seed)


def summary(figure: Figure, scores: dict[int, Score]) -> dict[str, Any]:
    """Our figure in percent, with its interval."""
    share = share_over([(round(s.share * s.rows), s.rows) for s in scores.values()])
    mean = sum(s.share for s in scores.values()) / len(scores)
    chance = next(iter(scores.values())).chance
    bounds = {"value": mean, "low": share.low or 0.0, "high": 1.0 if share.high is None else share.high}
    numbers = {name: 100 * (scaled(b, chance) if figure.scaled else b) for name, b in bounds.items()}
    return {**dataclasses.asdict(figure), **numbers, "seeds": {seed: s._asdict() for seed, s in scores.items()}}


def show(line: dict[str, Any], taken: int, of: int) -> str:
    """One line for a figure, which says so where the training was cut short."""
    each = ", ".join(f"{100 * s['right'] / s['asked']:.2f}" for s in line["seeds"].values())
    return (
        f"{line['recipe']:<20} {line['length']:>9,} {line['value']:>8.2f} [{line['low']:.2f}, {line['high']:.2f}]"
        f"  {line['rows']} sequences a seed, accuracies {each}; paper {line['paper']} ({line['source']})"
        + (f"; after {taken:,} of the recipe's {of:,} steps" if taken != of else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TABLES)
    parser.add_argument("--seeds", type=seed_list, default=(0, 1, 2), help="default: 0,1,2")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--steps", type=positive, help="train for fewer steps than the recipe says")
    parser.add_argument(
        "--tokens", type=positive, default=1 << 22, help="tokens to read for each length of the induction heads"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/papers"))
    args = parser.parse_args()
    figures = TABLES[args.name](args.tokens)
    seeds = list(args.seeds)
    about = stamp(command=["python", *sys.argv], seeds=seeds, threads=args.threads)
    recipes = dict.fromkeys(f.recipe for f in figures)
    steps = {recipe: (args.steps or RECIPES[recipe]().train.steps, RECIPES[recipe]().train.steps) for recipe in recipes}
    models = {(recipe, seed): trained(recipe, seed, args) for recipe in recipes for seed in seeds}
    lines = []
    with threads(args.threads):
        for figure in figures:
            lines.append(summary(figure, {seed: measure(models[figure.recipe, seed], figure, seed) for seed in seeds}))
            print(show(lines[-1], *steps[figure.recipe]), flush=True)
    path = args.out / f"{args.name}.json"
    counted = {recipe: {"taken": taken, "of": of} for recipe, (taken, of) in steps.items()}
    path.write_text(json.dumps({"stamp": closed(about), "steps": counted, "figures": lines}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        print(f"papers: {e}", file=sys.stderr)
        sys.exit(2)
