"""The page: deterministic, closed to the outside, deaf to hostile text, and at ease in a real browser."""

import copy
import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import pytest
from sample import SampleClaim, entry, sample_report

from postformer.claims.page import render
from postformer.config import ConfigError

HERE = Path(__file__).parent
HOSTILE = (
    "</style></title><script>alert(1)</script><img src=x onerror=alert(1)> \"' {{ 7*7 }} $x^{$ &amp; \x00\x1b\ud800 \u2028 漢"
)
VOID = {"meta", "link", "br", "img"}


class Outline(HTMLParser):
    """Elements with their attributes, in order, and whether every one was closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for t, attrs in self.elements if t == tag]


def many() -> dict[str, Any]:
    failed, pending = entry(SampleClaim(), "failed", "RuntimeError: shapes differ"), entry(SampleClaim(), "pending")
    return sample_report(failed, pending)


def poisoned(value: Any) -> Any:
    """The same data with hostile text in every text that is free."""
    fixed = {
        "measured",
        "counted",
        "extrapolated",
        "quoted",
        "supported",
        "contradicted",
        "inconclusive",
        "not measurable here",
    }
    if isinstance(value, dict):
        closed = {"tag", "axis", "status", "schema", "verdict"}
        return {k: v if k in closed else poisoned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) and value not in fixed else value


def test_is_well_formed_and_accessible():
    page = Outline(render(many()))
    assert page.wrong == [] and page.open == []
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(t[1]) for t, _ in page.elements if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    charts = [a for a in page.all("svg") if a.get("role") == "img"]
    assert len(charts) == 4 + 1 and all(set(str(a["aria-labelledby"]).split()) <= set(ids) for a in charts)
    assert all("aria-hidden" in a for a in page.all("svg") if a.get("role") != "img")
    references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', render(many()))
    assert {a or b for a, b in references} <= set(ids)


def test_shows_every_verdict_tag_interval_and_count():
    html = render(many())
    for text in ("Inconclusive", "Supported", "Not measurable here", "Failed", "Not run yet", "RuntimeError: shapes differ"):
        assert text in html
    for tag in ("measured", "counted", "extrapolated", "quoted"):
        assert f'class="tag {tag}"' in html
    assert "2.61\N{MULTIPLICATION SIGN}" in html and "2.52 to 2.69" in html and "n 20" in html
    assert SampleClaim.rule.sha256 in html and "commit 0123456789ab, with changes" in html
    assert "postformer report --claims long_text --budget 5m --out report" in html
    assert "not finished" in html and "not finished" not in render(sample_report())


def test_every_number_of_a_chart_stands_in_its_table():
    html = render(sample_report())
    for shown in ("31 ms", "2.45 s", "1.18 MB", "14.8 h"):
        assert shown in html or shown.replace(" ", ".0 ") in html


def test_loads_nothing():
    html = render(many())
    page = Outline(html)
    policy = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1 and str(policy[0]).startswith("default-src 'none';") and "script-src" not in str(policy[0])
    assert not any(page.all(tag) for tag in ("script", "img", "iframe", "object", "embed", "form", "base"))
    assert [a["href"] for a in page.all("link")] == ["data:,"]
    (picture,) = page.all("image")
    assert str(picture["href"]).startswith("data:image/png;base64,")
    outside = [a["href"] for a in page.all("a") if not str(a["href"]).startswith("#")]
    assert set(outside) == {"https://arxiv.org/abs/2312.00752"}
    rest = re.sub(r"<a [^>]*>[^<]*</a>", "", html)
    assert "http" not in rest.replace('http-equiv="Content-Security-Policy"', "") and "@import" not in html


def test_hostile_text_stays_text():
    html = render(poisoned(many()))
    page = Outline(html)
    assert not page.all("script") and not page.all("img") and page.wrong == []
    assert not [a for _, attrs in page.elements for a in attrs if a.startswith("on")]
    assert "{{ 7*7 }}" in html and "&lt;script&gt;alert(1)" in html
    html.encode()
    assert "\x00" not in html and "\x1b" not in html


@pytest.mark.parametrize("where", ["javascript:alert(1)", "http://plain.example", "data:text/html,x", 'https://a"onclick="b'])
def test_only_https_sources_become_links(where: str):
    report = sample_report()
    report["claims"][0]["result"]["sources"] = [{"text": "somebody", "where": where}]
    links = [a for a in Outline(render(report)).all("a") if not str(a["href"]).startswith("#")]
    assert links == ([{"href": where, "rel": "noreferrer"}] if where.startswith("https://") else [])


def test_same_report_gives_same_bytes_in_every_process(tmp_path: Path):
    (tmp_path / "report.json").write_text(json.dumps(many()))
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\n")
    code = (
        "import json, sys; from postformer.claims.page import render; "
        "sys.stdout.buffer.write(render(json.load(open(sys.argv[1]))).encode())"
    )
    pages = {render(many()).encode()}
    for seed in ("1", "2"):
        env = {"PYTHONHASHSEED": seed, "MATPLOTLIBRC": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        run = [sys.executable, "-c", code, str(tmp_path / "report.json")]
        pages.add(subprocess.run(run, env=env, capture_output=True, check=True, cwd=HERE.parents[1]).stdout)
    assert len(pages) == 1


def test_does_not_change_the_report():
    report = many()
    before = copy.deepcopy(report)
    render(report)
    assert report == before


def test_a_broken_result_is_named():
    report = sample_report()
    report["claims"][0]["result"]["verdict"] = "proven"
    with pytest.raises(ConfigError, match=r"claims\[0\]\.result\.verdict: 'proven' is not a choice"):
        render(report)


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's chromium, installed by the tests' own script where it may."""
    if not shutil.which("chromium"):
        script = [str(HERE.parent / "install_chromium.sh")]
        try:
            done = subprocess.run(script, capture_output=True, text=True, timeout=500)
        except subprocess.TimeoutExpired:
            pytest.skip("chromium: the installation took too long")
        if done.returncode:
            pytest.skip(f"chromium: {(done.stderr.strip().splitlines() or ['cannot be installed'])[-1]}")
    return shutil.which("chromium") or "chromium"


def test_the_detector_sees_requests_and_errors(chromium: str, tmp_path: Path):
    page = tmp_path / "bad.html"
    page.write_text('<!doctype html><img src="http://127.0.0.1:9/x.png"><script>console.error("planted")</script>')
    seen = browser.visit(chromium, page, tmp_path / "profile")
    assert seen.requests == ["http://127.0.0.1:9/x.png"] and "planted" in seen.errors


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_opens_without_a_request_or_an_error(chromium: str, tmp_path: Path, width: int, dark: bool):
    page = tmp_path / "index.html"
    page.write_text(render(many()), encoding="utf-8")
    asks = """({
      wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      charts: [...document.querySelectorAll('svg.plot:not(.film)')].filter(s => s.getBoundingClientRect().height > 150).length,
      films: [...document.querySelectorAll('svg.film')].filter(s => s.getBoundingClientRect().height > 40).length,
      ink: getComputedStyle(document.body).color, ground: getComputedStyle(document.body).backgroundColor,
      label: getComputedStyle(document.querySelector('svg.plot text')).fill,
      grid: getComputedStyle(document.querySelector('svg.plot path[style*="--grid"]')).stroke})"""
    seen = browser.visit(chromium, page, tmp_path / "profile", asks, width=width, dark=dark)
    assert seen.requests == [] and seen.errors == []
    assert seen.value["wide"] <= 0 and seen.value["charts"] == 4 and seen.value["films"] == 1
    assert contrast(seen.value["ink"], seen.value["ground"]) > 7 and contrast(seen.value["label"], seen.value["ground"]) > 4.5
    assert contrast(seen.value["grid"], seen.value["ground"]) < 2


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two `rgb(r, g, b)` colours (WCAG 2.2)."""

    def light(colour: str) -> float:
        parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
