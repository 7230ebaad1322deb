"""BABILong against what its authors' code does, step by step, on made-up stories and on the real files."""

import random
import re
from itertools import islice, pairwise
from pathlib import Path

import pytest

from postformer.data import Babilong, DataError
from postformer.data import babilong as module
from postformer.data.babilong import counted, read_babi, right, scattered
from postformer.data.prose import Prose, words_and_marks

STORY = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Mary went to the garden.
6 Where is Mary? \tgarden\t5
1 Sandra travelled to the office.
2 Where is Sandra? \toffice\t1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "babi").mkdir()
    for split in ("train", "test"):
        (tmp_path / "babi" / f"qa1_single-supporting-fact_{split}.txt").write_text(STORY)
    long = (f"The sentence with the number {i} has surely more than ten words and marks." for i in range(2000))
    (tmp_path / "book.txt").write_text(" Too short. ".join(long))
    return tmp_path


def make(folder: Path, **words) -> Babilong:
    return Babilong(babi=str(folder / "babi"), books=str(folder / "book.txt"), **words)


def read(task: Babilong, index: int, **words) -> str:
    return task.tokens.decode([i for piece in task.passage(index, **words).pieces for i in piece])


def test_each_question_is_a_sample_without_those_before_it(folder: Path):
    first, second, third = read_babi(next((folder / "babi").glob("*_test.txt")))
    assert first.facts == ("Mary moved to the bathroom.", "John went to the hallway.")
    assert second.facts == (*first.facts, "Daniel went back to the hallway.", "Mary went to the garden.")
    assert (second.question, second.answer, second.support) == ("Where is Mary?", "garden", (3,))
    assert third.facts == ("Sandra travelled to the office.",)
    assert (first.support, third.support) == ((0,), (0,))


def test_facts_keep_their_order_among_whole_sentences(folder: Path):
    task = make(folder, length=2000)
    seen = set()
    for index in range(60):
        passage, text = task.passage(index), read(task, index)
        facts, gaps = passage.about["facts"], passage.about["gaps"]
        places = [text.index(fact) for fact in facts]
        assert places == sorted(places)
        assert gaps == sorted(gaps)
        assert 0 <= gaps[0] <= gaps[-1] <= passage.about["sentences"]
        body, _, asked = text.partition("\nQuestion: ")
        assert asked == f"{passage.question}\nAnswer:"
        for fact in facts:
            assert body.count(fact) == 1
            body = body.replace(f" {fact}", "")
        whole = re.findall(r"The sentence with the number (\d+) has surely more than ten words and marks\.", body)
        assert len(whole) >= passage.about["sentences"] - 1  # the last one may be cut
        assert "Too short" not in body
        numbers = list(map(int, whole))
        assert all(b == a + 1 or b < 2000 for a, b in pairwise(numbers))
        seen.add(passage.about["facts"])
    assert len(seen) == 3


def test_every_gap_is_as_likely(folder: Path):
    task = make(folder, length=1000)
    gaps = [gap / passage.about["sentences"] for passage in map(task.passage, range(300)) for gap in passage.about["gaps"]]
    assert 0.45 < sum(gaps) / len(gaps) < 0.55
    assert min(gaps) == 0
    assert max(gaps) == 1


def test_samples_of_too_many_lines_are_dropped(folder: Path):
    lines = [f"{i} Mary moved to hall {i}." for i in range(1, 41)]
    (folder / "babi" / "qa1_single-supporting-fact_test.txt").write_text(
        "\n".join([*lines, "41 Where is Mary? \thall 40\t40\n"]) + STORY
    )
    assert {len(make(folder, length=1300).passage(i).about["facts"]) for i in range(60)} == {1, 2, 4, 40}
    assert {len(make(folder, length=320).passage(i).about["facts"]) for i in range(60)} == {1, 2, 4}


def test_long_backgrounds_are_read_twice_and_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch):
    short = [read(make(folder, length=5000), i) for i in range(3)]
    monkeypatch.setattr(module, "HELD", 100)
    assert [read(make(folder, length=5000), i) for i in range(3)] == short


def test_counted():
    count, pieces = counted(lambda: iter([[1], [2, 3], [4]]))
    assert (count, list(pieces)) == (3, [[1], [2, 3], [4]])


def test_scattered():
    woven = list(scattered(iter([[1], [2]]), [[7], [8], [9]], [0, 2, 2]))
    assert [i for piece in woven for i in piece] == [7, 1, 2, 8, 9]
    assert [i for piece in scattered(iter([]), [[7], [8]], [0, 0]) for i in piece] == [7, 8]


@pytest.mark.parametrize(
    ("output", "is_right"),
    [
        (" garden", True),
        ("The most recent location of Mary is GARDEN. Not the office.", True),
        ("She is in the office. No, in the garden.", False),
        ("office <context> garden", False),
        ("", False),
    ],
)
def test_the_score_is_the_published_one(output, is_right):
    assert right("garden", output) is is_right


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("1 Mary moved.\nhello\n", r"test\.txt:2: not a line of bAbI's, such as '1 Mary moved"),
        ("1 Mary moved.\n", r"test\.txt: no question in it"),
    ],
)
def test_files_that_are_not_babis(folder: Path, content: str, says: str):
    (folder / "babi" / "qa1_single-supporting-fact_test.txt").write_text(content)
    with pytest.raises(DataError, match=says):
        make(folder).passage(0)


def test_what_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("POSTFORMER_DATA", raising=False)
    with pytest.raises(
        DataError, match=r"babi: not found; give data.babi, or set POSTFORMER_DATA to a folder with babi/ in it"
    ):
        Babilong().passage(0)
    with pytest.raises(DataError, match=r"books: not found; give data.books"):
        Babilong(babi=str(folder / "babi")).passage(0)
    with pytest.raises(DataError, match=r"babi: no file qa2_\*_test.txt, which data.task=2 reads"):
        make(folder, task=2).passage(0)


# ---------------------------------------------------------------- the real files


@pytest.mark.parametrize(("task", "most"), [(1, 10), (2, 88), (4, 2), (5, 126), (9, 10)])
def test_the_real_tasks(data_folder: Path, monkeypatch: pytest.MonkeyPatch, task: int, most: int):
    monkeypatch.setenv("POSTFORMER_DATA", str(data_folder))
    samples = {split: Babilong(task=task).samples(split) for split in ("train", "test")}
    assert {split: len(found) for split, found in samples.items()} == {"train": 10_000, "test": 1_000}
    assert max(len(sample.facts) for found in samples.values() for sample in found) <= most
    for sample in islice(samples["test"], 200):
        assert sample.support
        assert sample.question.endswith("?")
    batch = Babilong(task=task, length=2048).batches(2, 0).batch(0)
    assert batch["ids"].shape == (2, 2048)


def test_the_real_books_have_long_sentences(data_folder: Path):
    text = Prose(data_folder / "books")
    for split in ("train", "test"):
        found = list(islice(text.sentences(random.Random(0), split, 10), 2000))
        assert min(map(words_and_marks, found)) >= 10
        assert 15 < sum(map(words_and_marks, found)) / 2000 < 45
