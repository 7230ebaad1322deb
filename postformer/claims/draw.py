"""Charts to SVG: the same bytes for the same chart, colours left to the page's style sheet so that light and dark both work."""

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from postformer.claims.ledger import Chart, Real, Series
from postformer.claims.words import amount, tick

WIDTH, HEIGHT = 360, 246
"""Points; the page scales the picture to its column."""
MARKERS = ("o", "s", "^", "D", "v", "P")
PAINTS = {"ink": "#010101", "muted": "#020202", "grid": "#030303", "ground": "#040404"} | {
    f"c{i + 1}": f"#0{i}0505" for i in range(len(MARKERS))
}
"""Stand-in colours that become the style sheet's variables: `#010101` becomes `var(--ink)`."""
YEAR_S = 86400 * 365.25
NATURAL_S = (
    1e-6,
    1e-5,
    1e-4,
    1e-3,
    0.01,
    0.1,
    1,
    10,
    60,
    600,
    3600,
    36e3,
    86400,
    864e3,
    *(YEAR_S * k for k in (0.1, 1, 10, 100, 1e3, 1e4)),
)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "postformer",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.edgecolor": PAINTS["muted"],
    "axes.linewidth": 0.8,
    "axes.labelcolor": PAINTS["muted"],
    "figure.titlesize": 10.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "xtick.color": PAINTS["muted"],
    "ytick.color": PAINTS["muted"],
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


# ---------------------------------------------------------------- the picture


def draw(chart: Chart, name: str) -> str:
    """An `<svg>` element whose ids begin with `name`, which must differ between the charts of a page."""

    def paint(figure: Figure) -> None:
        figure.suptitle(chart.y_label, x=0.008, ha="left", color=PAINTS["muted"])
        axes = figure.add_subplot()
        _axes(axes, chart)
        for i, series in enumerate(chart.series):
            _curve(axes, series, i)
        _marks(axes, chart)

    return picture(paint, (WIDTH, HEIGHT), name, chart.title, describe(chart))


def picture(paint: Callable[[Figure], None], size: tuple[Real, Real], name: str, title: str, description: str) -> str:
    """What `paint` puts into a figure of so many points, as an `<svg>` element."""
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font|constrained_layout not applied")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        paint(figure)
        raw = io.BytesIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(raw, metadata=metadata)
    return _inline(raw.getvalue(), name, title, description)


def _axes(axes: Axes, chart: Chart) -> None:
    axes.set_xlabel(chart.x_label)
    axes.grid(axis="y", color=PAINTS["grid"], linewidth=0.8)
    x = sorted({v for s in chart.series for v in s.x})
    y = [v for s in chart.series for v in (*s.y, *s.low, *s.high)] + [m.at for m in chart.marks if m.axis == "y"]
    if chart.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(FixedLocator(_spread(x)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    if chart.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(_log_ticks(min(y), max(y), chart.y_unit))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: tick(float(v), chart.x_unit)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: tick(float(v), chart.y_unit)))


def _log_ticks(low: Real, high: Real, unit: str) -> Locator:
    """Ticks of a logarithmic axis: whole minutes, hours, days and years for long times, else powers of ten or parts of them."""
    if unit == "s" and high > 120:
        return FixedLocator(_spread([t for t in NATURAL_S if low / 2 <= t <= high * 2], 0.12))
    ratio = high / low
    subs = (1, 1.5, 2, 3, 5, 7) if ratio < 4 else (1, 2, 5) if ratio < 15 else (1, 3) if ratio < 1000 else (1,)
    return LogLocator(subs=subs, numticks=7)


def _spread(values: Sequence[Real], least: float = 0.17) -> list[Real]:
    """Those values that stand far enough apart on a logarithmic axis for their labels."""
    kept: list[Real] = []
    span = math.log(values[-1] / values[0]) or 1.0
    for v in reversed(values):
        if not kept or math.log(kept[-1] / v) >= least * span:
            kept.append(v)
    return kept[::-1]


def _curve(axes: Axes, series: Series, i: int) -> None:
    colour, marker = PAINTS[f"c{i % len(MARKERS) + 1}"], MARKERS[i % len(MARKERS)]
    beyond = series.tag == "extrapolated"
    if series.low and series.high and len(series.x) == 1:
        axes.vlines(series.x, series.low, series.high, color=colour, linewidth=1.2)
    elif series.low and series.high:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        series.x,
        series.y,
        color=colour,
        marker=marker,
        linestyle=(0, (4, 2.5)) if beyond else "-",
        markerfacecolor=PAINTS["ground"] if beyond else colour,
    )


def _marks(axes: Axes, chart: Chart) -> None:
    line = {"color": PAINTS["ink"], "linewidth": 0.9, "linestyle": (0, (1, 2))}
    for mark in chart.marks:
        if mark.axis == "x":
            axes.axvline(mark.at, **line)
            place, side = (mark.at, 1.0), axes.get_xaxis_transform()
            right = _share(axes.get_xlim(), mark.at, chart.log_x) > 0.6
            offset, align, rise = (-4 if right else 4, -2), "right" if right else "left", "top"
        else:
            axes.axhline(mark.at, **line)
            place, side, offset, align, rise = (0.0, mark.at), axes.get_yaxis_transform(), (2, 3), "left", "bottom"
        axes.annotate(
            mark.label,
            place,
            offset,
            xycoords=side,
            textcoords="offset points",
            ha=align,
            va=rise,
            color=PAINTS["ink"],
            fontsize=9.5,
        )


def _share(limits: tuple[float, float], at: Real, log: bool) -> float:
    low, high, at = (math.log(v) if log else v for v in (*limits, at))
    return (at - low) / (high - low)


# ---------------------------------------------------------------- SVG for a page


def _inline(svg: bytes, name: str, titled: str, description: str) -> str:
    """matplotlib's file as an element of a page: no namespaces, own ids, the style sheet's colours and fonts, a description."""
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for e in root.iter():
        e.tag = e.tag.partition("}")[2]
        e.attrib = {k.rpartition("}")[2]: _own(k, v, name) for k, v in e.attrib.items()}
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-desc", "class": "plot"}
    title, desc = ET.Element("title", id=f"{name}-title"), ET.Element("desc", id=f"{name}-desc")
    title.text, desc.text = titled, description
    root[:0] = [title, desc]
    return ET.tostring(root, encoding="unicode")


def _own(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    value = re.sub(r"^#|(?<=url\()#", f"#{name}-", value) if key != "style" else value.replace("url(#", f"url(#{name}-")
    for paint, code in PAINTS.items():
        value = value.replace(code, f"var(--{paint})")
    return re.sub(r"(font: [^;']*?)'.*?(;|$)", r"\1var(--sans)\2", value)


def describe(chart: Chart) -> str:
    """The chart in a sentence per curve, for those who do not see it."""
    curves = (
        f"{s.name} ({s.tag}): {amount(s.y[0], chart.y_unit)} at {amount(s.x[0], chart.x_unit)}, "
        f"{amount(s.y[-1], chart.y_unit)} at {amount(s.x[-1], chart.x_unit)}."
        for s in chart.series
    )
    return f"{chart.y_label} against {chart.x_label}. " + " ".join(curves)
