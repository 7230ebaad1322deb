"""Claim: what the first year of a diary told still comes back from a neural memory after ten years, a million words, at constant cost.

Small models that remember in different ways learn the same short diaries for as many steps, and are asked after longer ones and after
more facts; the rivals that keep the text find passages for the attention model, by BM25 or by an encoder's vectors.
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims import SENTENCES
from postformer.claims import neural_memory_page as page
from postformer.claims import neural_memory_tables as tables
from postformer.claims.ledger import (
    Context,
    Criterion,
    Finding,
    Headline,
    Number,
    Real,
    Result,
    Rule,
    Source,
    Step,
    conclude,
)
from postformer.claims.stats import noise_floor, ratio_interval
from postformer.claims.words import TIMES
from postformer.config import UserError

NEURAL = "lmm"
METHODS = (NEURAL, "gated_delta", "mamba2", "window", "attention")
MORE, MORE_S = ("mag", "mac", "mal"), 28_800
"""Further methods, from a budget on that lets all train to the end."""
WRITING = (NEURAL, "gated_delta", "mamba2", "mag", "mac", "mal")
"""Methods whose gates say what they write, and are watched."""
WRITTEN = 8
"""Diaries of the training length in which they are."""
TEN_YEARS = 1_000_000
DISTANCES = (500, 4_000, 32_000, 250_000, TEN_YEARS)
"""Words of the diaries whose first tenth tells the facts."""
FIRST_YEAR = 0.1
"""Of a diary's ten years."""
STORED = 8
"""Facts of a diary, where its length is what varies: as many as in training at most."""
FACTS = (2, 8, 32, 128, 256)
FACTS_WORDS = 4_000
"""Facts of a diary, where their number is what varies, and its words."""
ROWS = 64
"""Texts of the training length that are asked to see what was learned."""
QUESTIONS, FEWER = 64, 24
"""About how many questions of a cell are asked, where the budget is SURE_S and more, and where it is less."""
READ = 250_000
"""Words that are read for a cell, at most, but for one diary, where the budget is below SURE_S."""
SURE_S = 3_600
"""The budget from which on QUESTIONS are asked at every distance of up to ten years, by all whose cost does not grow with it."""
TRIED = ((SURE_S, TEN_YEARS), (300, 250_000), (0, 500))
"""From which budget on retrieval is set on diaries of up to how many words."""
CHANGES = ("updated", "deleted")
CHANGE_WORDS, CHANGE_FACTS, CHANGED = 500, 8, 48
"""Changes and deletions: words, facts, and questions of each."""
LEARN = 0.45
"""Training's share of the budget, what comes before it included."""
SAMPLED = 12
"""Steps of each method that are timed before."""
LATE, LATE_S = 2, 60.0
"""A rival that takes so many times as long as expected, and so many seconds, is given up."""
STREAM_S = 60.0
"""About what the neural memory's million words take."""
Evidence = Mapping[str, Any]


def _judged(cells: Sequence[Evidence], words: Real) -> Evidence:
    """The cell after so many words; the last one, if the budget ended before. Longer diaries are shown beside it."""
    return next((cell for cell in cells if cell["words"] == words), cells[-1])


def _recall(e: Evidence, t: Mapping[str, Real]) -> Finding:
    learned, taken = e["learned"][NEURAL], e["taken"]
    cells = e["distance"][NEURAL]
    share = page.share_of(learned)
    numbers = {f"right at the training length, {learned['length']:,} tokens": share}
    numbers |= {f"first year's facts after {c['words']:,} words": page.right(c) for c in cells}
    if learned["rows_right"] < learned["rows"] * t["learned"] / 100:
        said = f"right on {learned['rows_right']:,} of {learned['rows']:,} texts of {learned['length']:,} tokens"
        return Finding("inconclusive", f"not learned in {taken}: {said}", numbers)
    last = _judged(cells, t["words"])
    said = f"{last['right']:,} of {last['asked']:,} of the first year's facts come back after {last['words']:,} words"
    if last["words"] < t["words"]:
        return Finding("inconclusive", f"{said}; the budget ended there", numbers)
    final = page.right(last)
    if last["asked"] < t["asked"]:
        return Finding("inconclusive", f"{said}; fewer than {t['asked']:,.0f} were asked", numbers)
    if (final.value or 0.0) >= t["right"] and (final.low or 0.0) >= t["sure"]:
        return Finding("supported", said, numbers)
    forgotten = final.high is not None and final.high < t["half"]
    return Finding("contradicted" if forgotten else "inconclusive", f"{said} (learned in {taken})", numbers)


def _constant(e: Evidence, t: Mapping[str, Real]) -> Finding:
    last = _judged(e["distance"][NEURAL], t["words"])
    stream = last["stream"]
    first, end = stream["samples"]
    ratio, floor = ratio_interval(end, first), noise_floor(first, stream["control"])
    numbers = {
        "state at the beginning": Number(stream["bytes"][0], "B", "counted"),
        "state at the end": Number(stream["bytes"][1], "B", "counted"),
        **_grown(stream),
        "reading a token at the end and at the beginning": ratio.number(TIMES),
        "noise floor (A/A)": floor.number(),
    }
    said = (
        f"after {stream['tokens'][1]:,} tokens a token takes {ratio.value:.2f} times as long as after {stream['tokens'][0]:,}"
    )
    if stream["bytes"][0] != stream["bytes"][1]:
        return Finding("contradicted", "the state has another size at the end than at the beginning", numbers)
    most = 1 + t["most"] / 100
    noise = max(abs(floor.low or 0.0), abs(floor.high or 0.0))
    if (ratio.low or 0.0) > most and noise >= t["most"] / 100:
        return Finding("inconclusive", f"{said}, but the same state twice differs by up to {noise:.0%}", numbers)
    if (ratio.low or 0.0) > most:
        return Finding("contradicted", said, numbers)
    if last["words"] < t["words"]:
        return Finding("inconclusive", f"{said}; the budget ended at {last['words']:,} words", numbers)
    flat = ratio.high is not None and ratio.high <= most
    return Finding("supported" if flat else "inconclusive", f"{said}, and the state keeps its size", numbers)


def _grown(stream: Evidence) -> dict[str, Number]:
    begin, end = stream["resident"]
    return {} if None in (begin, end) else {"the process has grown by": Number(end - begin, "B", "measured")}


RULE = Rule(
    "Small models learn to answer questions about people's dogs after diaries of up to 1,024 tokens, told in wordings in which the dog's "
    "name soon follows the person, each with another way of remembering, and are asked after diaries of up to ten years, a million words, "
    "whose first year told eight of them.",
    (
        Criterion(
            "the first year after ten years",
            "Supported if after {words:,.0f} words the neural memory answers at least {right:g}% of the questions about single facts "
            "of the first year, with a 95% interval that lies above {sure:g}%; contradicted if it answers at least {learned:g}% of "
            "texts of the training length but the interval after {words:,.0f} words lies below {half:g}%; else inconclusive, so also "
            "where it was not learned, the budget ended before, or fewer than {asked:g} were asked.",
            _recall,
            {"right": 90, "sure": 75, "learned": page.LEARNED, "half": 50, "words": TEN_YEARS, "asked": QUESTIONS},
        ),
        Criterion(
            "constant cost",
            "Supported if the neural memory's state has the same bytes after the first 1,024 tokens and after {words:,.0f} words, and "
            "reading a token then takes at most {most:g}% longer by its whole 95% interval; contradicted if the bytes differ or the "
            "interval lies above that on a machine whose own noise, the same state timed twice, stays below {most:g}%; else inconclusive.",
            _constant,
            {"most": 10, "words": TEN_YEARS},
        ),
    ),
)


class NeuralMemory:
    """See the module's docstring. A diary of `further` words, more than TEN_YEARS, is read as well where it is given: it is shown, and not
    judged. Raises UserError."""

    id = "neural_memory"
    title = "Ten years of diaries"
    sentence = SENTENCES[id]
    sources = (
        Source(
            "Behrouz et al. 2024, Titans: a memory that learns while it reads scales to contexts above 2M tokens",
            "https://arxiv.org/abs/2501.00663",
        ),
    )
    rule = RULE
    weight = 5

    def __init__(self, further: int | None = None):
        if further is not None and further <= TEN_YEARS:
            raise UserError(f"--diary-words: expected more than {TEN_YEARS:,} words, such as 50000000, got {further:,}")
        self.distances = DISTANCES if further is None else (*DISTANCES, further)

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """Training first; the neural memory's million words have their fixed time; the others are asked as far as the rest reaches."""
        learn, short = LEARN * budget_s, 0.15 * budget_s
        stream = STREAM_S * seeds * _diaries(budget_s, NEURAL, TEN_YEARS)
        return (
            Step("learn short diaries, each method alike", learn),
            Step("updates, deletions, and numbers of facts", short),
            Step("ask the neural memory after up to a million words", stream),
            Step("ask the other methods", max(0.0, budget_s - learn - short - stream)),
        )

    def run(self, ctx: Context) -> Result:
        """Measure."""
        from postformer.claims import remembering, tasks
        from postformer.recipes.memory import diaries

        whole = diaries()
        methods = (*METHODS, *(MORE if ctx.budget_s >= MORE_S else ()))
        ctx.step("the tokenizer", lambda: remembering.tokenizer(ctx).name)
        left = LEARN * ctx.budget_s - ctx.steps[-1]["seconds"]
        fitted = tasks.fitted(ctx, remembering.runs(ctx, whole, methods), left, SAMPLED)
        tasks.learn(ctx, fitted.values())
        readers = remembering.Readers(ctx, fitted)
        found = importlib.util.find_spec("bm25s") is not None
        kept = (*((remembering.BY_WORDS,) if found else ()), remembering.BY_MEANING)
        passages = {m: self._passages(readers, m) for m in kept}
        readers.retrieval |= passages
        asked = (*methods, *kept)
        evidence: dict[str, Any] = {
            "neural": NEURAL,
            "methods": asked,
            "reader": remembering.ANSWERS,
            "width": whole.model["dim"],
            "depth": whole.model["depth"],
            "taken": f"{fitted[NEURAL].train.steps:,} of the recipe's {whole.train.steps:,} steps",
            "learned": {m: self._learned(ctx, fitted[m], m) for m in methods},
            "writes": {m: self._writes(ctx, fitted[m], m) for m in methods if m in WRITING},
            "passages": passages,
            "changes": {m: self._changes(readers, m) for m in asked},
            "facts": {m: self._facts(readers, m) for m in asked},
        }
        evidence["distance"], evidence["late"] = self._distances(readers, asked)
        last = _judged(evidence["distance"][NEURAL], TEN_YEARS)
        return conclude(
            self,
            evidence,
            headline=Headline(
                page.right(last, ctx.seeds),
                f"of the first year's facts come back from the neural memory after {last['words']:,} words",
            ),
            tables=tables.tables(evidence),
            charts=page.charts(evidence),
            heats=page.heats(evidence, ctx.seeds),
            limits=page.limits(evidence, ctx),
            consequences=page.consequences(evidence),
        )

    def _passages(self, readers: Any, method: str) -> list[dict[str, Any]]:
        """The setting of retrieval for each distance and kind, chosen on diaries as long as those that are asked."""
        ctx = readers.ctx
        most = next(words for least_s, words in TRIED if ctx.budget_s >= least_s)
        wanted = [(words, "single", (0.0, FIRST_YEAR)) for words in self.distances if words <= most]
        wanted += [(CHANGE_WORDS, kind, (0.0, 1.0)) for kind in CHANGES]
        return [
            ctx.step(f"{method}: which passages of {w[0]:,} words, {w[1]}", lambda w=w: readers.choose(method, *w))
            for w in wanted
        ]

    def _learned(self, ctx: Context, run: Any, method: str) -> dict[str, Any]:
        from postformer.claims import remembering, tasks

        words = {"batch": 16, "first": remembering.ASKED_FROM, "kinds": ("single",), "fill": 0}
        length = run.data["length"]
        return ctx.step(f"{method}: {length:,} tokens", lambda: tasks.answers(ctx, run, length, ROWS, **words))

    def _writes(self, ctx: Context, run: Any, method: str) -> list[dict[str, Any]]:
        from postformer.claims import remembering

        return ctx.step(f"{method}: what is written", lambda: remembering.written(ctx, run, STORED, WRITTEN))

    def _changes(self, readers: Any, method: str) -> dict[str, Any]:
        from postformer.claims.remembering import recall

        def asked(kind: Any) -> Any:
            diaries = CHANGED // CHANGE_FACTS
            return recall(readers, method, words=CHANGE_WORDS, facts=CHANGE_FACTS, diaries=diaries, kind=kind)

        return {kind: readers.ctx.step(f"{method}: {kind}", lambda k=kind: asked(k)) for kind in CHANGES}

    def _facts(self, readers: Any, method: str) -> list[dict[str, Any]]:
        from postformer.claims.remembering import recall

        def asked(facts: int) -> Any:
            questions = _questions(readers.ctx.budget_s)
            return recall(readers, method, words=FACTS_WORDS, facts=facts, diaries=max(1, questions // facts))

        return [readers.ctx.step(f"{method}: {n} facts", lambda n=n: asked(n)) for n in FACTS]

    def _distances(self, readers: Any, methods: Sequence[str]) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
        """Of every method the shortest diary and of the neural memory all to ten years, others while they are expected to fit, and do; and
        which were given up, since they took longer than expected."""
        from postformer.claims import remembering
        from postformer.claims.remembering import recall

        ctx = readers.ctx

        def asked(method: str, words: int, within_s: Real) -> Any:
            told = {"facts": STORED, "span": (0.0, FIRST_YEAR), "timed": True, "within_s": within_s}
            return recall(readers, method, words=words, diaries=_diaries(ctx.budget_s, method, words), **told)

        found: dict[str, list[dict[str, Any]]] = {m: [] for m in methods}
        late: list[str] = []
        for place, words in enumerate(self.distances):
            for method in sorted(methods, key=lambda m: m == remembering.ANSWERS):  # whose cost grows most
                always = not place or (method == NEURAL and words <= TEN_YEARS)
                room = math.inf if always else _room_s(ctx, found, method, words) if len(found[method]) == place else 0.0
                if room:
                    saying = f"{method}: after {words:,} words"
                    cell = ctx.step(saying, lambda m=method, n=words, s=room: asked(m, n, s))
                    if cell is None:
                        late.append(f"{page.NAMES.get(method, method)} after {words:,} words")
                    else:
                        found[method].append(cell)
        return found, late


def _questions(budget_s: Real) -> int:
    """About how many questions of a cell are asked."""
    return QUESTIONS if budget_s >= SURE_S else FEWER


def _diaries(budget_s: Real, method: str, words: int) -> int:
    """How many diaries of so many words are read: enough for QUESTIONS, as far as READ reaches, and from SURE_S on by all but attention."""
    most = _questions(budget_s) // STORED
    sure = method != "attention" and words <= TEN_YEARS and budget_s >= SURE_S
    return most if sure else max(1, min(most, READ // words))


def _room_s(ctx: Context, found: Mapping[str, Sequence[dict[str, Any]]], method: str, words: int) -> Real:
    """Seconds that diaries of so many words may take: what is left of the budget, beside the neural memory's ten years if they are to come,
    but no more than LATE times what is expected, or LATE_S; 0 where it does not fit."""
    from postformer.claims.remembering import expected_s

    neural = found[NEURAL][-1]

    def taken_s(of: str, before: dict[str, Any], words: int) -> Real:
        return expected_s(of, before, words, len(ctx.seeds) * _diaries(ctx.budget_s, of, words))

    kept = taken_s(NEURAL, neural, TEN_YEARS) if method != NEURAL and neural["words"] < TEN_YEARS else 0.0
    expected, left = taken_s(method, found[method][-1], words), ctx.left_s - kept
    return min(max(LATE * expected, LATE_S), left) if expected <= left else 0.0


CLAIM = NeuralMemory()
