"""Experiments on language models that claims share: train alike, score, and measure time and memory against length."""

import dataclasses
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from postformer.claims.baselines import ByteNgrams, zstd_bits
from postformer.claims.ledger import Context, NotMeasurable
from postformer.claims.long_text_page import SCORED_BYTES, SHORT_S
from postformer.claims.peak import NOT_TOLD
from postformer.claims.stats import Timing, interleaved
from postformer.config import Run
from postformer.data import Corpus, corpus_from, default_corpus, open_corpus, remarks
from postformer.models.language import LanguageModel
from postformer.objectives.likelihood import streamed_nats, windowed_nats
from postformer.state import nbytes
from postformer.train import process
from postformer.train.loop import Summary
from postformer.train.session import open_model, prepare, train_run

VOCAB = 4096
SHORT_BYTES = 4 << 20
"""About how much of the default corpus a short budget takes."""


def make_corpus(ctx: Context, window: int) -> dict[str, Any]:
    """Build the corpus of the user's text, or the default one, and describe it.

    Raises DataError for text that cannot be read and NotMeasurable for too little.
    """
    folder = ctx.files / "corpus"

    def progress(text: str, done: int, total: int) -> None:
        ctx.progress(text, done, total)

    if ctx.text is None:
        default_corpus(folder, VOCAB, SHORT_BYTES if ctx.budget_s < SHORT_S else None, progress=progress)
    else:
        corpus_from([ctx.text], folder, VOCAB, progress=progress)
    corpus = open_corpus(folder, verify=False)
    train, valid = corpus.count("train"), corpus.count("valid")
    if not valid.documents or train.tokens <= window:
        raise NotMeasurable(
            f"{ctx.text}: too little text: {train.tokens:,} tokens in {train.documents:,} documents to train on and "
            f"{valid.documents:,} documents to measure on; more than {window:,} tokens and 1 document are needed"
        )
    text = [t for _, _, t in corpus.text("valid")]
    words = sum(len(t.split()) for t in text)
    return {
        "sha256": corpus.sha256,
        "vocab": corpus.tokens.vocab,
        "domains": list(corpus.manifest.domains),
        "train": {"documents": train.documents, "bytes": train.bytes, "tokens": train.tokens},
        "valid": {"documents": valid.documents, "bytes": valid.bytes, "tokens": valid.tokens},
        "tokens_per_word": valid.tokens / max(1, words),
        "remarks": remarks(corpus.manifest) if ctx.text else [],
    }


def scored(corpus: Corpus) -> list[tuple[str, np.ndarray, bytes]]:
    """Domain, tokens and text of the held-out documents that are scored: all, or evenly spread ones of a large corpus."""
    documents = list(zip(corpus.documents("valid"), corpus.text("valid"), strict=True))
    every = max(1, math.ceil(sum(d.nbytes for d, _ in documents) / SCORED_BYTES))
    return [(d.domain, np.array(d.ids), text) for d, (_, _, text) in documents[::every]]


def baseline_bits(corpus: Corpus) -> dict[str, Any]:
    """Bits of each scored document under zstd and a 5-gram byte model, and the documents' domains and bytes."""
    train = [text for _, _, text in corpus.text("train")]
    documents = scored(corpus)
    texts = [text for _, _, text in documents]
    ngrams = ByteNgrams(train)
    return {
        "domains": [domain for domain, _, _ in documents],
        "bytes": [len(t) for t in texts],
        "zstd": zstd_bits(train, texts),
        "5-gram": [ngrams.bits(t) for t in texts],
    }


# ---------------------------------------------------------------- training alike


def calibrate(runs: Mapping[str, Run], threads: int) -> dict[str, Any]:
    """Seconds of a training step of each run in fp32, and in bf16 where this machine multiplies it faster."""
    seconds: dict[str, Any] = {}
    with process.threads(threads), process.freed_memory_kept():
        for dtype in ("fp32", "bf16") if _product_s(torch.bfloat16) < _product_s(torch.float32) else ("fp32",):
            steps = {
                name: training_steps(dataclasses.replace(run, train=dataclasses.replace(run.train, dtype=dtype, steps=10**6)))
                for name, run in runs.items()
            }
            taken = [{name: next(step) for name, step in steps.items()} for _ in range(25)]  # in turns, as speed changes
            seconds[dtype] = {name: float(np.median([t[name] for t in taken[5:]])) for name in runs}
    return seconds


def _product_s(dtype: torch.dtype) -> float:
    """Seconds of a product of two matrices of 512 x 512."""
    x = torch.ones(512, 512, dtype=dtype)
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(x, x)
        taken.append(time.perf_counter() - began)
    return min(taken)


def training_steps(run: Run, at: Iterable[int] | None = None) -> Iterator[float]:
    """Seconds of one training step of the run after another, on these batches (default: from the first on)."""
    from postformer.train.optim import make_optimizer

    _, objective, data = prepare(run)
    objective.model.compute_dtype = torch.bfloat16 if run.train.dtype == "bf16" else None  # type: ignore[union-attr]
    optimizer = make_optimizer(dict(objective.named_parameters()), run.optim)
    batches = data.batches(batch=run.train.batch, seed=run.seed, split="train")
    for i in itertools.count() if at is None else at:
        began = time.perf_counter()
        objective(batches.batch(i))["loss"].backward()
        optimizer.step(1e-4)
        optimizer.zero_grad()
        yield time.perf_counter() - began


def train_one(ctx: Context, run: Run, folder: Path) -> dict[str, Any]:
    """Train a run to its end, or on from where it was stopped."""
    name = f"train {run.name}, seed {run.seed}"

    def on_step(p: Any) -> None:
        ctx.progress(name, p.step, p.steps)

    summary = train_run(run, folder, on_step=on_step, warn=lambda line: ctx.progress(line, 0, 1))
    if summary.stopped:
        raise KeyboardInterrupt
    return told(summary)


def told(summary: Summary) -> dict[str, Any]:
    """A training's summary as plain data."""
    return {"loss": summary.loss, "tokens": summary.tokens, "seconds": summary.seconds, "steps": summary.steps}


def score(folder: Path, corpus: Corpus, window: int, stream: bool) -> dict[str, Any]:
    """Bits of each scored document: in windows of the training length and, with `stream`, read whole through the state."""
    model = open_model(folder)
    documents = [ids for _, ids, _ in scored(corpus)]
    with process.freed_memory_kept():
        bits = {"windowed": [n / math.log(2) for n in windowed_nats(model, documents, window=window)]}
        if stream:
            bits["streamed"] = [streamed_nats(model, ids) / math.log(2) for ids in documents]
    return bits


# ---------------------------------------------------------------- time and memory against length


def text_ids(corpus: Corpus, length: int) -> torch.Tensor:
    """The first tokens of the training text, repeated where it is shorter: Int [1, length]."""
    taken: list[np.ndarray] = []
    have = 0
    for document in corpus.documents("train"):
        taken.append(np.asarray(document.ids, np.int64))
        have += len(taken[-1])
        if have >= length:
            break
    return torch.from_numpy(np.resize(np.concatenate(taken), length))[None]


@torch.inference_mode()
def prefill_times(models: Mapping[str, LanguageModel], chunks: Mapping[str, int], ids: torch.Tensor, budget_s: float) -> Timing:
    """Seconds to read a text from a fresh state to the logits after its last token."""
    functions = {
        name: lambda m=model, c=chunks[name]: m.read(ids, m.init_state(1), min(c, ids.shape[1]))
        for name, model in models.items()
    }
    return interleaved(functions, 20, budget_s=budget_s)


@torch.inference_mode()
def decode_times(models: Mapping[str, LanguageModel], ids: torch.Tensor, repeats: int = 30, steps: int = 4) -> dict[str, Any]:
    """Seconds of `steps` one-token steps after a text, and the bytes of the state that holds it.

    The same step is taken again from the same state: its cost is that of the next token.
    """
    functions, state_bytes = {}, {}
    token = ids[:, -1:]
    for name, model in models.items():
        _, state = model.read(ids, model.init_state(1), 2048)
        state_bytes[name] = nbytes(state)
        _, state = model(token, state)  # a growing cache now has room, as it has at all but one in 64 tokens
        functions[name] = lambda m=model, s=state: [m(token, s) for _ in range(steps)]
    timing = interleaved(functions, repeats, warmup=2)
    samples = {name: [s / steps for s in series] for name, series in timing.samples.items()}
    return {"samples": samples, "control": [s / steps for s in timing.control], "state_bytes": state_bytes}


def peak_memory(folder: Path, length: int, chunk: int, threads: int) -> dict[str, int]:
    """Resident bytes of a process of its own that loads a model: before it reads `length` tokens, and at the most while it does.

    Raises NotMeasurable where the system does not tell (it needs Linux's /proc) and RuntimeError when the process failed.
    """
    command = [sys.executable, "-m", "postformer.claims.peak", str(folder), str(length), str(chunk), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        error = NotMeasurable if done.returncode == NOT_TOLD else RuntimeError
        raise error(f"peak memory could not be measured: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
    return json.loads(done.stdout)
