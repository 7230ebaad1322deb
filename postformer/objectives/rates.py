"""How often a reader answers a task's questions rightly: measured by kind of question and length of text, and kept beside the model.

An answer is right when it is the answer, whole and nothing more. A rate is that of texts of the task's own making; what a model does
with other texts it does not tell.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from postformer.config import ConfigError, UserError, parse, plain, read
from postformer.data.reading import Reading, chunks
from postformer.files import write_durably
from postformer.interval import wilson
from postformer.models.readers import Reader

FILE = "rates.json"
FORMAT = "postformer-rates-1"
CHUNK = 1024
"""Tokens that a reader is given at once."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """`right` of `asked` questions of a kind, after texts of `length` tokens with question and answer. `finer` says the same for each
    kind that only the text tells, such as a fact that was changed later."""

    kind: str
    length: int
    right: int
    asked: int
    finer: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        low, high = wilson(self.right, self.asked)
        share = 100 * self.right / self.asked
        return f"{share:.1f}% (95% interval {100 * low:.1f} to {100 * high:.1f}, {self.right:,} of {self.asked:,})"


@dataclasses.dataclass(frozen=True)
class Rates:
    """What was measured of one model (its fingerprint), on one task (its keywords)."""

    model: str
    data: dict[str, Any]
    seed: int
    rates: list[Rate]

    def of(self, kind: str, tokens: int) -> Rate | None:
        """The rate of the kind at the shortest text that is as long as `tokens`, or None where no text was so long."""
        fitting = [rate for rate in self.rates if rate.kind == kind and rate.length >= tokens]
        return min(fitting, key=lambda rate: rate.length, default=None)


def measure(
    make: Callable[[], Reader],
    task: Reading,
    *,
    length: int,
    questions: int,
    seed: int = 0,
    split: str = "test",
    after_question: Callable[[int], object] = lambda done: None,
) -> tuple[list[Rate], Reader | None]:
    """The rates of `questions` texts of `length` tokens, each read by a new reader, and the last reader.

    Raises DataError for a length into which nothing fits, and for other texts than the task names.
    """
    task.batches(1, seed, split)
    right, asked, reader = Counter[tuple[str, str]](), Counter[tuple[str, str]](), None
    for index in range(questions):
        passage, reader = task.passage(index, seed=seed, length=length, split=split), make()
        for ids in chunks(passage.text(), CHUNK):
            reader.write(ids)
        kind = task.sort(passage.question), str(passage.about.get("kind", ""))
        asked[kind] += 1
        right[kind] += reader.answer(passage.question) == passage.answer
        after_question(index + 1)
    return [_rate(sort, length, right, asked) for sort in sorted({sort for sort, _ in asked})], reader


def _rate(sort: str, length: int, right: Counter[tuple[str, str]], asked: Counter[tuple[str, str]]) -> Rate:
    mine = sorted(kind for kind in asked if kind[0] == sort)
    finer = {kind[1]: [right[kind], asked[kind]] for kind in mine if kind[1]}
    return Rate(sort, length, sum(right[kind] for kind in mine), sum(asked[kind] for kind in mine), finer)


def save(folder: Path, found: Rates) -> Rates:
    """Keep rates beside a model; earlier ones of the same model, task and seed stay where nothing new takes their place."""
    earlier = load(folder, found.model)
    if earlier and (earlier.data, earlier.seed) == (found.data, found.seed):
        new = {(rate.kind, rate.length) for rate in found.rates}
        kept = [rate for rate in earlier.rates if (rate.kind, rate.length) not in new]
        found = dataclasses.replace(found, rates=sorted([*kept, *found.rates], key=lambda rate: (rate.length, rate.kind)))
    write_durably(folder / FILE, json.dumps({"format": FORMAT, **plain(found)}, indent=1) + "\n")
    return found


def load(folder: Path, model: str) -> Rates | None:
    """The rates beside a model, or None where there are none or they are another model's. Raises UserError for a damaged file."""
    path = folder / FILE
    if not path.exists():
        return None
    data = read(path)
    if data.pop("format", None) != FORMAT:
        raise UserError(f"{path}: not a file of rates ({FORMAT})")
    try:
        found = parse(Rates, data, str(path))
    except ConfigError as e:
        raise UserError(f"{e}; measure again with evaluate --questions") from e
    if any(not 0 <= rate.right <= rate.asked or not rate.asked for rate in found.rates):
        raise UserError(f"{path}: counts more right answers than questions; measure again with evaluate --questions")
    return found if found.model == model else None


def listed(rates: Sequence[Rate]) -> str:
    """A line for each rate, and one for each kind within it."""
    lines = []
    for rate in rates:
        finer = rate.finer if len(rate.finer) > 1 else {}
        lines.append(f"{rate.length:>12,} tokens  {rate.kind:<10} {rate}")
        lines += [f"{'':>20} {kind:<10} {Rate(kind, rate.length, right, asked)}" for kind, (right, asked) in finer.items()]
    return "\n".join(lines)
