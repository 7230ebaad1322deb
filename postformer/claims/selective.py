"""Claim: selection lets a state space remember what matters however much lies between: induction heads at a million tokens after
training on 256, selective copying, and a state that costs the same all along."""

from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims import SENTENCES
from postformer.claims import selective_page as page
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
from postformer.claims.stats import fit_exponent, noise_floor, ratio_interval
from postformer.claims.words import TIMES

LENGTHS = tuple(1 << k for k in range(6, 21, 2))
"""Where induction heads are asked for."""
LONGEST_ROWS, TOKENS = 8, 1 << 21
"""At least so many sequences of a length, or about so many tokens of it."""
COPYING_ROWS = 1000
"""Sequences of selective copying: enough for an interval above 99%."""
ALONG = tuple(1 << k for k in range(10, 21, 2))
"""Where the state is weighed and timed."""
LEARN = {"induction": 0.4, "copying": 0.15}
"""Training's shares of the budget."""
STREAM_S = 25.0
"""About what a stream of 2^20 tokens and its timing take."""
Evidence = Mapping[str, Any]


def _said(score: Mapping[str, Any]) -> str:
    return f"{score['rows_right']:,} of {score['rows']:,} sequences of {score['length']:,} tokens"


def _induction(e: Evidence, t: Mapping[str, Real]) -> Finding:
    scores = e["induction"]
    numbers = {f"right at {s['length']:,} tokens": page.share_of(s) for s in scores}
    shares = {s["length"]: page.share_of(s) for s in scores}
    trained = next(s for s in scores if s["length"] == t["trained"])
    if (shares[trained["length"]].high or 0.0) < t["right"]:
        return Finding("inconclusive", f"not learned in {e['taken']['induction']}: right on {_said(trained)}", numbers)
    for score in scores:
        if (shares[score["length"]].high or 0.0) < t["right"]:
            because = f"right on {_said(score)} after {e['taken']['induction']}"
            return Finding("contradicted" if e["taken"]["induction_share"] >= 1 else "inconclusive", because, numbers)
    worst = min(scores, key=lambda s: s["rows_right"] / s["rows"])
    if worst["rows_right"] < worst["rows"] * t["right"] / 100:
        return Finding("inconclusive", f"right on {_said(worst)}", numbers)
    last = scores[-1]
    if last["length"] < t["longest"]:
        because = f"right at every length asked, but the budget ended at {last['length']:,} tokens"
        return Finding("inconclusive", because, numbers)
    low = shares[last["length"]].low or 0.0
    because = f"the fewest right are {_said(worst)}; at the longest {_said(last)}, which is at least {low:.0f}% of all such by its interval"
    return Finding("supported", because, numbers)


def _copying(e: Evidence, t: Mapping[str, Real]) -> Finding:
    score = e["copying"]
    share = page.answers_right(score)
    assert share.value is not None and share.high is not None
    numbers = {"answers right": share, "a guesser's": Number(100 * score["chance"], "%", "counted")}
    because = f"{share.value:.1f}% of the answers are right after {e['taken']['copying']}"
    if (share.low or 0.0) >= t["right"]:
        return Finding("supported", because, numbers)
    whole = e["taken"]["copying_share"] >= 1
    return Finding("contradicted" if whole and share.high < t["right"] else "inconclusive", because, numbers)


def _constant(e: Evidence, t: Mapping[str, Real]) -> Finding:
    along = e["along"]
    numbers, verdicts = {}, []
    sizes = set(along["state_bytes"])
    numbers["state after the first and the last"] = Number(along["state_bytes"][-1], "B", "counted")
    ends = f"{along['lengths'][-1]:,} and after {along['lengths'][0]:,} tokens"
    for name in ("reading", "writing"):
        first, last = along[name]["samples"][0], along[name]["samples"][-1]
        ratio, floor = ratio_interval(last, first), noise_floor(first, along[name]["control"])
        slope = fit_exponent(along["lengths"], along[name]["samples"])
        numbers[f"{name} a token after {ends}"] = ratio.number(TIMES)
        numbers[f"{name}: noise floor (A/A)"] = floor.number()
        numbers[f"{name}: time a token grows as length to the power"] = Number(
            slope.exponent, "", "measured", slope.low, slope.high, slope.n
        )
        most = 1 + t["most"] / 100
        sure = (along["lengths"][-1] / along["lengths"][0]) ** (slope.low or 0.0) - 1
        noise = max(abs(floor.low or 0.0), abs(floor.high or 0.0))
        within = ratio.high is not None and ratio.high <= most and sure <= noise
        verdicts.append("supported" if within else "contradicted" if (ratio.low or 0.0) > most else "inconclusive")
    if len(sizes) > 1:
        return Finding("contradicted", f"the state has {len(sizes)} sizes along the stream", numbers)
    worst = "contradicted" if "contradicted" in verdicts else "inconclusive" if "inconclusive" in verdicts else "supported"
    said = {"supported": "costs no more", "contradicted": "costs more", "inconclusive": "may cost more"}[worst]
    because = (
        f"the state has one size, and a token after {along['lengths'][-1]:,} others {said} than after {along['lengths'][0]:,}"
    )
    return Finding(worst, because, numbers)


RULE = Rule(
    "A small Mamba is trained on induction heads of up to 256 tokens, and on selective copying, and asked at other lengths, whole "
    "sequences read through its state.",
    (
        Criterion(
            "induction heads at a million tokens",
            "Supported if at least {right:g}% of the sequences asked are answered right at 64, 256, 1,024 and so on to {longest:,.0f} "
            "tokens, with {rows} sequences a seed at the longest lengths, so that it is all of them there; "
            "contradicted if after all of the recipe's steps the share's 95% interval lies below that at a length but not at "
            "{trained:,.0f}, the longest of its training; else inconclusive, also where the budget ended before.",
            _induction,
            {"right": 99, "trained": 256, "longest": 1 << 20, "rows": LONGEST_ROWS},
        ),
        Criterion(
            "selective copying",
            "Supported if the 95% interval of the right answers at 256 tokens, a sequence counted as one sample, lies at or above "
            "{right:g}%; contradicted if it lies below after all of the recipe's steps; else inconclusive.",
            _copying,
            {"right": 99},
        ),
        Criterion(
            "the same cost all along",
            "Supported if the state has one size from 1,024 to 1,048,576 tokens, and a token read or written after the last takes at most "
            "{most:g}% longer than after the first by its whole 95% interval, while what the time grows by for sure, from the lower "
            "bound of its exponent, lies within the noise floor; contradicted if the interval lies above that or the size "
            "changes; else inconclusive.",
            _constant,
            {"most": 10},
        ),
    ),
)


class Selective:
    """See the module's docstring."""

    id = "selective"
    title = "Remembering what matters"
    sentence = SENTENCES[id]
    sources = (
        Source(
            "Gu & Dao 2023: induction heads trained at 256 tokens are solved at every length from 2^6 to 2^20; selective copying 99.8%",
            "arXiv 2312.00752, section 3.1, tables 1 and 11",
        ),
    )
    rule = RULE
    weight = 2.5

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """Training first; the stream has its fixed time; lengths are asked for as far as the rest reaches."""
        learn = sum(LEARN.values()) * budget_s
        return (
            Step("learn induction heads and selective copying", learn),
            Step("state and time along a stream of a million tokens", STREAM_S),
            Step("ask at lengths from 64 to 1,048,576", max(0.0, budget_s - learn - STREAM_S)),
        )

    def run(self, ctx: Context) -> Result:
        """Measure."""
        from postformer.claims import tasks
        from postformer.recipes.tasks import induction, selective_copying

        whole = {"induction": induction(), "copying": selective_copying()}
        runs: dict[str, Any] = {}
        taken: dict[str, Any] = {}
        for name in whole:
            runs |= tasks.fitted(ctx, {name: whole[name]}, LEARN[name] * ctx.budget_s)
            run = runs[name]
            tasks.learn(ctx, [run])
            taken[name] = f"{run.train.steps:,} of the recipe's {whole[name].train.steps:,} steps"
            taken[f"{name}_share"] = run.train.steps / whole[name].train.steps
        copying = ctx.step("selective copying at 256", lambda: tasks.answers(ctx, runs["copying"], 256, COPYING_ROWS))
        along = ctx.step("cost along a stream", lambda: tasks.times_along(ctx, runs["induction"], ALONG))
        evidence = {"induction": self._ask(ctx, runs["induction"]), "copying": copying, "along": along, "taken": taken}
        longest = evidence["induction"][-1]
        return conclude(
            self,
            evidence,
            headline=Headline(
                page.share_of(longest, ctx.seeds), f"right answers in sequences of {longest['length']:,} tokens, trained on 256"
            ),
            tables=(page.answers(evidence, ctx.seeds), page.costs(evidence)),
            charts=page.charts(evidence, ctx.seeds),
            limits=page.limits(evidence, ctx),
            consequences=page.consequences(evidence),
        )

    def _ask(self, ctx: Context, run: Any) -> list[dict[str, Any]]:
        """At each length while the next length is expected to fit into what is left; the training length in any case."""
        from postformer.claims import tasks

        found: list[dict[str, Any]] = []
        for length in LENGTHS:
            rows = max(LONGEST_ROWS, min(256, TOKENS // length))
            if found and length > 256:
                before = ctx.steps[-1]["seconds"] / (found[-1]["rows"] * found[-1]["length"])
                if before * rows * length * len(ctx.seeds) > ctx.left_s:
                    break
            step = f"induction at {length:,} tokens"
            found.append(
                ctx.step(step, lambda n=length, r=rows: tasks.answers(ctx, run, n, r, batch=LONGEST_ROWS if n > 4096 else 64))
            )
        return found


CLAIM = Selective()
