"""Passages at any split, BM25 against the formula, vectors, deletion that leaves nothing, and a reader of all kinds of readings."""

import math
from collections import Counter

import numpy as np
import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.config import UserError
from postformer.data import Babilong, Diaries, Needles
from postformer.models import retrieval
from postformer.models.encoder import TextEncoder
from postformer.models.passages import Passages, PassagesError
from postformer.models.readers import Reader, StateReader
from postformer.models.retrieval import BM25, Dense, RetrievalReader, best, terms
from postformer.objectives.contrastive import asked_pairs, cloze_pairs, contrastive, fit_encoder
from postformer.objectives.rates import measure
from postformer.tokens.text import BPE, Bytes

LINES = [
    "Ada lives in Basel.",
    "The sea was calm, and the boat went on.",
    "Bruno has bought a red lamp at the fair.",
    "Ada has moved to Cork.",
    "The lamp of Ada is green. The boat is red.",
    "Nothing happened.",
]
TEXT = " ".join(LINES)


def reader(**options) -> RetrievalReader:
    made = RetrievalReader(small.model("attention"), **{"size": 30, "k": 2, **options})
    made.write(list(TEXT.encode()))
    return made


def texts(passages: Passages) -> list[str]:
    return [passages.text(number) for number in passages.numbers()]


# ---------------------------------------------------------------- passages


@given(st.lists(st.integers(0, 60), max_size=10), st.integers(1, 80), st.sampled_from(["sentence", "entry"]))
def test_passages_are_the_same_at_any_split(lengths, size, ends):
    ids = list(("\n\n1 May 2015. " + TEXT + "\n\n2 May 2015. " + TEXT).encode())
    whole, split, rest = Passages(Bytes(), size, ends), Passages(Bytes(), size, ends), ids
    whole.write(ids)
    for length in lengths:
        split.write(rest[:length])
        rest = rest[length:]
    split.write(rest)
    assert texts(whole) == texts(split)
    assert [i for number in whole.numbers() for i in whole.ids(number)] == ids
    assert all(len(whole.ids(number)) <= size for number in whole.numbers())


def test_passages_end_where_sentences_and_entries_do():
    passages = Passages(Bytes(), 50)
    passages.write(list(TEXT.encode()))
    assert texts(passages)[:3] == [LINES[0], f" {LINES[1]}", f" {LINES[2]}"]
    assert texts(passages)[3] == f" {LINES[3]} The lamp of Ada is green."
    entries = Passages(Bytes(), 80, "entry")
    entries.write(list(b"\n\n1 May. One. Two.\n\n2 May. Three.\n\n3 May. " + b"A long day. " * 9))
    assert texts(entries)[:3] == ["\n\n1 May. One. Two.", "\n\n2 May. Three.", "\n\n3 May." + " A long day." * 6]
    long = Passages(Bytes(), 7)
    long.write([120] * 20)
    assert [len(t) for t in texts(long)] == [7, 7, 6]


def test_passages_of_other_tokens():
    tokens = BPE.train([TEXT * 3], 320)
    passages = Passages(tokens, 12)
    passages.write(tokens.encode(TEXT))
    assert "".join(texts(passages)) == TEXT
    assert texts(passages)[0] == LINES[0]
    assert all(len(passages.ids(number)) <= 12 for number in passages.numbers())


def test_deletion_leaves_nothing(tmp_path):
    one = reader()
    assert one.find("Where does Ada live?")
    wanted = one.holding("Basel")
    before = one.nbytes
    one.delete(wanted)
    assert one.holding("Basel") == []
    assert not any(number in one.find("Basel lives Ada") for number in wanted)
    assert one.nbytes < before
    assert "basel" not in one.rank.library.vocab_dict
    with pytest.raises(PassagesError, match=f"there is no passage {wanted[0]}"):
        one.delete([one.holding("Cork")[0], wanted[0]])
    assert one.holding("Cork"), "none is deleted where one is missing"
    one.save(tmp_path / "p")
    kept = (tmp_path / "p").read_bytes()
    assert np.frombuffer(b"Cork", np.uint8).astype(np.uint16).tobytes() in kept
    assert np.frombuffer(b"Basel", np.uint8).astype(np.uint16).tobytes() not in kept
    last = one.passages.numbers()[-1]
    one.delete([last])
    one.write(list(b" And Basel again."))
    assert one.holding("Basel") == [last + 1], "a number is given once"


def test_passages_are_a_file(tmp_path):
    one = reader(ends="entry")
    one.delete([0])
    one.save(tmp_path / "p")
    again = RetrievalReader.load(tmp_path / "p", small.model("attention", seed=5), k=2)
    assert texts(again.passages) == texts(one.passages)
    assert again.passages.numbers() == one.passages.numbers()
    assert (again.passages.size, again.passages.ends, again.passages.next) == (30, "entry", one.passages.next)
    for r in (one, again):
        r.write(list(b" More of it."))
    assert texts(again.passages) == texts(one.passages)
    with pytest.raises(PassagesError, match="of another tokenizer"):
        Passages.load(tmp_path / "p", BPE.train([TEXT], 300))
    data = bytearray((tmp_path / "p").read_bytes())
    data[-3] ^= 1
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(PassagesError, match="damaged"):
        Passages.load(tmp_path / "p", Bytes())
    with pytest.raises(PassagesError, match="no: No such file"):
        Passages.load(tmp_path / "no", Bytes())


# ---------------------------------------------------------------- finding


def naive(lines: list[str], question: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    documents = [Counter(terms(line)) for line in lines]
    average = sum(d.total() for d in documents) / len(documents)
    scores = []
    for d in documents:
        score = 0.0
        for term in terms(question):
            n = sum(term in other for other in documents)
            if n:
                idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
                score += idf * d[term] / (d[term] + k1 * (1 - b + b * d.total() / average))
        scores.append(score)
    return scores


@pytest.mark.parametrize("question", ["Where does Ada live?", "the red boat", "lamp lamp green", "zebra Ada", "Ada"])
def test_bm25_is_the_formula(question):
    rank = BM25()
    rank.index(LINES)
    wanted = naive(LINES, question)
    np.testing.assert_allclose(rank.scores(question), wanted, rtol=1e-5)
    found = rank.find(question, 3, recent=True)
    assert found == sorted((i for i, s in enumerate(wanted) if s > 0), key=lambda i: (-np.float32(wanted[i]), -i))[:3]
    assert rank.nbytes > 0


def test_what_shares_no_word_is_not_found():
    rank = BM25()
    for lines in ([], ["", "..."], LINES):
        rank.index(lines)
        assert rank.find("zebra", 3, recent=True) == []
        assert rank.find("?", 3, recent=True) == []


def test_of_equals_the_later_comes_first():
    assert best(np.array([1.0, 3.0, 3.0, 2.0, 3.0]), 3) == [4, 2, 1]
    assert best(np.array([1.0, 3.0, 3.0, 2.0, 3.0]), 3, recent=False) == [1, 2, 4]
    for recent, wanted in ((True, 2), (False, 0)):
        rank = BM25()
        rank.index(["Ada lives here", "nobody lives there now", "Ada lives here"])
        assert rank.find("Ada", 1, recent) == [wanted]


def letters(lines) -> np.ndarray:
    return np.array([[line.lower().count(chr(c)) for c in range(97, 123)] for line in lines], float)


@pytest.mark.parametrize("search", ["exact", "usearch"])
def test_vectors_of_any_function(search):
    rank = Dense(letters, search)
    rank.index(LINES)
    vectors = letters(LINES)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for line in (*LINES, "boats at sea"):
        query = letters([line])[0]
        assert rank.find(line, 3, recent=True) == best(vectors @ (query / np.linalg.norm(query)), 3)
    assert rank.nbytes >= 6 * 26 * 4
    rank.index([])
    assert rank.find("sea", 3, recent=True) == []
    with pytest.raises(ValueError, match="encode: expected an array"):
        Dense(lambda lines: np.zeros(3)).index(LINES)


def test_an_encoder_learns_to_find(tmp_path):
    task = Diaries(length=700, kinds=("single",))
    fresh = TextEncoder()
    encoder = fit_encoder(asked_pairs(task), steps=40, batch=32)
    held = asked_pairs(task, split="test")
    pairs = [next(held) for _ in range(64)]
    with torch.no_grad():
        before, after = contrastive(fresh, pairs)["accuracy"], contrastive(encoder, pairs)["accuracy"]
    assert after > before
    assert after > 0.8
    one = reader(rank=Dense(encoder.encode))
    assert LINES[0] in one.passages.text(one.find("Ada lives in Basel")[0])
    again = fit_encoder(asked_pairs(task), steps=2, batch=4), fit_encoder(asked_pairs(task), steps=2, batch=4)
    np.testing.assert_array_equal(again[0].encode(LINES), again[1].encode(LINES))
    for query, text in (next(cloze_pairs(LINES)) for _ in range(20)):
        assert query in text


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(UserError, match=r"bm25s is not installed; pip install 'postformer\[retrieval\]'"):
        BM25().index(LINES)


# ---------------------------------------------------------------- reading


def test_only_what_was_found_is_read_before_the_question():
    one = reader(ask=lambda q: f"\nQuestion: {q}\nAnswer:")
    assert isinstance(one, Reader)
    question = "Where does Ada live? In Basel or in Cork?"
    found = one.find(question)
    assert len(found) == 2
    short = StateReader(one.model, ask=one.ask)
    for number in sorted(found):
        short.write(one.passages.ids(number))
    assert one.answer(question) == short.answer(question) == one.answer(question)
    nothing = StateReader(one.model, ask=one.ask)
    assert one.answer("zebra") == nothing.answer("zebra")
    assert one.spent.written == len(TEXT)
    assert one.spent.answered == 3
    assert one.nbytes > one.passages.nbytes == 2 * len(TEXT)


def test_the_last_words_are_found_before_they_are_a_passage():
    one = reader()
    one.write(list(b" Carla has a zebra"))
    assert "zebra" in one.passages.text(one.find("zebra")[0])


@pytest.mark.parametrize("kind", ["diary", "needles", "babilong"])
def test_the_evidence_is_found_in_every_reading(kind, data_folder, monkeypatch):
    """What the model is given holds the answer: nearly always for needles and most facts of one sentence."""
    task = {
        "diary": Diaries(length=4000, kinds=("single",)),
        "needles": Needles(needle="number", length=4000),
        "babilong": Babilong(task=1, length=4000),
    }[kind]
    given = []
    monkeypatch.setattr(retrieval, "greedy", lambda model, memory, ids: given.append(model.tokens.decode(ids)) or "")
    model = small.model("attention")
    _, last = measure(lambda: RetrievalReader(model, ask=task.asked, k=4, size=160), task, length=4000, questions=30)
    assert isinstance(last, RetrievalReader)
    held = [task.passage(i, length=4000).answer in text for i, text in enumerate(given)]
    assert sum(held) >= (24 if kind != "babilong" else 20)
    assert all(text.endswith(task.asked(task.passage(i, length=4000).question)) for i, text in enumerate(given))
    assert max(map(len, given)) < 4 * 160 + 300
