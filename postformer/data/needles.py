"""One needle in a haystack: RULER's single NIAH tasks (Hsieh et al. 2024, arXiv 2404.06654, section 3.1 and appendix B).

| needle | the value to be found | the haystack | RULER's name | Titans, table 2 |
|---|---|---|---|---|
| `passkey` | a number of 7 digits | five short sentences, again and again | niah_single_1 | S-NIAH-PK |
| `number` | a number of 7 digits | running text | niah_single_2 | S-NIAH-N |
| `word` | an adjective and a noun | running text | no single task: its "words" as values | S-NIAH-W |
| `uuid` | a UUID of 36 characters | running text | niah_single_3 | |

The key is an adjective and a noun. Instruction, needle and question are worded as RULER words them for one needle, and the answer ends
the sentence that RULER begins. What differs: the running text is a book or small talk where RULER has Paul Graham's essays; keys
come from lists of our own; the depth is uniform where RULER takes one of 40 even ones; the length is met exactly, by cutting the
haystack's last sentence, where RULER stays below it and keeps 128 tokens for the answer.
"""

import dataclasses
import functools
import random
import re
import uuid
from collections.abc import Iterator
from itertools import chain, cycle, repeat
from typing import Literal, get_args

from postformer.data import world
from postformer.data.prose import Prose, data_folder
from postformer.data.reading import FILLER, Passage, Reading, prose, weave
from postformer.data.smalltalk import smalltalk
from postformer.data.sources import DataError
from postformer.data.world import pick, words

QUESTION = "What is the special magic {kind} for {key} mentioned in the provided text?"
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ADJECTIVES = words("""
able ample brave brief bright broad calm clean clear clever close cold cool curly damp dark deep eager early easy even fair
false famous fast fierce fine firm flat fond fresh full gentle glad grand great happy hard heavy hollow honest huge humble icy
idle jolly keen kind large late lazy lean light little lively lone long loud loyal lucky mean mellow merry mild modest narrow
neat noble odd old pale patient plain polite proud quick quiet rapid rare ready rich ripe rough round rude safe sharp short shy
silent simple slim slow small smart smooth soft solid sore sour spare steady steep still strange strict strong sturdy sudden
sweet swift tall tame tender thick thin tidy tiny tough vague vast warm weak wet whole wide wild wise young
""")
NOUNS = [word for word in (*world.THINGS, *world.JOBS, *world.INSTRUMENTS) if word.isalpha()]

Needle = Literal["passkey", "number", "word", "uuid", "mixed"]
Wording = Literal["ruler", "short"]
MIXED = ("passkey", "number", "word")
VALUES = {"passkey": "number", "number": "number", "word": "word", "uuid": "uuid"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needles(Reading):
    """A needle at a random depth of the haystack, or at `depth`, a share of it; `mixed` draws a pass-key, number or word for each text.

    `text` is the running text: a file or folder; without it the books in POSTFORMER_DATA, and where there are none small talk that is
    generated. With `wording="short"` the instruction is left out and the question is short, for short lengths.
    """

    needle: Needle = "passkey"
    text: str | None = None
    depth: float | None = None
    wording: Wording = "ruler"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("needle", Needle), ("wording", Wording)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name}: {getattr(self, name)!r} is not a choice; choose from {', '.join(get_args(choices))}")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"depth: expected a share from 0 to 1, got {self.depth}")
        if self.needle == "passkey" and self.text is not None:
            raise ValueError("text: a passkey lies in five sentences that repeat; leave it out, or choose number, word or uuid")

    def files(self) -> str:
        return self._prose.digest if self._prose else ""

    def asked(self, question: str) -> str:
        question = self.checked(question)
        for kind in self._kinds:
            if found := re.fullmatch(QUESTION.format(kind=kind, key="(.+)").replace("?", r"\?"), question):
                break
        else:
            raise DataError(f"a question about a needle is worded '{QUESTION.format(kind=self._kinds[0], key='KEY')}'")
        if self.wording == "ruler":
            return f"\n{question} The special magic {kind} for {found[1]} mentioned in the provided text is"
        return f"\nThe special magic {kind} for {found[1]} is:"

    def wordings(self) -> Iterator[str]:
        yield from (QUESTION.format(kind=kind, key="") for kind in self._kinds)
        yield from (f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS)

    def compose(self, rng: random.Random, length: int, split: str) -> Passage | None:
        needle_kind = pick(rng, MIXED) if self.needle == "mixed" else self.needle
        key, value, kind = word(rng), _value(rng, needle_kind), VALUES[needle_kind]
        encode, separator = self.tokens.encode, "\n" if needle_kind == "passkey" else " "
        needle = encode(f"{separator}One of the special magic {kind}s for {key} is: {value}.")
        question = QUESTION.format(kind=kind, key=key)
        if self.wording == "ruler":
            head = encode(
                f"A special magic {kind} is hidden within the following text. Make sure to memorize it. "
                f"I will quiz you about the {kind} afterwards."
            )
        else:
            head = []
        asked = encode(self.asked(question))
        answer = self._answer(value)
        room = length - len(head) - len(needle) - len(asked) - len(answer)
        if room < 0:
            return None
        depth = rng.random() if self.depth is None else self.depth
        straw = weave(self._haystack(rng, split, needle_kind), [(depth * room, needle)], room)
        pieces = chain([head], (piece for piece, _ in straw), [asked])
        return Passage(pieces, answer, question, value, {"needle": needle_kind, "key": key, "depth": depth})

    @property
    def _kinds(self) -> list[str]:
        """What values are called."""
        return list(dict.fromkeys(VALUES[n] for n in (MIXED if self.needle == "mixed" else (self.needle,))))

    @functools.cached_property
    def _prose(self) -> Prose | None:
        found = None if self.text or self.needle == "passkey" else data_folder("books")
        return prose(self.text) or (Prose(found) if found else None)

    def _haystack(self, rng: random.Random, split: str, needle: str) -> Iterator[tuple[list[int], int]]:
        if needle == "passkey":
            return zip(cycle([self.tokens.encode(f"\n{NOISE}")]), repeat(FILLER))
        text = self._prose.sentences(rng, split) if self._prose else smalltalk(rng, world.people(rng, 40))
        return ((self.tokens.encode(f" {sentence}"), FILLER) for sentence in text)


def word(rng: random.Random) -> str:
    """An adjective and a noun."""
    return f"{pick(rng, ADJECTIVES)}-{pick(rng, NOUNS)}"


def _value(rng: random.Random, needle: str) -> str:
    if needle == "uuid":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return word(rng) if needle == "word" else str(10**6 + int(rng.random() * 9 * 10**6))
