"""What is planted in a diary, drawn from its seed: statements in the order in which they are told, and questions about them."""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Literal

from postformer.data import world
from postformer.data.facts import LINKS, STRUCK, TOPICS, UNKNOWN, Relation, about
from postformer.data.world import pick

Kind = Literal["single", "updated", "combined", "deleted"]
STATEMENTS: dict[Kind, int] = {"single": 1, "updated": 2, "combined": 2, "deleted": 2}
"""How many statements a question takes."""
KINDS: tuple[Kind, ...] = tuple(STATEMENTS)
MOST_FACTS = 20_000
FEWEST_PEOPLE = 12
FACTS_A_PERSON = 4
GAP = "..."
"""What stands for the value in a statement that is asked for."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question; `facts` numbers the statements that it takes, the one that holds the answer last but for what is struck out."""

    kind: Kind
    text: str
    answer: str
    outdated: str
    """The value that was changed or struck out, else ""."""
    facts: tuple[int, ...]
    gap: str
    """The statement that holds the answer, with GAP in its place; "" for what was struck out."""

    def at(self, ends: Sequence[tuple[int, int]]) -> "Question":
        """The question at the end of a diary in which the statements stand so many words and entries back."""
        first = min(self.facts)
        between = len(ends) - 1 - first - (len(self.facts) - 1)
        words, entries = zip(*(ends[i] for i in self.facts), strict=True)
        return Question(self.kind, self.text, self.answer, self.outdated, self.facts, self.gap, words, entries, between)


@dataclasses.dataclass(frozen=True)
class Question(Asked):
    """A question at a diary's end, and how far back each of its statements was told."""

    words: tuple[int, ...]
    """From the end of each statement to the end of the diary."""
    entries: tuple[int, ...]
    """Entries that begin after each statement."""
    between: int
    """Other statements that come after the first of its own."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """People, the statements about them, each with its place as a share of the diary, in order, and the questions."""

    people: list[str]
    told: list[tuple[float, str]]
    asked: list[Asked]


@dataclasses.dataclass(frozen=True)
class _Draft:
    kind: Kind
    told: tuple[str, ...]
    asked: str
    answer: str
    outdated: str = ""
    gap: str = ""


def plan(
    rng: random.Random,
    count: int,
    kinds: Sequence[Kind],
    span: tuple[float, float],
    topics: Sequence[str] = TOPICS,
    plain: bool = False,
    reach: int | None = None,
) -> Plan:
    """At most `count` statements about the topics at places drawn evenly from `span`, and questions, each of a kind that is drawn evenly.

    All in plain wordings, in those of the reach, or in any. No two questions are about the same thing of the same person; a change or a
    deletion comes after what it is about.
    """
    relations = [r.plain if plain else r if reach is None else r.within(reach) for r in about(topics)]
    people = world.people(rng, max(FEWEST_PEOPLE, -(-count // min(FACTS_A_PERSON, len(relations)))))
    things = world.places(rng, len(people) * len(relations), count)
    links = iter(world.places(rng, len(people) * len(LINKS), min(len(people) * len(LINKS), 4 * count + 8)))
    drafts: list[_Draft] = []
    left = count
    while fitting := _fitting(kinds, left):
        kind = fitting[int(rng.random() * len(fitting))]
        left -= STATEMENTS[kind]
        person, relation = divmod(things[len(drafts)], len(relations))
        drafts.append(_draft(rng, kind, people, person, relations[relation], links))
    return _placed(rng, people, drafts, span)


def _fitting(kinds: Sequence[Kind], left: int) -> list[Kind]:
    return [kind for kind in kinds if STATEMENTS[kind] <= left]


def _draft(rng: random.Random, kind: Kind, people: list[str], person: int, relation: Relation, links: Iterator[int]) -> _Draft:
    who, value = people[person], pick(rng, relation.values)
    wording, asked = pick(rng, relation.told), pick(rng, relation.asked)
    told, gap = wording.format(w=who, v=value), wording.format(w=who, v=GAP)
    if kind == "updated":
        later = value
        while later == value:
            later = pick(rng, relation.values)
        changed = pick(rng, relation.changed)
        change, gap = changed.format(w=who, v=later), changed.format(w=who, v=GAP)
        return _Draft(kind, (told, change), asked.format(w=who), later, value, gap)
    if kind == "deleted":
        struck = pick(rng, STRUCK).format(t=relation.struck.format(w=who))
        return _Draft(kind, (told, struck[0].upper() + struck[1:]), asked.format(w=who), UNKNOWN, value)
    if kind == "combined":
        other, at = next(pair for link in links if (pair := divmod(link, len(LINKS)))[0] != person)
        hop = pick(rng, LINKS[at].told).format(w=people[other], x=who)
        return _Draft(kind, (hop, told), asked.format(w=f"the {LINKS[at].noun} of {people[other]}"), value, gap=gap)
    return _Draft(kind, (told,), asked.format(w=who), value, gap=gap)


def _placed(rng: random.Random, people: list[str], drafts: list[_Draft], span: tuple[float, float]) -> Plan:
    placed: list[tuple[float, int, int]] = []
    for number, draft in enumerate(drafts):
        shares = [span[0] + (span[1] - span[0]) * rng.random() for _ in draft.told]
        if draft.kind != "combined":
            shares.sort()
        placed += [(share, number, part) for part, share in enumerate(shares)]
    placed.sort()
    where = {(number, part): i for i, (_, number, part) in enumerate(placed)}
    asked = [
        Asked(d.kind, d.asked, d.answer, d.outdated, tuple(where[number, part] for part in range(len(d.told))), d.gap)
        for number, d in enumerate(drafts)
    ]
    return Plan(people, [(share, drafts[number].told[part]) for share, number, part in placed], asked)
