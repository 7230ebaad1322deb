"""Diaries of any length about a small world, with questions whose answers were told at known distances.

A diary is written entry by entry and never held: what grows are the planted facts alone. Each question has a kind:

| kind | what stands in the diary | the answer |
|---|---|---|
| `single` | a fact | its value |
| `updated` | a fact, and later its change | the later value |
| `combined` | who someone is to a person, and a fact about that someone, in any order | the fact's value |
| `deleted` | a fact, and later the wish to strike it out | "unknown" |

The kinds follow bAbI (Weston et al. 2015, arXiv 1502.05698) and, for changes and what is no longer known, LongMemEval (Wu et al. 2024,
arXiv 2410.10813); people, facts and wordings are our own. Facts and small talk share their words and their people.
"""

import collections
import dataclasses
import datetime
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from postformer.data.facts import LINKS, TOPICS, about
from postformer.data.prose import PEPYS_FILE, Prose, data_folder
from postformer.data.reading import FILLER, Passage, Piece, Reading, asking, weave
from postformer.data.smalltalk import smalltalk
from postformer.data.sources import DataError
from postformer.data.statements import KINDS, MOST_FACTS, Asked, Kind, Plan, Question, plan
from postformer.data.task import SPLITS
from postformer.data.world import FAMILY, GIVEN, MONTHS, places

PEPYS = "pepys"
"""The text that stands for Pepys' diary in POSTFORMER_DATA."""
HEADING = -2
"""The label of a piece that begins an entry."""
FIRST_DAY = datetime.date(2015, 1, 1)
SENTENCES = (4, 16)
"""How many sentences of small talk an entry has: from, and below."""
MOST_YEARS = 1000

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry: its text begins with the date, `words` counts all of it, `facts` numbers the statements in it."""

    date: datetime.date
    text: str
    words: int
    facts: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diary:
    """A diary of `words` words over so many years, with `facts` statements planted in it. The same for the same values.

    `text` is what stands between them: small talk by default, "pepys" for Pepys' diary in POSTFORMER_DATA, else the path of a text, of
    which `split` is drawn ("train", "valid" or "test" as `Prose` says; None: all of it).
    The statements are told at places drawn evenly from `span`, shares of the diary: (0, 0.1) for the first year of ten. No more than
    `facts` are told, one less where the last question would need two. `topics` are what they are about; with a `reach` they are told in
    wordings in which the value follows the person after at most so many words, or in those in which it does so soonest.
    """

    words: int = 100_000
    facts: int = 100
    years: float = 10.0
    seed: int = 0
    text: str | None = None
    split: str | None = None
    kinds: tuple[Kind, ...] = KINDS
    topics: tuple[str, ...] = TOPICS
    reach: int | None = None
    span: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check(self.facts, self.years, self.kinds, self.span, self.topics, self.reach)
        if self.split not in (None, *SPLITS):
            raise ValueError(f"split: unknown {self.split!r}; choose from {', '.join(SPLITS)}")
        if (least := 8 + sum(len(text.split()) for _, text in self.plan.told)) > self.words:
            raise ValueError(f"words: {self.facts:,} facts need {least:,} words, got {self.words:,}")

    @functools.cached_property
    def plan(self) -> Plan:
        """What is told, and what is asked."""
        return plan(random.Random(f"{self.seed} plan"), self.facts, self.kinds, self.span, self.topics, reach=self.reach)

    def entries(self) -> Iterator[Entry]:
        """The entries in order, written as they are asked for."""
        rng = random.Random(f"{self.seed} entries")
        talk = sentences(self.text, rng, self.plan.people, self.split)
        ends = [(0, 0)] * len(self.plan.told)
        held: list[str] = []
        told: list[int] = []
        read = begun = 0
        for piece, label in written(self.plan, talk, str.split, self.words, self.years, rng):
            if label == HEADING and held:
                yield _entry(held, told)
                held, told = [], []
            held += piece
            read += len(piece)
            begun += label == HEADING
            if label >= 0:
                ends[label] = read, begun
                told.append(label)
        self.__dict__["_back"] = [(read - words, begun - entries) for words, entries in ends]
        yield _entry(held, told)

    def questions(self) -> list[Question]:
        """What can be asked at the end of the diary, which is written once for it if `entries` has not come to its end before."""
        return [asked.at(self._back) for asked in self.plan.asked]

    @functools.cached_property
    def _back(self) -> list[tuple[int, int]]:
        """How many words and entries stand after each statement; `entries` puts it here at its end."""
        collections.deque(self.entries(), maxlen=0)
        return self.__dict__["_back"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diaries(Reading):
    """Short diaries as a run's data, each with one of its questions: `length` tokens in all.

    A diary has `facts` statements, or between `fewest` and so many, as far as they fit; the other words are those of `Diary`. A
    file or folder of text keeps a part for the valid and test splits, as `Prose` says. In training between one and `questions` of its
    questions are asked one after another, as far as there are so many and they fit; the share `gaps` of them is the statement itself
    with a gap, and texts of up to `plain` tokens tell and ask each thing in one wording, in which the value soon follows the person.
    """

    facts: int = 4
    fewest: int | None = None
    questions: int = 1
    gaps: float = 0.0
    plain: int = 0
    years: float = 10.0
    text: str | None = None
    kinds: tuple[Kind, ...] = KINDS
    topics: tuple[str, ...] = TOPICS
    reach: int | None = None
    span: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.facts, self.years, self.kinds, self.span, self.topics, self.reach)
        if not 1 <= self._fewest <= self.facts:
            raise ValueError(f"fewest: expected 1 to {self.facts}, the facts, got {self.fewest}")
        if self._fewest == 1 and "single" not in self.kinds:
            raise ValueError("fewest: expected 2 or more, which the kinds other than single take")
        if self.questions < 1:
            raise ValueError(f"questions: expected 1 or more, got {self.questions}")
        if not 0 <= self.gaps <= 1:
            raise ValueError(f"gaps: expected a share from 0 to 1, got {self.gaps}")
        if self.plain < 0:
            raise ValueError(f"plain: expected 0 or more tokens, got {self.plain}")

    @property
    def _fewest(self) -> int:
        return self.facts if self.fewest is None else self.fewest

    def files(self) -> str:
        return source(self.text).digest if self.text else ""

    def wordings(self) -> Iterator[str]:
        yield from (question.format(w="") for relation in about(self.topics) for question in relation.asked)
        yield from (f"the {link.noun} of" for link in LINKS)
        yield from (*GIVEN, *FAMILY)

    def sort(self, question: str) -> str:
        """Whether two statements must be combined. What was changed or struck out a question does not tell."""
        return "combined" if any(f"the {link.noun} of" in question for link in LINKS) else "direct"

    def compose(self, rng: random.Random, length: int, split: str) -> Passage | None:
        training = split == "train"
        count = self._fewest + int(rng.random() * (self.facts - self._fewest + 1))
        told = plan(rng, count, self.kinds, self.span, self.topics, training and length <= self.plain, self.reach)
        wanted = told.asked[int(rng.random() * len(told.asked))]
        asked, answer = self._asked(rng, wanted, training), self._answer(wanted.answer)
        needed = sum(len(self.tokens.encode(f" {text}")) for _, text in told.told)
        room = length - len(asked) - len(answer)
        spare = room - needed - 2 * len(self.tokens.encode(_heading(FIRST_DAY)))
        if spare < 0:
            return None
        before = self._before(rng, told, wanted, spare) if training and self.questions > 1 else []
        talk = sentences(self.text, rng, told.people, split)
        text = written(told, talk, self.tokens.encode, room - sum(map(len, before)), self.years, rng)
        known = {"kind": wanted.kind, "outdated": wanted.outdated, "told": [told.told[i] for i in wanted.facts]}
        return Passage(chain((piece for piece, _ in text), before, [asked]), answer, wanted.text, wanted.answer, known)

    def _asked(self, rng: random.Random, asked: Asked, training: bool) -> list[int]:
        """The question's ids, in training sometimes those of the statement with a gap."""
        gap = training and self.gaps > 0 and asked.gap and rng.random() < self.gaps
        return self.tokens.encode(asking(asked.gap if gap else asked.text))

    def _before(self, rng: random.Random, told: Plan, wanted: Asked, spare: int) -> list[Sequence[int]]:
        """Other questions, in random order, and their answers: fewer than `questions`, as far as they fit into so many tokens."""
        others = [asked for asked in told.asked if asked is not wanted]
        found: list[Sequence[int]] = []
        for i in places(rng, len(others), min(len(others), int(rng.random() * self.questions))):
            more = [self._asked(rng, others[i], True), self._answer(others[i].answer)]
            spare -= sum(map(len, more))
            if spare < 0:
                break
            found += more
        return found


def check(
    facts: int, years: float, kinds: Sequence[Kind], span: tuple[float, float], topics: Sequence[str], reach: int | None
) -> None:
    """Raise ValueError for what cannot be."""
    least = 1 if "single" in kinds else 2
    if not kinds:
        raise ValueError(f"kinds: expected one or more of {', '.join(KINDS)}")
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds: unknown {wrong[0]!r}; choose from {', '.join(KINDS)}")
    if not topics:
        raise ValueError(f"topics: expected one or more of {', '.join(TOPICS)}")
    if wrong := [topic for topic in topics if topic not in TOPICS]:
        raise ValueError(f"topics: unknown {wrong[0]!r}; choose from {', '.join(TOPICS)}")
    if reach is not None and reach < 0:
        raise ValueError(f"reach: expected 0 or more words, got {reach}")
    most = min(MOST_FACTS, len(set(topics)) * len(GIVEN) * len(FAMILY))
    if not least <= facts <= most:
        raise ValueError(f"facts: expected {least} to {most:,}, got {facts:,}")
    if not 0 < years <= MOST_YEARS:
        raise ValueError(f"years: expected a number above 0, at most {MOST_YEARS}, got {years}")
    if not 0 <= span[0] < span[1] <= 1:
        raise ValueError(f"span: expected two shares from 0 to 1 in order, got {span[0]} and {span[1]}")


# ---------------------------------------------------------------- the writing


def source(text: str) -> Prose:
    """The text that is named. Raises DataError when it is not there."""
    if text != PEPYS:
        return Prose(Path(text))
    if found := data_folder(PEPYS_FILE):
        return Prose(found)
    raise DataError(
        "text: Pepys' diary is not there; set POSTFORMER_DATA to a folder with pepys/pepys.jsonl in it, or give a path"
    )


def sentences(text: str | None, rng: random.Random, people: Sequence[str], split: str | None = None) -> Iterator[str]:
    """What stands between the facts, without end."""
    return source(text).sentences(rng, split) if text else smalltalk(rng, people)


def written(
    told: Plan, talk: Iterator[str], encode: Callable[[str], Sequence[T]], total: int, years: float, rng: random.Random
) -> Iterator[Piece[T]]:
    """A diary of `total` words or tokens in pieces: headings, sentences, and the statements under their numbers."""
    statements = [encode(f" {text}") for _, text in told.told]
    room = total - sum(map(len, statements))
    first = float(len(encode(_heading(FIRST_DAY))))
    where = (max(first, share * room) for share, _ in told.told)
    filler = _entries(talk, encode, room, years, rng)
    yield from weave(filler, list(zip(where, statements, strict=True)), room)


def _entries(
    talk: Iterator[str], encode: Callable[[str], Sequence[T]], room: int, years: float, rng: random.Random
) -> Iterator[Piece[T]]:
    """Headings and sentences without end. The date goes on with the text; no entry begins where its heading has no room."""
    done = 0
    while True:
        heading = encode(_heading(FIRST_DAY + datetime.timedelta(days=int(min(1.0, done / room) * (years * 365.25 - 1)))))
        if len(heading) <= room - done or not done:
            yield heading, HEADING
            done += len(heading)
        for _ in range(SENTENCES[0] + int(rng.random() * (SENTENCES[1] - SENTENCES[0]))):
            sentence = encode(f" {next(talk)}")
            yield sentence, FILLER
            done += len(sentence)


def _heading(day: datetime.date) -> str:
    return f"\n\n{day.day} {MONTHS[day.month - 1]} {day.year}."


def _entry(words: list[str], told: list[int]) -> Entry:
    day, month, year = words[:3]
    return Entry(datetime.date(int(year[:-1]), MONTHS.index(month) + 1, int(day)), " ".join(words), len(words), tuple(told))
