"""Numbers, intervals and times as people read them, and texts that every format can hold."""

import math
import unicodedata

from postformer.claims.ledger import Number, Real

EN_DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
LONG = ((86400 * 365.25, "years"), (86400.0, "days"), (3600.0, "h"), (60.0, "min"))
LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def amount(value: Real | None, unit: str = "") -> str:
    """A value to three significant digits with its unit: `1.24 ms`, `8.80 TB`, `4.30×`, `65,536`, `50M words`."""
    if value is None:
        return EN_DASH
    by, suffix = _scale(value, unit)
    return _join(_decimal(value / by, _places(value / by)), suffix)


def tick(value: Real, unit: str = "") -> str:
    """An amount without the zeros that end it: `1.5 ms`."""
    by, suffix = _scale(value, unit)
    most = _places(value / by)
    places = next(p for p in range(most + 1) if round(value / by, p) == round(value / by, most))
    return _join(_decimal(value / by, places), suffix)


def value(number: Number) -> str:
    """A number of the ledger with its unit, to as many digits as its interval asks for."""
    if number.value is None:
        return EN_DASH
    by, suffix = _scale(number.value, number.unit)
    return _join(_decimal(number.value / by, _common_places(number, by)), suffix)


def interval(number: Number) -> str:
    """The 95% interval on the scale that `value` shows, without the unit; empty where there is none or it is a point."""
    known = [v for v in (number.low, number.high) if v is not None]
    if not known or known == [number.value] * 2:
        return ""
    by, _ = _scale(known[0] if number.value is None else number.value, number.unit)
    low, high = (_decimal(v / by, _common_places(number, by)) if v is not None else "" for v in (number.low, number.high))
    if low and high:
        return f"{low} to {high}"
    return f"at least {low}" if low else f"at most {high}"


def _scale(value: Real, unit: str) -> tuple[Real, str]:
    """What to divide by, and the unit to write then."""
    size = abs(value) * 1.0005
    if unit == "s" and size >= 120:
        by, name = next((by, name) for by, name in LONG if size >= by)
        return by, f" {name}"
    if unit in {"s", "B", "FLOP", "FLOP/s", "B/s"}:
        prefixes = SMALL if unit == "s" else SI
        by, prefix = next((p for p in prefixes if size >= p[0]), prefixes[-1] if value else (1.0, ""))
        return by, f" {prefix}{unit}"
    by, short = next((p for p in LARGE if size >= p[0]), (1.0, ""))
    return by, short + (unit if unit in {TIMES, "%"} else f" {unit}".rstrip())


def _join(text: str, suffix: str) -> str:
    return text + (suffix.removesuffix("s") if text == "1" and suffix in {" days", " years"} else suffix)


def _places(value: Real) -> int:
    """Decimals that leave three significant digits; none for a whole number."""
    if value == 0 or (float(value).is_integer() and abs(value) < 1e6):
        return 0
    return max(0, 2 - math.floor(math.log10(abs(value) * 1.0005)))


def _common_places(number: Number, by: Real) -> int:
    """Decimals for a value and its interval: those of the value, and at least one digit of the half-width."""
    places = _places((number.value or 0.0) / by)
    if number.low is None or number.high is None or number.low == number.high:
        return places
    return max(places, min(6, -math.floor(math.log10((number.high - number.low) / 2 / by))))


def _decimal(value: Real, places: int) -> str:
    """Plain decimals, or a power of ten where they would be too long to read."""
    if value and not 1e-4 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa}·10^{int(exponent)}".replace("-", MINUS)
    return f"{value:,.{places}f}".replace("-", MINUS)


def span(seconds: Real) -> str:
    """A length of time as people say it: '8 s', '4 min', '1 h 10 min'."""
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def clean(text: str) -> str:
    """Text without what neither SVG nor UTF-8 can hold: control characters and lone surrogates."""
    return "".join(
        "\ufffd" if c in "\ufffe\uffff" or (unicodedata.category(c) in {"Cc", "Cs"} and c not in "\n\t") else c for c in text
    )
