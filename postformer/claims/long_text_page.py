"""What the page shows of `long_text`: tables, charts and words from the evidence."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from postformer.claims.ledger import Chart, Context, Headline, Mark, Number, Real, Series, Table
from postformer.claims.stats import Estimate, Fit, crossover, fit_terms, median_interval, ratio_interval
from postformer.claims.words import TIMES
from postformer.config import Run

NAMES = {"mamba": "Mamba", "attention": "Transformer"}
WORDS = (100_000, 1_000_000, 50_000_000)
WINDOW = 256
"""Tokens in which the models are trained and scored."""
SCORED_BYTES = 1 << 20
"""At most this much held-out text is scored."""
SHORT_S = 300
"""A budget below so many seconds takes less of the default corpus."""
Evidence = Mapping[str, Any]


def exponent(fit: Fit) -> Number:
    return Number(fit.exponent, "", "measured", fit.low, fit.high, fit.n, note="exponent of the length")


def growth(peaks: Sequence[Mapping[str, Any]], mixer: str) -> list[float]:
    """Bytes a token by which each process's peak memory exceeds that of its partner with the shortest text."""
    at = [p for p in peaks if p[mixer]]
    if len(at) < 2:
        return []
    first, last = at[0], at[-1]
    return [
        (b["peak"] - a["peak"]) / (last["length"] - first["length"]) for a, b in zip(first[mixer], last[mixer], strict=True)
    ]


def _used(peak: Mapping[str, Any], mixer: str) -> Number:
    return _median_bytes([p["peak"] - p["before"] for p in peak[mixer]])


def _median_bytes(samples: Sequence[int]) -> Number:
    return Number(median_interval(samples).value if samples else None, "B", "measured", n=len(samples))


def ratio_of_totals(a: Sequence[Real], b: Sequence[Real], draws: int = 2000) -> Estimate:
    """Ratio of two totals over the same documents, with a bootstrap interval over documents."""
    x, y = np.asarray(a), np.asarray(b)
    value = float(x.sum() / y.sum())
    if len(x) < 2:
        return Estimate(value, None, None, len(x))
    rows = np.random.default_rng(0).integers(0, len(x), (draws, len(x)))
    low, high = np.quantile(x[rows].sum(1) / y[rows].sum(1), [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(x))


def headline(e: Evidence) -> Headline:
    ratio = ratio_interval(e["prefill"][-1]["attention"], e["prefill"][-1]["mamba"])
    return Headline(ratio.number(TIMES), f"the Transformer's time to read {e['lengths'][-1]:,} tokens / Mamba's")


def quality(baselines: Mapping[str, Any], bits: Mapping[str, Any], trained: Mapping[str, Any]) -> Table:
    sizes, domains = np.asarray(baselines["bytes"]), np.asarray(baselines["domains"])
    shown = [*dict.fromkeys(baselines["domains"])]
    chosen = {"all": np.ones(len(sizes), bool)} | ({d: domains == d for d in shown} if len(shown) > 1 else {})

    def row(name: str, each: Sequence[Real], seeds: tuple[int, ...] = ()) -> tuple[Number | str, ...]:
        cells = []
        for mask in chosen.values():
            ratio = ratio_of_totals(np.asarray(each)[mask].tolist(), sizes[mask].tolist())
            cells.append(dataclasses.replace(ratio.number("bits/byte"), seeds=seeds))
        return (name, *cells)

    rows = []
    for seed, of in bits.items():
        tokens = trained[seed]["mamba"]["tokens"]
        rows.append(row(f"Mamba, seed {seed}, {tokens:,} tokens", of["mamba"]["windowed"], (int(seed),)))
        rows.append(row(f"Mamba, seed {seed}, documents read whole", of["mamba"]["streamed"], (int(seed),)))
        rows.append(row(f"Transformer, seed {seed}, {tokens:,} tokens", of["attention"]["windowed"], (int(seed),)))
    rows.append(row("5-gram byte model (Kneser-Ney)", baselines["5-gram"]))
    names = {
        "trained": "zstd -19, trained dictionary",
        "text": "zstd -19, 8 MiB of the text as dictionary",
        "none": "zstd -19 alone",
    }
    rows += [row(text, baselines["zstd"][key]) for key, text in names.items() if key in baselines["zstd"]]
    return Table(
        "Held-out text, in bits per byte",
        ("model", *chosen),
        tuple(rows),
        note="Each document by itself. The interval is over documents. The baselines learn from all of the training text; the "
        "models from as many of its tokens as the row says.",
    )


def figures(e: Evidence) -> tuple[Table, ...]:
    reading, writing = [], []
    for i, n in enumerate(e["lengths"]):
        p, d = e["prefill"][i], e["decode"][i]
        reading.append(
            (
                f"{n:,} tokens",
                *(median_interval(p[m]).number("s") for m in NAMES),
                ratio_interval(p["attention"], p["mamba"]).number(TIMES),
            )
        )
        s = d["samples"]
        writing.append(
            (
                f"{n:,} tokens",
                *(median_interval(s[m]).number("s") for m in NAMES),
                ratio_interval(s["attention"], s["mamba"]).number(TIMES),
                *(Number(d["state_bytes"][m], "B", "counted") for m in NAMES),
            )
        )
    names = tuple(NAMES.values())
    tables = [
        Table(
            "Reading a text", ("text", *names, "Transformer / Mamba"), tuple(reading), note="Median time from an empty state."
        ),
        Table(
            "Writing one token after a text",
            ("text", *names, "Transformer / Mamba", *(f"{n}'s state" for n in names)),
            tuple(writing),
            note="Median time of a one-token step.",
        ),
    ]
    if e["peaks"]:
        rows = [
            (
                f"{p['length']:,} tokens",
                *(_used(p, m) for m in NAMES),
                *(_median_bytes([q["peak"] for q in p[m]]) for m in NAMES),
            )
            for p in e["peaks"]
        ]
        columns = ("text", *(f"{n}, for reading" for n in names), *(f"{n}, whole process" for n in names))
        tables.append(
            Table("Peak resident memory, read in chunks of 256 tokens", columns, tuple(rows), note="Median of n processes.")
        )
    return tuple(tables)


def beyond(e: Evidence, costs: Mapping[str, Any], tokens_per_word: float) -> Table:
    powers = {"mamba": (0, 1), "attention": (0, 1, 2)}
    rows = []
    for w in WORDS:
        n = w * tokens_per_word
        cells: list[Number | str] = []
        for m in NAMES:
            read = fit_terms(e["lengths"], [p[m] for p in e["prefill"]], powers[m]).at(n)
            write = fit_terms(e["lengths"], [d["samples"][m] for d in e["decode"]], powers[m][:-1]).at(n)
            state = Number(costs[m][w].state_bytes, "B", "extrapolated")
            cells += [read.number("s", "extrapolated"), write.number("s", "extrapolated"), state]
        rows.append((f"{w:,} words", *cells))
    columns = tuple(f"{name}: {what}" for name in NAMES.values() for what in ("reading", "one token", "state"))
    return Table(
        "Carried on by formula",
        ("text", *columns),
        tuple(rows),
        note=f"{tokens_per_word:.2f} tokens a word, as in the held-out text. Reading: fixed, linear and (Transformer) quadratic "
        "parts fitted to the times above; writing: fixed and (Transformer) linear parts; the state by its formula. Nothing here was run.",
    )


def charts(e: Evidence) -> tuple[Chart, ...]:
    x = tuple(float(n) for n in e["lengths"])

    def series(samples: Sequence[Mapping[str, Any]]) -> tuple[Series, ...]:
        out = []
        for m, name in NAMES.items():
            estimates = [median_interval(s[m]) for s in samples]
            low, high = (
                tuple(float(v) for v in (getattr(est, end) for est in estimates) if v is not None) for end in ("low", "high")
            )
            whole = len(low) == len(high) == len(x)
            y = tuple(est.value for est in estimates)
            out.append(Series(name, x, y, "measured", low if whole else (), high if whole else ()))
        return tuple(out)

    def marks(samples: Sequence[Mapping[str, Any]]) -> tuple[Mark, ...]:
        found = crossover(e["lengths"], [s["mamba"] for s in samples], [s["attention"] for s in samples])
        inside = found is not None and found.value <= x[-1]
        return (Mark("x", found.value, f"crossover at {found.value:,.0f} tokens"),) if found and inside else ()

    decode = [d["samples"] for d in e["decode"]]
    states = tuple(
        Series(name, x, tuple(float(d["state_bytes"][m]) for d in e["decode"]), "counted") for m, name in NAMES.items()
    )
    axes: dict[str, Any] = {"x_label": "tokens", "log_x": True, "log_y": True}
    return (
        Chart(
            title="Time to read a text",
            y_label="time",
            y_unit="s",
            series=series(e["prefill"]),
            marks=marks(e["prefill"]),
            **axes,
        ),
        Chart(
            title="Time to write one token after a text",
            y_label="time",
            y_unit="s",
            series=series(decode),
            marks=marks(decode),
            **axes,
        ),
        Chart(title="Bytes of the state after a text", y_label="state", y_unit="B", series=states, **axes),
    )


def limits(
    ctx: Context, runs: Mapping[str, Run], about: Mapping[str, Any], trained: Mapping[str, Any], fused: bool
) -> tuple[str, ...]:
    first = trained[str(ctx.seeds[0])]["mamba"]
    return (
        f"The models are small (width {runs['mamba'].model['dim']}) and were trained for {first['steps']} steps on "
        f"{first['tokens']:,} tokens. At published widths more of the time goes into matrix products, in which both are alike, "
        "so the crossover lies at longer texts.",
        "Mamba's recurrence and convolution ran in kernels, and a one-token step of a block in a single one. The Transformer's attention "
        "ran in torch's kernel and the rest of its step in operations of torch: a fused step would lower the fixed cost of a token that "
        "the finding on writing names."
        if fused
        else "Mamba's recurrence ran in plain torch operations, for the kernels were not built; the Transformer's attention ran in "
        "torch's fused kernel. These times are an upper bound for Mamba.",
        "Both models were given one learning rate, chosen for the recipes and not tuned for each; both are timed in fp32.",
        "The intervals of what is carried on by formula hold the clock's noise, not the chance that the law changes further out.",
        "While the Transformer's cache grows, the old one and the new one are held at once: its peak memory is above its state.",
        f"One machine with {ctx.threads} threads and a batch of one. The paper's five times is throughput on a GPU with large "
        "batches, where a small state lets more texts fit.",
        f"Bits per byte are measured in windows of {WINDOW} tokens: they say nothing of what is remembered over a long text.",
        *about.get("remarks", ()),
    )


def consequences(e: Evidence) -> tuple[str, ...]:
    found = crossover(e["lengths"], [p["mamba"] for p in e["prefill"]], [p["attention"] for p in e["prefill"]])
    ahead = np.median(e["prefill"][-1]["mamba"]) < np.median(e["prefill"][-1]["attention"])
    if found:
        reading = f"Mamba is the faster of the two beyond about {found.value:,.0f} tokens"
    else:
        reading = f"{'Mamba' if ahead else 'the Transformer'} was the faster of the two at every length measured"
    last = e["decode"][-1]["state_bytes"]
    return (
        f"To read texts once on this machine: {reading}.",
        f"To keep many texts open at once, count bytes: after {e['lengths'][-1]:,} tokens a text holds {last['mamba']:,} bytes with "
        f"Mamba and {last['attention']:,} with the Transformer.",
        "To quote a text word for word, do not choose by this page: it measures time, memory and average prediction.",
    )
