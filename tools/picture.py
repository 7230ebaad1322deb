"""Draw one chart of a report as an SVG that stands alone: tools/picture.py report/report.json long_text 0 docs/long_text.svg"""

import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

from postformer.claims.draw import draw
from postformer.claims.ledger import Chart
from postformer.claims.report import read_report
from postformer.config import parse

COLOURS = {"ink": "#1a1c20", "muted": "#5a6070", "grid": "#dfe2e8", "ground": "#ffffff", "c1": "#1460c8", "c2": "#c8461a"}


def main() -> None:
    source, claim, number, target = sys.argv[1:5]
    entry = next(c for c in read_report(Path(source))["claims"] if c["id"] == claim)
    chart = parse(Chart, entry["result"]["charts"][int(number)])
    svg = re.sub(r"var\(--(\w+)\)", lambda m: COLOURS.get(m[1], "#000000"), draw(chart, "picture"))
    style = 'style="font-family: system-ui, sans-serif; background: #ffffff"'
    names = "".join(
        f'<tspan fill="{COLOURS[f"c{i + 1}"]}" dx="{8 if i else 0}">{escape(s.name)}</tspan>'
        for i, s in enumerate(chart.series)
    )
    legend = f'<text x="352" y="12" text-anchor="end" font-size="10.5" font-weight="600">{names}</text>'
    svg = svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" {style} ', 1).replace("</svg>", f"{legend}</svg>")
    Path(target).write_text(svg + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
