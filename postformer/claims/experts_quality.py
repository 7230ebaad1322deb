"""Claim: experts make a model better at the same operations a token: a mixture beside the dense model of equal active size and the dense
one of equal size, after equally many tokens."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims import SENTENCES
from postformer.claims import experts_quality_page as page
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

LEARN, SAMPLED = 0.85, 8
"""Training's share of the budget, and the steps of each model that are timed before."""
PREPARE_S = 15.0
"""About what the corpus takes."""
Evidence = Mapping[str, Any]


def _judged(e: Evidence, t: Mapping[str, Real], dense: str, least: Real, said: str) -> Finding:
    gain = page.gain(e, dense)
    numbers = {
        "mixture": page.bits(e, "experts"),
        page.NAMES[dense]: page.bits(e, dense),
        f"{page.NAMES[dense]} less mixture": gain,
        "parameters, all / active": page.sparsity(e),
    }
    because = f"{said} {page.said(gain)} after {e['taken']} each"
    if len(e["bits"]) < t["seeds"] or e["taken_share"] < 1:
        few = f"; {t['seeds']:g} seeds are needed" if len(e["bits"]) < t["seeds"] else ""
        return Finding("inconclusive", because + few, numbers)
    if gain.low is not None and gain.low > least:
        return Finding("supported", because, numbers)
    below = gain.high is not None and gain.high < least
    return Finding("contradicted" if below else "inconclusive", because, numbers)


def _active(e: Evidence, t: Mapping[str, Real]) -> Finding:
    return _judged(e, t, "active", t["least"], "against the dense model of equal active size the mixture saves")


def _total(e: Evidence, t: Mapping[str, Real]) -> Finding:
    found, wide = _judged(e, t, "total", -t["most"], "against the dense model of equal size the mixture saves"), page.width(e)
    numbers = {**found.numbers, "what the wide dense model saves against the narrow one": wide}
    if found.verdict == "supported" and not (wide.low is not None and wide.low > t["most"]):
        return Finding("inconclusive", f"{found.because}, but all parameters save {page.said(wide)} in a dense one", numbers)
    return dataclasses.replace(found, numbers=numbers)


RULE = Rule(
    "Three small Transformers learn the same batches of a text in as many steps: with eight experts a layer of which a token uses two, "
    "with networks as wide as two experts, and with networks as wide as all eight. They are scored on held-out documents in bits per byte; "
    "the 95% interval of a difference is the bootstrap's over documents, or Student's over the seeds where that is wider.",
    (
        Criterion(
            "better at equal operations",
            "After all of the recipe's steps, of {seeds:g} seeds at least, supported if the mixture needs fewer bits than the dense model "
            "of equal active size by the whole interval, contradicted if more; else inconclusive.",
            _active,
            {"least": 0, "seeds": 3},
        ),
        Criterion(
            "as good as all of its parameters",
            "After all of the recipe's steps, of {seeds:g} seeds at least, supported if the mixture needs at most {most:g} bits per byte "
            "more than the dense model of equal size by the whole interval, contradicted if more by the whole interval; else inconclusive, "
            "also where that model itself does not save more than this against the narrow one, so that there is nothing to be reached.",
            _total,
            {"most": 0.01, "seeds": 3},
        ),
    ),
)


class ExpertsQuality:
    """See the module's docstring."""

    id = "experts_quality"
    title = "What experts are worth"
    sentence = SENTENCES[id]
    sources = (
        Source("Fedus et al. 2021, Switch Transformers: better at equal operations, table 1", "arXiv 2101.03961"),
        Source("Muennighoff et al. 2024, OLMoE: about twice as fast to train at equal active parameters", "arXiv 2409.02060"),
    )
    rule = RULE
    weight = 2.0

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """Training, then scoring."""
        return (
            Step("corpus", PREPARE_S),
            Step("train a mixture and two dense models alike", LEARN * budget_s),
            Step("score held-out text", max(0.0, (1 - LEARN) * budget_s - PREPARE_S)),
        )

    def run(self, ctx: Context) -> Result:
        """Measure. Raises NotMeasurable for too little text."""
        from postformer.claims import sequences, tasks
        from postformer.data import open_corpus

        whole = _recipes(ctx)
        window = whole["experts"].data["length"]
        about = ctx.step("corpus", lambda: sequences.make_corpus(ctx, window))
        runs = tasks.fitted(ctx, whole, LEARN * (ctx.budget_s - ctx.steps[-1]["seconds"]), SAMPLED)
        step_s = ctx.steps[-1]["result"]
        tasks.learn(ctx, runs.values())
        corpus = open_corpus(ctx.files / "corpus", verify=False)
        bits: dict[str, dict[str, Any]] = {}
        for seed in ctx.seeds:
            bits[str(seed)] = {
                name: ctx.step(
                    f"score {page.NAMES[name]}, seed {seed}",
                    lambda r=run, s=seed: sequences.score(tasks.folder(ctx, r, s), corpus, window, stream=False)["windowed"],
                )
                for name, run in runs.items()
            }
        sizes = ctx.step("sizes", lambda: _sizes(ctx, runs))
        steps = runs["experts"].train.steps
        evidence = {
            "units": {"bytes": [len(text) for _, _, text in sequences.scored(corpus)]},
            "bits": bits,
            "sizes": sizes,
            "step_s": step_s,
            "tokens": steps * runs["experts"].train.batch * window,
            "taken": f"{steps:,} of the recipe's {whole['experts'].train.steps:,} steps",
            "taken_share": steps / whole["experts"].train.steps,
        }
        gain: Number = page.gain(evidence, "active")
        return conclude(
            self,
            evidence,
            headline=Headline(gain, "fewer than the dense model of equal active size"),
            tables=(page.quality(evidence),),
            limits=page.limits(evidence, about, runs["experts"], len(ctx.seeds)),
            consequences=page.consequences(evidence),
            data=Data(
                str(ctx.text or "the default corpus, Python's own library"),
                ctx.text is not None,
                about["sha256"],
                about["train"]["bytes"] + about["valid"]["bytes"],
            ),
        )


def _recipes(ctx: Context) -> dict[str, Run]:
    from postformer.recipes.language import text_attention, text_experts, text_wide

    path = str(ctx.files / "corpus")
    runs = {"experts": text_experts(), "active": text_attention(), "total": text_wide()}
    return {name: dataclasses.replace(run, data={**run.data, "path": path}) for name, run in runs.items()}


def _sizes(ctx: Context, runs: Mapping[str, Run]) -> dict[str, dict[str, Real]]:
    from postformer.claims import tasks
    from postformer.train.session import open_model

    costs = {name: open_model(tasks.folder(ctx, run, ctx.seeds[0])).cost(run.data["length"]) for name, run in runs.items()}
    return {
        name: {"parameters": cost.parameters, "active": cost.active_parameters, "flops": cost.prefill_flops}
        for name, cost in costs.items()
    }


CLAIM = ExpertsQuality()
