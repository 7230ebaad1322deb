"""Bits per byte of the recipes after equal training, over seeds, beside zstd and a 5-gram byte model.

    python benchmarks/text_quality.py --steps 600 --seeds 0,1,2

Each recipe is trained for the same number of steps on the default corpus (or --text) and scored on its held-out documents in
windows of the training length. The result depends on seeds and steps, not on how fast the machine is. An interrupted study goes
on in --out.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from postformer.claims import sequences
from postformer.claims.long_text_page import WINDOW
from postformer.claims.stats import mean_interval
from postformer.cli import positive, seed_list
from postformer.config import UserError
from postformer.data import corpus_from, default_corpus, open_corpus
from postformer.recipes import RECIPES
from postformer.train.session import train_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=positive, required=True)
    parser.add_argument("--seeds", type=seed_list, default=(0, 1, 2), help="default: 0,1,2")
    parser.add_argument("--recipes", default="text-mamba,text-attention")
    parser.add_argument("--dtype", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/text_quality"))
    args = parser.parse_args()
    names = args.recipes.split(",")
    if unknown := [name for name in names if name not in RECIPES]:
        raise UserError(f"--recipes: unknown '{unknown[0]}'; choose from {', '.join(RECIPES)}")
    folder = args.out / "corpus"
    if args.text:
        corpus_from([args.text], folder, sequences.VOCAB)
    else:
        default_corpus(folder, sequences.VOCAB)
    corpus = open_corpus(folder)
    baselines = sequences.baseline_bits(corpus)
    size = sum(baselines["bytes"])
    print(f"{len(baselines['bytes'])} held-out documents, {size:,} bytes; {args.steps} steps")
    for name in names:
        recipe = RECIPES[name]()
        bits = []
        for seed in args.seeds:
            settings = {"steps": args.steps, "dtype": args.dtype, "threads": args.threads, "keep": 1, "save_every": 100}
            train = dataclasses.replace(recipe.train, **settings)
            data = {"kind": "text", "path": str(folder), "length": WINDOW}
            run = dataclasses.replace(recipe, seed=seed, data=data, train=train)
            out = args.out / f"{name}-{seed}-{args.steps}"
            summary = train_run(run, out)
            if summary.stopped:
                sys.exit(130)
            bits.append(sum(sequences.score(out, corpus, WINDOW, stream=False)["windowed"]) / size)
            print(f"{name:<16} seed {seed}: {bits[-1]:.4f} bits per byte after {summary.tokens:,} tokens", flush=True)
        mean, low, high, n = mean_interval(bits)
        interval = "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"
        print(f"{name:<16} mean of {n} seeds: {mean:.4f}{interval}")
    print(f"{'5-gram':<16} {sum(baselines['5-gram']) / size:.4f}")
    for name, each in baselines["zstd"].items():
        print(f"zstd -19 {name:<8} {sum(each) / size:.4f}")


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        print(f"text_quality: {e}", file=sys.stderr)
        sys.exit(2)
