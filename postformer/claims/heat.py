"""Heat maps to SVG, in the manner of `draw`: the number stands in every cell, so that no reader needs the colour."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from postformer.claims.draw import PAINTS, picture
from postformer.claims.ledger import Heat, Number
from postformer.claims.words import amount

LEFT, WIDE, TALL, HEAD = 110, 66, 25, 44
"""Points of the row names, of a cell across and down, and of what stands above."""
FAINT, STRONG = 0.04, 0.55
"""Opacity of the least and the most; text stays readable on both, on light and dark ground."""


def draw_heat(heat: Heat, name: str) -> str:
    """An `<svg>` element whose ids begin with `name`, which must differ between the pictures of a page."""
    columns = len(heat.columns) + len(heat.beside)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        _frame(axes, heat)
        for y, row in enumerate(heat.cells):
            _coloured(axes, heat, y, row)
        for y, row in enumerate(heat.costs):
            for x, cell in enumerate(row, len(heat.columns)):
                _write(axes, x, y, _said(cell), "ink")

    return picture(paint, (LEFT + WIDE * columns, HEAD + TALL * len(heat.rows)), name, heat.title, describe_heat(heat))


def _frame(axes: Axes, heat: Heat) -> None:
    columns = (*heat.columns, *heat.beside)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(heat.rows), 0)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(heat.x_label, loc="left")
    axes.set_xticks([i + 0.5 for i in range(len(columns))], columns)
    axes.set_yticks([i + 0.5 for i in range(len(heat.rows))], heat.rows)
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)


def _coloured(axes: Axes, heat: Heat, y: int, row: Sequence[Number | str]) -> None:
    for x, cell in enumerate(row):
        if isinstance(cell, Number) and cell.value is not None:
            share = min(1.0, max(0.0, (cell.value - heat.least) / (heat.most - heat.least)))
            opacity = FAINT + (STRONG - FAINT) * share
            axes.add_patch(Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, facecolor=PAINTS["c1"], alpha=opacity, linewidth=0))
            _write(axes, x, y, amount(round(cell.value, 1), cell.unit), "ink")
        else:
            _write(axes, x, y, _said(cell), "muted")


def _write(axes: Axes, x: int, y: int, text: str, paint: str) -> None:
    axes.text(x + 0.5, y + 0.53, text, ha="center", va="center", color=PAINTS[paint], fontsize=9)


def _said(cell: Number | str) -> str:
    return amount(cell.value, cell.unit) if isinstance(cell, Number) else cell


def describe_heat(heat: Heat) -> str:
    """The map in a sentence per row, for those who do not see it."""
    columns = (*heat.columns, *heat.beside)
    costs = heat.costs or ((),) * len(heat.rows)
    rows = (
        f"{name}: " + ", ".join(f"{column}: {_said(cell) or 'not measured'}" for column, cell in zip(columns, row, strict=True))
        for name, row in ((n, (*a, *b)) for n, a, b in zip(heat.rows, heat.cells, costs, strict=True))
    )
    return f"By {heat.x_label}. " + ". ".join(rows) + "."
