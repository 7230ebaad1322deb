"""Claim: a model that writes to its weights while it reads predicts the rest of a long text better: Titans' memory written, standing
still, and left out, on a diary of years."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims import SENTENCES
from postformer.claims import reads_better_page as page
from postformer.claims.ledger import (
    Context,
    Criterion,
    Data,
    Finding,
    Headline,
    Number,
    Real,
    Result,
    Rule,
    Source,
    Step,
    conclude,
)
from postformer.config import Run

LEARN = 0.75
"""Training's share of the budget."""
PREPARE_S, SAMPLED = 20.0, 6
"""About what corpus, speed and timing take, and the steps that are timed, all of one length."""
READ = 0.85
"""The share of what training leaves that is read in; the rest is for opening models and slower moments."""
LONGEST = 1 << 17
"""Most tokens of a row that are read."""
PASSES = ("on", "frozen", "anew", "window")
Evidence = Mapping[str, Any]


def _judged(e: Evidence, gain: Number, least: Real, because: str, numbers: Mapping[str, Number]) -> Finding:
    """By the whole interval; without one, and of models that have not learned all they should, nothing is said."""
    if e["taken_share"] < 1:
        return Finding("inconclusive", because, dict(numbers))
    if gain.low is not None and gain.low > least:
        return Finding("supported", because, dict(numbers))
    below = gain.high is not None and gain.high < least
    return Finding("contradicted" if below else "inconclusive", because, dict(numbers))


def _writing(e: Evidence, t: Mapping[str, Real]) -> Finding:
    gain = page.gain(e, "frozen")
    numbers = {"standing still": page.bits(e, "frozen"), "written": page.bits(e, "on"), "gain": gain}
    return _judged(e, gain, t["least"], f"writing while reading is worth {page.said(gain)} after {e['taken']}", numbers)


def _rival(e: Evidence, t: Mapping[str, Real]) -> Finding:
    gain, sizes = page.gain(e, "window"), e["costs"]["parameters"]
    numbers = {"without a memory": page.bits(e, "window"), "written": page.bits(e, "on"), "gain": gain}
    apart = 100 * abs(sizes["window"] / sizes["memory"] - 1)
    numbers["the rival's parameters differ by"] = Number(apart, "%", "counted")
    if apart > t["within"]:
        return Finding("inconclusive", f"the models' parameters differ by {apart:.1f}%", numbers)
    if len(e["bits"]) < t["seeds"]:
        return Finding("inconclusive", f"one pair of models tells little of the next: {t['seeds']:g} seeds are needed", numbers)
    because = f"against windows of attention alone the memory is worth {page.said(gain)} after {e['taken']} each"
    return _judged(e, gain, t["least"], because, numbers)


RULE = Rule(
    "A language model with a layer of Titans' memory and one of attention in a window, and one with a second window for the memory, "
    "learn from the first part of a text, the same batches in as many steps. Both then read stretches of its later part from fresh "
    "states. A gain is bits per byte without, less bits per byte with the memory written while it reads; its 95% interval is the "
    "bootstrap's over the documents that are read, or Student's over the seeds where that is wider.",
    (
        Criterion(
            "written against standing still",
            "The same model with its memory kept at the learned first weights: after all of the recipe's steps supported if the gain's "
            "interval lies above {least:g} and contradicted if it lies below; else inconclusive. The model never read so in training, "
            "which flatters the gain.",
            _writing,
            {"least": 0},
        ),
        Criterion(
            "written against none",
            "The model with windows alone, which has as many parameters within {within:g}%: after all of the recipe's steps, of {seeds:g} "
            "seeds at least, supported if the gain's interval lies above {least:g} and contradicted if it lies below; else inconclusive, "
            "also where the parameters differ by more.",
            _rival,
            {"least": 0, "within": 5, "seeds": 2},
        ),
    ),
)


class ReadsBetter:
    """See the module's docstring."""

    id = "reads_better"
    title = "Learning while reading"
    sentence = SENTENCES[id]
    sources = (
        Source(
            "Behrouz et al. 2024: a memory that “learns how to memorize at test time”; perplexity on text below Transformers'",
            "arXiv 2501.00663, abstract and table 1",
        ),
    )
    rule = RULE
    weight = 3.0

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """Training first; the rest is read, in as many ways as there are."""
        return (
            Step("corpus of the first part", PREPARE_S),
            Step("train with a memory and without", LEARN * budget_s),
            Step("read the later part in four ways", max(0.0, (1 - LEARN) * budget_s - PREPARE_S)),
        )

    def run(self, ctx: Context) -> Result:
        """Measure. Raises NotMeasurable when the text is too little to learn from and read on."""
        from postformer.claims import streams, tasks
        from postformer.data import open_corpus

        text = streams.text_of(ctx.text)
        whole = _recipes(ctx)
        about = ctx.step("corpus", lambda: streams.make_corpus(ctx.files, text, whole["memory"].data["length"], ctx.progress))
        runs = tasks.fitted(ctx, whole, LEARN * ctx.budget_s, SAMPLED)
        tasks.learn(ctx, runs.values())
        tokens = open_corpus(ctx.files / "corpus", verify=False).tokens
        memory, window = (tasks.folder(ctx, runs[name], ctx.seeds[0]) for name in ("memory", "window"))
        begun = streams.streams(text, tokens, streams.LEAST)
        costs = ctx.step("cost of reading", lambda: streams.reading_times(ctx, memory, window, begun))
        read = streams.streams(text, tokens, self._length(ctx, costs["token_s"]))
        bits = {str(seed): {} for seed in ctx.seeds}
        for seed in ctx.seeds:
            for way in PASSES:
                folder = tasks.folder(ctx, runs["window" if way == "window" else "memory"], seed)
                step = f"read, {page.NAMES[way]}, seed {seed}"
                bits[str(seed)][way] = ctx.step(step, lambda f=folder, w=way: streams.unit_bits(ctx, f, read, w))
        steps = runs["memory"].train.steps
        taken = f"{steps:,} of the recipe's {whole['memory'].train.steps:,} steps"
        evidence = {"units": streams.units_of(read), "bits": bits, "costs": costs, "taken": taken, "rows": len(read.ids)}
        evidence["taken_share"] = steps / whole["memory"].train.steps
        return conclude(
            self,
            evidence,
            headline=Headline(page.gain(evidence, "frozen"), "what writing to its weights while it reads is worth"),
            tables=(page.quality(evidence), page.along(evidence), page.cost(evidence)),
            charts=page.charts(evidence),
            limits=page.limits(evidence, about, runs["memory"], len(ctx.seeds)),
            consequences=page.consequences(evidence),
            data=Data(
                about["text"], ctx.text is not None, about["sha256"], sum(about[p]["bytes"] for p in ("learned", "read"))
            ),
        )

    def _length(self, ctx: Context, token_s: Mapping[str, float]) -> int:
        """Tokens of a row that fit into what is left: a token alone takes at least as long as one of a batch."""
        from postformer.claims.streams import LEAST, ROWS

        of = {"on": "on", "frozen": "frozen", "anew": "on", "window": "window"}
        token = sum(token_s[of[way]] for way in PASSES) * ROWS * len(ctx.seeds)
        return max(LEAST, min(LONGEST, int(READ * ctx.left_s / token)))


def _recipes(ctx: Context) -> dict[str, Run]:
    from postformer.recipes.language import text_memory, text_window

    path = str(ctx.files / "corpus")
    runs = {"memory": text_memory(), "window": text_window()}
    return {name: dataclasses.replace(run, data={**run.data, "path": path}) for name, run in runs.items()}


CLAIM = ReadsBetter()
