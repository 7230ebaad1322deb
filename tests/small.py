"""Small models, text, corpora and runs that tests share."""

from pathlib import Path
from typing import Any

import torch

from postformer.config import OptimConfig, Run, TrainConfig
from postformer.data import corpus_from
from postformer.models.language import LanguageModel
from postformer.tokens.text import Bytes

MIXERS: dict[str, dict[str, Any]] = {
    "mamba": {"kind": "mamba", "state": 4},
    "attention": {"kind": "attention", "heads": 2},
    "window": {"kind": "attention", "heads": 2, "window": 5},
}
WORDS = ("the", "day", "has", "a", "new", "name", "and", "all", "who", "wait", "for", "it", "to", "end", "will", "see", "light")


def model(mixer: str = "mamba", *, seed: int = 0, ascii_only: bool = True, depth: int = 2) -> LanguageModel:
    """A byte model of width 16. With `ascii_only` it gives bytes beyond ASCII, control characters and the end token a
    probability of about e^-40, so that its texts go on and every token is a character."""
    torch.manual_seed(seed)
    m = LanguageModel(257, dim=16, depth=depth, mixers=(MIXERS[mixer],), ffns=({"kind": "mlp", "hidden": 16},), tied=False)
    m.tokens = Bytes()
    with torch.no_grad():
        m.embed.weight.mul_(20)
        m.head.weight.mul_(4)
        if ascii_only:
            m.embed.weight[:, 0] = 8.0  # a constant direction of the residual stream, which only the head reads
            m.head.weight[:, 0] = 0.0
            m.head.weight[:32, 0] = -20.0
            m.head.weight[127:, 0] = -20.0
    return m.eval()


def text(sentences: int = 60, seed: int = 0) -> str:
    """Lines of six words each."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(WORDS), (sentences, 6), generator=generator).tolist()
    return "\n".join(" ".join(WORDS[i] for i in row) for row in drawn) + "\n"


def corpus(folder: Path, sentences: int = 200) -> Path:
    """A byte corpus of generated text, in `folder`; its source stands beside it."""
    source = folder.with_name("text.txt")
    source.write_text(text(sentences), encoding="utf-8")
    return corpus_from([source], folder, "bytes")


def run(path: str | Path, mixer: str = "mamba", **train: Any) -> Run:
    """Two steps of a tiny model on the corpus at `path`."""
    return Run(
        name="tiny",
        model={"kind": "language", "dim": 16, "depth": 1, "mixers": [MIXERS[mixer]], "ffns": [{"kind": "mlp", "hidden": 16}]},
        data={"kind": "text", "path": str(path), "length": 16},
        optim=OptimConfig(warmup=1),
        train=TrainConfig(**{"steps": 2, "batch": 2, "save_every": 1, "keep": 2, "threads": 1, "log_every": 1, **train}),
    )
