"""Small models that learn to read for one answer on up to 1,024 tokens, and are asked in ever longer texts: S-NIAH and BABILong.

    python benchmarks/reading.py needles --methods lmm,mag,gated_delta --seeds 0
    python benchmarks/reading.py babilong-qa1 --lengths 4096,65536,1048576
    python benchmarks/reading.py needles --methods lmm --seeds 0 --set model.mixers.0.threshold=0 --set objective.write_cost=0
    python benchmarks/reading.py needles --render runs/reading

In the shape of Titans' table 2 (Behrouz et al. 2024, arXiv 2501.00663) and of ARMT's table 1 (Rodkin et al. 2024, arXiv 2407.04841), whose
figures stand beside ours: there models of 130M parameters and more were trained on language before, here models of 1M learn one task
alone. The tokenizer is a BPE of 4,096 pieces, made once from training texts. Trained runs and measured cells stay in --out, so that an
interrupted study goes on; what was changed is trained and asked anew.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import study_results as results
import torch
from study_results import Line

from postformer.claims.stats import share_over
from postformer.claims.tasks import shortened
from postformer.cli import positive, seed_list
from postformer.config import Run, UserError, build, override, parse, plain
from postformer.data import DATA
from postformer.objectives.accuracy import accuracy
from postformer.recipes import RECIPES
from postformer.recipes.memory import METHODS, remembering_by
from postformer.tokens import BPE
from postformer.train.process import threads
from postformer.train.session import open_model, train_run

LENGTHS = (1024, 2048, 4096, 8192, 16384)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What a model is trained on, what it is asked, and what papers report of other models."""

    recipe: str
    columns: dict[str, dict[str, Any]]
    """Keywords of the data by the name of a question."""
    words: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of the data for training."""
    paper: dict[str, dict[str, str]]
    """In percent, by method and question."""


_PK, _N, _W = "passkey", "number", "word"
NIAH = {
    "mamba2": {_PK: "98.6, 61.4, 31.0, 5.4", _N: "98.4, 55.8, 14.2, 0.0", _W: "42.2, 4.2, 0.0, 0.0"},
    "lmm": {_PK: "99.8, 98.4, 98.2, 96.2", _N: "100.0, 99.8, 93.4, 80.2", _W: "90.4, 89.4, 85.8, 80.6"},
    "mac": {_PK: "99.2, 98.8, 99.0, 98.4", _N: "99.6, 98.2, 97.6, 97.4", _W: "98.2, 98.2, 95.6, 95.2"},
    "mag": {_PK: "99.4, 98.0, 97.4, 97.4", _N: "99.2, 98.8, 97.2, 98.6", _W: "98.0, 98.0, 90.2, 88.2"},
    "mal": {_PK: "98.8, 98.6, 98.8, 97.8", _N: "99.8, 98.1, 96.8, 96.4", _W: "98.0, 97.4, 92.0, 90.4"},
}
"""Titans, table 2: at 2K, 4K, 8K and 16K tokens."""
QA1 = {
    "RMT 137M": "99.6, 99.1, 96.4, 94.2",
    "Mamba 130M": "100, 99.5, 92.3, -",
    "ARMT 145M": "100, 99.9, 99.3, 98.5",
    "GPT-4": "30, 24, -, -",
    "GPT-4 + RAG": "50, 56, 50, 56",
}
QA2 = {
    "RMT 137M": "72.7, 56.3, 32.0, 25.5",
    "Mamba 130M": "95.0, 86.7, -, -",
    "ARMT 145M": "100, 99.8, 99.4, 99.4",
    "GPT-4": "4, 8, -, -",
}
"""ARMT, table 1: at 64K, 128K, 500K and 1M tokens."""
_SHORT = {"shortest": 40, "start": 56}
"""The first texts are as short as the tokenizer allows: they hold little more than what is asked."""
STUDIES = {
    "needles": Study(recipe="needles", words=_SHORT, columns={n: {"needle": n} for n in (_PK, _N, _W)}, paper=NIAH),
    "babilong-qa1": Study(
        recipe="babilong", words=_SHORT, columns={"qa1": {}}, paper={name: {"qa1": row} for name, row in QA1.items()}
    ),
    "babilong-qa2": Study(
        recipe="babilong",
        words={"task": 2},
        columns={"qa2": {}},
        paper={name: {"qa2": row} for name, row in QA2.items()},
    ),
}
MADE_OF = [{"kind": "needles", "needle": n} for n in (_PK, _N, _W)] + [{"kind": "babilong", "task": t} for t in (1, 2)]
VOCAB = 4096
CHUNK = 1024
AT_ONCE = 1 << 15
"""Tokens of a chunk over all rows: bounds memory."""
ASKED = 1000
"""The passages of seed s are drawn from ASKED + s: other ones for each model, and others than those of the seed 0 by which settings were
tried."""
TIMED = 1 << 14
"""Tokens of one row that are read for `--time`."""


def tokenizer(out: Path) -> Path:
    """The folder of the BPE, made from texts for training where it is not there yet."""
    folder = out / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        tasks = [build({**spec, "length": 4000}, DATA, "data") for spec in MADE_OF]
        pieces = (task.passage(i, seed=1, split="train").chunks(4096) for task in tasks for i in range(150))
        BPE.train([bytes(i for piece in text for i in piece.tolist() if i < 256) for text in pieces], VOCAB).save(folder)
    return folder


def run_of(method: str, seed: int, args: argparse.Namespace) -> Run:
    """The method's run as it is trained."""
    study = STUDIES[args.name]
    run = remembering_by(RECIPES[study.recipe](), method)
    run = dataclasses.replace(run, data={**run.data, **study.words})
    if args.steps:
        run = shortened(run, args.steps / run.train.steps, args.threads)
    data = {**run.data, "tokenizer": str(tokenizer(args.out))}
    run = dataclasses.replace(run, seed=seed, data=data, train=dataclasses.replace(run.train, threads=args.threads))
    return parse(Run, override(plain(run), args.set)) if args.set else run


def label(method: str, args: argparse.Namespace) -> str:
    """The method's name in the table, with what is set."""
    return method + "".join(f", {word.replace('model.mixers.0.', '')}" for word in args.set)


def trained(run: Run, args: argparse.Namespace) -> Any:
    """The run's model after all of its steps, trained now or before."""
    out = args.out / f"{run.name}-{run.seed}-{results.digest(run)[:8]}"
    summary = train_run(run, out)
    if summary.stopped:
        sys.exit(130)
    print(f"{run.name}, seed {run.seed}: {summary.steps} steps in {summary.seconds:.0f} s", file=sys.stderr, flush=True)
    return open_model(out)


def cells(args: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """Question, length and rows, the shortest texts first."""
    for length in args.lengths:
        for column in STUDIES[args.name].columns:
            yield column, length, max(args.least, min(args.rows, args.tokens // length))


def asked_of(run: Run, column: str, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """The data of a cell: passages of one length."""
    longest = {"length": length, "shortest": None, "start": None, "grow": 0, "fill": 0}
    return {**run.data, **STUDIES[args.name].columns[column], **longest}


def right(model: Any, data: dict[str, Any], rows: int, seed: int) -> int:
    """Passages answered right, each from the first token to the last with the state carried on."""
    batch = max(1, min(rows, AT_ONCE // min(data["length"], CHUNK)))
    return accuracy(model, build(data, DATA, "data"), rows=rows, seed=ASKED + seed, batch=batch, chunk=CHUNK).rows_right


def study(args: argparse.Namespace) -> None:
    """Train and measure what is not there yet."""
    path = args.out / f"{args.name}.jsonl"
    _check(run_of(args.methods[0], args.seeds[0], args), args)
    for seed in args.seeds:
        for method in args.methods:
            run, model = run_of(method, seed, args), None
            for column, length, rows in cells(args):
                data = asked_of(run, column, length, args)
                of = results.digest(run, data, rows)
                if (method == "attention" and length > args.attention_to) or results.find(path, of):
                    continue
                model = trained(run, args) if model is None else model
                began = results.about(run)
                with threads(args.threads):
                    hits = right(model, data, rows, seed)
                cost = model.cost(length)
                line = {
                    "method": label(method, args),
                    "seed": seed,
                    "steps": run.train.steps,
                    "question": column,
                    "length": length,
                }
                line |= {"right": hits, "rows": rows, "parameters": cost.parameters, "state_bytes": cost.state_bytes}
                results.add(path, of, line, began)
                print(f"{method:12} seed {seed} {column:8} {length:9,}: {hits}/{rows}", flush=True)


def _check(run: Run, args: argparse.Namespace) -> None:
    """Raise DataError before anything is trained, where a question does not fit into the shortest text."""
    for column in STUDIES[args.name].columns:
        build(asked_of(run, column, min(args.lengths), args), DATA, "data").passage(0, seed=ASKED + run.seed)


def timings(args: argparse.Namespace) -> None:
    """Seconds a million tokens of each method's first model, on one row of random tokens: the least of five rounds, in turns."""
    path = args.out / f"{args.name}.jsonl"
    runs = {method: run_of(method, args.seeds[0], args) for method in args.methods}
    models = {method: trained(run, args) for method, run in runs.items()}
    least = dict.fromkeys(models, float("inf"))
    with threads(args.threads), torch.inference_mode():
        for _ in range(5):
            for method, model in models.items():
                ids, state = torch.randint(model.vocab, (1, TIMED)), model.init_state(1)
                began = time.perf_counter()
                for piece in ids.split(CHUNK, 1):
                    _, state = model.hidden(piece, state)
                least[method] = min(least[method], time.perf_counter() - began)
    for method, run in runs.items():
        line = {"method": label(method, args), "seed": run.seed, "steps": run.train.steps, "question": "time", "length": TIMED}
        line |= {"seconds": least[method] / TIMED * 1e6, "threads": args.threads}
        results.add(path, results.digest(run, "time", args.threads), line, results.about(run))


def render(name: str, path: Path) -> str:
    """For each question a line of each method and number of steps, in percent over all seeds, with Wilson's interval or Student's over
    seeds."""
    found = results.latest(results.read(path / f"{name}.jsonl"), "method", "seed", "steps", "question", "length")
    times = {(c["method"], c["steps"]): c["seconds"] for c in found if c["question"] == "time"}
    study = STUDIES[name]
    lengths = sorted({c["length"] for c in found if c["question"] != "time"})
    lines = []
    for column in study.columns:
        cells = [c for c in found if c["question"] == column]
        head = (column, "steps", *(f"{n:,}" for n in lengths), "state bytes at the longest", "s a million tokens", "the paper")
        lines += ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        others = sorted({c["method"] for c in cells} - METHODS.keys())
        for method in dict.fromkeys([*METHODS, *others, *study.paper]):
            paper = study.paper.get(method, {}).get(column, "")
            for steps in sorted({c["steps"] for c in cells if c["method"] == method}):
                own = [c for c in cells if (c["method"], c["steps"]) == (method, steps)]
                row = [_percent([c for c in own if c["length"] == n]) for n in lengths]
                kept, time = max(own, key=lambda c: c["length"])["state_bytes"], times.get((method, steps))
                about = (f"{kept:,}", "" if time is None else f"{time:.0f}", paper)
                lines.append("| " + " | ".join([method, str(steps), *row, *about]) + " |")
            if method in study.paper.keys() - METHODS.keys():
                lines.append("| " + " | ".join([method, *[""] * (len(lengths) + 3), paper]) + " |")
    return "\n".join(lines[1:])


def _percent(group: list[Line]) -> str:
    if not group:
        return ""
    share = share_over([(c["right"], c["rows"]) for c in group])
    mean = sum(c["right"] for c in group) / sum(c["rows"] for c in group)
    low, high = share.low or 0.0, 1.0 if share.high is None else share.high
    each = "/".join(f"{100 * c['right'] / c['rows']:.0f}" for c in group)
    return f"{100 * mean:.1f} [{100 * low:.0f}, {100 * high:.0f}] ({each})"


def main() -> int:
    """Train, measure, and print the tables. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--methods", default=",".join(METHODS), help="of %(default)s")
    parser.add_argument("--seeds", type=seed_list, default=(0, 1, 2), help="default: 0,1,2")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the run, as model.mixers.0.threshold=0"
    )
    parser.add_argument("--steps", type=positive, help="train for fewer steps than the recipe says")
    parser.add_argument("--lengths", type=seed_list, default=LENGTHS, help=f"tokens; default {','.join(map(str, LENGTHS))}")
    parser.add_argument("--rows", type=positive, default=200, help="passages of a cell, at most")
    parser.add_argument("--tokens", type=positive, default=1 << 20, help="tokens of a cell, at most, but for --least passages")
    parser.add_argument("--least", type=positive, default=20)
    parser.add_argument("--attention-to", type=positive, default=16384, help="longest text of full attention")
    parser.add_argument("--out", type=Path, default=Path("runs/reading"))
    parser.add_argument(
        "--time", action="store_true", help="time how long each method reads, on a quiet machine, and ask nothing"
    )
    parser.add_argument("--render", type=Path, metavar="FOLDER", help="print a study's tables, and measure nothing")
    args = parser.parse_args()
    if args.render:
        results.of_study(args.render, f"{args.name}.jsonl")
        print(render(args.name, args.render))
        return 0
    args.methods = results.chosen("methods", args.methods, METHODS)
    results.folder(args.out)
    (timings if args.time else study)(args)
    print(render(args.name, args.out))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"reading: {e}", file=sys.stderr)
        sys.exit(2)
