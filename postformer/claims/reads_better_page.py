"""What the page shows of `reads_better`: gains, tables, charts and words from the evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from postformer.claims.ledger import Chart, Number, Real, Series, Table
from postformer.claims.long_text_page import ratio_of_totals
from postformer.claims.stats import Estimate, mean_interval, median_interval, ratio_interval
from postformer.claims.words import TIMES, interval, value
from postformer.config import Run

NAMES = {
    "on": "memory written",
    "frozen": "memory standing still",
    "anew": "memory begun anew every 1,024 tokens",
    "window": "without a memory",
}
UNIT = "bits/byte"
FIRST = 8000
"""Bytes of the first stretch of the curve; each one after it ends at twice the bytes."""
Evidence = Mapping[str, Any]


def over_bytes(e: Evidence, each: Mapping[str, Sequence[Real]], chosen: np.ndarray | None = None) -> Number:
    """Bits per byte of units' bits, by seed: of their mean with the bootstrap's interval over units, or Student's over seeds where that
    is wider."""
    sizes = np.asarray(e["units"]["bytes"], float)
    mask = np.ones(len(sizes), bool) if chosen is None else chosen
    table = np.array([np.asarray(of, float)[mask] for of in each.values()])
    found = ratio_of_totals(table.mean(0).tolist(), sizes[mask].tolist())
    between = mean_interval(table.sum(1) / sizes[mask].sum())
    low, high = _wider(found, between)
    return Number(found.value, UNIT, "measured", low, high, found.n, tuple(int(s) for s in each))


def _wider(a: Estimate, b: Estimate) -> tuple[float | None, float | None]:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return a.low, a.high
    return min(a.low, b.low), max(a.high, b.high)


def bits(e: Evidence, way: str, chosen: np.ndarray | None = None) -> Number:
    """Bits per byte, read that way."""
    return over_bytes(e, {seed: of[way] for seed, of in e["bits"].items()}, chosen)


def gain(e: Evidence, way: str, chosen: np.ndarray | None = None) -> Number:
    """Bits per byte read that way less those with the memory written; above 0 where writing helps."""
    less = {seed: (np.asarray(of[way]) - np.asarray(of["on"])).tolist() for seed, of in e["bits"].items()}
    return over_bytes(e, less, chosen)


def said(number: Number) -> str:
    """A gain in a sentence."""
    within = interval(number)
    return value(number) + (f" ({within})" if within else "")


# ---------------------------------------------------------------- along the text


def stretches(e: Evidence) -> list[tuple[float, float, np.ndarray]]:
    """Where each stretch begins and ends, in bytes of a row, and which units begin in it."""
    at = np.asarray(e["units"]["at"], float)
    found, low, high = [], 0.0, float(FIRST)
    while (at >= low).any():
        chosen = (at >= low) & (at < high)
        if chosen.sum() > 1:
            found.append((low, high, chosen))
        low, high = high, 2 * high
    return found or [(0.0, float(FIRST), np.ones(len(at), bool))]


def quality(e: Evidence) -> Table:
    rows = [(NAMES[way], bits(e, way), gain(e, way) if way != "on" else "") for way in NAMES]
    return Table(
        "The later part of the text, in bits per byte",
        ("read with", "bits per byte", "less with the memory written"),
        tuple(rows),
        note=f"After {e['taken']}. {e['rows']} stretches, each read from a fresh state. n documents, or parts of long ones.",
    )


def along(e: Evidence) -> Table:
    ways = [way for way in NAMES if way != "on"]
    rows = [
        (f"{low / 1000:,.0f} to {high / 1000:,.0f} kB", bits(e, "on", chosen), *(gain(e, way, chosen) for way in ways))
        for low, high, chosen in stretches(e)
    ]
    columns = (NAMES["on"], *(f"gain over {NAMES[way]}" for way in ways))
    return Table("Bits per byte by how far was read", ("read before", *columns), tuple(rows))


def cost(e: Evidence) -> Table:
    costs = e["costs"]
    rows = []
    for way in ("on", "frozen", "window"):
        model = "window" if way == "window" else "memory"
        rows.append(
            (
                NAMES[way],
                median_interval(costs["samples"][way]).number("s"),
                ratio_interval(costs["samples"][way], costs["samples"]["window"]).number(TIMES) if way != "window" else "",
                Number(costs["state_bytes"][model], "B", "counted"),
                Number(costs["parameters"][model], "", "counted"),
            )
        )
    return Table(
        "What it costs",
        ("read with", "reading 1,000 bytes", "against without a memory", "state", "parameters"),
        tuple(rows),
        note="Median time of one text alone, 1,024 tokens at once, timed in turns.",
    )


def charts(e: Evidence) -> tuple[Chart, ...]:
    parts = stretches(e)
    x = tuple((low or high / 2) * 2**0.5 / 1000 for low, high, _ in parts)

    def series(name: str, numbers: Sequence[Number], sure: bool) -> Series:
        low, high = (tuple(float(v) for n in numbers if (v := getattr(n, end)) is not None) for end in ("low", "high"))
        whole = sure and len(low) == len(high) == len(x)
        y = tuple(float(n.value or 0.0) for n in numbers)
        return Series(name, x, y, "measured", low if whole else (), high if whole else ())

    axes: dict[str, Any] = {"x_label": "read before", "x_unit": "kB", "log_x": True}
    return (
        Chart(
            title="Bits per byte along a text",
            y_label="bits per byte",
            series=tuple(series(name, [bits(e, way, c) for *_, c in parts], False) for way, name in NAMES.items()),
            **axes,
        ),
        Chart(
            title="What writing to weights while reading is worth",
            y_label="bits per byte saved",
            series=tuple(
                series(f"against {name}", [gain(e, way, c) for *_, c in parts], True)
                for way, name in NAMES.items()
                if way != "on"
            ),
            note="Above 0 the model that writes predicts better. A gain that grows is one that long reading brings.",
            **axes,
        ),
    )


# ---------------------------------------------------------------- words


def limits(e: Evidence, about: Mapping[str, Any], run: Run, seeds: int) -> tuple[str, ...]:
    learned, read = about["learned"], about["read"]
    length = run.data["length"]
    return (
        f"The models learn from the first {learned['documents']:,} documents ({learned['bytes']:,} bytes), and read "
        f"{sum(e['units']['bytes']):,.0f} bytes of the {read['documents']:,} after them: other text of the same hand, so that much of what "
        "there is to learn of the author is in the weights before.",
        "The model was trained to write: kept from it, it is in a case that it never met, so the gain over standing still overstates what "
        "writing is worth. The model without a memory is the fairer rival.",
        f"The models are small (width {run.model['dim']}) and took {e['taken']} of {run.train.batch * length:,} tokens: they still learn "
        "spelling and grammar. What a large model gains from names and events of years ago cannot be seen here.",
        f"Training reads {length} tokens from a fresh memory and never further, so that nothing teaches the memory to keep for long; "
        "the row begun anew tells what more than that brings.",
        "Both have one learning rate, steps and parameters, not one time: the memory's step takes longer.",
        f"{seeds} seed{'s' * (seeds > 1)}; "
        + (
            "the interval is over documents alone and holds nothing of another start."
            if seeds == 1
            else "few for their spread."
        ),
    )


def consequences(e: Evidence) -> tuple[str, ...]:
    over = {way: gain(e, way) for way in ("frozen", "anew", "window")}
    slower = ratio_interval(e["costs"]["samples"]["on"], e["costs"]["samples"]["window"]).value
    size = e["costs"]["state_bytes"]
    kept = over["anew"].low is not None and over["anew"].low > 0
    return (
        f"Writing while reading takes {slower:.1f}{TIMES} the time of windows of attention alone and a state of {size['memory']:,} "
        f"instead of {size['window']:,} bytes, whatever the text's length; here that is worth {said(over['window'])}.",
        f"What was written more than 1,024 tokens ago is worth {said(over['anew'])}"
        + (": carry the state on." if kept else ": for prediction alone, nothing here asks for carrying the state on."),
    )
