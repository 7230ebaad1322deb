"""Claim: sparse experts cut the cost of inference to an eighth where an eighth of the parameters is active: operations, time at batch 1 to
64, and time to read, of a mixture beside dense models of as many parameters and of as many active ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims import SENTENCES
from postformer.claims import sparse_cost_page as page
from postformer.claims.ledger import (
    Context,
    Criterion,
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

DIM, DEPTH, EXPERTS, TOP, HIDDEN = 512, 3, 64, 6, 320
"""Of 97.8 million parameters a token uses 12.2 million, one in 8.0."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
READING = 256
ROUNDS, FEWEST = 21, 5
MEMORY_S = 20.0
"""About what four processes take."""
EIGHTH, NEAR = 8, 0.8
Evidence = Mapping[str, Any]


def _judged(ratio: Number, t: Mapping[str, Real], because: str, numbers: Mapping[str, Number]) -> Finding:
    """Of what was timed, by the whole interval of enough rounds."""
    least = t["near"] * t["times"]
    if ratio.low is None or ratio.high is None or (ratio.n or 0) < t["rounds"]:
        return Finding("inconclusive", f"{because}; the budget ended after {ratio.n} rounds", dict(numbers))
    verdict = "supported" if ratio.low >= least else "contradicted" if ratio.high < least else "inconclusive"
    return Finding(verdict, because, dict(numbers))


def _operations(e: Evidence, t: Mapping[str, Real]) -> Finding:
    ratio = page.of_formula(e, "flops")
    numbers = {"operations of a token, dense / mixture": ratio, "parameters, all / active": page.sparsity(e)}
    because = f"the dense model of equal size multiplies {ratio.value:.2f} times as much for a token"
    enough = (ratio.value or 0.0) >= t["near"] * t["times"]
    return Finding("supported" if enough else "contradicted", because, numbers)


def _alone(e: Evidence, t: Mapping[str, Real]) -> Finding:
    ratio, beside = page.at_batch(e, t["batch"], "total"), page.at_batch(e, t["batch"], "active")
    numbers = {"time of a token, dense of equal size / mixture": ratio, "dense of equal active size / mixture": beside}
    because = f"writing one text the dense model of equal size takes {ratio.value:.2f} times as long a token"
    return _judged(ratio, t, because, numbers | {"noise floor (A/A)": page.floor_at(e, t["batch"])})


def _together(e: Evidence, t: Mapping[str, Real]) -> Finding:
    ratio, touched = page.at_batch(e, t["batch"], "total"), page.touched_at(e, t["batch"])
    numbers = {"time of a step, dense of equal size / mixture": ratio, "experts of a layer that a step touches": touched}
    because = (
        f"writing {t['batch']:g} texts at once it takes {ratio.value:.2f} times as long: they touch {touched.value:.0f} "
        f"of {e['experts']} experts"
    )
    return _judged(ratio, t, because, numbers | {"noise floor (A/A)": page.floor_at(e, t["batch"])})


def _reading(e: Evidence, t: Mapping[str, Real]) -> Finding:
    ratio, beside = page.reading(e, "total"), page.reading(e, "active")
    numbers = {"time to read, dense of equal size / mixture": ratio, "dense of equal active size / mixture": beside}
    because = f"reading {e['times']['reading']['tokens']:,} tokens it takes {ratio.value:.2f} times as long"
    return _judged(ratio, t, because, numbers)


_EIGHTH = (
    "Supported if the dense model's {what} is at least {{near:g}} times {{times:g}} times the mixture's{interval}; contradicted if it is "
    "less{interval}; else inconclusive."
)


def _criterion(name: str, what: str, judge: Any, *, interval: bool = True, **thresholds: Real) -> Criterion:
    words = _EIGHTH.format(what=what, interval=" by its whole 95% interval of at least {rounds:g} rounds" if interval else "")
    return Criterion(name, words, judge, {"times": EIGHTH, "near": NEAR, "rounds": FEWEST, **thresholds})


RULE = Rule(
    f"A language model with {EXPERTS} experts a layer, of which a token uses {TOP}, has eight times as many parameters as a token uses. It "
    "is run beside a dense model with as many parameters and one with as many as a token uses, all with weights that are drawn, in turns. "
    "Memory is shown and not judged: all experts lie in it.",
    (
        _criterion("an eighth of the operations", "count of a token's operations", _operations, interval=False),
        _criterion("an eighth of the time, one text", "time to write one more token of one text", _alone, batch=1),
        _criterion(
            "an eighth of the time, many texts",
            "time to write one more token of {batch:g} texts at once",
            _together,
            batch=32,
        ),
        _criterion("an eighth of the time to read", "time to read a text", _reading),
    ),
)


class SparseCost:
    """See the module's docstring."""

    id = "sparse_cost"
    title = "An eighth of the cost"
    sentence = SENTENCES[id]
    sources = (
        Source("Fedus et al. 2021, Switch Transformers: more parameters at a constant computational cost", "arXiv 2101.03961"),
        Source("Jiang et al. 2024, Mixtral of Experts: 47B parameters, 13B active during inference", "arXiv 2401.04088"),
    )
    rule = RULE
    weight = 1.0

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """Time at each batch, and memory."""
        return (
            Step("one more token at batch 1 to 64, and reading", max(0.0, budget_s - MEMORY_S)),
            Step("resident memory", MEMORY_S),
        )

    def run(self, ctx: Context) -> Result:
        """Measure."""
        from postformer.claims import mixtures

        shape = mixtures.Shape(dim=DIM, depth=DEPTH, experts=EXPERTS, top=TOP, hidden=HIDDEN)
        counted = ctx.step("count", lambda: mixtures.counted(shape))
        resident = ctx.step("resident memory", lambda: {"held": mixtures.resident_bytes(ctx, shape)})["held"]
        seconds = 0.9 * max(0.0, ctx.left_s)
        times = ctx.step("time", lambda: mixtures.step_times(ctx, shape, BATCHES, READING, ROUNDS, seconds))
        evidence = {"experts": EXPERTS, "top": TOP, "counted": counted, "resident": resident, "times": times}
        return conclude(
            self,
            evidence,
            headline=Headline(
                page.at_batch(evidence, 1, "total"), "the dense model's time of a token / the mixture's, one text"
            ),
            tables=page.tables(evidence),
            charts=page.charts(evidence),
            limits=page.limits(evidence, ctx),
            consequences=page.consequences(evidence),
        )


CLAIM = SparseCost()
