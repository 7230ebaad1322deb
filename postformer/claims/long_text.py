"""Claim: a selective state space reads long text in linear time with constant memory, about five times faster than a
Transformer. Mamba against attention with a key/value cache, at equal parameters, trained alike on the same text."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from postformer.claims import SENTENCES
from postformer.claims import long_text_page as page
from postformer.claims.ledger import Context, Data, NotMeasurable, Real, Result, Source, Step, conclude
from postformer.claims.long_text_page import NAMES, WINDOW, WORDS
from postformer.claims.long_text_rule import RULE
from postformer.claims.stats import Estimate, noise_floor
from postformer.claims.words import TIMES
from postformer.config import Run
from postformer.recipes.language import text_attention, text_mamba

TRAINING = 0.82
"""Training's share of what the other steps leave of the budget; the rest is for timing."""
PREPARE_S, SCORE_S, TIMING_S, PEAKS_S = 65.0, 65.0, 85.0, 65.0
"""About what takes its time whatever the budget, on two slow cores: corpus and baselines, scores, timing up to 8,192
tokens (kept for it where training turns out slower than it was measured to be), peak memory."""
PEAK_CHUNK = 256
"""Tokens read at once where peak memory is measured: a quarter of the shortest text."""


# ---------------------------------------------------------------- the claim


class LongText:
    """See the module's docstring."""

    id = "long_text"
    title = "State spaces for long text"
    sentence = SENTENCES[id]
    sources = (
        Source(
            f"Gu & Dao 2023: “fast inference (5{TIMES} higher throughput than Transformers) and linear scaling in sequence length”",
            "arXiv 2312.00752, abstract",
        ),
    )
    rule = RULE
    weight = 11.0

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """What the fixed steps leave of the budget goes to training and timing. A short budget takes less text."""
        less = _share(budget_s)
        prepare, score = less * PREPARE_S, less * SCORE_S * seeds
        rest = budget_s - prepare - score - PEAKS_S
        timing = _timing(rest, budget_s)
        rest = max(timing, rest)
        return (
            Step("corpus, compressor and 5-gram baselines", prepare),
            Step("train both models on the same tokens", rest - timing),
            Step("score held-out text", score),
            Step("time reading and writing against length", timing),
            Step("peak memory against length", PEAKS_S),
        )

    def run(self, ctx: Context) -> Result:
        """Measure. Raises NotMeasurable when the text is too little to train and score on."""
        from postformer.claims import sequences
        from postformer.data import open_corpus
        from postformer.ops._cpu import BUILT

        about = ctx.step("corpus", lambda: sequences.make_corpus(ctx, WINDOW))
        corpus = open_corpus(ctx.files / "corpus", verify=False)
        baselines = ctx.step("baselines", lambda: sequences.baseline_bits(corpus))
        seconds = ctx.step("speed of training", lambda: sequences.calibrate(_recipes(ctx), ctx.threads))
        runs = self._runs(ctx, seconds, about)
        trained, bits = self._train(ctx, runs, corpus)
        folders = {m: self._folder(ctx, m, ctx.seeds[0]) for m in NAMES}
        timings = self._time(ctx, folders, corpus)
        peaks = self._peaks(ctx, folders, timings["lengths"])
        evidence = {**timings, "peaks": peaks, "bits": bits, "fused": BUILT}
        costs = self._costs(folders, about["tokens_per_word"])
        return conclude(
            self,
            evidence,
            headline=page.headline(evidence),
            tables=(
                page.quality(baselines, bits, trained),
                *page.figures(evidence),
                page.beyond(evidence, costs, about["tokens_per_word"]),
            ),
            charts=page.charts(evidence),
            limits=page.limits(ctx, runs, about, trained, BUILT),
            consequences=page.consequences(evidence),
            data=Data(
                str(ctx.text or "Python's own library: code and prose"),
                ctx.text is not None,
                about["sha256"],
                about["train"]["bytes"] + about["valid"]["bytes"],
            ),
        )

    def _runs(self, ctx: Context, seconds: Mapping[str, Mapping[str, float]], about: Mapping[str, Any]) -> dict[str, Run]:
        """Both recipes in the dtype that trains faster here, with as many steps as the budget holds."""
        recipes = _recipes(ctx)
        dtype = min(seconds, key=lambda d: sum(seconds[d].values()))
        step_s = sum(seconds[dtype].values())
        share = min(1.0, page.SCORED_BYTES / about["valid"]["bytes"])
        read = 2.5 * share * about["valid"]["tokens"] / (recipes["mamba"].train.batch * WINDOW)  # in windows, and some whole
        score_s = len(ctx.seeds) * read * step_s / 3  # a third of a training step is its forward pass
        rest = ctx.left_s - score_s - PEAKS_S
        steps = max(20, int((rest - _timing(rest, ctx.budget_s)) / (step_s * len(ctx.seeds))))
        return {
            m: dataclasses.replace(
                run, train=dataclasses.replace(run.train, dtype=dtype, steps=steps, save_every=max(10, steps // 8), keep=1)
            )
            for m, run in recipes.items()
        }

    def _folder(self, ctx: Context, mixer: str, seed: int) -> Path:
        return ctx.files / f"{mixer}-{seed}"

    def _train(self, ctx: Context, runs: Mapping[str, Run], corpus: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        from postformer.claims import sequences

        trained: dict[str, Any] = {}
        bits: dict[str, Any] = {}
        for seed in ctx.seeds:
            trained[str(seed)], bits[str(seed)] = {}, {}
            for m, run in runs.items():
                folder, own = self._folder(ctx, m, seed), dataclasses.replace(run, seed=seed)
                name = f"{NAMES[m]}, seed {seed}"
                trained[str(seed)][m] = ctx.step(f"train {name}", lambda r=own, f=folder: sequences.train_one(ctx, r, f))
                bits[str(seed)][m] = ctx.step(
                    f"score {name}", lambda f=folder, s=m == "mamba": sequences.score(f, corpus, WINDOW, s)
                )
        return trained, bits

    def _time(self, ctx: Context, folders: Mapping[str, Path], corpus: Any) -> dict[str, Any]:
        """Double the length while the next one is expected to fit into what is left of the budget."""
        from postformer.claims import sequences
        from postformer.train import process
        from postformer.train.session import open_model

        models = {m: open_model(f) for m, f in folders.items()}
        chunks = {"mamba": 2048, "attention": 1 << 62}
        lengths, prefill, decode = [], [], []
        floors: dict[str, list[Estimate]] = {"prefill_floors": [], "decode_floors": []}
        left, length = max(_share(ctx.budget_s) * TIMING_S, ctx.left_s - PEAKS_S), 1024
        with process.threads(ctx.threads):
            while True:
                ids = sequences.text_ids(corpus, length)
                taken = ctx.step(
                    f"read {length:,} tokens",
                    lambda i=ids, b=left: dataclasses.asdict(sequences.prefill_times(models, chunks, i, max(b, 10.0))),
                )
                after = ctx.step(f"write after {length:,} tokens", lambda i=ids: sequences.decode_times(models, i))
                lengths.append(length)
                prefill.append(taken["samples"])
                decode.append(after)
                for name, timed in (("prefill_floors", taken), ("decode_floors", after)):
                    floors[name].append(noise_floor(timed["samples"]["mamba"], timed["control"]))
                left -= sum(r["seconds"] for r in ctx.steps[-2:])
                length *= 2
                round_s = 2 * np.median(taken["samples"]["mamba"]) + np.median(taken["samples"]["attention"])
                if len(lengths) >= 3 and 22 * 2.6 * round_s > left:
                    break
        return {"lengths": lengths, "prefill": prefill, "decode": decode, **floors}

    def _peaks(self, ctx: Context, folders: Mapping[str, Path], lengths: Sequence[int]) -> list[dict[str, Any]]:
        """Of several processes for each end of the lengths in turn; the Transformer's, which is not judged, of one each."""
        from postformer.claims import sequences

        times = next(int(c.thresholds["times"]) for c in self.rule.criteria if c.name == "constant memory")
        ends = {"mamba": (lengths[0], times * lengths[-1]), "attention": (lengths[0], 2 * lengths[-1])}
        repeats = {"mamba": 3, "attention": 1}
        every = sorted({n for of in ends.values() for n in of})
        peaks: list[dict[str, Any]] = [{"length": n, **{m: [] for m in NAMES}} for n in every]
        for i, m, at in ((i, m, at) for i in range(3) for m in NAMES if i < repeats[m] for at in peaks):
            if at["length"] not in ends[m]:
                continue

            def measure(m: str = m, n: int = at["length"]) -> dict[str, int]:
                return sequences.peak_memory(folders[m], n, PEAK_CHUNK, ctx.threads)

            try:
                at[m].append(ctx.step(f"{NAMES[m]}'s peak memory at {at['length']:,} tokens, {i + 1}", measure))
            except NotMeasurable:
                return []
            except RuntimeError:  # too much for this machine, perhaps
                if m == "mamba":
                    raise
        return peaks

    def _costs(self, folders: Mapping[str, Path], tokens_per_word: float) -> dict[str, Any]:
        """The cost formulas at published lengths."""
        from postformer.train.session import open_model

        models = {m: open_model(f) for m, f in folders.items()}
        return {m: {w: model.cost(round(w * tokens_per_word)) for w in WORDS} for m, model in models.items()}


def _share(budget_s: Real) -> float:
    """Of what takes its time whatever the budget: a short one takes less text, and shorter ones."""
    return 1.0 if budget_s >= page.SHORT_S else 0.4


def _timing(rest: Real, budget_s: Real) -> float:
    """Seconds for timing of what it shares with training."""
    return max(_share(budget_s) * TIMING_S, (1 - TRAINING) * rest)


def _recipes(ctx: Context) -> dict[str, Run]:
    data = {"kind": "text", "path": str(ctx.files / "corpus"), "length": WINDOW}
    runs = {"mamba": text_mamba(), "attention": text_attention()}
    return {
        m: dataclasses.replace(r, data=data, train=dataclasses.replace(r.train, threads=ctx.threads)) for m, r in runs.items()
    }


CLAIM = LongText()
