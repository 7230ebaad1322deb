"""What the page shows of `neural_memory`: heat maps, charts, and words from the evidence."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from postformer.claims.ledger import Chart, Context, Heat, Number, Series
from postformer.claims.stats import share_over

Evidence = Mapping[str, Any]
Cell = Mapping[str, Any]
NAMES = {
    "lmm": "neural memory",
    "mag": "MAG",
    "mac": "MAC",
    "mal": "MAL",
    "gated_delta": "gated delta rule",
    "mamba2": "Mamba-2",
    "window": "sliding window",
    "attention": "attention, KV cache",
    "bm25": "BM25 + attention",
    "dense": "vectors + attention",
}
BESIDE = ("kept", "write 1K", "answer")
NOT_ASKED = "no time"
RESAMPLED = 2000
LEARNED = 90
"""Percent of texts of the training length that a method must answer rightly to count as one that learned."""


def share_of(score: Cell, seeds: Sequence[int] = ()) -> Number:
    """The share of texts of the training length that were answered rightly."""
    return per_cent([(one["rows_right"], one["rows"]) for one in score["each"]], seeds)


def right(cell: Cell, seeds: Sequence[int] = ()) -> Number:
    """The share of a cell's questions that were answered rightly."""
    return per_cent([(a, b) for a, b in cell["each"]], seeds)


def per_cent(counts: Sequence[tuple[int, int]], seeds: Sequence[int] = ()) -> Number:
    """The share of counts (right, asked) over seeds, in percent."""
    share = share_over(counts)
    low, high = share.low or 0.0, 1.0 if share.high is None else share.high
    return Number(100 * share.value, "%", "measured", 100 * low, 100 * high, share.n, tuple(seeds))


def learned(e: Evidence, method: str) -> bool:
    """Whether the method answers LEARNED texts of the training length, or where it keeps passages so many questions after the shortest
    diaries."""
    if method not in e["learned"]:
        shortest = e["distance"][method][0]
        return shortest["right"] >= shortest["asked"] * LEARNED / 100
    score = e["learned"][method]
    return score["rows_right"] >= score["rows"] * LEARNED / 100


def named(e: Evidence, method: str) -> str:
    """The method's name, with a word where it has not learned."""
    return NAMES[method] + ("" if learned(e, method) else " (not learned)")


def _costs(cell: Cell) -> tuple[Number, ...]:
    return (
        Number(cell["bytes"], "B", "counted"),
        Number(1000 * cell["write_s"], "s", "measured"),
        Number(cell["answer_s"], "s", "measured"),
    )


# ---------------------------------------------------------------- pictures


def heats(e: Evidence, seeds: Sequence[int]) -> tuple[Heat, ...]:
    """Recall of each method against distance and against the number of facts."""
    kept = "Kept bytes, writing a thousand tokens and answering a question are those of each method's {of}."
    return (
        _heat(
            "Right answers about the first tenth of a diary, by its length",
            e,
            "distance",
            "words",
            "words of the diary",
            "At 1M words the first tenth is the first of ten years. " + kept.format(of="longest diary"),
            seeds,
        ),
        _heat(
            "Right answers, by the number of facts told",
            e,
            "facts",
            "facts",
            "facts in a diary",
            f"In diaries of {first(e, 'facts')['words']:,} words. " + kept.format(of="most facts"),
            seeds,
        ),
    )


def first(e: Evidence, table: str) -> Cell:
    """The first cell of the neural memory."""
    return e[table][e["neural"]][0]


def _heat(title: str, e: Evidence, table: str, key: str, label: str, note: str, seeds: Sequence[int]) -> Heat:
    columns = sorted({c[key] for cells in e[table].values() for c in cells})
    rows, costs = [], []
    for method in e["methods"]:
        by = {c[key]: c for c in e[table][method]}
        rows.append(tuple(right(by[n], seeds) if n in by else NOT_ASKED for n in columns))
        costs.append(_costs(e[table][method][-1]))
    names = tuple(named(e, m) for m in e["methods"])
    return Heat(
        title=title,
        x_label=label,
        rows=names,
        columns=tuple(f"{n:,}" for n in columns),
        cells=tuple(rows),
        beside=BESIDE,
        costs=tuple(costs),
        note=note,
    )


def charts(e: Evidence) -> tuple[Chart, ...]:
    """Recall against the number of facts; and where there are any, facts at half the recall against bytes."""
    curves = tuple(
        _series(NAMES[m], [float(c["facts"]) for c in cells], [right(c) for c in cells]) for m, cells in e["facts"].items()
    )
    shown = [
        Chart(
            title="Recall against the facts stored",
            x_label="facts in a diary",
            y_label="right",
            y_unit="%",
            series=curves,
            log_x=True,
        )
    ]
    known = {m: (cells[0], capacity(cells)) for m, cells in e["facts"].items()}
    points = tuple(
        _series(NAMES[m], [float(cell["bytes"])], [number], *_ends(e["facts"][m]))
        for m, (cell, number) in known.items()
        if number.value is not None
    )
    if points:
        shown.append(
            Chart(
                title="Facts stored when recall has fallen to half, against the bytes kept",
                x_label="bytes kept",
                y_label="facts",
                x_unit="B",
                series=points,
                log_x=True,
                log_y=True,
                note="Only methods that answer at least half of the questions about the fewest facts; bars end where no more were asked.",
            )
        )
    return tuple(shown)


def _ends(cells: Sequence[Cell]) -> tuple[float, float]:
    return float(cells[0]["facts"]), float(cells[-1]["facts"])


def _series(name: str, x: Sequence[float], y: Sequence[Number], least: float = 0.0, most: float = 100.0) -> Series:
    """The numbers with their intervals, which end at `least` and `most` where they reach beyond what was measured."""
    low = tuple(max(least, float(n.low or 0.0)) for n in y)
    high = tuple(most if n.high is None else float(n.high) for n in y)
    return Series(name, tuple(x), tuple(float(n.value or 0.0) for n in y), "measured", low, high)


def capacity(cells: Sequence[Cell]) -> Number:
    """The facts at which recall falls to half of all, between two numbers by the logarithm; no value where it was below from the start, and
    at least the most that were asked where it stays above. The interval is the bootstrap's over questions."""
    found = _falls_to_half(cells, [c["right"] / c["asked"] for c in cells])
    if found == 0.0:
        return Number(None, "", "measured", note="below half from the start")
    rng, asked = np.random.default_rng(0), [c["asked"] for c in cells]
    expected = [(c["right"] + 0.5) / (c["asked"] + 1) for c in cells]  # all right of a few is not always right
    drawn = rng.binomial(asked, expected, (RESAMPLED, len(cells))) / np.array(asked)
    low, high = np.quantile([_falls_to_half(cells, shares) for shares in drawn.tolist()], (0.025, 0.975), method="nearest")
    if math.isinf(found):
        return Number(cells[-1]["facts"], "", "measured", min(float(low), cells[-1]["facts"]), None, note="at least")
    return Number(found, "", "measured", float(low), None if math.isinf(high) else float(high))


def _falls_to_half(cells: Sequence[Cell], shares: Sequence[float]) -> float:
    """0 where the first share is below half, and infinity where none is."""
    if shares[0] < 0.5:
        return 0.0
    for (a, at), (b, bt) in itertools.pairwise(zip(cells, shares, strict=True)):
        if bt < 0.5:
            part = (at - 0.5) / (at - bt)
            return math.exp(math.log(a["facts"]) + part * math.log(b["facts"] / a["facts"]))
    return math.inf


def at(table: Mapping[str, Sequence[Cell]], key: str, value: int) -> dict[str, Cell]:
    """Of every method the cell with that value."""
    return {m: c for m, cells in table.items() for c in cells if c[key] == value}


# ---------------------------------------------------------------- words


def limits(e: Evidence, ctx: Context) -> tuple[str, ...]:
    last, seeds = e["distance"][e["neural"]][-1], len(ctx.seeds)
    few = f"{last['asked']:,} questions about {_counted(last['diaries'], 'diary', 'diaries')} a seed"
    late = [f"Given up, since reading took longer than expected: {', '.join(e['late'])}."] if e["late"] else []
    skipped = (
        [] if "bm25" in e["methods"] else ["BM25 was not asked: bm25s is not installed (pip install 'postformer[retrieval]')."]
    )
    return (
        f"Models of {_counted(e['depth'], 'layer')} of width {e['width']} that learned one task; nothing is said of a large model or of "
        "another text than these diaries.",
        "The facts are names of people's dogs and nothing else, told in three wordings and changed in one, in which at most three words "
        "stand between person and name, and the tokenizer has a piece for every name: of more topics in all wordings these small models "
        "learned too little.",
        "Batch, rate, schedule and the price of writing were sought with the neural memory, and the others were given the same.",
        f"The longest diary rests on {few}; {_counted(seeds, 'seed')}. All models took {e['taken']}: the same number of steps is not the "
        "same time.",
        "Small talk is made of the same few templates as in training and shares every word with the facts, which is hard for BM25; how a "
        "memory keeps apart what it never saw from what it was told is another question (--text)."
        if ctx.text is None
        else f"What stands between the facts is {ctx.text}.",
        *late,
        *skipped,
    )


def _counted(n: int, one: str, more: str = "") -> str:
    return f"{n} {one if n == 1 else more or one + 's'}"


def consequences(e: Evidence) -> tuple[str, ...]:
    """What the longest diary says of keeping the text against keeping a state."""
    neural = e["distance"][e["neural"]][-1]
    said = [
        f"The neural memory keeps {neural['bytes']:,} bytes whatever it has read, and answered {neural['right']:,} of {neural['asked']:,} "
        f"questions after {neural['words']:,} words."
    ]
    if "bm25" in e["methods"]:
        words = min(neural["words"], e["distance"]["bm25"][-1]["words"])
        text, state = (at(e["distance"], "words", words)[m] for m in ("bm25", e["neural"]))
        verdict = _compared(right(text), right(state))
        said.append(
            f"After {words:,} words {verdict}: {text['right']:,} of {text['asked']:,} right with {text['bytes']:,} bytes of text and "
            f"index, {state['right']:,} of {state['asked']:,} with {state['bytes']:,} bytes of state. "
            f"The passages that BM25 found hold the statement that answers {text['held']:,}."
        )
    return (
        *said,
        "The table says which method the measured cells speak for, at each length, number of facts and number of bytes.",
    )


def _compared(text: Number, state: Number) -> str:
    if (text.low or 0.0) > (state.high or 0.0):
        return "BM25 wins recall word for word"
    if (state.low or 0.0) > (text.high or 0.0):
        return "the neural memory recalls more than BM25"
    return "BM25 and the neural memory cannot be told apart by recall"
