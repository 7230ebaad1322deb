"""Needles read back from the text: where they lie, what they are, and that the answer stands nowhere else."""

import re
import tracemalloc
import uuid
from pathlib import Path

import numpy as np
import pytest

from postformer.data import Needles
from postformer.data.needles import ADJECTIVES, NOISE, NOUNS
from postformer.tokens.text import BPE

KINDS = ("passkey", "number", "word", "uuid")


@pytest.fixture(autouse=True)
def without_books(monkeypatch: pytest.MonkeyPatch):
    """The haystack is small talk where a test names no other."""
    monkeypatch.delenv("POSTFORMER_DATA", raising=False)


def read(task: Needles, index: int = 0, **words) -> tuple[str, str]:
    """The text that is read, and the answer."""
    passage = task.passage(index, **words)
    return task.tokens.decode([i for piece in passage.pieces for i in piece]), passage.answer


@pytest.mark.parametrize("kind", KINDS)
def test_the_wording_is_rulers(kind):
    noun = "number" if kind == "passkey" else kind
    for index in range(20):
        text, answer = read(Needles(needle=kind, length=1500), index)
        head = f"A special magic {noun} is hidden within the following text. Make sure to memorize it. I will quiz you about the {noun} "
        assert text.startswith(f"{head}afterwards.")
        found = re.findall(rf"One of the special magic {noun}s for ([a-z]+-[a-z]+) is: (\S+)\.(?:\s|$)", text)
        assert len(found) == 1
        key, value = found[0]
        assert value == answer
        assert text.count(answer) == 1
        asked = f"What is the special magic {noun} for {key} mentioned in the provided text?"
        assert text.endswith(f"\n{asked} The special magic {noun} for {key} mentioned in the provided text is")
        assert len(text) + 1 + len(answer) + 1 == 1500


def test_what_the_values_are():
    values = {kind: [read(Needles(needle=kind), i)[1] for i in range(200)] for kind in KINDS}
    assert all(re.fullmatch("[1-9][0-9]{6}", value) for kind in ("passkey", "number") for value in values[kind])
    assert all(str(uuid.UUID(value, version=4)) == value for value in values["uuid"])
    assert all(a in ADJECTIVES and b in NOUNS for a, b in (value.split("-") for value in values["word"]))
    assert all(len(set(v)) > 190 for v in values.values())
    assert len(ADJECTIVES) > 100
    assert len(NOUNS) > 100


def test_the_haystack_of_a_passkey_is_noise():
    text, _ = read(Needles(length=3000))
    lines = text.split("\n")[1:-1]
    straw = [line for line in lines if not line.startswith("One of")]
    assert len(lines) == len(straw) + 1
    assert set(straw[:-1]) == {NOISE}
    assert NOISE.startswith(straw[-1])


def test_the_depth_is_uniform_or_as_told():
    depths = []
    for index in range(400):
        text, answer = read(Needles(length=4000), index)
        depths.append(text.index(answer) / 4000)
    counts = np.histogram(depths, 5, (0, 1))[0]
    assert abs(counts - 80).max() < 40  # five standard deviations
    for depth in (0.0, 0.5, 1.0):
        text, answer = read(Needles(length=20_000, needle="number", depth=depth))
        assert abs(text.index(answer) / 20_000 - depth) < 0.03


def test_the_running_text_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "x.txt").write_text("Nothing but this line stands in the book. " * 500)
    monkeypatch.setenv("POSTFORMER_DATA", str(tmp_path))
    (tmp_path / "mine.txt").write_text("My own text has only this to say. " * 500)
    assert read(Needles(needle="number"))[0].count("Nothing but this line stands") > 5
    text = read(Needles(needle="number", text=str(tmp_path / "mine.txt")))[0]
    assert text.count("My own text has only this to say.") > 5
    assert "Nothing but" not in text
    assert "Nothing but" not in read(Needles())[0]


def test_short_wording():
    text, answer = read(Needles(length=256, wording="short"))
    assert text.startswith("\n")
    assert re.search(r"\nThe special magic number for [a-z-]+ is:$", text)
    assert text.count(answer) == 1


def test_lengths_are_in_tokens(tmp_path: Path):
    tokens = BPE.train([NOISE * 9, "One of the special magic numbers is 1234567"], 330)
    tokens.save(tmp_path)
    task = Needles(length=600, tokenizer=str(tmp_path), needle="number")
    passage = task.passage(0)
    assert sum(map(len, passage.pieces)) + len(passage.ids) == 600
    assert task.vocab == tokens.vocab
    assert len(read(task)[0]) > 640


def test_memory_does_not_grow_with_the_text():
    peaks = []
    for length in (50_000, 500_000):
        task = Needles(needle="number", length=length)
        tracemalloc.start()
        read = sum(len(chunk) for chunk in task.passage(0).chunks(4096))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert read > length - 100
    assert peaks[1] < 1.2 * peaks[0] + 50_000


def test_mixed_needles_are_each_as_alone():
    task = Needles(length=1500, needle="mixed")
    kinds = [task.passage(i).about["needle"] for i in range(60)]
    assert set(kinds) == {"passkey", "number", "word"}
    for i in (kinds.index("passkey"), kinds.index("word")):
        text, answer = read(task, i)
        assert (NOISE in text) == (kinds[i] == "passkey")
        assert answer.isdigit() == (kinds[i] == "passkey")
