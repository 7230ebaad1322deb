"""Train a small language model on the source of one Python package, open it again and let it write.

Run it with `python examples/train_and_generate.py`; it works in a temporary folder.
"""

import json
import math
import tempfile
from pathlib import Path

import postformer
from postformer.config import OptimConfig, Run, TrainConfig
from postformer.data import corpus_from
from postformer.models.generation import Sampling, Stream
from postformer.train.log import Progress
from postformer.train.session import train_run


def show(p: Progress) -> None:
    if p.step % 20 == 0:
        print(f"step {p.step:>3} of {p.steps}: {p.loss / math.log(2):.2f} bits a byte, {p.tokens_per_s:,.0f} tokens/s")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        corpus_from([Path(json.__file__).parent], home / "corpus", "bytes")
        run = Run(
            name="small",
            model={"kind": "language", "dim": 64, "depth": 2, "mixers": [{"kind": "mamba"}], "ffns": [{"kind": "none"}]},
            data={"kind": "text", "path": str(home / "corpus"), "length": 128},
            optim=OptimConfig(kind="muon", lr=1e-2, warmup=5, schedule="wsd"),
            train=TrainConfig(steps=100, batch=8, threads=1),
        )
        summary = train_run(run, home / "run", on_step=show)
        print(f"\nsaved in {summary.checkpoint.relative_to(home)}; it writes after 'def ':\n")

        model = postformer.load(home / "run")
        for piece in Stream(model, "def ", Sampling(max_tokens=160, temperature=0.7, seed=1)):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
