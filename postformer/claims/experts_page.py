"""What `postformer experts` shows: a table of layers for the terminal, and a page with heat maps and coloured tokens."""

from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from markupsafe import Markup

from postformer.claims.page import CSP, HERE
from postformer.claims.words import EN_DASH
from postformer.models.telemetry import WINDOW, Interval, Layer, Telemetry, given_expert, information
from postformer.ops.routing import load_entropy, max_violation

COLUMNS = ("layer", "experts", "MaxVio", "idle", "entropy", "purity", "untrained", "excess", "information")
BEST = 3
"""Experts that are named for each domain."""


def rows(found: Telemetry) -> list[tuple[str, ...]]:
    """A row for each layer, in the order of COLUMNS."""
    return [_row(layer) for layer in found.layers]


def _row(layer: Layer) -> tuple[str, ...]:
    whole = torch.from_numpy(layer.loads.sum(0))
    return (
        layer.name,
        str(whole.numel()),
        f"{max_violation(whole):.2f}",
        str(int((whole == 0).sum())),
        f"{load_entropy(whole):.3f}",
        _percent(layer.purity_interval()),
        _percent(layer.purity_interval(control=True)),
        _percent(layer.excess_interval()),
        f"{100 * information(layer.loads):.1f}%",
    )


def _percent(n: Interval) -> str:
    return f"{100 * n.value:.1f}% [{100 * n.low:.1f}, {100 * n.high:.1f}]"


def listed(found: Telemetry) -> str:
    """The table of layers and the best experts of every domain, as text."""
    table = [COLUMNS, *rows(found)]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    for number, domain in enumerate(found.domains):
        best = [_best(layer, number) for layer in found.layers]
        lines += ["", f"{domain}: experts that have most of {domain}", *(f"  {name}: {text}" for name, text in best)]
    return "\n".join(lines)


def _best(layer: Layer, domain: int) -> tuple[str, str]:
    share = np.nan_to_num(given_expert(layer.loads)[domain], nan=-1.0)
    own = layer.loads[domain] / layer.loads[domain].sum()
    order = np.argsort(-share, kind="stable")[:BEST]
    return layer.name, ", ".join(
        f"{e} ({100 * share[e]:.0f}%, takes {100 * own[e]:.1f}% of its pairs)" for e in order if share[e] >= 0
    )


def page(found: Telemetry, model: str) -> str:
    """The page as HTML."""
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined)
    words: dict[str, Any] = {
        "csp": CSP,
        "css": Markup((Path(HERE) / "page.css").read_text("utf-8")),
        "dash": EN_DASH,
        "model": model,
        "window": WINDOW,
        "tokens": found.tokens,
        "domains": found.domains,
        "columns": COLUMNS,
        "rows": rows(found),
        "most": max(layer.loads.shape[1] for layer in found.layers),
        "heats": {d: [(layer.name, _cells(layer, i)) for layer in found.layers] for i, d in enumerate(found.domains)},
        "texts": {sent.domain: _coloured(found, number) for number, sent in enumerate(found.sent)},
    }
    return env.get_template("experts.html.j2").render(words)


def _cells(layer: Layer, domain: int) -> list[int | None]:
    return [None if np.isnan(v) else round(100 * v) for v in given_expert(layer.loads)[domain].tolist()]


def _coloured(found: Telemetry, number: int) -> list[dict[str, Any]]:
    sent = found.sent[number]
    return [
        {"name": layer.name, "pieces": list(zip(sent.pieces, experts, strict=True)), "used": sorted(set(experts))}
        for layer, experts in zip(found.layers, sent.experts, strict=True)
    ]
