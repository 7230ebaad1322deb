"""What a claim is, how it is judged, and what is kept of it.

A claim is a sentence of the field with its source, a rule of judgement fixed before the run, and an experiment. All results
are frozen dataclasses that go to JSON and back through `config.plain` and `config.parse`. No torch is imported here.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from postformer.claims.film import Film
from postformer.claims.journal import Context, Real
from postformer.config import parse, plain
from postformer.files import sha256_bytes

Tag = Literal["measured", "counted", "extrapolated", "quoted"]
"""Where a number comes from: a clock or a score on this machine; a formula or a byte count that is exact; a fit carried
beyond what was measured; somebody else's text."""

Verdict = Literal["supported", "contradicted", "inconclusive", "not measurable here"]


# ---------------------------------------------------------------- numbers, tables, charts


@dataclasses.dataclass(frozen=True)
class Number:
    """A value with its unit, its origin and how sure it is. `s` and `B` are shown with SI prefixes, so give base units."""

    value: Real | None
    unit: str
    tag: Tag
    low: Real | None = None
    """Lower end of the 95% interval."""
    high: Real | None = None
    """Upper end; None beside a `low` means that the data set no upper bound."""
    n: int | None = None
    """Repeats, items or seeds that the interval rests on."""
    seeds: tuple[int, ...] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of numbers and words under named columns; the first column names its row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Number | str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table '{self.title}': every row needs {len(self.columns)} cells")


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve; `low` and `high` are empty or as long as `y`."""

    name: str
    x: tuple[Real, ...]
    y: tuple[Real, ...]
    tag: Tag
    low: tuple[Real, ...] = ()
    high: tuple[Real, ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(v) for v in (self.x, self.y, self.low or self.y, self.high or self.y)}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(f"series '{self.name}': x, y, low and high need equally many points, and at least one")


@dataclasses.dataclass(frozen=True)
class Mark:
    """A reference line across a chart, such as a crossover length (`x`) or the machine's memory (`y`)."""

    axis: Literal["x", "y"]
    at: Real
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """What a chart shows, as data; `draw.py` makes the picture and `page.py` the table beneath it."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_unit: str = ""
    y_unit: str = ""
    log_x: bool = False
    log_y: bool = False
    marks: tuple[Mark, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError(f"chart '{self.title}': needs a series")
        for axis, log, points in (
            ("x", self.log_x, [v for s in self.series for v in s.x]),
            ("y", self.log_y, [v for s in self.series for v in (*s.y, *s.low, *s.high)]),
        ):
            if log and min(points + [m.at for m in self.marks if m.axis == axis]) <= 0:
                raise ValueError(f"chart '{self.title}': a logarithmic {axis} axis takes positive values only")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heat:
    """Numbers between `least` and `most` as the colours of a grid; a word stands where nothing was measured.

    `beside` are further columns at the right, without colour, such as what each row costs.
    """

    title: str
    x_label: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Number | str, ...], ...]
    beside: tuple[str, ...] = ()
    costs: tuple[tuple[Number | str, ...], ...] = ()
    """What stands under `beside`, row by row."""
    least: Real = 0
    most: Real = 100
    note: str = ""

    def __post_init__(self) -> None:
        cells = [len(self.columns)] * len(self.rows), [len(self.beside)] * len(self.rows if self.beside else ())
        if ([len(row) for row in self.cells], [len(row) for row in self.costs]) != cells or not self.rows:
            raise ValueError(
                f"heat map '{self.title}': every row needs {len(self.columns)} cells and {len(self.beside)} beside"
            )


# ---------------------------------------------------------------- the rule of judgement


class NotMeasurable(Exception):
    """Raised by a claim's run for a reason, one line, why it cannot be measured on this machine or on this data."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Who says it, and where."""

    text: str
    where: str = ""
    """An address or a section of the paper."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one criterion came to. `criterion` and `rule` are filled in by `Rule.judge`."""

    verdict: Verdict
    because: str
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What it rests on: names to `Number`s, or to their tables, which become `Number`s."""
    criterion: str = ""
    rule: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", {k: parse(Number, v, f"numbers.{k}") for k, v in self.numbers.items()})


Judge = Callable[[Mapping[str, Any], Mapping[str, Real]], Finding]
"""A pure function of the evidence and the thresholds."""


@dataclasses.dataclass(frozen=True)
class Criterion:
    """One part of a rule: a sentence whose `{names}` are filled from the thresholds that the judge is given."""

    name: str
    rule: str
    judge: Judge
    thresholds: dict[str, Real] = dataclasses.field(default_factory=dict)

    @property
    def sentence(self) -> str:
        return self.rule.format(**self.thresholds)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a claim is judged, fixed in code before the run: the sentence that a reader can check, and its criteria."""

    sentence: str
    criteria: tuple[Criterion, ...]

    def written(self) -> dict[str, Any]:
        """The rule as plain data: what the report shows and what the hash covers."""
        criteria = [{"name": c.name, "rule": c.sentence, "thresholds": dict(c.thresholds)} for c in self.criteria]
        return {"sentence": self.sentence, "criteria": criteria}

    @property
    def sha256(self) -> str:
        return digest(self.written())

    def judge(self, evidence: Mapping[str, Any]) -> tuple[Finding, ...]:
        """One finding per criterion, in order."""
        found = [(c, c.judge(evidence, c.thresholds)) for c in self.criteria]
        return tuple(dataclasses.replace(f, criterion=c.name, rule=c.sentence) for c, f in found)


def combine(findings: Iterable[Finding]) -> Verdict:
    """The verdict on the whole: one part contradicted contradicts it, and only all parts supported support it.

    Nothing measurable leaves it not measurable here; every other mixture is inconclusive. The parts are always shown too.
    """
    verdicts = {f.verdict for f in findings}
    if "contradicted" in verdicts:
        return "contradicted"
    if verdicts == {"supported"}:
        return "supported"
    return "not measurable here" if verdicts <= {"not measurable here"} else "inconclusive"


def digest(data: Any) -> str:
    """Hex sha256 of plain data in canonical JSON."""
    return sha256_bytes(json.dumps(plain(data), sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


# ---------------------------------------------------------------- results


@dataclasses.dataclass(frozen=True)
class Headline:
    """The one number of a claim, and what it says: `Number(4.3, "×", ...)`, "prefill of 16,384 bytes, attention / Mamba"."""

    number: Number
    says: str


@dataclasses.dataclass(frozen=True)
class Data:
    """What the experiment read. `own` is True for the user's data and False for the corpus that stands in for it."""

    text: str
    own: bool
    sha256: str = ""
    size: int | None = None
    """Bytes."""
    option: str = "--text"
    """The option of `postformer report` that names the user's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """All that is kept of a claim's run."""

    id: str
    title: str
    sentence: str
    sources: tuple[Source, ...]
    rule: dict[str, Any]
    """`Rule.written()`."""
    rule_sha256: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    headline: Headline | None = None
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    heats: tuple[Heat, ...] = ()
    films: tuple[Film, ...] = ()
    limits: tuple[str, ...] = ()
    """Why this scale may mislead."""
    consequences: tuple[str, ...] = ()
    """What follows, and for whom."""
    data: Data | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """A planned step and how long it is expected to take."""

    name: str
    seconds: Real


@runtime_checkable
class Claim(Protocol):
    """One file of `claims/`: importing it imports no torch, so that the command line can list it."""

    @property
    def id(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def sentence(self) -> str: ...
    @property
    def sources(self) -> tuple[Source, ...]: ...
    @property
    def rule(self) -> Rule: ...
    @property
    def weight(self) -> Real:
        """Its part of a report's budget, beside the other claims' weights; 1 for a claim that has none."""
        ...

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]: ...
    def run(self, ctx: Context) -> Result: ...


def conclude(
    claim: Claim,
    evidence: Mapping[str, Any],
    *,
    headline: Headline | None = None,
    tables: Sequence[Table] = (),
    charts: Sequence[Chart] = (),
    heats: Sequence[Heat] = (),
    films: Sequence[Film] = (),
    limits: Sequence[str] = (),
    consequences: Sequence[str] = (),
    data: Data | None = None,
) -> Result:
    """Judge the evidence by the claim's own rule and put the result together."""
    findings = claim.rule.judge(evidence)
    return Result(
        id=claim.id,
        title=claim.title,
        sentence=claim.sentence,
        sources=claim.sources,
        rule=claim.rule.written(),
        rule_sha256=claim.rule.sha256,
        verdict=combine(findings),
        findings=findings,
        headline=headline,
        tables=tuple(tables),
        charts=tuple(charts),
        heats=tuple(heats),
        films=tuple(films),
        limits=tuple(limits),
        consequences=tuple(consequences),
        data=data,
    )
