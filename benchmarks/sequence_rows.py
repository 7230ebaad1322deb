"""What a row of benchmarks/sequence.py is: samples of several libraries taken in turns. Imports no torch."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from postformer.claims.stats import interleaved

Event = dict[str, Any]
"""{"row": ...}, {"missing": ...}, {"about": ...}, or {"doing": ...}, which is only said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured, and for how long."""

    dim: int
    forward: tuple[int, ...]
    backward: tuple[int, ...]
    limits: tuple[int, ...]
    scan: int
    """Tokens of the scan alone."""
    copy: int
    """Bytes of the copy that stands for memory bandwidth."""
    depth: int
    prompt: int
    decode: int
    """Tokens in a sample of decoding."""
    row_s: tuple[tuple[int, float], ...]
    """Seconds for a row of at most so many tokens."""
    slow_s: float
    """Seconds for a row with a peer of very slow calls."""

    def seconds(self, tokens: int) -> float:
        return next((s for most, s in self.row_s if tokens <= most), self.row_s[-1][1])


FULL = Sizes(
    dim=768,
    forward=(512, 2048, 8192),
    backward=(512, 2048),
    limits=(512, 2048, 8192),
    scan=2048,
    copy=1 << 28,
    depth=24,
    prompt=512,
    decode=16,
    row_s=((1, 5.0), (512, 12.0), (2048, 40.0), (8192, 60.0)),
    slow_s=75.0,
)
QUICK = Sizes(
    dim=64,
    forward=(32, 128),
    backward=(256,),
    limits=(128,),
    scan=128,
    copy=1 << 20,
    depth=2,
    prompt=16,
    decode=4,
    row_s=((1 << 20, 0.2),),
    slow_s=0.5,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What each part's process is told."""

    threads: int
    quick: bool
    work: Path
    llama_source: str | None = None

    def dump(self) -> str:
        """As a word of a command line."""
        return json.dumps({**dataclasses.asdict(self), "work": str(self.work)})

    @staticmethod
    def load(word: str) -> "Settings":
        words = json.loads(word)
        return Settings(**{**words, "work": Path(words["work"])})

    @property
    def sizes(self) -> Sizes:
        return QUICK if self.quick else FULL


def timed(
    calls: Mapping[str, Callable[[], object]], budget_s: float, *, repeats: int, warmup: int = 1
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each function by round, and those of the first one run again as the control."""
    timing = interleaved(calls, repeats, warmup=warmup, budget_s=budget_s)
    return timing.samples, list(timing.control)


def row(
    part: str,
    name: str,
    tokens: int,
    taken: tuple[Mapping[str, list[float]], list[float]],
    *,
    calls: int = 1,
    unit: str = "s",
    work: Mapping[str, tuple[float, str]] | None = None,
    agree: Mapping[str, float] | None = None,
) -> Event:
    """One line of a table. `work` is what one call of a subject does, as (amount, unit), so that a rate can be shown; `agree` is
    how far a peer's result is from ours."""
    samples, control = taken
    return {
        "row": {
            "part": part,
            "name": name,
            "tokens": tokens,
            "unit": unit,
            "samples": {subject: [s / calls for s in series] for subject, series in samples.items()},
            "control": [s / calls for s in control],
            "work": {subject: list(pair) for subject, pair in (work or {}).items()},
            "agree": dict(agree or {}),
        }
    }


def missing(peer: str, where: str, why: str) -> Event:
    """A peer that was not measured there, and why."""
    return {"missing": {"peer": peer, "where": where, "why": why}}
