"""Claim: a selective state space reads long text in linear time with constant memory, about five times faster than a
Transformer. Mamba against attention with a key/value cache, at equal parameters, trained alike on the same text."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from postformer.claims import long_text_page as page
from postformer.claims.ledger import (
    Context,
    Criterion,
    Data,
    Finding,
    Number,
    Real,
    Result,
    Rule,
    Source,
    Step,
    Verdict,
    conclude,
)
from postformer.claims.long_text_page import NAMES, WINDOW, WORDS, Evidence
from postformer.claims.stats import (
    Estimate,
    Fit,
    Timing,
    crossover,
    fit_exponent,
    local_exponent,
    noise_floor,
    rank,
    ratio_interval,
)
from postformer.claims.words import TIMES
from postformer.config import Run
from postformer.recipes.language import text_attention, text_mamba

TRAINING, TIMING = 0.56, 0.28
"""Shares of the budget for training and for timing; what is left is for the corpus, the scores and peak memory."""
LONG = 8192
"""Tokens of the text at which speed is judged, whatever the budget reaches beyond."""
ROUNDS = 20
"""Rounds of timing below which nothing is judged."""
FUSED = False
"""Whether Mamba's scan runs in one kernel; until it does its times are upper bounds, which support but do not refute."""
PEAK_CHUNK = 256
"""Tokens read at once where peak memory is measured: a quarter of the shortest text."""


# ---------------------------------------------------------------- the rule


def _within(low: float | None, high: float | None, supported: tuple[float, float]) -> Verdict:
    """Supported when the whole interval lies inside the bounds, contradicted when it lies outside, else inconclusive."""
    if low is None or high is None:
        return "inconclusive"
    if supported[0] <= low and high <= supported[1]:
        return "supported"
    return "contradicted" if high < supported[0] or low > supported[1] else "inconclusive"


def _linear(e: Evidence, t: Mapping[str, float]) -> Finding:
    fits: dict[str, Fit] = {m: local_exponent(e["lengths"], [p[m] for p in e["prefill"]]) for m in NAMES}
    numbers = {f"{NAMES[m]}, last three lengths": page.exponent(f) for m, f in fits.items()}
    whole = {m: fit_exponent(e["lengths"], [p[m] for p in e["prefill"]]) for m in NAMES}
    numbers |= {f"{NAMES[m]}, all lengths": page.exponent(f) for m, f in whole.items()}
    mamba, rounds = fits["mamba"], min(len(p["mamba"]) for p in e["prefill"][-3:])
    verdict = _within(mamba.low, mamba.high, (0.0, t["most"])) if rounds >= ROUNDS else "inconclusive"
    return Finding(verdict, f"Mamba's reading time grows as length to the power {mamba.exponent:.2f}", numbers)


def _constant(e: Evidence, t: Mapping[str, float]) -> Finding:
    states = [d["state_bytes"]["mamba"] for d in e["decode"]]
    peaks = e["peaks"]
    ends = {e["lengths"][i]: states[i] for i in (0, -1)}
    numbers = {f"Mamba's state after {n:,} tokens": Number(b, "B", "counted") for n, b in ends.items()}
    grown = len(set(states)) > 1
    if not peaks:
        because = "the state has one size, but this system does not tell a process's peak memory"
        return Finding("contradicted" if grown else "inconclusive", because, numbers)
    growth = {m: peaks[-1][m]["peak"] / peaks[0][m]["peak"] - 1 for m in NAMES}
    share = growth["mamba"]
    numbers |= {f"growth of {NAMES[m]}'s peak memory": Number(100 * g, "%", "measured", n=1) for m, g in growth.items()}
    because = (
        f"the state has {'more than one size' if grown else 'the same size at every length'}, and from {peaks[0]['length']:,} to "
        f"{peaks[-1]['length']:,} tokens the process's peak memory changes by {100 * share:.1f}%"
    )
    return Finding("contradicted" if grown or share >= t["share"] else "supported", because, numbers)


def _faster_reading(e: Evidence, t: Mapping[str, float]) -> Finding:
    return _faster(
        e, t, [p["attention"] for p in e["prefill"]], [p["mamba"] for p in e["prefill"]], e["prefill_floor"], "reading"
    )


def _faster_writing(e: Evidence, t: Mapping[str, float]) -> Finding:
    attention, mamba = ([d["samples"][m] for d in e["decode"]] for m in ("attention", "mamba"))
    return _faster(e, t, attention, mamba, e["decode_floor"], "writing one token after")


def _faster(
    e: Evidence, t: Mapping[str, float], attention: Sequence[Any], mamba: Sequence[Any], floor: Estimate, doing: str
) -> Finding:
    numbers = {
        f"Transformer / Mamba at {n:,} tokens": ratio_interval(a, m).number(TIMES)
        for n, a, m in zip(e["lengths"], attention, mamba, strict=True)
        if n in (t["length"], e["lengths"][-1])
    }
    numbers["noise floor (A/A)"] = floor.number()
    if crossing := crossover(e["lengths"], mamba, attention):
        numbers["Mamba is faster beyond"] = crossing.number("tokens")
    if t["length"] not in e["lengths"]:
        return Finding("inconclusive", f"the budget ended at {e['lengths'][-1]:,} tokens, before the text was long", numbers)
    at = list(e["lengths"]).index(t["length"])
    ratio, order = ratio_interval(attention[at], mamba[at]), rank(mamba[at], attention[at], floor)
    faster = {"a": "Mamba is faster", "b": "the Transformer is faster", "no ranking": "neither is faster"}[order]
    because = f"{doing} {t['length']:,.0f} tokens, {faster}: the Transformer takes {ratio.value:.2f} times as long"
    verdict = _within(ratio.low, ratio.high, (t["least"], float("inf")))
    if ratio.n < ROUNDS:
        return Finding("inconclusive", f"{because}, from only {ratio.n} rounds of {ROUNDS}", numbers)
    if verdict == "contradicted" and not e.get("fused", True):
        return Finding("inconclusive", f"{because}; a fused scan would make Mamba faster, so this does not refute it", numbers)
    return Finding(verdict, because, numbers)


def _as_good(e: Evidence, t: Mapping[str, float]) -> Finding:
    numbers, intervals = {}, []
    for seed, bits in e["bits"].items():
        ratio = page.ratio_of_totals(bits["mamba"]["windowed"], bits["attention"]["windowed"])
        numbers[f"Mamba / Transformer, seed {seed}"] = dataclasses.replace(ratio.number(TIMES), seeds=(int(seed),))
        intervals.append(ratio)
    verdicts: list[Verdict] = [_within(r.low, r.high, (0.0, t["most"])) for r in intervals]
    verdict = verdicts[0] if len(set(verdicts)) == 1 else "inconclusive"
    worst = max(r.value for r in intervals)
    return Finding(verdict, f"Mamba needs at most {worst:.3f} times the Transformer's bits for the same held-out text", numbers)


RULE = Rule(
    "Two language models of equal parameters (within 3%), one of Mamba blocks and one of attention and SwiGLU blocks with a "
    "key/value cache, are trained on the same tokens in the same order. Both are timed in turns on the same text. Each part below "
    "is judged by its 95% interval where it has one: supported when all of it is on the claim's side, contradicted when all of it "
    "is on the other.",
    (
        Criterion(
            "linear time",
            "Over the three longest texts, Mamba's reading time grows as a power of the length of at most {most}.",
            _linear,
            {"most": 1.1},
        ),
        Criterion(
            "constant memory",
            "Mamba's state has the same bytes after every text, and the peak memory of a process that reads the longest text "
            "exceeds that of one that reads the shortest by less than a share of {share} (one process each, no interval).",
            _constant,
            {"share": 0.05},
        ),
        Criterion(
            "five times faster at reading",
            "The Transformer takes at least {least} times as long to read {length:.0f} tokens (about five). While Mamba's scan is not "
            "one kernel, less is inconclusive.",
            _faster_reading,
            {"least": 4.0, "length": LONG},
        ),
        Criterion(
            "five times faster at writing",
            "The Transformer takes at least {least} times as long to write one token after {length:.0f} tokens (about five). While "
            "Mamba's scan is not one kernel, less is inconclusive.",
            _faster_writing,
            {"least": 4.0, "length": LONG},
        ),
        Criterion(
            "as good",
            "Trained alike, Mamba's bits per byte of held-out text are at most {most} times the Transformer's, with both seeing "
            "windows of the training length.",
            _as_good,
            {"most": 1.05},
        ),
    ),
)


# ---------------------------------------------------------------- the claim


class LongText:
    """See the module's docstring."""

    id = "long_text"
    title = "State spaces for long text"
    sentence = (
        "A selective state space reads long text in linear time with constant memory, and about five times faster than a "
        "Transformer."
    )
    sources = (
        Source(
            f"Gu & Dao 2023: “fast inference (5{TIMES} higher throughput than Transformers) and linear scaling in sequence length”",
            "arXiv 2312.00752, abstract",
        ),
    )
    rule = RULE

    def plan(self, budget_s: Real) -> Sequence[Step]:
        """The shares of the budget; building the corpus takes what it takes."""
        rest = budget_s * (1 - TRAINING - TIMING)
        return (
            Step("corpus, compressor and 5-gram baselines", 0.5 * rest),
            Step("train both models on the same tokens", TRAINING * budget_s),
            Step("score held-out text", 0.3 * rest),
            Step("time reading and writing against length", TIMING * budget_s),
            Step("peak memory against length", 0.2 * rest),
        )

    def run(self, ctx: Context) -> Result:
        """Measure. Raises UserError when the text is too little to train and score on."""
        from postformer.claims import sequences
        from postformer.data import open_corpus

        about = ctx.step("corpus", lambda: sequences.make_corpus(ctx))
        corpus = open_corpus(ctx.files / "corpus", verify=False)
        baselines = ctx.step("baselines", lambda: sequences.baseline_bits(corpus))
        runs = self._runs(ctx, ctx.step("speed of training", lambda: sequences.calibrate(_recipes(ctx), ctx.threads)))
        trained, bits = self._train(ctx, runs, corpus)
        folders = {m: self._folder(ctx, m, ctx.seeds[0]) for m in NAMES}
        timings = self._time(ctx, folders, corpus)
        peaks = self._peaks(ctx, folders, timings["lengths"])
        evidence = {**timings, "peaks": peaks, "bits": bits, "fused": FUSED}
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
            limits=page.limits(ctx, runs, about, trained),
            consequences=page.consequences(evidence),
            data=Data(
                str(ctx.text or "Python's own library: code and prose"),
                ctx.text is not None,
                about["sha256"],
                about["train"]["bytes"] + about["valid"]["bytes"],
            ),
        )

    def _runs(self, ctx: Context, seconds: Mapping[str, Mapping[str, float]]) -> dict[str, Run]:
        """Both recipes in the dtype that trains faster here, with as many steps as the budget holds."""
        dtype = min(seconds, key=lambda d: sum(seconds[d].values()))
        steps = max(20, int(TRAINING * ctx.budget_s / (sum(seconds[dtype].values()) * len(ctx.seeds))))
        return {
            m: dataclasses.replace(
                run, train=dataclasses.replace(run.train, dtype=dtype, steps=steps, save_every=max(10, steps // 8), keep=1)
            )
            for m, run in _recipes(ctx).items()
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
        """Double the length while the next one is expected to fit into the share for timing."""
        import torch

        from postformer.claims import sequences
        from postformer.train.session import open_model

        models = {m: open_model(f) for m, f in folders.items()}
        chunks = {"mamba": 2048, "attention": 1 << 62}
        lengths, prefill, floors, decode = [], [], [], []
        left, length = TIMING * ctx.budget_s, 1024
        before = torch.get_num_threads()
        torch.set_num_threads(ctx.threads)
        try:
            while True:
                ids = sequences.text_ids(corpus, length)
                taken = ctx.step(
                    f"read {length:,} tokens",
                    lambda i=ids, b=left: dataclasses.asdict(sequences.prefill_times(models, chunks, i, max(b, 10.0))),
                )
                after = ctx.step(f"write after {length:,} tokens", lambda i=ids: sequences.decode_times(models, i))
                lengths.append(length)
                prefill.append(taken["samples"])
                floors.append(Timing(taken["samples"], tuple(taken["control"]), taken["complete"]).floor)
                decode.append(after)
                left -= sum(r["seconds"] for r in ctx.steps[-2:])
                length *= 2
                round_s = 2 * np.median(taken["samples"]["mamba"]) + np.median(taken["samples"]["attention"])
                if len(lengths) >= 3 and 22 * 2.6 * round_s > left:
                    break
        finally:
            torch.set_num_threads(before)
        last = decode[-1]
        floor = noise_floor(last["samples"]["mamba"], last["control"])
        return {"lengths": lengths, "prefill": prefill, "prefill_floor": floors[-1], "decode": decode, "decode_floor": floor}

    def _peaks(self, ctx: Context, folders: Mapping[str, Path], lengths: Sequence[int]) -> list[dict[str, Any]]:
        from postformer.claims import sequences
        from postformer.config import UserError

        peaks = []
        for length in (lengths[0], lengths[len(lengths) // 2], 2 * lengths[-1]):
            try:
                taken = ctx.step(
                    f"peak memory at {length:,} tokens",
                    lambda n=length: {m: sequences.peak_memory(f, n, PEAK_CHUNK, ctx.threads) for m, f in folders.items()},
                )
            except UserError:
                return []
            peaks.append({"length": length, **taken})
        return peaks

    def _costs(self, folders: Mapping[str, Path], tokens_per_word: float) -> dict[str, Any]:
        """The cost formulas at published lengths."""
        from postformer.train.session import open_model

        models = {m: open_model(f) for m, f in folders.items()}
        return {m: {w: model.cost(round(w * tokens_per_word)) for w in WORDS} for m, model in models.items()}


def _recipes(ctx: Context) -> dict[str, Run]:
    data = {"kind": "text", "path": str(ctx.files / "corpus"), "length": WINDOW}
    runs = {"mamba": text_mamba(), "attention": text_attention()}
    return {
        m: dataclasses.replace(r, data=data, train=dataclasses.replace(r.train, threads=ctx.threads)) for m, r in runs.items()
    }
