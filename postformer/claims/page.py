"""The page of a report: one HTML file that needs nothing else, a pure function of `report.json`."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from postformer.claims.draw import MARKERS, draw
from postformer.claims.film import draw_film
from postformer.claims.heat import draw_heat
from postformer.claims.ledger import Chart, Heat, Number, Result, Series, Table
from postformer.claims.words import EN_DASH, amount, clean, interval, span, value
from postformer.config import ConfigError, parse

HERE = Path(__file__).parent
CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
VERDICTS = {
    "supported": "yes",
    "contradicted": "no",
    "inconclusive": "open",
    "not measurable here": "none",
    "failed": "failed",
    "not run yet": "pending",
}
"""Verdict to the class that gives it colour and shape."""
TAGS = {
    "measured": "taken on this machine by a clock or a score",
    "counted": "exact, from a formula or the size of what was stored",
    "extrapolated": "a fit or formula carried beyond what was measured",
    "quoted": "somebody else's figure, not checked here",
}


def render(report: Mapping[str, Any]) -> str:
    """The page as HTML. Raises ConfigError, naming the place, when a result in the report is not whole."""
    report = _clean(report)
    entries = []
    for i, entry in enumerate(report["claims"]):
        result = entry["result"] and parse(Result, entry["result"], f"claims[{i}].result")
        status = {"failed": "failed", "pending": "not run yet"}.get(entry["status"])
        entries.append({**entry, "result": result, "verdict": status or result.verdict, "anchor": f"claim-{i + 1}"})
    try:
        return _environment().get_template("page.html.j2").render(report=report, claims=entries, stamp=report["stamp"])
    except jinja2.UndefinedError as e:
        raise ConfigError(f"report: {e}") from e


@functools.cache
def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    env.filters |= {"amount": amount, "span": span, "when": _when, "interval": interval, "value": value}
    env.globals |= {
        "csp": CSP,
        "css": Markup((HERE / "page.css").read_text("utf-8")),
        "verdicts": VERDICTS,
        "tags": TAGS,
        "is_number": lambda cell: isinstance(cell, Number),
        "picture": lambda chart, name: Markup(draw(chart, name)),
        "map": lambda heat, name: Markup(draw_heat(heat, name)),
        "frames": lambda film, name: Markup(draw_film(film, name)),
        "figures": _figures,
        "grid": _grid,
        "shape": lambda i: MARKERS[i % len(MARKERS)],
        "colours": len(MARKERS),
    }
    return env


def _clean(value: Any) -> Any:
    """The same data with texts that every format can hold."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(k): _clean(v) for k, v in value.items()}
    return [_clean(v) for v in value] if isinstance(value, list) else value


def _when(iso: str | None) -> str:
    """`2026-11-22T08:15:04+00:00` as `2026-11-22 08:15 UTC`."""
    return f"{iso[:10]} {iso[11:16]} UTC" if iso else EN_DASH


def _figures(chart: Chart) -> Table:
    """The chart's points as a table: one row per x, one column per curve."""
    points = [{x: _point(s, j, chart.y_unit) for j, x in enumerate(s.x)} for s in chart.series]
    xs = sorted({x for p in points for x in p})
    rows = tuple((amount(x, chart.x_unit), *(p.get(x, EN_DASH) for p in points)) for x in xs)
    return Table(chart.title, (chart.x_label, *(s.name for s in chart.series)), rows)


def _grid(heat: Heat) -> Table:
    """The heat map's numbers, and those beside them."""
    costs = heat.costs or ((),) * len(heat.rows)
    rows = tuple((name, *cells, *beside) for name, cells, beside in zip(heat.rows, heat.cells, costs, strict=True))
    return Table(heat.title, (heat.x_label, *heat.columns, *heat.beside), rows)


def _point(series: Series, j: int, unit: str) -> Number:
    low, high = (bound[j] if bound else None for bound in (series.low, series.high))
    return Number(series.y[j], unit, series.tag, low, high)
