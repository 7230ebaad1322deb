"""What each part of Titans' memory is worth on real text, in the shape of table 5 of Behrouz et al. 2024 (arXiv 2501.00663).

    python benchmarks/ablation.py --seeds 0,1,2
    python benchmarks/ablation.py --seeds 0 --variants lmm,linear --text my-diary.txt

Language models of two layers, each with the memory whole or without one of its parts, learn the first 70% of Pepys' diary (or of
--text) in the same batches, and read stretches of the rest from fresh states. The memory decays towards its first weights; the paper's,
which decays to 0 and on these texts ends there, is a variant. A variant's loss is paired with the whole memory's of the same seed; what
writing is worth is its distance from a second reading in which the memory is frozen. Trained runs and scores stay in --out, so that an
interrupted study goes on.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import study_results as results
from study_results import Line

from postformer.claims import streams
from postformer.claims.ledger import NotMeasurable
from postformer.claims.stats import Estimate, mean_interval
from postformer.cli import positive, seed_list
from postformer.config import OptimConfig, Run, Spec, TrainConfig, UserError
from postformer.data import open_corpus
from postformer.files import sha256_bytes
from postformer.models.writing import frozen
from postformer.train.process import threads
from postformer.train.session import open_model, train_run

_MEMORY: Spec = {"heads": 4, "retention": "initial"}
LMM: Spec = {"kind": "lmm", **_MEMORY, "persistent": 4}
VARIANTS: dict[str, Spec] = {
    "lmm": LMM,
    "mac": {
        "kind": "mac",
        "segment": 128,
        "persistent": 4,
        "memory": _MEMORY,
        "attention": {"heads": 4, "conv": 4},
    },
    "linear": {**LMM, "depth": 1, "residual": True},
    "bare matrix": {**LMM, "depth": 1},
    "no conv": {**LMM, "conv": 1},
    "no momentum": {**LMM, "momentum": False},
    "no decay": {**LMM, "retention": None, "forgetting": False},
    "decay to 0": {**LMM, "retention": "decay"},
    "no persistent": {**LMM, "persistent": 0},
}
PAPER = {
    "lmm": 27.01,
    "mac": 26.67,
    "linear": 28.49,
    "no conv": 28.73,
    "no momentum": 28.98,
    "no decay": 29.04,
    "no persistent": 27.63,
}
"""Perplexity of language modelling, table 5; its memory decays to 0."""
LENGTH, BATCH = 1024, 4


def run_of(variant: str, seed: int, corpus: Path, steps: int, threads: int) -> Run:
    """A model of two such layers as it is trained."""
    return Run(
        name="ablation",
        seed=seed,
        model={
            "kind": "language",
            "dim": 128,
            "depth": 2,
            "mixers": (VARIANTS[variant],),
            "ffns": ({"kind": "mlp", "hidden": 384},),
        },
        data={"kind": "text", "path": str(corpus), "length": LENGTH},
        optim=OptimConfig(
            kind="muon", lr=1e-2, matrix_lr=0.2, weight_decay=0.0, warmup=30, schedule="wsd", decay=0.5, final=0.02
        ),
        train=TrainConfig(steps=steps, batch=BATCH, threads=threads, keep=1, save_every=100),
    )


def content(text: streams.Text) -> str:
    """Sha256 of all documents of the text."""
    documents = [*text.learned, *text.read]
    return sha256_bytes(json.dumps([sha256_bytes(document) for document in documents]).encode())


def study(args: argparse.Namespace) -> None:
    """Train and score what is not there yet."""
    path, text = args.out / "ablation.jsonl", streams.text_of(args.text)
    about, source = args.out / "corpus.json", content(text)
    if not about.exists():
        made = {**streams.make_corpus(args.out, text, LENGTH), "source": source}
        about.write_text(json.dumps(made, indent=1) + "\n")
    held = json.loads(about.read_text())
    if held["text"] != text.name or held.get("source") != source:
        now = " as it is now" if held["text"] == text.name else ""
        raise UserError(f"--out: {args.out} holds a study of {held['text']}, not of {text.name}{now}; give another folder")
    corpus = args.out / "corpus"
    read = streams.streams(text, open_corpus(corpus, verify=False).tokens, args.read)
    for seed in args.seeds:
        for variant in args.variants:
            run = run_of(variant, seed, corpus, args.steps, args.threads)
            of = results.digest(run, text.name, source, read.ids.tolist())
            if results.find(path, of):
                continue
            began, out = results.about(run), args.out / of[:16]
            summary = train_run(run, out)
            if summary.stopped:
                sys.exit(130)
            model = open_model(out)
            with threads(args.threads):
                nats = streams.token_nats(model, read.ids)
                with frozen(model):
                    cold = streams.token_nats(model, read.ids)
            found = {
                "variant": variant,
                "seed": seed,
                "steps": args.steps,
                "stretch": args.read,
                "nats": float(nats.mean()),
                "first": float(nats[:, :LENGTH].mean()),
                "frozen": float(cold.mean()),
                "bits_per_byte": float(nats.sum() / math.log(2) / read.nbytes.sum()),
                "parameters": sum(p.numel() for p in model.parameters()),
                "tokens": summary.tokens,
                "read": nats.size,
            }
            results.add(path, of, found, began)
            print(f"{variant:14} seed {seed}: perplexity {math.exp(found['nats']):.2f}, {summary.seconds:.0f} s", flush=True)


def render(path: Path) -> str:
    """A table for each number of steps and length of stretches."""
    found = results.latest(results.read(path / "ablation.jsonl"), "variant", "seed", "steps", "stretch")
    settings = sorted({(f["steps"], f["stretch"]) for f in found})
    tables = (_table([f for f in found if (f["steps"], f["stretch"]) == setting], *setting) for setting in settings)
    return "\n\n".join(tables)


def _table(found: list[Line], steps: int, stretch: int) -> str:
    """A line for each variant: its mean over seeds, and its distance from the whole memory of the same seeds with Student's interval."""
    by = {variant: {f["seed"]: f for f in found if f["variant"] == variant} for variant in VARIANTS}
    lines = [
        f"{steps} steps, read in stretches of {stretch:,} tokens\n",
        "| | perplexity | each seed | nats above `lmm` | first 1,024 tokens | writing is worth | bits per byte | parameters "
        "| the paper | its nats above |",
        "|" + "---|" * 10,
    ]
    for variant, own in by.items():
        if not own:
            continue
        each = [f["nats"] for f in own.values()]
        pairs = [(f, by["lmm"][seed]) for seed, f in own.items() if seed in by["lmm"]]
        above, early = (_above([a[part] - b[part] for a, b in pairs]) for part in ("nats", "first"))
        row = [
            variant,
            f"{math.exp(np.mean(each)):.2f}",
            ", ".join(f"{math.exp(n):.2f}" for n in each),
            *((above, early) if variant != "lmm" else ("", "")),
            _above([f["frozen"] - f["nats"] for f in own.values()]),
            f"{np.mean([f['bits_per_byte'] for f in own.values()]):.3f}",
            f"{next(iter(own.values()))['parameters']:,}",
            f"{PAPER[variant]:.2f}" if variant in PAPER else "",
            f"{math.log(PAPER[variant] / PAPER['lmm']):+.3f}" if variant in PAPER and variant != "lmm" else "",
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _above(differences: list[float]) -> str:
    if not differences:
        return ""
    found: Estimate = mean_interval(differences)
    between = "" if found.low is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.value:+.3f}{between}"


def main() -> int:
    """Train, score, and print the table. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="of %(default)s")
    parser.add_argument("--seeds", type=seed_list, default=(0, 1, 2), help="default: 0,1,2")
    parser.add_argument("--steps", type=positive, default=400, help="default: %(default)s, an epoch of Pepys' diary")
    parser.add_argument("--read", type=positive, default=16384, help="tokens of each of four stretches; default: %(default)s")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--text", type=Path, help="a text of your own")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--render", type=Path, metavar="FOLDER", help="print a study's table, and measure nothing")
    args = parser.parse_args()
    if args.render:
        results.of_study(args.render, "ablation.jsonl")
        print(render(args.render))
        return 0
    args.variants = results.chosen("variants", args.variants, VARIANTS)
    results.folder(args.out)
    study(args)
    print(render(args.out))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, NotMeasurable) as e:
        print(f"ablation: {e}", file=sys.stderr)
        sys.exit(2)
