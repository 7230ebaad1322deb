"""How a report tells the user where it is: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from postformer.claims.ledger import Real, Step
from postformer.claims.words import span

EVERY_S = 10.0
"""Least time between two plain lines on the same step."""


@runtime_checkable
class Reporter(Protocol):
    def plan(self, claims: Sequence[tuple[str, Sequence[Step]]], budget_s: Real) -> None: ...
    def progress(self, claim: str, doing: str, done: Real, total: Real) -> None: ...
    def line(self, text: str) -> None: ...


@contextmanager
def reporter(console: Console | None = None) -> Iterator[Reporter]:
    """Bars where the console is a terminal, else plain lines."""
    console = console or Console()
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bars:
        yield Bars(bars)


class Lines:
    """One line when a step begins, and one at times while it goes on."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.doing, self.said = ("", ""), 0.0

    def line(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def plan(self, claims: Sequence[tuple[str, Sequence[Step]]], budget_s: Real) -> None:
        _plan(self.line, claims, budget_s)

    def progress(self, claim: str, doing: str, done: Real, total: Real) -> None:
        if (claim, doing) == self.doing and (done >= total or self.clock() - self.said < EVERY_S):
            return
        self.line(f"{claim}: {doing}" + (f" {done / total:.0%}" if done and total else ""))
        self.doing, self.said = (claim, doing), self.clock()


class Bars:
    """One bar per claim, named after the step that it is in."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.task = None

    def line(self, text: str) -> None:
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None
        self.bars.console.print(Text(text), soft_wrap=True)

    def plan(self, claims: Sequence[tuple[str, Sequence[Step]]], budget_s: Real) -> None:
        _plan(self.line, claims, budget_s)

    def progress(self, claim: str, doing: str, done: Real, total: Real) -> None:
        words = {"description": f"{claim}: {doing}", "completed": done, "total": total or None}
        if self.task is None:
            self.task = self.bars.add_task(**words)
        elif words["description"] != self.bars.tasks[-1].description:
            self.bars.reset(self.task, **words)
        else:
            self.bars.update(self.task, **words)


def _plan(line: Callable[[str], None], claims: Sequence[tuple[str, Sequence[Step]]], budget_s: Real) -> None:
    total = sum(s.seconds for _, steps in claims for s in steps)
    line(f"{len(claims)} claim{'s' * (len(claims) != 1)}, about {span(total)} in all; Ctrl-C keeps what is done")
    if total > 1.1 * budget_s:
        line(f"The budget of {span(budget_s)} is less than what every run needs: it will take longer")
    for name, steps in claims:
        line(f"  {name}: " + ", ".join(f"{s.name} {span(s.seconds)}" for s in steps))
