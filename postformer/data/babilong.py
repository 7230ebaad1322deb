"""BABILong (Kuratov et al. 2024, arXiv 2406.10149): the facts of a bAbI task (Weston et al. 2015) scattered in a book, and a question.

As published (the authors' `babilong_utils.py`): each question of a story is a sample of its own, without the questions before it;
samples of more than length / 8 lines are dropped; background sentences come from books, from a random place of a random one on,
without those under 10 tokens, until the length is full, the last one cut; each fact falls into a gap between them that is drawn
evenly, and the gaps are sorted, so that the facts keep their order. Training reads `qaN_train.txt`, tests read `qaN_test.txt`, and
different books. An answer is right when the target is in the first sentence of what was written.

What differs:
- Sentences are split by rules of our own (`prose.py`) where the authors take NLTK's Punkt.
- A sentence's tokens are counted as its words and marks, not by GPT-2's tokenizer, so that the text is the same for every tokenizer.
- The books are those in POSTFORMER_DATA, or yours, not PG19's test split; see `Prose` for which are kept for tests.
- `length` counts the question and the answer too, where the authors leave 300 tokens aside for a prompt; ours has no examples in it,
  only "Question:" and "Answer:", and an end token after the answer.
- Samples are drawn with the seed, not taken in order; one that does not fit the length is drawn again.
- The published loader leaves out the last sample of a file; ours does not.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from postformer.data.prose import Prose, data_folder
from postformer.data.reading import Passage, Reading, asking
from postformer.data.sources import DataError, readable
from postformer.files import sha256_file

LEAST = 10
"""Words and marks of the shortest background sentence."""
LINES = 8
"""A sample of one line for so many tokens, or more lines, is dropped."""
HELD = 1 << 20
"""Tokens of background that are kept; a longer one is read twice, so that memory does not grow with it."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A question with the facts that stand before it; `support` numbers those that answer it."""

    facts: tuple[str, ...]
    question: str
    answer: str
    support: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Babilong(Reading):
    """One task of BABILong, `task` = 1 to 20.

    `babi` is the folder of bAbI's files (en-10k), `books` a file or a folder of books; without them POSTFORMER_DATA has both.
    """

    task: int = 1
    babi: str | None = None
    books: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.task <= 20:
            raise ValueError(f"task: expected 1 to 20, got {self.task}")

    def files(self) -> str:
        with readable(self._folder):
            facts = (sha256_file(path) for path in sorted(self._folder.glob(f"qa{self.task}_*.txt")))
            return " ".join([*facts, self._prose.digest])

    def wordings(self) -> Iterator[str]:
        return (sample.question for split in ("train", "test") for sample in self.samples(split))

    def compose(self, rng: random.Random, length: int, split: str) -> Passage | None:
        samples = self.samples(split)
        sample = samples[int(rng.random() * len(samples))]
        facts = [self.tokens.encode(f" {fact}") for fact in sample.facts]
        asked, answer = self.tokens.encode(asking(sample.question)), self._answer(sample.answer)
        room = length - sum(map(len, facts)) - len(asked) - len(answer)
        if room < 0 or len(facts) + 1 > length // LINES:
            return None
        seed = f"{rng.random()}"

        def background() -> Iterator[list[int]]:
            return self._background(random.Random(seed), split, room)

        count, pieces = counted(background)
        gaps = sorted(int(rng.random() * (count + 1)) for _ in facts)
        text = scattered(pieces, facts, gaps)
        about = {"task": self.task, "facts": sample.facts, "support": sample.support, "gaps": gaps, "sentences": count}
        return Passage(chain(text, [asked]), answer, sample.question, sample.answer, about)

    def samples(self, split: str = "test") -> list[Sample]:
        """Every question of the split's file. Raises DataError when it is missing or is no bAbI file."""
        return self._train if split == "train" else self._test

    @functools.cached_property
    def _train(self) -> list[Sample]:
        return read_babi(self._file("train"))

    @functools.cached_property
    def _test(self) -> list[Sample]:
        return read_babi(self._file("test"))

    @functools.cached_property
    def _prose(self) -> Prose:
        return Prose(_given(self.books, "books", "books"))

    @functools.cached_property
    def _folder(self) -> Path:
        folder = _given(self.babi, "babi", "babi")
        return folder / "en-10k" if (folder / "en-10k").is_dir() else folder

    def _file(self, split: str) -> Path:
        found = sorted(self._folder.glob(f"qa{self.task}_*_{split}.txt"))
        if not found:
            raise DataError(f"{self._folder}: no file qa{self.task}_*_{split}.txt, which data.task={self.task} reads")
        return found[0]

    def _background(self, rng: random.Random, split: str, room: int) -> Iterator[list[int]]:
        for sentence in self._prose.sentences(rng, split, LEAST):
            if room <= 0:
                return
            ids = self.tokens.encode(f" {sentence}")[:room]
            room -= len(ids)
            yield ids


def _given(path: str | None, name: str, keyword: str) -> Path:
    found = Path(path) if path else data_folder(name)
    if found is None or not found.exists():
        raise DataError(
            f"{path or name}: not found; give data.{keyword}, or set POSTFORMER_DATA to a folder with {name}/ in it"
        )
    return found


def read_babi(path: Path) -> list[Sample]:
    """The questions of a bAbI file, each with all facts that stand before it in its story. Raises DataError that names the line."""
    samples: list[Sample] = []
    facts: dict[str, str] = {}
    with readable(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        label, space, text = line.partition(" ")
        if not space or not label.isdecimal():
            raise DataError(f"{path}:{number}: not a line of bAbI's, such as '1 Mary moved to the bathroom.'")
        if label == "1":
            facts = {}
        question, tab, rest = text.partition("\t")
        if not tab:
            facts[label] = text.strip()
            continue
        answer, _, support = rest.partition("\t")
        order = list(facts)
        numbers = tuple(order.index(n) for n in support.split() if n in facts)
        samples.append(Sample(tuple(facts.values()), question.strip(), answer.strip(), numbers))
    if not samples:
        raise DataError(f"{path}: no question in it")
    return samples


def counted(make: Callable[[], Iterator[list[int]]]) -> tuple[int, Iterator[list[int]]]:
    """How many pieces there are, and the pieces: kept while they are few, else made a second time."""
    count = held = 0
    kept: list[list[int]] = []
    for piece in make():
        count, held = count + 1, held + len(piece)
        if held <= HELD:
            kept.append(piece)
        else:
            kept.clear()
    return count, iter(kept) if held <= HELD else make()


def scattered(pieces: Iterator[list[int]], facts: Sequence[list[int]], gaps: Sequence[int]) -> Iterator[list[int]]:
    """The pieces, with each fact before the one that its gap numbers; gaps are in order."""
    at = 0
    for number, piece in enumerate(chain(pieces, [[]])):
        while at < len(facts) and gaps[at] == number:
            yield facts[at]
            at += 1
        yield piece


def right(target: str, output: str) -> bool:
    """Whether what a model wrote is right, as BABILong scores it: the target is in the first sentence, whatever the case."""
    first = output.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    return target.lower() in first
