"""Diaries read back: facts stand where questions say, answers follow from what is told, and memory does not grow with the text."""

import datetime
import hashlib
import itertools
import random
import re
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from postformer.data import DataError, Diaries, Diary
from postformer.data import smalltalk as talk
from postformer.data.facts import LINKS, RELATIONS, STRUCK, UNKNOWN
from postformer.data.statements import KINDS
from postformer.data.tasks import IGNORED
from postformer.data.world import FAMILY, GIVEN


def text_of(diary: Diary) -> str:
    return " ".join(entry.text for entry in diary.entries())


@pytest.mark.parametrize("words", [3000, 50_000])
@pytest.mark.parametrize("seed", range(3))
def test_facts_stand_where_questions_say(words: int, seed: int):
    diary = Diary(words=words, facts=60, seed=seed)
    entries = list(diary.entries())
    every = " ".join(entry.text for entry in entries).split()
    assert len(every) == sum(entry.words for entry in entries) == words
    assert list(itertools.chain.from_iterable(entry.facts for entry in entries)) == list(range(len(diary.plan.told)))
    ends = list(itertools.accumulate(entry.words for entry in entries))
    for question in diary.questions():
        for fact, back, later in zip(question.facts, question.words, question.entries, strict=True):
            told = diary.plan.told[fact][1].split()
            assert every[words - back - len(told) : words - back] == told
            assert fact in entries[len(entries) - 1 - later].facts
            assert ends[len(entries) - 1 - later] >= words - back
        others = set(range(len(diary.plan.told))) - set(question.facts)
        assert question.between == sum(other > min(question.facts) for other in others)


def test_every_kind_says_what_its_answer_is():
    diary = Diary(words=60_000, facts=1000, seed=1)
    told = [text for _, text in diary.plan.told]
    kinds = Counter(question.kind for question in diary.questions())
    assert set(kinds) == set(KINDS)
    assert max(kinds.values()) < 1.5 * min(kinds.values())
    assert sum(1 if kind == "single" else 2 for kind in kinds.elements()) == len(told)
    for q in diary.questions():
        stated = [told[i] for i in q.facts]
        if q.kind in ("single", "combined"):
            assert q.answer in stated[-1]
            assert not q.outdated
        if q.kind == "updated":
            assert q.answer in stated[1]
            assert q.outdated in stated[0]
            assert q.answer != q.outdated
            assert q.facts[0] < q.facts[1]
        if q.kind == "deleted":
            assert q.answer == UNKNOWN
            assert q.outdated in stated[0]
            assert q.outdated not in stated[1]
            assert q.facts[0] < q.facts[1]
        if q.kind == "combined":
            owner = next(name for name in diary.plan.people if name in q.text)
            link, value = stated
            through = next(name for name in diary.plan.people if name in value)
            assert owner in link
            assert through in link
            assert through not in q.text
            assert owner != through
        else:
            assert all(any(name in text for name in diary.plan.people if name in q.text) for text in stated)
    assert len({q.text for q in diary.questions()}) == len(diary.questions())
    assert any(q.facts[0] > q.facts[1] for q in diary.questions() if q.kind == "combined")


def test_the_same_values_give_the_same_diary():
    diary, same, other = Diary(words=4000, facts=9), Diary(words=4000, facts=9), Diary(words=4000, facts=9, seed=1)
    assert list(diary.entries()) == list(same.entries()) == list(diary.entries())
    assert diary.questions() == Diary(words=4000, facts=9).questions()
    assert text_of(diary) != text_of(other)
    assert Diary(words=9000, facts=9).plan == diary.plan


def test_a_diary_never_changes_unseen():
    """A saved run and a published figure mean the same diary in every version of Python."""
    digest = hashlib.sha256(text_of(Diary(words=5000, facts=50)).encode()).hexdigest()
    assert digest == "4a6fdc2f4fee0251831dc052d6128fdf0776e5d54ec6893552135c0d41ab3e5d"


def test_dates_go_over_the_years():
    for years in (1.0, 10.0):
        dates = [entry.date for entry in Diary(words=300_000, facts=10, years=years).entries()]
        assert dates == sorted(dates)
        assert dates[0] == datetime.date(2015, 1, 1)
        assert abs((dates[-1] - dates[0]).days - 365.25 * years) < 10
        assert len(set(dates)) > 300
    entry = next(Diary().entries())
    assert entry.text.startswith("1 January 2015. ")


def test_a_span_is_where_facts_are_told():
    diary = Diary(words=40_000, facts=50, span=(0.0, 0.1))
    assert min(min(question.words) for question in diary.questions()) > 35_000
    shares = [share for share, _ in Diary(words=40_000, facts=1000).plan.told]
    assert abs(sum(shares) / 1000 - 0.5) < 0.05


def test_kinds_that_are_asked_for():
    diary = Diary(words=9000, facts=31, kinds=("updated",))
    assert {q.kind for q in diary.questions()} == {"updated"}
    assert len(diary.plan.told) == 30
    assert {q.kind for q in Diary(words=9000, kinds=("single",)).questions()} == {"single"}


def test_as_many_facts_as_words_allow():
    with pytest.raises(ValueError, match=r"words: 100 facts need \S+ words, got 500") as error:
        Diary(words=500)
    least = int(re.findall(r"need (\S+) words", str(error.value))[0].replace(",", ""))
    diary = Diary(words=least)
    assert sum(entry.words for entry in diary.entries()) == least
    assert len(diary.questions()) > 40


# ---------------------------------------------------------------- wording


def test_small_talk_tells_no_fact():
    """No sentence of it says of a person what a relation or a link would: there would be two answers."""
    people = [f"Person{i}" for i in range(3)]

    def pattern(template: str, values) -> re.Pattern[str]:
        slots = {"w": "|".join(people), "x": "|".join(people), "v": "|".join(map(re.escape, values))}
        parts = re.split(r"\{(\w)\}", template.rstrip("."))
        return re.compile("".join(f"(?:{slots[p]})" if i % 2 else re.escape(p) for i, p in enumerate(parts)), re.IGNORECASE)

    told = [pattern(text, part.values) for part in RELATIONS for text in (*part.told, *part.changed)]
    told += [pattern(text, people) for part in LINKS for text in part.told]
    sentences = " ".join(itertools.islice(talk.smalltalk(random.Random(0), people), 60_000))
    assert [p.pattern for p in told if p.search(sentences)] == []
    assert pattern(RELATIONS[5].told[2], RELATIONS[5].values).search(f"Person1 would walk a mile for {RELATIONS[5].values[0]}.")


def test_no_word_of_a_fact_is_foreign_to_small_talk():
    """Nor is any that announces a change or a deletion; values and people are the same in both."""

    def vocabulary(texts) -> set[str]:
        return set(re.findall("[a-z]+", re.sub(r"\{\w+\}", " ", " ".join(texts)).lower()))

    known = vocabulary([*talk.CLAUSES, *talk.OPENERS, *talk.CLOSERS])
    told = [text for part in (*RELATIONS, *LINKS) for text in (*part.told, *getattr(part, "changed", ()))]
    assert not vocabulary([*told, *STRUCK, *(relation.struck for relation in RELATIONS)]) - known
    pools = [relation.values for relation in RELATIONS]
    assert all(any(set(" ".join(pool).split()) <= set(" ".join(slot).split()) for slot in SLOTS) for pool in pools)


SLOTS = [*talk.SLOTS.values(), [*talk.SLOTS["colour"], *talk.SLOTS["thing"]]]


def test_wordings_are_many():
    assert all(len(relation.told) >= 5 and len(relation.changed) >= 4 and len(relation.asked) == 3 for relation in RELATIONS)
    assert all(len(link.told) >= 4 for link in LINKS)
    assert len(STRUCK) >= 6
    assert all(len(set(relation.values)) == len(relation.values) > 25 for relation in RELATIONS)
    assert len(talk.CLAUSES) > 90


def test_every_template_is_a_sentence():
    for relation in RELATIONS:
        for text in (*relation.told, *relation.changed):
            assert {"{w}", "{v}"} <= set(re.findall(r"\{\w\}", text)) or (text in relation.changed and "{v}" in text)
            assert text.endswith(".")
        assert all(text.endswith("?") and "{w}" in text and "{v}" not in text for text in relation.asked)
    for link in LINKS:
        assert all(set(re.findall(r"\{\w\}", text)) == {"{w}", "{x}"} and text.endswith(".") for text in link.told)


# ---------------------------------------------------------------- other texts


def test_the_users_own_text(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("My own text says only this to whoever reads. " * 400)
    diary = Diary(words=2000, facts=10, text=str(tmp_path / "mine.txt"))
    text = text_of(diary)
    assert text.count("My own text says only this") > 100
    assert all(told in text for _, told in diary.plan.told)
    with pytest.raises(DataError, match="none: no such file or folder"):
        text_of(Diary(text="none"))


def test_what_is_tested_holds_no_sentence_of_training(tmp_path: Path):
    """Of one text: training diaries, the tokenizer's and tests' draw from parts of their own; without a split a diary draws from all."""
    path = tmp_path / "mine.txt"
    path.write_text(" ".join(f"Mark {i:05} stands at this place of the whole text." for i in range(5000)))

    def marks(text: str) -> set[int]:
        return {int(found) for found in re.findall(r"Mark (\d{5}) stands", text)}

    def of(split: str | None) -> set[int]:
        diaries = (Diary(words=3000, facts=10, seed=seed, text=str(path), split=split) for seed in range(60))
        return set().union(*(marks(text_of(diary)) for diary in diaries))

    task, trained = Diaries(length=1500, facts=4, text=str(path)), set[int]()
    for i in range(60):
        trained |= marks(task.tokens.decode([i for piece in task.passage(i, split="train").pieces for i in piece]))
    tested, whole = of("test"), of(None)
    assert max(trained | of("train")) < 4500 <= min(tested | of("valid"))
    assert min(whole) < 4500 <= max(whole)
    assert text_of(Diary(words=3000, facts=10, split="test")) == text_of(Diary(words=3000, facts=10))
    with pytest.raises(ValueError, match="split: unknown 'tests'; choose from train, valid, test"):
        Diary(split="tests")


def test_pepys(data_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POSTFORMER_DATA", str(data_folder))
    diary = Diary(words=20_000, facts=20, text="pepys")
    text = text_of(diary)
    assert "to bed" in text
    assert all(told in text for _, told in diary.plan.told)
    monkeypatch.delenv("POSTFORMER_DATA")
    with pytest.raises(DataError, match=r"text: Pepys' diary is not there; set POSTFORMER_DATA"):
        text_of(diary)


# ---------------------------------------------------------------- memory and time


def test_memory_does_not_grow_with_the_text():
    peaks = []
    for words in (100_000, 1_000_000):
        tracemalloc.start()
        diary = Diary(words=words, facts=100)
        assert sum(entry.words for entry in diary.entries()) == words
        assert len(diary.questions()) > 50
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 20_000


def test_a_million_words_take_seconds():
    start = time.process_time()
    for _ in Diary(words=1_000_000, facts=1000).entries():
        pass
    assert time.process_time() - start < 10


# ---------------------------------------------------------------- examples for training


def test_examples_have_as_many_facts_as_fit():
    task = Diaries(length=900, facts=8, fewest=1)
    found = Counter()
    for index in range(100):
        passage = task.passage(index)
        text = task.tokens.decode([i for piece in passage.pieces for i in piece])
        body, _, asked = text.partition("\nQuestion: ")
        assert asked == f"{passage.question}\nAnswer:"
        assert body.startswith("\n\n1 January 2015. ")
        assert all(f" {told}" in body for _, told in passage.about["told"])
        assert (passage.about["kind"] == "deleted") == (passage.answer == UNKNOWN)
        found[passage.about["kind"]] += 1
    assert set(found) == set(KINDS)


def test_training_asks_several_questions_of_a_text():
    """Each answer is a target; what is tested has one question, and so has training without the word."""
    task, counts = Diaries(length=1500, facts=6, questions=4), Counter()
    for row, target in zip(*task.draw(np.random.default_rng(0), 40, 1500), strict=True):
        body, *asked = task.tokens.decode(row).split("\nQuestion: ")
        at = np.flatnonzero(target != IGNORED)
        taught = target[at].tolist()
        ends = [i for i, token in enumerate(taught) if token == task.tokens.end]
        answers = [task.tokens.decode(taught[i + 1 : j]) for i, j in itertools.pairwise([-1, *ends])]
        assert [question.partition("\nAnswer:")[2] for question in asked] == answers
        assert len({question.partition("\n")[0] for question in asked}) == len(asked)
        assert body.startswith("\n\n1 January 2015. ")
        counts[len(asked)] += 1
    assert set(counts) == {1, 2, 3, 4}
    for split, several in (("valid", task), ("train", Diaries(length=1500, facts=6))):
        ids, _ = several.draw_from(split, np.random.default_rng(1), 20, 1500)
        assert all(task.tokens.decode(row).count("\nQuestion: ") == 1 for row in ids)
    with pytest.raises(ValueError, match="questions: expected 1 or more, got 0"):
        Diaries(questions=0)


def test_a_gap_in_a_statement_is_asked_for():
    """In training alone; with the answer in the gap it is what was told."""
    task, gaps = Diaries(length=900, kinds=("single", "updated", "deleted"), gaps=0.5), 0
    for seed in range(60):
        passage = task.compose(random.Random(seed), 900, "train")
        text = task.tokens.decode([i for piece in passage.pieces for i in piece])
        body, _, asked = text.partition("\nQuestion: ")
        if "..." in asked:
            gaps += 1
            assert passage.about["kind"] != "deleted"
            assert asked.removesuffix("\nAnswer:").replace("...", passage.answer) in body
    assert 15 < gaps < 35
    assert not any("..." in task.passage(i).question for i in range(20))
    with pytest.raises(ValueError, match=r"gaps: expected a share from 0 to 1, got 1\.5"):
        Diaries(gaps=1.5)


def test_short_training_texts_are_plain():
    """One wording of each thing, in which a person comes before the value; longer texts and tests have all."""
    task = Diaries(length=900, shortest=400, facts=3, kinds=("single", "updated"), topics=("dog", "home"), plain=500)

    def wordings(length: int, split: str) -> set[str]:
        passages = [task.compose(random.Random(seed), length, split) for seed in range(60)]
        names = re.compile(rf"(?:{'|'.join(GIVEN)}) (?:{'|'.join(sorted(FAMILY, key=len, reverse=True))})")
        return {" ".join(names.sub("", passage.question).split()) for passage in passages if passage}

    assert len(wordings(500, "train")) == 2
    assert len(wordings(501, "train")) == len(wordings(500, "test")) == 6
    for relation in RELATIONS:
        told, changed, asked = relation.plain.told, relation.plain.changed, relation.plain.asked
        assert len(told) == len(changed) == len(asked) == 1
        assert told[0].index("{w}") < told[0].index("{v}") and told[0] in relation.told and asked[0] in relation.asked
    with pytest.raises(ValueError, match="plain: expected 0 or more tokens, got -1"):
        Diaries(plain=-1)


def test_topics_are_what_facts_are_about():
    """Any number of them, for any number of facts that names allow."""
    for topics in (("dog",), ("dog", "home", "trade")):
        diary = Diary(words=20_000, facts=300, topics=topics)
        relations = [relation for relation in RELATIONS if relation.topic in topics]
        answers = {value for relation in relations for value in relation.values} | {UNKNOWN}
        assert len(diary.plan.told) >= 299
        assert {question.answer for question in diary.questions()} <= answers
    assert len(Diary(words=200_000, facts=8000, kinds=("single",), topics=("dog",)).plan.told) == 8000
    for words, message in (
        ({"facts": 10_000, "topics": ("dog",)}, "facts: expected 1 to 9,576, got 10,000"),
        ({"topics": ("cow",)}, "topics: unknown 'cow'; choose from dog, cat, home"),
        ({"topics": ()}, "topics: expected one or more of dog, cat, home"),
    ):
        with pytest.raises(ValueError, match=message):
            Diary(words=500_000, **words)


@pytest.mark.parametrize("reach", [0, 3])
def test_reach_is_how_soon_the_value_follows_the_person(reach: int):
    """No wording but those of the reach is told, and all of them; questions stay what they are."""
    for relation in RELATIONS:
        near = relation.within(reach)
        for all_texts, texts in ((relation.told, near.told), (relation.changed, near.changed)):
            between = {t: len(t.split("{w}")[1].split("{v}")[0].split()) for t in all_texts if t.index("{w}") < t.index("{v}")}
            assert texts == tuple(t for t, words in between.items() if words <= max(reach, min(between.values())))
        assert near.asked == relation.asked
    topic = {"topics": ("dog",), "kinds": ("single",), "reach": reach}
    told = [text for _, text in Diary(words=9000, facts=200, **topic).plan.told]
    told += [Diaries(length=900, facts=1, **topic).passage(i).about["told"][0][1] for i in range(20)]
    patterns = [re.escape(t).replace(r"\{w\}", ".*").replace(r"\{v\}", ".*") for t in RELATIONS[0].within(reach).told]
    found = Counter(next(p for p in patterns if re.fullmatch(p, text)) for text in told)
    assert len(found) == len(patterns)
    with pytest.raises(ValueError, match="reach: expected 0 or more words, got -1"):
        Diary(reach=-1)
