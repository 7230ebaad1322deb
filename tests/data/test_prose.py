"""Sentences against ones cut by hand; stretches of files that hold what they should and of each split its own."""

import json
import random
from itertools import islice, pairwise
from pathlib import Path

import pytest

from postformer.data import DataError
from postformer.data.prose import BLOCK, Prose, sentences_of, words_and_marks


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Dent met Dr. Prosser.  He\nleft.", ["Mr. Dent met Dr. Prosser.", "He left."]),
        ("J. R. Hartley wrote. It rained.", ["J. R. Hartley wrote.", "It rained."]),
        ("So said I. Then silence.", ["So said I.", "Then silence."]),
        ("“Go!” he said. “Now.” (Really.) She went.", ["“Go!” he said.", "“Now.”", "(Really.)", "She went."]),
        ("It cost 3.50 in all. 12 men came.", ["It cost 3.50 in all.", "12 men came."]),
        ("A title\n\nA text\nof two lines. Éva sang.", ["A title", "A text of two lines.", "Éva sang."]),
        ("well... and so on", ["well... and so on"]),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    assert sentences_of(text) == sentences


def test_words_and_marks():
    assert words_and_marks("“Well,” said he, “it is 3 now.”") == 14


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three books of numbered sentences, the last as JSONL, and what is no book."""
    for book in ("a", "b"):
        lines = (f"This is sentence {i} of the book {book}." for i in range(5000))
        (tmp_path / f"{book}.txt").write_text(" ".join(lines))
    rows = ({"text": f"Row {i} begins. It is of the book c and goes on. So much."} for i in range(50))
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "no row\n")
    (tmp_path / "LICENSE.md").write_text("A licence. It is long. It says much.")
    return tmp_path


def test_each_split_reads_its_own(folder: Path):
    text = Prose(folder)
    assert [part.path.name for part in text.parts("train")] == ["b.txt", "c.jsonl"]
    assert [part.path.name for part in text.parts("valid")] == ["a.txt"]
    assert len(text.parts()) == 3
    one = Prose(folder / "a.txt")
    (train,), (test,) = one.parts("train"), one.parts("test")
    assert (train.start, train.stop, test.stop) == (0, test.start, (folder / "a.txt").stat().st_size)
    read = {split: set(islice(one.sentences(random.Random(0), split), 20_000)) for split in ("train", "test")}
    assert not read["train"] & read["test"]
    assert len(read["train"]) > 3000
    assert len(read["test"]) > 400


def test_sentences_go_on_whole_from_a_random_place(folder: Path):
    assert (folder / "a.txt").stat().st_size > 2 * BLOCK
    found = list(islice(Prose(folder / "a.txt").sentences(random.Random(1)), 8000))
    assert all(s.startswith("This is sentence ") and s.endswith(" of the book a.") for s in found)
    numbers = [int(s.split()[3]) for s in found]
    jumps = sum(b != a + 1 for a, b in pairwise(numbers))
    assert 1 <= jumps < 20
    assert list(islice(Prose(folder / "a.txt").sentences(random.Random(1)), 8000)) == found


def test_rows_of_jsonl(folder: Path):
    found = set(islice(Prose(folder / "c.jsonl").sentences(random.Random(0)), 500))
    assert "It is of the book c and goes on." in found
    assert all(s in ("It is of the book c and goes on.", "So much.") or s.startswith("Row ") for s in found)


def test_short_sentences_are_left_out(folder: Path):
    found = set(islice(Prose(folder / "c.jsonl").sentences(random.Random(0), least=5), 200))
    assert found == {"It is of the book c and goes on."}


def test_a_file_that_ends_within_a_letter(tmp_path: Path):
    (tmp_path / "x.txt").write_bytes(("Für alle. " * 30_000).encode())
    assert set(islice(Prose(tmp_path / "x.txt").sentences(random.Random(0), "train"), 40_000)) == {"Für alle."}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.txt", None, r"missing\.txt: no such file or folder"),
        ("short.txt", "Too short. Really.", r"short\.txt: no sentence of 10 or more words and marks"),
        ("empty.txt", "", r"empty\.txt: no sentence"),
        ("folder/notes.md", "Words. " * 99, r"folder: no file in it that ends in \.txt or \.jsonl"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: str | None, says: str):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with pytest.raises(DataError, match=says):
        next(Prose(path.parent if path.suffix == ".md" else path).sentences(random.Random(0), least=10))
