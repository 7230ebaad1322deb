"""Rates of right answers: counted by kind and length, kept beside their model, found again for no other."""

import json

import pytest

from postformer.config import UserError
from postformer.data import Babilong, Diaries, Needles
from postformer.models.readers import Spent
from postformer.objectives.rates import FILE, Rate, Rates, listed, load, measure, save


class Oracle:
    """Answers from a text by its task's own draw, but for every third question."""

    def __init__(self, task, log):
        self.task, self.log, self.spent, self.ids = task, log, Spent(), []

    def write(self, ids):
        self.ids += list(ids)

    def answer(self, question):
        self.log.append((self.task.tokens.decode(self.ids), question))
        passage = self.task.passage(len(self.log) - 1, length=self.task.length)
        return passage.answer if len(self.log) % 3 else "wrong"

    @property
    def nbytes(self):
        return len(self.ids)

    def save(self, path):
        raise NotImplementedError


def test_what_is_asked_is_what_was_written():
    task, log = Diaries(length=900), []
    rates, last = measure(lambda: Oracle(task, log), task, length=900, questions=30)
    assert sum(r.right for r in rates) == 20
    assert sum(r.asked for r in rates) == 30
    assert {r.kind for r in rates} == {"direct", "combined"}
    direct = next(r for r in rates if r.kind == "direct")
    assert set(direct.finer) == {"single", "updated", "deleted"}
    assert [sum(n) for n in zip(*direct.finer.values(), strict=True)] == [direct.right, direct.asked]
    text, question = log[-1]
    assert last.nbytes == len(text)
    ids = [i for piece in task.passage(29, length=900).pieces for i in piece]
    assert text + task.asked(question) == task.tokens.decode(ids)
    assert all("Question:" not in text for text, _ in log)


@pytest.mark.parametrize("wording", ["ruler", "short"])
@pytest.mark.parametrize("needle", ["passkey", "number", "word", "uuid"])
def test_needles_are_asked_as_they_are_trained(needle, wording, monkeypatch):
    monkeypatch.delenv("POSTFORMER_DATA", raising=False)
    task = Needles(needle=needle, wording=wording, length=900)
    for index in range(20):
        passage = task.passage(index)
        *_, last = passage.pieces
        assert task.tokens.decode(last) == task.asked(passage.question)
        assert task.sort(passage.question) == "all"


def test_babilong_is_asked_as_it_is_trained(data_folder):
    task = Babilong(task=1, length=1200)
    passage = task.passage(0)
    *_, last = passage.pieces
    assert task.tokens.decode(last) == task.asked(passage.question)


@pytest.mark.parametrize(
    ("task", "question", "says"),
    [
        (Diaries(), "Where does Adda Abel live?", r"'Adda' stands in no question of diaries \(did you mean 'Ada'\?\)"),
        (Diaries(), "Zork frobs Ada?", "the question's 'Zork', 'frobs' stands in no question"),
        (Diaries(), "?", "the question has no words"),
        (Needles(), "What is the special magic number for x-y mentioned in the provided text?", "'x-y' stands in no question"),
        (Needles(), "What number is it", "'it' stands in no question"),
        (Needles(), "What is the magic number?", "worded 'What is the special magic number for KEY mentioned in"),
    ],
)
def test_a_question_in_other_words(task, question, says):
    with pytest.raises(UserError, match=says):
        task.asked(question)


def test_rates_are_found_by_kind_and_length(tmp_path):
    found = Rates("m", {"kind": "diary"}, 0, [Rate("a", 100, 1, 2), Rate("a", 1000, 3, 4, {"x": [1, 2], "y": [2, 2]})])
    assert found.of("a", 100).length == 100
    assert found.of("a", 101).length == 1000
    assert found.of("a", 1001) is None
    assert found.of("b", 1) is None
    assert load(tmp_path, "m") is None
    assert save(tmp_path, found) == found == load(tmp_path, "m")
    assert load(tmp_path, "other") is None
    more = save(tmp_path, Rates("m", {"kind": "diary"}, 0, [Rate("a", 100, 2, 2), Rate("b", 100, 0, 1)]))
    assert [(r.kind, r.length, r.right) for r in more.rates] == [("a", 100, 2), ("b", 100, 0), ("a", 1000, 3)]
    assert save(tmp_path, Rates("m", {"kind": "diary"}, 1, [Rate("b", 7, 0, 1)])).rates == [Rate("b", 7, 0, 1)]
    assert len(listed(found.rates).splitlines()) == 4
    assert str(Rate("a", 1, 90, 100)) == "90.0% (95% interval 82.6 to 94.5, 90 of 100)"


def test_a_damaged_file_of_rates(tmp_path):
    save(tmp_path, Rates("m", {}, 0, [Rate("a", 100, 1, 2)]))
    data = json.loads((tmp_path / FILE).read_text())
    for change, says in (
        ({"format": "x"}, "not a file of rates"),
        ({"rates": [{"kind": "a"}]}, "is missing"),
        ({"rates": [{"kind": "a", "length": 1, "right": 3, "asked": 2}]}, "more right answers than questions"),
    ):
        (tmp_path / FILE).write_text(json.dumps({**data, **change}))
        with pytest.raises(UserError, match=says):
            load(tmp_path, "m")
