"""Claim: a state that rotates keeps count where a real, positive one cannot: Mamba-3 on parity, beside the same net without rotation."""

from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims import SENTENCES
from postformer.claims.ledger import (
    Chart,
    Context,
    Criterion,
    Finding,
    Headline,
    Number,
    Real,
    Result,
    Rule,
    Series,
    Source,
    Step,
    Table,
    conclude,
)

NAMES = {"rotating": "Mamba-3", "real": "Mamba-3 without rotation"}
LENGTHS = (16, 64, 160, 256, 1024, 4096)
TRAINED, TESTED = 160, 256
ROWS, LEAST_ROWS = 1024, 160
"""Sequences asked for their last answer at each length, fewer at the long ones; with fewer than the least, all right would not be
enough for an interval above 95%."""
LEARN = 0.85
"""Training's share of the budget."""
Evidence = Mapping[str, Any]


def _at(e: Evidence, name: str, length: Real) -> Number:
    from postformer.claims.tasks import scaled_share

    return scaled_share(next(s for s in e["scores"][name] if s["length"] == length))


def _low(number: Number) -> Real:
    return -100.0 if number.low is None else number.low


def _high(number: Number) -> Real:
    return 100.0 if number.high is None else number.high


def _said(number: Number) -> str:
    return f"{number.value:.1f}% (0 a guesser, 100 perfect)"


def _rotating(e: Evidence, t: Mapping[str, Real]) -> Finding:
    trained, tested = (_at(e, "rotating", t[key]) for key in ("trained", "tested"))
    numbers = {f"Mamba-3 at {t[key]:,} tokens": n for key, n in (("trained", trained), ("tested", tested))}
    because = f"Mamba-3, trained on up to {t['trained']:,} bits, has {_said(tested)} at {t['tested']:,} after {e['taken']}"
    if _low(tested) >= t["right"]:
        return Finding("supported", because, numbers)
    whole = e["share"] >= 1
    return Finding("contradicted" if whole and _high(tested) < t["right"] else "inconclusive", because, numbers)


def _real(e: Evidence, t: Mapping[str, Real]) -> Finding:
    rotating, real = (_at(e, name, t["tested"]) for name in ("rotating", "real"))
    numbers = {f"{NAMES[name]} at {t['tested']:,} tokens": _at(e, name, t["tested"]) for name in NAMES}
    because = f"the same net without rotation has {_said(real)} after {e['taken']}"
    if _low(real) >= t["right"]:
        return Finding("contradicted", f"{because}: it keeps count too", numbers)
    if _low(rotating) < t["right"]:
        return Finding("inconclusive", f"{because}; with rotation it has not learned the task in that time either", numbers)
    return Finding("supported" if _low(real) <= 0 <= _high(real) <= t["chance"] else "inconclusive", because, numbers)


RULE = Rule(
    "Nets of one layer learn the parity of up to 160 bits from the same sequences in as many steps, and are asked for the parity of "
    "256, on the scale from a guesser (0%) to perfect (100%).",
    (
        Criterion(
            "a rotating state counts",
            "Supported if Mamba-3's 95% interval at {tested} bits lies at or above {right:g}%; contradicted if it lies below after all of "
            "the recipe's steps; else inconclusive.",
            _rotating,
            {"trained": TRAINED, "tested": TESTED, "right": 95},
        ),
        Criterion(
            "a real, positive state does not",
            "Supported if the interval of the same net without rotation holds 0% and ends at or below {chance:g}% where Mamba-3's lies at "
            "or above {right:g}%; contradicted if it reaches {right:g}% too; else inconclusive.",
            _real,
            {"tested": TESTED, "right": 95, "chance": 20},
        ),
    ),
)


class StateTracking:
    """See the module's docstring."""

    id = "state_tracking"
    title = "Keeping count"
    sentence = SENTENCES[id]
    sources = (
        Source(
            "Lahoti et al. 2026: parity at 256 tokens, scaled accuracy: Mamba-3 100.0, without rotation 2.27",
            "arXiv 2603.15569, table 5b",
        ),
    )
    rule = RULE
    weight = 2.5

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """Nearly all of it is training, of both nets alike."""
        return (
            Step("learn parity, both nets", LEARN * budget_s),
            Step("ask at lengths from 16 to 4,096", (1 - LEARN) * budget_s),
        )

    def run(self, ctx: Context) -> Result:
        """Measure."""
        from postformer.claims import tasks
        from postformer.recipes.tasks import parity, parity_real

        whole = {"rotating": parity(), "real": parity_real()}
        runs = tasks.fitted(ctx, whole, LEARN * ctx.budget_s)
        scores: dict[str, list[dict[str, Any]]] = {}
        rows = ROWS if ctx.budget_s >= 100 else LEAST_ROWS
        tasks.learn(ctx, runs.values())
        for name, run in runs.items():
            scores[name] = [
                ctx.step(
                    f"{NAMES[name]} at {n:,} tokens",
                    lambda r=run, n=n: tasks.answers(
                        ctx, r, n, max(LEAST_ROWS, min(rows, (1 << 18) // n)), answers="last", ones="even"
                    ),
                )
                for n in LENGTHS
            ]
        first, full = runs["rotating"].train.steps, whole["rotating"].train.steps
        evidence = {"scores": scores, "taken": f"{first:,} of the recipe's {full:,} steps", "share": first / full}
        return conclude(
            self,
            evidence,
            headline=Headline(_at(evidence, "rotating", TESTED), f"Mamba-3's scaled accuracy on the parity of {TESTED} bits"),
            tables=(_table(evidence, ctx.seeds),),
            charts=(_chart(evidence),),
            limits=_limits(evidence, ctx),
            consequences=_consequences(evidence),
        )


def _table(e: Evidence, seeds: Sequence[int]) -> Table:
    from postformer.claims.tasks import scaled_share

    rows = [(f"{n:,} bits", *(scaled_share(e["scores"][name][i], seeds) for name in NAMES)) for i, n in enumerate(LENGTHS)]
    return Table(
        "Parity, scaled accuracy of the last answer",
        ("length", *NAMES.values()),
        tuple(rows),
        note=f"0% is a guesser, 100% perfect. After {e['taken']} on 3 to {TRAINED} bits. The paper, at 256: 100.0 and 2.27.",
    )


def _chart(e: Evidence) -> Chart:
    from postformer.claims.tasks import scaled_share

    series = []
    for name, title in NAMES.items():
        shares = [scaled_share(s) for s in e["scores"][name]]
        y, low, high = (
            tuple(float(v or 0.0) for v in of) for of in zip(*((n.value, n.low, n.high) for n in shares), strict=True)
        )
        series.append(Series(title, tuple(float(n) for n in LENGTHS), y, "measured", low, high))
    return Chart(
        title=f"Parity, trained on up to {TRAINED} bits",
        x_label="bits",
        y_label="scaled accuracy",
        y_unit="%",
        series=tuple(series),
        log_x=True,
    )


def _limits(e: Evidence, ctx: Context) -> tuple[str, ...]:
    return (
        "Parity is the smallest task that needs a sign or a rotation: it stands for keeping count, and shows nothing of language.",
        "The nets are as small as the paper's, their learning rate was chosen for Mamba-3 among a few and is the same for all, where the "
        "paper searched eight for each: a net that fails here may learn with another.",
        f"{len(ctx.seeds)} seed{'s' * (len(ctx.seeds) > 1)}; `python benchmarks/papers.py parity` takes all of the recipe's steps, and "
        "`python benchmarks/papers.py modular-arithmetic` asks for arithmetic modulo 5.",
        "Without rotation the eigenvalues are real and positive. Negative ones keep count of two as well: Gated DeltaNet with eigenvalues "
        "from -1 to 1 has 100 in the same table.",
    )


def _consequences(e: Evidence) -> tuple[str, ...]:
    at_last = {name: _at(e, name, LENGTHS[-1]) for name in NAMES}
    holding = [NAMES[name] for name, n in at_last.items() if _low(n) >= 95]
    return (
        f"For states that must be tracked over {LENGTHS[-1]:,} steps, what was learned on {TRAINED} held with: {', '.join(holding)}."
        if holding
        else f"None of the nets held what it learned on {TRAINED} bits over {LENGTHS[-1]:,}: check at your own lengths.",
        "Where nothing must be counted, rotation costs time and buys nothing that this page shows.",
    )


CLAIM = StateTracking()
