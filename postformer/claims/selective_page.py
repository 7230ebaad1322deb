"""What the page shows of `selective`: tables, charts and words from the evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims.ledger import Chart, Context, Number, Series, Table
from postformer.claims.stats import median_interval, share_over

Evidence = Mapping[str, Any]


def share_of(score: Mapping[str, Any], seeds: Sequence[int] = ()) -> Number:
    """The share of rows all of whose answers are right, in per cent, with the interval of `share_over`."""
    return _per_cent([(each["rows_right"], each["rows"]) for each in score["each"]], seeds)


def answers_right(score: Mapping[str, Any], seeds: Sequence[int] = ()) -> Number:
    """The share of answers that are right, in per cent, with the interval of `share_over`, for which a sequence is one sample."""
    each = [(round(one["right"] / one["asked"] * one["rows"]), one["rows"]) for one in score["each"]]
    return _per_cent(each, seeds)


def _per_cent(counts: Sequence[tuple[int, int]], seeds: Sequence[int]) -> Number:
    share = share_over(counts)
    low, high = share.low or 0.0, 1.0 if share.high is None else share.high
    return Number(100 * share.value, "%", "measured", 100 * low, 100 * high, share.n, tuple(seeds))


def answers(e: Evidence, seeds: Sequence[int]) -> Table:
    """What was answered at each length."""
    rows = [(f"induction heads, {s['length']:,} tokens", share_of(s, seeds)) for s in e["induction"]]
    copied = answers_right(e["copying"], seeds)
    return Table(
        "Right answers after training on 256 tokens",
        ("task", "Mamba"),
        (*rows, ("selective copying, 256 tokens, each answer", copied)),
        note=f"Induction heads after {e['taken']['induction']}, selective copying after {e['taken']['copying']}. n sequences "
        "drawn apart from those of training. The paper: 100% at every length, and 99.8% (at 4,096 tokens).",
    )


def costs(e: Evidence) -> Table:
    """Time and bytes after each length of one stream."""
    along = e["along"]
    rows = [
        (
            f"{n:,} tokens",
            *(median_interval(along[name]["samples"][i]).number("s") for name in ("reading", "writing")),
            Number(along["state_bytes"][i], "B", "counted"),
        )
        for i, n in enumerate(along["lengths"])
    ]
    return Table(
        "Cost of a token along one stream",
        ("after", "reading, a token", "writing, a token", "state"),
        tuple(rows),
        note="Median seconds a token: 256 tokens read at once, and single tokens, from the state after so many. Timed in turns.",
    )


def charts(e: Evidence, seeds: Sequence[int]) -> tuple[Chart, ...]:
    shares = [share_of(s, seeds) for s in e["induction"]]
    asked = Series(
        "Mamba",
        tuple(float(s["length"]) for s in e["induction"]),
        tuple(float(n.value or 0.0) for n in shares),
        "measured",
        tuple(float(n.low or 0.0) for n in shares),
        tuple(float(n.high or 0.0) for n in shares),
    )
    along = e["along"]
    x = tuple(float(n) for n in along["lengths"])
    times = tuple(
        Series(name, x, tuple(median_interval(s).value for s in along[name]["samples"]), "measured")
        for name in ("reading", "writing")
    )
    state = Series("Mamba", x, tuple(float(b) for b in along["state_bytes"]), "counted")
    return (
        Chart(
            title="Induction heads, trained on 256 tokens",
            x_label="tokens",
            y_label="right",
            y_unit="%",
            series=(asked,),
            log_x=True,
        ),
        Chart(
            title="Time a token along a stream",
            x_label="tokens before",
            y_label="time",
            y_unit="s",
            series=times,
            log_x=True,
            log_y=True,
        ),
        Chart(
            title="Bytes of the state along a stream",
            x_label="tokens before",
            y_label="state",
            y_unit="B",
            series=(state,),
            log_x=True,
        ),
    )


def limits(e: Evidence, ctx: Context) -> tuple[str, ...]:
    few = min(s["rows"] for s in e["induction"])
    return (
        "These are toys: sixteen symbols, one thing to find. They show what the mechanism can do, and nothing of a language model.",
        f"The longest lengths rest on {few} sequences each, with the fact at a random place in them; "
        "`python benchmarks/papers.py induction` takes all of the recipe's steps and asks at every power of two.",
        f"{len(ctx.seeds)} seed{'s' * (len(ctx.seeds) > 1)}; the recipes' settings were chosen to solve these tasks quickly here, and the "
        "steps of time start near 0, which the paper's do not.",
        "Selective copying was asked at 256 tokens, where the paper's figure is for 4,096.",
    )


def consequences(e: Evidence) -> tuple[str, ...]:
    longest, size = e["induction"][-1], e["along"]["state_bytes"][-1]
    return (
        f"A state of {size:,} bytes can carry one fact through sequences of {longest['length']:,} tokens when training makes it write "
        "seldom."
        if longest["rows_right"] == longest["rows"]
        else "Check at your own lengths that what was learned on short sequences holds on long ones; here it did not at the longest.",
        "Budget for a stream by tokens alone: what was read before adds neither time nor memory.",
    )
