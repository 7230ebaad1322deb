"""What all readings share: exact lengths, targets on the answer alone, batches and streams as pure functions, texts that are named."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.config import ConfigError, OptimConfig, Run, TrainConfig, build, plain
from postformer.data import DATA, READINGS, DataError
from postformer.data.reading import FILLER, weave
from postformer.data.task import IGNORED, SPLITS
from postformer.tokens.text import BPE, END
from postformer.train.session import train_run

WORDS = {"needles": {"needle": "word"}, "babilong": {}, "diary": {}}


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder such as POSTFORMER_DATA, with a small bAbI task, two books and a tokenizer."""
    (tmp_path / "books").mkdir()
    for book in ("one", "two"):
        lines = (f"In book {book} the line that has the number {i} is as long as any other line." for i in range(400))
        (tmp_path / "books" / f"{book}.txt").write_text(" ".join(lines))
    (tmp_path / "babi").mkdir()
    stories = ("1 Mary moved to the office.\n2 John went to the garden.\n3 Where is Mary? \toffice\t1\n",
               "1 John went to the kitchen.\n2 Mary moved to the hall.\n3 Where is John? \tkitchen\t1\n")  # fmt: skip
    for split in ("train", "test"):
        (tmp_path / "babi" / f"qa1_single-supporting-fact_{split}.txt").write_text("".join(stories))
    BPE.train([(tmp_path / "books" / "one.txt").read_text()], 400).save(tmp_path)
    monkeypatch.setenv("POSTFORMER_DATA", str(tmp_path))
    return tmp_path


def make(kind: str, **words):
    return build({"kind": kind, **WORDS[kind], **words}, DATA, "data")


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
@pytest.mark.parametrize("kind", READINGS)
def test_a_batch_asks_for_the_answer_and_the_end(texts: Path, kind: str, tokenizer: str):
    task = make(kind, length=700, tokenizer=str(texts) if tokenizer == "bpe" else tokenizer)
    for split in SPLITS:
        drawn = task.batches(3, 0, split).batch(0)
        ids, targets = drawn["ids"], drawn["targets"]
        assert ids.shape == targets.shape == (3, 700)
        assert ids.dtype == targets.dtype == torch.int64
        assert int(ids.max()) < task.vocab == task.tokens.vocab
        for row, target in zip(ids.tolist(), targets.tolist(), strict=True):
            asked = [i for i, t in enumerate(target) if t != IGNORED]
            assert asked == list(range(asked[0], 699))
            assert [target[i] for i in asked] == row[asked[0] + 1 :]
            assert row[-1] == END
            assert END not in row[:-1]
            answer = task.tokens.decode(row[asked[0] + 1 :])
            assert answer.startswith(" ")
            assert task.tokens.decode(row).endswith(f":{answer}" if kind != "needles" else f" is{answer}")


@pytest.mark.parametrize("kind", READINGS)
def test_batches_are_a_pure_function_of_seed_split_and_step(texts: Path, kind: str):
    drawn = {}
    for seed, split, step in itertools.product((0, 1), SPLITS, (0, 5)):
        drawn[seed, split, step] = make(kind, length=600).batches(2, seed, split).batch(step)
    for (seed, split, step), batch in reversed(drawn.items()):
        again = make(kind, length=600).batches(2, seed, split).batch(step)
        assert torch.equal(again["ids"], batch["ids"])
        assert torch.equal(again["targets"], batch["targets"])
    for a, b in itertools.combinations(drawn.values(), 2):
        assert not torch.equal(a["ids"], b["ids"])


@pytest.mark.parametrize("kind", READINGS)
@pytest.mark.parametrize("length", [600, 5000])
def test_a_passage_is_the_same_whole_and_in_chunks(texts: Path, kind: str, length: int):
    task = make(kind)
    passage = task.passage(3, length=length)
    whole = [i for piece in passage.pieces for i in piece]
    assert len(whole) + len(passage.ids) == length
    assert task.tokens.decode(passage.ids) == f" {passage.answer}"
    for size in (1, 7, 512, 10_000):
        chunks = list(task.passage(3, length=length).chunks(size))
        assert np.concatenate(chunks).tolist() == whole
        assert {len(c) for c in chunks[:-1]} <= {size}
    assert next(iter(task.passage(4, length=length).chunks(512))).tolist() != chunks[0][:512].tolist()
    with pytest.raises(ValueError, match="split: unknown 'dev'; choose from train, valid, test"):
        task.passage(0, split="dev")


@given(
    pieces=st.lists(st.integers(1, 5), min_size=1, max_size=20),
    facts=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 4)), max_size=6),
    share=st.floats(0, 1),
)
def test_weave(pieces, facts, share):
    """Filler to the item, all facts in order, each between the pieces whose border is nearest."""
    room = int(share * sum(pieces))
    filler = [([f"{n}"] * size, FILLER) for n, size in enumerate(pieces)]
    wanted = sorted((place * room, ["fact"] * size) for place, size in facts)
    woven = list(weave(iter([*filler, (["more"] * 100, FILLER)]), wanted, room))
    assert sum(len(piece) for piece, label in woven if label == FILLER) == room
    assert [label for _, label in woven if label != FILLER] == list(range(len(facts)))
    assert [piece for _, piece in wanted] == [piece for piece, label in woven if label != FILLER]
    borders = [0, *itertools.accumulate(len(piece) for piece, label in woven if label == FILLER)]
    done = 0
    for piece, label in woven:
        if label == FILLER:
            done += len(piece)
        else:
            assert abs(done - wanted[label][0]) <= min(abs(border - wanted[label][0]) for border in borders) + 1e-9


@pytest.mark.parametrize("kind", READINGS)
def test_a_run_names_its_texts(texts: Path, kind: str):
    task = make(kind, length=600)
    words = json.loads(json.dumps(plain(task.identity)))
    again = make(kind, **words)
    again.batches(1, 0)
    assert again.identity == task.identity
    if kind == "diary":
        words["text"] = str(texts / "books" / "one.txt")
    else:
        (texts / "books" / "two.txt").write_text("Another book of one long line that has no end and no beginning. " * 100)
    with pytest.raises(
        DataError, match=rf"data: another tokenizer or other texts than the run names \(data.sha256={task.digest}"
    ):
        make(kind, **words).batches(1, 0)


@pytest.mark.parametrize("kind", READINGS)
def test_too_short_a_length_is_named_before_training(texts: Path, kind: str):
    with pytest.raises(DataError, match=r"data.length: 30 tokens .bytes. are too few"):
        make(kind, length=30).batches(1, 0)
    with pytest.raises(DataError, match=r"data.length: 40 tokens"):
        make(kind, length=900, shortest=40).batches(1, 0)


def test_tokenizers_that_cannot_be_read(texts: Path):
    for path in (texts / "none", texts / "books" / "one.txt"):
        with pytest.raises(DataError, match=f"data.tokenizer: {path}"):
            make("needles", tokenizer=str(path)).batches(1, 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"kind": "needles", "needle": "pin"}, r"data.needle: 'pin' is not a choice; choose from passkey, number, word, uuid"),
        ({"kind": "needles", "depth": 2.0}, r"data: depth: expected a share from 0 to 1, got 2.0"),
        ({"kind": "needles", "text": "book.txt"}, r"data: text: a passkey lies in five sentences that repeat"),
        ({"kind": "babilong", "task": 21}, r"data: task: expected 1 to 20, got 21"),
        ({"kind": "diary", "kinds": []}, r"data: kinds: expected one or more of single, updated, combined, deleted"),
        ({"kind": "diary", "kinds": ["odd"]}, r"data.kinds\[0\]: 'odd' is not a choice; choose from single, updated"),
        ({"kind": "diary", "facts": 0}, r"data: facts: expected 1 to 20,000, got 0"),
        ({"kind": "diary", "facts": 1, "kinds": ["updated"]}, r"data: facts: expected 2 to 20,000, got 1"),
        ({"kind": "diary", "fewest": 9}, r"data: fewest: expected 1 to 4, the facts, got 9"),
        ({"kind": "diary", "fewest": 1, "kinds": ["combined"]}, r"data: fewest: expected 2 or more"),
        ({"kind": "diary", "years": 0.0}, r"data: years: expected a number above 0, at most 1000, got 0.0"),
        ({"kind": "diary", "span": [0.5, 0.1]}, r"data: span: expected two shares from 0 to 1 in order, got 0.5 and 0.1"),
        ({"kind": "needles", "lenght": 9}, r"data: unknown 'lenght' \(did you mean 'length'\?\); needles takes length"),
    ],
)
def test_what_cannot_be(words, says):
    with pytest.raises(ConfigError, match=says):
        build(words, DATA, "data")


@pytest.mark.parametrize("kind", READINGS)
@pytest.mark.parametrize("objective", ["answers", "next_token"])
def test_a_run_trains_on_it(texts: Path, tmp_path: Path, kind: str, objective: str):
    run = Run(
        name="tiny",
        model={"kind": "language", "dim": 16, "depth": 1},
        objective={"kind": objective},
        data={"kind": kind, "length": 500, "facts": 2} if kind == "diary" else {"kind": kind, "length": 500},
        optim=OptimConfig(warmup=1),
        train=TrainConfig(steps=2, batch=2, eval_every=2, eval_batches=1),
    )
    summary = train_run(run, tmp_path / "run", warn=pytest.fail)
    assert summary.step == 2
