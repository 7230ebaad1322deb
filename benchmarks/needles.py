"""S-NIAH with small models: each way of remembering learns to find a needle in up to 1,024 tokens, and is asked in ever longer texts.

    python benchmarks/needles.py --methods lmm,mag,gated_delta --seeds 0
    python benchmarks/needles.py --render runs/needles

In the shape of Titans' table 2 (Behrouz et al. 2024, arXiv 2501.00663), whose figures stand beside ours: there models of 340M
parameters and more read language, here models of 1M learn this task alone. The tokenizer is a BPE of 2,048 pieces, made once from
training texts. Trained runs and measured cells stay in --out, so that an interrupted study goes on.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from postformer import state as states
from postformer.claims.stamp import stamp
from postformer.claims.stats import share_over
from postformer.claims.tasks import shortened
from postformer.cli import positive, seed_list
from postformer.config import UserError, build
from postformer.data import DATA, Needles
from postformer.objectives.accuracy import accuracy
from postformer.recipes import RECIPES
from postformer.recipes.memory import METHODS, remembering_by
from postformer.tokens import BPE
from postformer.train.process import threads
from postformer.train.session import open_model, train_run

NEEDLES = {"passkey": "S-NIAH-PK", "number": "S-NIAH-N", "word": "S-NIAH-W"}
LENGTHS = (1024, 2048, 4096, 8192, 16384)
STREAMED = (65536, 1048576)
PAPER = {
    "mamba2": {"passkey": (98.6, 61.4, 31.0, 5.4), "number": (98.4, 55.8, 14.2, 0.0), "word": (42.2, 4.2, 0.0, 0.0)},
    "lmm": {"passkey": (99.8, 98.4, 98.2, 96.2), "number": (100.0, 99.8, 93.4, 80.2), "word": (90.4, 89.4, 85.8, 80.6)},
    "mac": {"passkey": (99.2, 98.8, 99.0, 98.4), "number": (99.6, 98.2, 97.6, 97.4), "word": (98.2, 98.2, 95.6, 95.2)},
    "mag": {"passkey": (99.4, 98.0, 97.4, 97.4), "number": (99.2, 98.8, 97.2, 98.6), "word": (98.0, 98.0, 90.2, 88.2)},
    "mal": {"passkey": (98.8, 98.6, 98.8, 97.8), "number": (99.8, 98.1, 96.8, 96.4), "word": (98.0, 97.4, 92.0, 90.4)},
}
"""Table 2 at 2K, 4K, 8K and 16K, in percent. Its other rows are TTT and DeltaNet."""
VOCAB = 2048
CHUNK = 1024
AT_ONCE = 1 << 15
"""Tokens of a chunk over all rows: bounds memory."""


def tokenizer(out: Path) -> Path:
    """The folder of the BPE, made from texts for training where it is not there yet."""
    folder = out / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        texts = []
        for needle in NEEDLES:
            task = Needles(needle=needle, length=4000)  # type: ignore[arg-type]
            for index in range(150):
                pieces = task.passage(index, seed=1, split="train").chunks(4096)
                texts.append(bytes(i for piece in pieces for i in piece.tolist() if i < 256))
        BPE.train(texts, VOCAB).save(folder)
    return folder


def trained(method: str, seed: int, args: argparse.Namespace) -> Any:
    """The method's model after all of its steps, trained now or before, and the run."""
    run = remembering_by(RECIPES["needles"](), method)
    if args.steps:
        run = shortened(run, args.steps / run.train.steps, args.threads)
    data = {**run.data, "tokenizer": str(tokenizer(args.out))}
    run = dataclasses.replace(run, seed=seed, data=data, train=dataclasses.replace(run.train, threads=args.threads))
    out = args.out / f"{method}-{seed}"
    summary = train_run(run, out)
    if summary.stopped:
        sys.exit(130)
    print(f"{method}, seed {seed}: {summary.steps} steps in {summary.seconds:.0f} s", file=sys.stderr, flush=True)
    return open_model(out), run


def cells(args: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """Needle, length and rows, the shortest texts first."""
    for length in args.lengths:
        for needle in NEEDLES:
            yield needle, length, max(args.least, min(args.rows, args.tokens // length))


def measure(model: Any, run: Any, needle: str, length: int, rows: int) -> dict[str, Any]:
    """Passages answered right, each from the first token to the last with the state carried on."""
    words = {"needle": needle, "length": length, "shortest": None, "start": None, "grow": 0, "fill": 0}
    began = time.perf_counter()
    batch = max(1, min(rows, AT_ONCE // min(length, CHUNK)))
    score = accuracy(model, build({**run.data, **words}, DATA, "data"), rows=rows, batch=batch, chunk=CHUNK)
    seconds = (time.perf_counter() - began) / (rows * length) * 1e6
    return {"right": score.rows_right, "rows": rows, "s_per_million": seconds}


def study(args: argparse.Namespace) -> None:
    """Train and measure what is not there yet."""
    path = args.out / "cells.jsonl"
    done = {tuple(c["key"]) for c in saved(path)}
    for seed in args.seeds:
        for method in args.methods:
            todo = [c for c in cells(args) if (method, seed, args.steps or 0, *c[:2]) not in done]
            if not todo:
                continue
            model, run = trained(method, seed, args)
            about = {
                "parameters": sum(p.numel() for p in model.parameters()),
                "state_bytes": states.nbytes(model.init_state(1)),
            }
            with threads(args.threads):
                for needle, length, rows in todo:
                    if method == "attention" and length > args.attention_to:
                        continue
                    cell = {"key": [method, seed, args.steps or 0, needle, length], **about}
                    cell |= measure(model, run, needle, length, rows)
                    with path.open("a") as f:
                        f.write(json.dumps(cell) + "\n")
                    print(f"{method:12} seed {seed} {needle:8} {length:9,}: {cell['right']}/{rows}", flush=True)


def saved(path: Path) -> list[dict[str, Any]]:
    """The cells measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def render(path: Path) -> str:
    """A table for each needle: a line for each method, in percent over all seeds, with Wilson's interval or Student's over seeds."""
    found = saved(path / "cells.jsonl")
    lengths = sorted({c["key"][4] for c in found})
    lines = []
    for needle, name in NEEDLES.items():
        lines += ["", f"| {name} | " + " | ".join(f"{n:,}" for n in lengths) + " | the paper at 2K, 4K, 8K, 16K |"]
        lines.append("|" + "---|" * (len(lengths) + 2))
        for method in METHODS:
            row = [_percent([c for c in found if c["key"][0] == method and c["key"][3:] == [needle, n]]) for n in lengths]
            if any(row):
                paper = ", ".join(f"{p:g}" for p in PAPER[method][needle]) if method in PAPER else ""
                lines.append(f"| {method} | " + " | ".join(row) + f" | {paper} |")
    return "\n".join(lines[1:])


def _percent(group: list[dict[str, Any]]) -> str:
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
    parser.add_argument("--methods", default=",".join(METHODS), help="of %(default)s")
    parser.add_argument("--seeds", type=seed_list, default=(0, 1, 2), help="default: 0,1,2")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--steps", type=positive, help="train for fewer steps than the recipe says")
    parser.add_argument("--lengths", type=seed_list, default=LENGTHS, help=f"tokens; default {','.join(map(str, LENGTHS))}")
    parser.add_argument("--rows", type=positive, default=200, help="passages of a cell, at most")
    parser.add_argument("--tokens", type=positive, default=1 << 20, help="tokens of a cell, at most, but for --least passages")
    parser.add_argument("--least", type=positive, default=20)
    parser.add_argument("--attention-to", type=positive, default=16384, help="longest text of full attention")
    parser.add_argument("--out", type=Path, default=Path("runs/needles"))
    parser.add_argument("--render", type=Path, metavar="FOLDER", help="print a study's tables, and measure nothing")
    args = parser.parse_args()
    if args.render:
        print(render(args.render))
        return 0
    args.methods = args.methods.split(",")
    if unknown := [m for m in args.methods if m not in METHODS]:
        raise UserError(f"--methods: unknown '{unknown[0]}'; choose from {', '.join(METHODS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    about = stamp(command=["python", *sys.argv], seeds=list(args.seeds), threads=args.threads)
    (args.out / "stamp.json").write_text(json.dumps(about, indent=1) + "\n")
    study(args)
    print(render(args.out))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"needles: {e}", file=sys.stderr)
        sys.exit(2)
