"""What benchmarks/sequence.py prints: a table for each part, and the targets. Works from the saved rows alone."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from postformer.claims.stats import Estimate, median_interval, noise_floor, ratio_interval
from postformer.claims.words import TIMES, amount, interval, value

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A ratio of two subjects of one row (part, name, tokens), and the least or the most that it may be."""

    text: str
    row: tuple[str, str, int]
    over: tuple[str, str]
    least: float | None = None
    most: float | None = None

    def met(self, ratio: float) -> bool:
        return (self.least is None or ratio >= self.least) and (self.most is None or ratio <= self.most)


OURS, LLAMA = "postformer", "llama.cpp f32"
TARGETS = (
    Target(
        text="Mamba-1 forward, 2,048 tokens: transformers' time",
        row=("forward", "mamba", 2048),
        over=("transformers", OURS),
        least=7,
    ),
    Target(
        text="Mamba-1 forward, 2,048 tokens: mambapy's time", row=("forward", "mamba", 2048), over=("mambapy", OURS), least=9
    ),
    Target(
        text="Mamba-1 both passes, 512 tokens: transformers' time",
        row=("backward", "mamba", 512),
        over=("transformers", OURS),
        least=40,
    ),
    Target(
        text="Mamba-1 both passes, 2,048 tokens: mambapy's time",
        row=("backward", "mamba", 2048),
        over=("mambapy", OURS),
        least=5,
    ),
    Target(
        text="Mamba-2 forward, 2,048 tokens: transformers' time",
        row=("forward", "mamba2", 2048),
        over=("transformers", OURS),
        least=3,
    ),
    *(
        Target(
            text=f"{title} forward, {tokens:,} tokens, over its projections alone",
            row=("limits", name, tokens),
            over=(OURS, "projections"),
            most=1.6,
        )
        for title, name in (("Mamba-1", "mamba"), ("Mamba-2", "mamba2"))
        for tokens in (512, 2048, 8192)
    ),
    Target(text="The scan over its exp or bandwidth floor", row=("limits", "scan", 2048), over=("scan", "floor"), most=2),
    Target(
        text="Memory of both passes, 2,048 tokens: mambapy's", row=("memory", "mamba", 2048), over=("mambapy", OURS), least=2
    ),
    Target(
        text="130M, prefill of 512 tokens: llama.cpp's time in fp32",
        row=("model", "prefill", 512),
        over=(LLAMA, OURS),
        least=1.4,
    ),
    Target(text="130M, decode in fp32: llama.cpp's time in fp32", row=("model", "decode", 1), over=(LLAMA, OURS), least=1),
    Target(
        text="130M, decode in bf16: llama.cpp's time in fp32",
        row=("model", "decode", 1),
        over=(LLAMA, OURS + " bf16"),
        least=1.7,
    ),
    Target(text="130M, decode in fp32: transformers' time", row=("model", "decode", 1), over=("transformers", OURS), least=3),
)
"""The ratios that issue 3 asks for, of medians of one run."""

TITLES = {
    "forward": "One layer, forward",
    "backward": "One layer, forward and backward",
    "step": "One layer, one token",
    "memory": "Peak memory: a layer's forward and backward pass; the model's weights, prompt and tokens",
    "limits": "Our layers and the machine's limits",
    "model": "The 130M model",
}
HEAD = ("what", "tokens", "subject", "median", "95%", f"{TIMES} the first", "95%", "rate", "rounds", "A/A")


def judge(rows: Sequence[Row], quick: bool) -> list[dict[str, Any]]:
    """Each target with the measured ratio, its interval, and whether it is met; None where it was not measured."""
    out = []
    for target in TARGETS:
        found = None if quick else _find(rows, target)
        estimate = None if found is None else ratio_interval(*(found["samples"][s] for s in target.over))
        out.append(
            {
                "text": target.text,
                "row": list(target.row),
                "over": list(target.over),
                "least": target.least,
                "most": target.most,
                "ratio": estimate and estimate._asdict(),
                "met": estimate and target.met(estimate.value),
            }
        )
    return out


def _find(rows: Sequence[Row], target: Target) -> Row | None:
    fits = ((r["part"], r["name"], r["tokens"]) == target.row and set(target.over) <= r["samples"].keys() for r in rows)
    return next(itertools.compress(rows, fits), None)


def verdicts(judged: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each target."""
    for each in judged:
        bound = f"at least {each['least']:g}" if each["least"] is not None else f"at most {each['most']:g}"
        asked = f"{each['text']} ({each['over'][0]} / {each['over'][1]}, {bound})"
        if each["ratio"] is None:
            yield f"  not measured  {asked}"
            continue
        ratio = Estimate(**each["ratio"])
        sides = {_inside(each, end) for end in (ratio.low, ratio.high) if end is not None}
        near = ", its interval on both sides" if len(sides) > 1 else ""
        yield f"  {'met' if each['met'] else 'MISSED':<12}  {asked}: {_with_interval(ratio)}{near}"


def _inside(each: Mapping[str, Any], ratio: float) -> bool:
    return (each["least"] is None or ratio >= each["least"]) and (each["most"] is None or ratio <= each["most"])


def _with_interval(ratio: Estimate) -> str:
    number = ratio.number()
    return value(number) + (f" ({interval(number)}; {ratio.n} rounds)" if interval(number) else f" ({ratio.n} round)")


def table(part: str, rows: Sequence[Row]) -> str:
    """The part's rows as a table, one line for each subject; it is Markdown as well. Empty without rows."""
    lines = [HEAD, *itertools.chain.from_iterable(_lines(r) for r in rows if r["part"] == part)]
    if len(lines) == 1:
        return ""
    keep = [i for i in range(len(HEAD)) if any(line[i] for line in lines[1:])]
    lines = [tuple(line[i] for i in keep) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([f"{TITLES[part]}", "", text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    samples, unit = row["samples"], row["unit"]
    first = next(iter(samples))
    for subject, series in samples.items():
        median = median_interval(series).number(unit)
        ratio = ratio_interval(series, samples[first]).number()
        own = subject == first
        again = noise_floor(series, row["control"]).number() if own and row["control"] else None
        quantity, per = row["work"].get(subject, (None, ""))
        rate = "" if quantity is None or median.value is None else amount(quantity / median.value, per)
        yield (
            row["name"] if own else "",
            f"{row['tokens']:,}" if own else "",
            subject,
            value(median),
            interval(median),
            "" if own else value(ratio),
            "" if own else interval(ratio),
            rate,
            str(len(series)),
            "" if again is None or again.value is None or again.low is None else f"{again.value:+.1%}",
        )


def summary(row: Row) -> str:
    """One line that says a row was measured."""
    of = ", ".join(f"{subject} {value(median_interval(s).number(row['unit']))}" for subject, s in row["samples"].items())
    return f"{row['part']} {row['name']}, {row['tokens']:,} token{'s' * (row['tokens'] != 1)}: {of}"


def render(result: Mapping[str, Any]) -> str:
    """All of a result as text."""
    stamp, about = result["stamp"], result["about"]
    head = (
        f"{stamp['package']} on {stamp['machine']['cpu']}, {result['settings']['threads']} threads, kernels {about.get('kernels', '?')}, "
        f"torch {about.get('torch', '?')}; load {stamp['load_at_start']:.1f} at the start. Intervals are 95%, over rounds."
    )
    parts = [table(part, result["rows"]) for part in TITLES if any(r["part"] == part for r in result["rows"])]
    gaps = [f"  {m['peer']}, {m['where']}: {m['why']}" for m in result["missing"]]
    gaps += [f"  {part}: failed: {why}" for part, why in result["failed"].items()]
    tail = ["\n".join(["Not measured:", *gaps])] if gaps else []
    if result["quick"]:
        tail.append("A quick run has other sizes than the targets: none is judged.")
    elif result["complete"] or any(t["ratio"] for t in result["targets"]):
        tail.append("\n".join(["Targets (ratios of medians):", *verdicts(result["targets"])]))
    return "\n\n".join([head, *parts, *tail])
