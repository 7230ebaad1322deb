"""Numbers as people read them, and progress on a terminal and off it."""

import io

import pytest
from rich.console import Console

from postformer.claims.ledger import Number, Step
from postformer.claims.progress import Lines, reporter
from postformer.claims.words import EN_DASH, MINUS, TIMES, amount, clean, interval, span, tick, value


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0.001236, "s", "1.24 ms"),
        (0.99999, "s", "1.00 s"),
        (0, "s", "0 s"),
        (5e-10, "s", "0.500 ns"),
        (7810, "s", "2.17 h"),
        (86400, "s", "1 day"),
        (149e6, "s", "4.72 years"),
        (8.8e12, "B", "8.80 TB"),
        (512, "B", "512 B"),
        (65536, "", "65,536"),
        (50_000_000, "words", "50M words"),
        (999_999, "", "1.00M"),
        (4.3, TIMES, f"4.30{TIMES}"),
        (12.5, "%", "12.5%"),
        (-0.25, "", f"{MINUS}0.250"),
        (3e-7, "", f"3.00·10^{MINUS}7"),
        (None, "s", EN_DASH),
    ],
)
def test_amount(number: float | None, unit: str, text: str):
    assert amount(number, unit) == text


def test_ticks_end_in_no_zeros():
    assert [tick(v, "s") for v in (0.0015, 0.1, 600.0)] == ["1.5 ms", "100 ms", "10 min"]


@pytest.mark.parametrize(
    ("number", "shown", "between"),
    [
        (Number(2.61, "s", "measured", 2.52, 2.69), "2.61 s", "2.52 to 2.69"),
        (Number(2.113, "s", "measured", 2.1128, 2.1131), "2.1130 s", "2.1128 to 2.1131"),
        (Number(0.94, "s", "measured", 0.9, 1.1), "940 ms", "900 to 1,100"),
        (Number(8e9, "B", "counted", 8e9, 8e9), "8 GB", ""),
        (Number(5000.0, "bytes", "extrapolated", 4000.0, None), "5,000 bytes", "at least 4,000"),
        (Number(5000.0, "bytes", "extrapolated", None, 6000.0), "5,000 bytes", "at most 6,000"),
        (Number(None, "s", "measured"), EN_DASH, ""),
    ],
)
def test_value_and_interval_share_scale_and_decimals(number: Number, shown: str, between: str):
    assert (value(number), interval(number)) == (shown, between)


def test_span():
    assert [span(s) for s in (8.2, 90, 119, 120, 240, 4200, 5400)] == [
        "8 s",
        "90 s",
        "119 s",
        "2 min",
        "4 min",
        "70 min",
        "1 h 30 min",
    ]


def test_clean():
    assert clean("a\x00b\x1b\ud800\n\t漢") == "a\ufffdb\ufffd\ufffd\n\t漢"


def test_lines_are_few():
    now, heard = [0.0], io.StringIO()
    lines = Lines(Console(file=heard, width=80), clock=lambda: now[0])
    lines.plan([("long_text", [Step("train", 100), Step("time", 20)])], 120)
    for i in range(100):
        now[0] += 1
        lines.progress("long_text", "train [bold]", i, 100)
    lines.progress("long_text", "time", 0, 1)
    said = heard.getvalue().splitlines()
    assert said[:2] == ["1 claim, about 2 min in all; Ctrl-C keeps what is done", "  long_text: train 100 s, time 20 s"]
    assert said[2] == "long_text: train [bold]" and said[3] == "long_text: train [bold] 10%" and said[-1] == "long_text: time"
    assert len(said) == 13


def test_bars_on_a_terminal():
    heard = io.StringIO()
    with reporter(Console(file=heard, force_terminal=True, width=100)) as show:
        show.plan([("long_text", [Step("train", 100)])], 120)
        for text, done in (("train", 0), ("train", 1), ("time", 0.5)):
            show.progress("long_text", text, done, 1)
        show.line("long_text: supported [here]")
        show.progress("other", "count", 0, 0)
    assert "long_text: supported [here]" in heard.getvalue() and "other: count" in heard.getvalue()
