"""Claim: experts specialise, code goes to the Python expert: a small mixture learns code, prose and a third text, and what its experts tell
of the text is held against routers that were never trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims import SENTENCES
from postformer.claims import experts_specialise_page as page
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
    conclude,
)

LEARN, SAMPLED = 0.7, 8
"""Training's share of the budget, and the steps that are timed before."""
PREPARE_S = 15.0
"""About what the corpus takes."""
TOKENS = 32_768
"""Of each domain's held-out text that are read, at most."""
Evidence = Mapping[str, Any]


def _purity(e: Evidence, t: Mapping[str, Real]) -> Finding:
    best = {seed: max(layers, key=lambda layer: layer["chosen by"]) for seed, layers in e["layers"].items()}
    numbers = {
        f"{page.PLACES[what]}, {layer['name']}, seed {seed}": page.percent(layer[what], seed)
        for seed, layer in best.items()
        for what in page.PLACES
    }
    excess = [layer["excess"] for layer in best.values()]
    said = ", ".join(f"{100 * value:.1f}" for value, *_ in excess)
    because = f"in the best layer experts tell the text {said} points better than untrained routers do, after {e['taken']}"
    if all(100 * low > t["least"] for _, low, _ in excess):
        return Finding("supported", because, numbers)
    none = all(100 * high < t["least"] for _, _, high in excess) and e["taken_share"] >= 1
    return Finding("contradicted" if none else "inconclusive", because, numbers)


def _expert(e: Evidence, t: Mapping[str, Real]) -> Finding:
    found = {seed: page.specialist(layers, "specialist") for seed, layers in e["layers"].items()}
    numbers: dict[str, Any] = {}
    for seed, one in found.items():
        if one is not None:
            numbers[f"{one['layer']}, expert {one['expert']}: code, seed {seed}"] = page.percent(one["share"], seed)
            numbers[f"it takes of code's pairs, seed {seed}"] = Number(100 * one["takes"], "%", "measured", seeds=(int(seed),))
        beside = page.specialist(e["layers"][seed], "untrained specialist")
        if beside is not None:
            numbers[f"an untrained router's: code, seed {seed}"] = page.percent(beside["share"], seed)
    shares = [(0.0, 0.0, 0.0) if one is None else one["share"] for one in found.values()]
    said = ", ".join(f"{100 * value:.0f}%" for value, *_ in shares)
    because = f"of equally many tokens of each text, {said} of those of the best such expert are code, after {e['taken']}"
    if all(100 * low >= t["pure"] for _, low, _ in shares):
        return Finding("supported", because, numbers)
    none = all(100 * high < t["pure"] for _, _, high in shares) and e["taken_share"] >= 1
    return Finding("contradicted" if none else "inconclusive", because, numbers)


RULE = Rule(
    "A small Transformer with eight experts in each layer, of which a token uses two, learns code, prose and a third text, and reads "
    "held-out text of each in windows. Beside each router stand eight that were never trained and see the same. Intervals are the "
    "bootstrap's over documents and over these routers, 95%. What is best is chosen on every other document and measured on the rest.",
    (
        Criterion(
            "experts tell the text",
            "Purity is the share of pairs of a token and an expert, of equally many of each text, that the expert's commonest text names "
            "rightly. Supported if in the best layer of every seed it exceeds the untrained routers' by more than {least:g} points by the "
            "whole interval; contradicted if after all of the recipe's steps the interval lies below that for every seed; else "
            "inconclusive.",
            _purity,
            {"least": 5},
        ),
        Criterion(
            "there is a Python expert",
            "Supported if some expert that takes its even share of code's pairs or more is at least {pure:g}% code, of equally many tokens "
            "of each text, by the whole interval and in every seed; contradicted if after all of the recipe's steps the interval lies "
            "below that in every seed; else inconclusive.",
            _expert,
            {"pure": 90},
        ),
    ),
)


class ExpertsSpecialise:
    """See the module's docstring."""

    id = "experts_specialise"
    title = "The Python expert"
    sentence = SENTENCES[id]
    sources = (
        Source(
            "Muennighoff et al. 2024, OLMoE: experts specialise in domains, Mixtral's hardly", "arXiv 2409.02060, section 5.3"
        ),
        Source(
            "Jiang et al. 2024, Mixtral: no obvious patterns in the assignment of experts to topics",
            "arXiv 2401.04088, section 5",
        ),
    )
    rule = RULE
    weight = 1.5

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """Training, then reading."""
        return (
            Step("corpus of code, prose and a third text", PREPARE_S),
            Step("train with experts", LEARN * budget_s),
            Step("read held-out text of each", max(0.0, (1 - LEARN) * budget_s - PREPARE_S)),
        )

    def run(self, ctx: Context) -> Result:
        """Measure. Raises NotMeasurable where a text is too little to be read."""
        from postformer.claims import domains, tasks

        about = ctx.step("corpus", lambda: domains.make_corpus(ctx))
        whole = domains.recipe(ctx)
        run = tasks.fitted(ctx, {"experts": whole}, LEARN * (ctx.budget_s - ctx.steps[-1]["seconds"]), SAMPLED)["experts"]
        tasks.learn(ctx, [run])
        layers = {
            str(seed): ctx.step(f"read, seed {seed}", lambda s=seed: domains.watched(ctx, run, s, TOKENS)) for seed in ctx.seeds
        }
        evidence = {
            "domains": about["domains"],
            "layers": layers,
            "taken": f"{run.train.steps:,} of the recipe's {whole.train.steps:,} steps",
            "taken_share": run.train.steps / whole.train.steps,
        }
        return conclude(
            self,
            evidence,
            headline=page.headline(evidence),
            tables=(page.purities(evidence), page.specialists(evidence)),
            heats=page.heats(evidence),
            limits=page.limits(evidence, about, run),
            consequences=page.consequences(evidence),
            data=Data(about["text"], False, about["sha256"], about["bytes"]),
        )


CLAIM = ExpertsSpecialise()
