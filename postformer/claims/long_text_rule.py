"""The rule by which `long_text` is judged: pure functions of the evidence, and the sentences that a reader can check."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from postformer.claims import long_text_page as page
from postformer.claims.ledger import Criterion, Finding, Number, Rule, Verdict
from postformer.claims.long_text_page import NAMES, Evidence
from postformer.claims.stats import (
    Estimate,
    Fit,
    crossover,
    fit_exponent,
    fit_terms,
    local_exponent,
    mean_interval,
    rank,
    ratio_interval,
)
from postformer.claims.words import TIMES

LONG = 8192
"""Tokens of the text at which speed is judged, whatever the budget reaches beyond."""
ROUNDS = 20
"""Rounds of timing below which nothing is judged."""
SEEDS = 3
"""Seeds below which a quality figure is widened by what another seed may change."""


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
    states = {m: [d["state_bytes"][m] for d in e["decode"]] for m in NAMES}
    ends = {e["lengths"][i]: states["mamba"][i] for i in (0, -1)}
    numbers = {f"Mamba's state after {n:,} tokens": Number(b, "B", "counted") for n, b in ends.items()}
    grown = len(set(states["mamba"])) > 1
    if not e["peaks"]:
        size = "more than one size, and" if grown else "one size, but"
        because = f"the state has {size} this system does not tell a process's peak memory"
        return Finding("contradicted" if grown else "inconclusive", because, numbers)
    cache = (states["attention"][-1] - states["attention"][0]) / (e["lengths"][-1] - e["lengths"][0])
    growth = {m: mean_interval(each) for m in NAMES if (each := page.growth(e["peaks"], m))}
    longest = {m: max(p["length"] for p in e["peaks"] if p[m]) for m in growth}
    numbers |= {f"{NAMES[m]}'s process grows to {longest[m]:,} tokens, a token": g.number("B") for m, g in growth.items()}
    numbers["the Transformer's state grows, a token"] = Number(cache, "B", "counted")
    because = (
        f"the state has {'more than one size' if grown else 'the same size at every length'}, and a process that reads grows by "
        f"{growth['mamba'].value:.0f} bytes a token, where the Transformer's state takes {cache:,.0f}"
    )
    verdict = _within(growth["mamba"].low, growth["mamba"].high, (float("-inf"), t["share"] * cache))
    if longest["mamba"] < t["times"] * e["lengths"][-1]:
        verdict = "inconclusive"
    return Finding("contradicted" if grown else verdict, because, numbers)


def _faster_reading(e: Evidence, t: Mapping[str, float]) -> Finding:
    attention, mamba = ([p[m] for p in e["prefill"]] for m in ("attention", "mamba"))
    return _faster(e, t, attention, mamba, e["prefill_floors"], "reading")


def _faster_writing(e: Evidence, t: Mapping[str, float]) -> Finding:
    attention, mamba = ([d["samples"][m] for d in e["decode"]] for m in ("attention", "mamba"))
    finding = _faster(e, t, attention, mamba, e["decode_floors"], "writing one token after")
    if t["length"] not in e["lengths"] or len(e["lengths"]) < 2:
        return finding
    at = list(e["lengths"]).index(t["length"])
    fixed = fit_terms(e["lengths"], attention, (0, 1)).at(0)
    theirs, ours = (float(np.median(samples[at])) for samples in (attention, mamba))
    alike = (theirs - fixed.value + ours) / ours
    numbers = {
        "the Transformer's fixed cost of a token": fixed.number("s", "extrapolated"),
        "Transformer / Mamba, were that no more than Mamba's": Number(alike, TIMES, "extrapolated"),
    }
    finding = dataclasses.replace(finding, numbers={**finding.numbers, **numbers})
    if finding.verdict != "supported" or alike >= t["least"]:
        return finding
    because = f"{finding.because}, but {alike:.2f} times were its fixed cost of a token no more than Mamba's, as a fused step makes it"
    return dataclasses.replace(finding, verdict="inconclusive", because=because)


def _faster(
    e: Evidence, t: Mapping[str, float], attention: Sequence[Any], mamba: Sequence[Any], floors: Sequence[Estimate], doing: str
) -> Finding:
    numbers = {
        f"Transformer / Mamba at {n:,} tokens": ratio_interval(a, m).number(TIMES)
        for n, a, m in zip(e["lengths"], attention, mamba, strict=True)
        if n in (t["length"], e["lengths"][-1])
    }
    if crossing := crossover(e["lengths"], mamba, attention):
        numbers["Mamba is faster beyond"] = crossing.number("tokens")
    if t["length"] not in e["lengths"]:
        return Finding("inconclusive", f"the budget ended at {e['lengths'][-1]:,} tokens, before the text was long", numbers)
    at = list(e["lengths"]).index(t["length"])
    numbers["noise floor (A/A)"] = floors[at].number()
    ratio, order = ratio_interval(attention[at], mamba[at]), rank(mamba[at], attention[at], floors[at])
    faster = {"a": "Mamba is faster", "b": "the Transformer is faster", "no ranking": "neither is faster"}[order]
    because = f"{doing} {t['length']:,.0f} tokens, {faster}: the Transformer takes {ratio.value:.2f} times as long"
    verdict = _within(ratio.low, ratio.high, (t["least"], float("inf")))
    if ratio.n < ROUNDS:
        return Finding("inconclusive", f"{because}, from only {ratio.n} rounds of {ROUNDS}", numbers)
    if verdict == "supported" and order == "no ranking":
        return Finding("inconclusive", f"{because}, within the noise floor", numbers)
    if verdict == "contradicted" and not e.get("fused", True):
        return Finding("inconclusive", f"{because}; a fused scan would make Mamba faster, so this does not refute it", numbers)
    return Finding(verdict, because, numbers)


def _as_good(e: Evidence, t: Mapping[str, float]) -> Finding:
    numbers, intervals = {}, []
    for seed, bits in e["bits"].items():
        ratio = page.ratio_of_totals(bits["mamba"]["windowed"], bits["attention"]["windowed"])
        numbers[f"Mamba / Transformer, seed {seed}"] = dataclasses.replace(ratio.number(TIMES), seeds=(int(seed),))
        intervals.append(ratio)
    wider = 0.0 if len(intervals) >= SEEDS else t["spread"]
    verdicts: list[Verdict] = [
        _within(r.low and r.low * (1 - wider), r.high and r.high * (1 + wider), (0.0, t["most"])) for r in intervals
    ]
    verdict = verdicts[0] if len(set(verdicts)) == 1 else "inconclusive"
    worst, n = max(r.value for r in intervals), len(intervals)
    because = (
        f"Mamba needs at most {worst:.3f} times the Transformer's bits for the same held-out text ({n} seed{'s' * (n > 1)})"
    )
    return Finding(verdict, because, numbers)


RULE = Rule(
    "Two language models of equal parameters (within 3%), one of Mamba blocks and one of attention and SwiGLU blocks with a "
    "key/value cache, are trained on the same tokens in the same order. Both are timed in turns on the same text. Each part below "
    "is judged by its 95% interval where it has one: supported when all of it is on the claim's side, contradicted when all of it "
    "is on the other. A difference within the noise floor of the same function timed twice supports nothing.",
    (
        Criterion(
            "linear time",
            "Over the three longest texts, Mamba's reading time grows as a power of the length of at most {most}.",
            _linear,
            {"most": 1.1},
        ),
        Criterion(
            "constant memory",
            "Mamba's state has the same bytes after every text, and between the shortest text timed and one {times} times as long as the "
            "longest the peak memory of a process that reads grows by less, a token, than a share of {share} of the bytes that the "
            "Transformer's state takes for one (processes of their own, each pair of lengths several times).",
            _constant,
            {"share": 0.05, "times": 8},
        ),
        Criterion(
            "five times faster at reading",
            "The Transformer takes at least {least} times as long to read {length:.0f} tokens (about five). Where Mamba's scan does not "
            "run in one kernel, less is inconclusive.",
            _faster_reading,
            {"least": 4.0, "length": LONG},
        ),
        Criterion(
            "five times faster at writing",
            "The Transformer takes at least {least} times as long to write one token after {length:.0f} tokens (about five). It is "
            "inconclusive where that is only so because the Transformer's fixed cost of a token, the part of its time that does not grow "
            "with the text, is above Mamba's; and, where Mamba's scan does not run in one kernel, if it is less.",
            _faster_writing,
            {"least": 4.0, "length": LONG},
        ),
        Criterion(
            "as good",
            "Trained alike, Mamba's bits per byte of held-out text are at most {most} times the Transformer's, with both seeing "
            "windows of the training length, for every seed; with fewer than three seeds each interval is widened by a share of "
            "{spread} for what another seed would change.",
            _as_good,
            {"most": 1.05, "spread": 0.02},
        ),
    ),
)
