"""The rule of `neural_memory` on made-up evidence, what its page computes from it, and the claim, small, from end to end."""

import dataclasses
import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from postformer import claims
from postformer.claims import load_claim, remembering, tasks
from postformer.claims import neural_memory as N
from postformer.claims import neural_memory_page as page
from postformer.claims import neural_memory_tables as tables
from postformer.claims.draw import draw
from postformer.claims.heat import draw_heat
from postformer.claims.ledger import Context, Heat, Number
from postformer.claims.report import run_report
from postformer.cli import main
from postformer.data import world
from postformer.data.diary import Diary
from postformer.models.language import LanguageModel
from postformer.models.readers import StateReader
from postformer.recipes import memory
from postformer.recipes.memory import diaries
from postformer.tokens.text import load_tokens

SCHEMA = json.loads((Path(__file__).parents[2] / "postformer/claims/report.schema.json").read_text())


def cell(
    words: int, right: int, asked: int = 24, *, facts: int = 8, kept: int = 1000, s: float = 1e-5, last: float = 1.0
) -> Any:
    def samples(value: float, seed: int) -> list[float]:
        return (value * (1 + 0.01 * np.random.default_rng(seed).permutation(np.linspace(-1, 1, 41)))).tolist()

    sizes = [1000, 1000 if kept == 1000 else kept]
    stream = {
        "tokens": [1024, words],
        "bytes": sizes,
        "resident": [10**8, 10**8 + 4096],
        "samples": [samples(1, 0), samples(last, 1)],
        "control": samples(1, 2),
    }
    one = {"right": right, "asked": asked, "outdated": 1, "unknown": 2, "held": right, "each": [[right, asked]]}
    costs = {"parameters": 1000, "tokens": words, "bytes": kept, "write_s": s, "answer_s": 100 * s, "stream": stream}
    return {"words": words, "facts": facts, "diaries": 3, **one, **costs}


def evidence(learned: int = 64, after: tuple[Any, ...] = (64, 64, 64), **options: Any) -> dict[str, Any]:
    lengths = (500, 32_000, N.TEN_YEARS)
    one = {"rows_right": learned, "rows": 64}
    score = {"length": 1024, **one, "each": [one]}
    asked = [right if isinstance(right, tuple) else (right, 64) for right in after]
    neural = [cell(n, *right, **(options if n == N.TEN_YEARS else {})) for n, right in zip(lengths, asked, strict=False)]
    text = [cell(n, 64, 64, kept=10 * n, s=1e-6) for n in lengths]
    facts = {
        "lmm": [cell(4000, r, facts=n) for n, r in ((2, 24), (8, 18), (32, 6))],
        "bm25": [cell(4000, 24, facts=8, kept=40_000)],
    }
    changed = {"updated": cell(500, 20), "deleted": cell(500, 3)}
    tried = [
        {"size": 16, "k": 10, "right": 4, "held": 9, "asked": 16},
        {"size": 16, "k": 60, "right": 15, "held": 16, "asked": 16},
    ]
    return {
        "neural": "lmm",
        "reader": "attention",
        "methods": ["lmm", "bm25"],
        "passages": {"bm25": [{"words": 500, "kind": "single", "tried": tried, "chosen": {"size": 16, "k": 60}}]},
        "width": 128,
        "depth": 2,
        "taken": "10 of 20 steps",
        "learned": {"lmm": score, "attention": {**score, "rows_right": 64}},
        "writes": {"lmm": [{"facts": {"mean": 0.5, "any": 0.75}, "rest": {"mean": 0.01, "any": 0.02}}]},
        "changes": {"lmm": changed, "bm25": changed},
        "facts": facts,
        "distance": {"lmm": neural, "bm25": text},
        "late": [],
    }


def judge(name: str, found: Any) -> Any:
    criterion = next(c for c in N.RULE.criteria if c.name == name)
    return criterion.judge(found, criterion.thresholds)


@pytest.mark.parametrize(
    ("learned", "after", "verdict"),
    [
        (64, (64, 64, 64), "supported"),
        (64, (64, 64, 58), "supported"),  # 91%, from 81%
        (64, (64, 64, 57), "inconclusive"),  # 89%
        (64, (64, 64, (64, 71)), "supported"),
        (64, (64, 50, 10), "contradicted"),
        (64, (64, 50, 26), "inconclusive"),  # 41%, to 53%
        (57, (64, 64, 64), "inconclusive"),  # 89% at the training length: not learned
        (0, (0, 0, 0), "inconclusive"),
        (64, (64, 64, (24, 24)), "inconclusive"),  # too few questions
        (64, (64, 64), "inconclusive"),  # the budget ended before ten years
    ],
)
def test_recall(learned, after, verdict):
    finding = judge("the first year after ten years", evidence(learned, after))
    assert finding.verdict == verdict
    if learned < 58:
        assert "not learned in 10 of 20 steps" in finding.because


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (evidence(), "supported"),
        (evidence(last=1.2), "contradicted"),
        (evidence(last=1.099), "inconclusive"),
        (evidence(kept=1001), "contradicted"),
        (evidence(after=(24, 24)), "inconclusive"),
    ],
)
def test_constant_cost(found, verdict):
    assert judge("constant cost", found).verdict == verdict


def test_the_table_to_decide_by_is_computed():
    def rows(found):
        return {row[0]: row for row in tables.decisions(found).rows}

    lost = rows(evidence(after=(64, 54, 2)))
    assert lost["1,000,000 words, 8 facts"][1:] == ("BM25 + attention", page.right(cell(1, 64, 64)), *["BM25 + attention"] * 3)
    assert lost["500 words, 8 facts"][3:] == ("neural memory", "BM25 + attention", "BM25 + attention")
    assert lost["1,000,000 words, at most 1,000 bytes kept"][1] == "–"  # noqa: RUF001
    assert lost["a fact is deleted, of those that take updates"][1] == "–"  # noqa: RUF001
    guess = evidence()
    guess["changes"]["lmm"] = {"updated": cell(500, 0), "deleted": cell(500, 24)}  # it says unknown whatever it is asked
    guess["changes"]["bm25"] = {"updated": cell(500, 20), "deleted": cell(500, 20)}
    assert rows(guess)["a fact is deleted, of those that take updates"][1] == "BM25 + attention"
    held = rows(evidence())
    assert held["1,000,000 words, at most 1,000 bytes kept"][1] == "neural memory"
    assert held["1,000,000 words, 8 facts"][3] == "neural memory"
    alone = evidence()
    alone["distance"]["bm25"].pop()
    assert rows(alone)["1,000,000 words, 8 facts"][1:] == ("–",) * 5  # noqa: RUF001 (nothing to choose from)
    assert rows(alone)["32,000 words, at most 1,000 bytes kept"][1] == "neural memory"
    assert "BM25 wins" in page.consequences(evidence(after=(64, 54, 2)))[1]
    assert "cannot be told apart" in page.consequences(evidence())[1]


def test_charts_show_intervals_that_end_where_nothing_was_asked():
    found = evidence()
    found["facts"]["lmm"] = [cell(4000, r, 2, facts=n) for n, r in ((2, 1), (8, 1), (32, 0))]
    recall, stored = page.charts(found)
    assert all(s.low[i] <= s.y[i] <= s.high[i] and s.low[i] < s.high[i] for s in recall.series for i in range(len(s.x)))
    assert [(s.name, s.low, s.high) for s in stored.series] == [
        ("neural memory", (2.0,), (32.0,)),
        ("BM25 + attention", (8.0,), (8.0,)),
    ]
    assert "<svg" in draw(stored, "stored")


def test_the_limits_name_what_was_trained_and_read(tmp_path):
    ctx = Context(folder=tmp_path, settings="", budget_s=1.0, text=None, seeds=(0,), threads=1)
    model, facts, _, read, talk = page.limits(evidence(), ctx)
    assert "2 layers of width 128" in model and "dogs and nothing else" in facts
    assert "64 questions about 3 diaries a seed; 1 seed." in read and "Small talk" in talk
    assert (
        page.limits(evidence(), dataclasses.replace(ctx, text=Path("my.txt")))[-1] == "What stands between the facts is my.txt."
    )


def test_what_has_not_learned_is_named_and_chosen_nowhere():
    found = evidence()
    found["learned"]["attention"]["rows_right"] = 57
    assert page.learned(found, "bm25"), "by its own answers, and not by its reader's"
    found["distance"]["bm25"][0]["right"] = 57
    assert not page.learned(found, "bm25") and page.learned(found, "lmm")
    for heat in page.heats(found, [0]):
        assert heat.rows == ("neural memory", "BM25 + attention (not learned)")
    assert all("BM25 + attention" not in row for row in tables.decisions(found).rows)


def test_passages_that_were_tried_are_shown():
    (row,) = tables.passages(evidence()).rows
    assert row[2] == "single" and row[7:] == ("10: 4, 60: 15", "taken")
    assert [n.value for n in (row[1], *row[3:7])] == [500, 16, 60, 100, 100 * 15 / 16]


def test_no_two_cells_ask_the_same():
    cells = [(words, N.STORED, "single") for words in (*N.DISTANCES, 50_000_000)]
    cells += [(N.FACTS_WORDS, facts, "single") for facts in N.FACTS if facts != N.STORED]
    cells += [(N.CHANGE_WORDS, N.CHANGE_FACTS, kind) for kind in ("updated", "deleted")]
    places = [remembering._place(*cell) for cell in cells]
    assert len(set(places)) == len(cells)
    most = max(N.QUESTIONS // min(N.FACTS), N.CHANGED)
    assert most <= remembering.CELL <= min(places)
    assert remembering.ASKED_FROM + max(places) + remembering.CELL < remembering.TRAINING < remembering.APART


def test_noise_contradicts_nothing():
    found = evidence(last=1.3)
    assert judge("constant cost", found).verdict == "contradicted"
    found["distance"]["lmm"][-1]["stream"]["control"] = [1.2 * t for t in found["distance"]["lmm"][-1]["stream"]["samples"][0]]
    finding = judge("constant cost", found)
    assert finding.verdict == "inconclusive" and "the same state twice differs by up to 20%" in finding.because


@pytest.mark.parametrize("tokens", ["dogs", "other"])
def test_retrieval_takes_the_setting_that_answers_most(tmp_path, monkeypatch, tokens):
    """Of a model that has learned nothing: the one that finds most, then that which reads least."""
    ctx = Context(folder=tmp_path, settings="0" * 64, budget_s=1)
    whole = diaries()
    short = dataclasses.replace(whole, data={**whole.data, "length": 160}, train=dataclasses.replace(whole.train, steps=1))
    text = None
    if tokens == "other":
        text = tmp_path / "mine.txt"
        text.write_text("The heron stood in the reeds. Nobody had seen it come. " * 400)
        ctx = dataclasses.replace(ctx, text=text)
    runs = remembering.runs(ctx, short, ("attention",))
    assert runs["attention"].data["text"] == (None if text is None else str(text))
    tasks.learn(ctx, [tasks.shortened(runs["attention"], 1.0, 1)])
    readers = remembering.Readers(ctx, runs)
    found = readers.choose("bm25", 600, span=(0.0, 0.1))
    assert {(one["size"], one["k"]) for one in found["tried"]} >= {(16, 1), (16, 2), (16, 6), (32, 1), (64, 1)}
    assert found["chosen"].keys() == {"size", "k"} and all(one["asked"] == 20 for one in found["tried"])
    assert all(one["size"] * one["k"] <= 160 for one in found["tried"])
    assert all(a["held"] <= b["held"] for a, b in itertools.pairwise(found["tried"]) if a["size"] == b["size"])
    best = max(found["tried"], key=lambda one: (one["right"], one["held"], -one["size"] * one["k"]))
    assert found["chosen"].items() <= best.items() and best["held"] > 0
    other = {"size": 64, "k": 1}
    readers.retrieval["bm25"] = [
        found,
        {"words": 100_000, "kind": "single", "chosen": other},
        {**found, "kind": "updated", "chosen": other},
    ]
    assert readers.setting("bm25", 2000, "updated") == readers.setting("bm25", 90_000, "single") == other
    kept = readers.new("bm25", 0, 2000)
    assert (kept.k, kept.passages.size) == (found["chosen"]["k"], found["chosen"]["size"])


def test_capacity_lies_between_the_numbers_asked():
    def of(*rights):
        cells = [cell(1, r, facts=f) for f, r in zip((2, 8, 32), rights, strict=True)]
        return page.capacity(cells)

    found = of(24, 18, 6)
    assert found.value == pytest.approx(16)
    assert 8 <= found.low < 16 < found.high <= 32
    assert of(11, 0, 0).value is None
    assert of(12, 6, 0).value == pytest.approx(2)  # half of all, and not of what it once recalled
    high, near = of(24, 24, 24), of(24, 20, 13)
    assert (high.value, high.low, high.high) == (32, 32, None)
    assert (near.value, near.high) == (32, None) and 8 < near.low < 32


def test_what_is_written_is_shown():
    (row,) = tables.writes(evidence()).rows
    assert row[0] == "neural memory, layer 1"
    assert [n.value for n in row[1:]] == [50, 75, 1, 2]


def test_heat_maps_are_drawn():
    for i, heat in enumerate(page.heats(evidence(after=(64, 20)), [0])):
        svg = draw_heat(heat, f"map-{i}")
        root = ET.fromstring(svg)
        assert root.get("role") == "img" and svg == draw_heat(heat, f"map-{i}")
        assert "var(--c1)" in svg and "#010101" not in svg
        assert "neural memory" in svg and page.NOT_ASKED in svg
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        Heat(title="t", x_label="x", rows=("a",), columns=("1", "2"), cells=((Number(1, "%", "measured"),),))


def test_a_longer_diary_can_be_asked_for(monkeypatch, tmp_path):
    assert N.NeuralMemory(50_000_000).distances == (*N.DISTANCES, 50_000_000)
    assert N.CLAIM.distances == N.DISTANCES
    given = []
    monkeypatch.setattr(
        claims.report, "run_report", lambda wanted, *_, **__: given.append(wanted) or claims.report.Outcome(tmp_path, 0)
    )
    with pytest.raises(SystemExit, match="0"):
        main(["report", "--claims", "selective,neural_memory", "--diary-words", "2000000"])
    assert [getattr(claim, "distances", ())[-1:] for claim in given[0]] == [(), (2_000_000,)]


def test_ten_years_are_judged_and_not_what_is_longer():
    further = evidence()
    last = further["distance"]["lmm"][-1]
    forgotten = {**last, "words": 50_000_000, "right": 0, "stream": {**last["stream"], "bytes": (1000, 2000)}}
    further["distance"]["lmm"].append(forgotten)
    assert judge("the first year after ten years", further).verdict == "supported"
    assert judge("constant cost", further).verdict == "supported"


def test_as_many_diaries_as_the_questions_take():
    """Of ten years one, but for many where the budget is large, and so much time is planned."""
    for budget_s, method, read in (
        (600, "lmm", (3, 3, 1, 1)),
        (N.SURE_S, "lmm", (8, 8, 8, 1)),
        (N.SURE_S, "mamba2", (8, 8, 8, 1)),
        (N.SURE_S, "attention", (8, 7, 1, 1)),
    ):
        assert tuple(N._diaries(budget_s, method, n) for n in (500, 32_000, N.TEN_YEARS, 50 * N.TEN_YEARS)) == read
    assert [N.CLAIM.plan(budget_s, 2)[2].seconds for budget_s in (600, N.SURE_S)] == [2 * N.STREAM_S, 16 * N.STREAM_S]


def test_a_rival_that_is_late_is_given_up(tmp_path, monkeypatch):
    ctx = Context(folder=tmp_path, settings="0" * 64, budget_s=1000)
    asked = []

    def recall(readers, method, *, words, within_s, **_):
        asked.append((method, words, within_s))
        late = method == "attention" and words > 500
        return None if late else {"words": words, "tokens": words, "write_s": 1e-4}

    monkeypatch.setattr(remembering, "recall", recall)
    found, given_up = N.CLAIM._distances(SimpleNamespace(ctx=ctx), ("lmm", "attention", "bm25"))
    assert {m: [c["words"] for c in cells] for m, cells in found.items()} == {
        "lmm": list(N.DISTANCES),
        "attention": [500],
        "bm25": list(N.DISTANCES),
    }
    assert given_up == ["attention, KV cache after 4,000 words"]
    limits = {(m, n): s for m, n, s in asked}
    assert all(limits["lmm", n] == math.inf for n in N.DISTANCES)
    assert limits["bm25", 4000] == N.LATE_S and limits["bm25", N.TEN_YEARS] == pytest.approx(N.LATE * N.TEN_YEARS * 1e-4)
    assert [n for m, n, _ in asked if m == "attention"] == [500, 4000]
    assert [m for m, n, _ in asked if n == 4000] == ["lmm", "bm25", "attention"]


def test_reading_ends_when_its_time_is_over(tmp_path):
    ctx = Context(folder=tmp_path, settings="0" * 64, budget_s=1)
    run = remembering.runs(ctx, diaries(), ("lmm",))["lmm"]
    readers = remembering.Readers(ctx, {"lmm": run})
    model = LanguageModel(16, dim=16, depth=1)
    model.tokens = load_tokens(run.data["tokenizer"])
    kept = StateReader(model)
    kept.write = lambda ids: pytest.fail("nothing is read")
    readers.new = lambda method, seed, words, kind: kept
    assert remembering.recall(readers, "lmm", words=100, facts=2, within_s=-1) is None


def test_diaries_that_are_asked_hold_no_text_of_training(tmp_path, monkeypatch):
    """What is asked, tried and watched draws from the user's text what training leaves out, the tokenizer what it does not."""
    text, parts = tmp_path / "mine.txt", []
    text.write_text("The heron stood in the reeds. Nobody had seen it come. " * 400)
    ctx = Context(folder=tmp_path, settings="0" * 64, budget_s=1, text=text)

    def drawn(of, rng, people, split=None):
        parts.append(split)
        raise InterruptedError

    run = remembering.runs(ctx, diaries(), ("lmm",))["lmm"]
    model = LanguageModel(16, dim=16, depth=1)
    model.tokens = load_tokens(run.data["tokenizer"])
    readers = remembering.Readers(ctx, {"lmm": run, "attention": run})
    monkeypatch.setattr(remembering, "open_model", lambda folder: model)
    for place in ("postformer.data.diary", "postformer.claims.remembering"):
        monkeypatch.setattr(f"{place}.sentences", drawn)
    for ask in (
        lambda: remembering.recall(readers, "lmm", words=300, facts=2),
        lambda: readers.choose("bm25", 600),
        lambda: remembering.written(ctx, run, 2, 1),
        lambda: remembering._whole(0, str(text)),
    ):
        with pytest.raises(InterruptedError):
            ask()
    assert parts == ["test", "valid", "test", "train"]


def test_a_diary_streams_in_chunks(tmp_path):
    ctx = Context(folder=tmp_path, settings="0" * 64, budget_s=1)
    run = remembering.runs(ctx, diaries(), ("lmm",))["lmm"]
    tokens = load_tokens(run.data["tokenizer"])
    diary = Diary(words=3000, facts=10, kinds=("single",))
    pieces = list(remembering.streamed(diary, tokens))
    assert {len(p) for p in pieces[:-1]} == {remembering.CHUNK}
    text = tokens.decode([int(i) for p in pieces for i in p])
    assert text == "".join(f"\n\n{e.text}" for e in diary.entries())
    for name in (*world.GIVEN, *world.FAMILY, *world.PETS):
        assert len(tokens.encode(f" {name}")) == 1


def test_the_encoder_is_trained_once(tmp_path, monkeypatch):
    ctx = Context(folder=tmp_path, settings="0" * 64, budget_s=1)
    monkeypatch.setattr(remembering, "ENCODER_STEPS", 3)
    told, text = {"topics": ("dog",), "reach": 3}, ["Ada Abel lives in Cork."]
    first, other = (remembering.encoder(ctx, told, seed).encode(text) for seed in (0, 1))
    assert (first != other).any()
    monkeypatch.setattr(remembering, "fit_encoder", None)
    np.testing.assert_array_equal(remembering.encoder(ctx, told, 0).encode(text), first)


def test_the_claim_small(tmp_path, monkeypatch):
    """From training to the page, with methods, words and facts cut down; the same command again measures nothing anew."""
    monkeypatch.setattr(N, "METHODS", ("lmm", "attention"))
    monkeypatch.setattr(N.CLAIM, "distances", (300, 600))
    monkeypatch.setattr(N, "FACTS", (2, 4))
    monkeypatch.setattr(remembering, "ENCODER_STEPS", 2)
    for name, value in {
        "FACTS_WORDS": 200,
        "CHANGE_WORDS": 200,
        "CHANGED": 8,
        "QUESTIONS": 8,
        "FEWER": 8,
        "ROWS": 4,
        "TEN_YEARS": 600,
    }.items():
        monkeypatch.setattr(N, name, value)
    whole = diaries()
    short = dataclasses.replace(whole, data={**whole.data, "length": 160, "fill": 320})
    monkeypatch.setattr(memory, "diaries", lambda: short)
    out = tmp_path / "out"
    assert run_report([load_claim("neural_memory")], out, budget_s=20, threads=1).exit_code == 0
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    (claim,) = report["claims"]
    result = claim["result"]
    assert result["verdict"] == "inconclusive" and "not learned in" in result["findings"][0]["because"]
    assert [heat["rows"] for heat in result["heats"]] == [
        [
            f"{name} (not learned)"
            for name in ("neural memory", "attention, KV cache", "BM25 + attention", "vectors + attention")
        ]
    ] * 2
    (writes,) = (table for table in result["tables"] if table["title"] == "What is written")
    assert [row[0] for row in writes["rows"]] == ["neural memory, layer 1", "neural memory, layer 2"]
    assert all(0 <= number["value"] <= 100 for row in writes["rows"] for number in row[1:])
    html = (out / "index.html").read_text()
    ids = re.findall(r' id="([^"]+)"', html)
    assert "Ten years of diaries" in html and "claim-1-map-2-title" in ids and len(ids) == len(set(ids))
    run_report([load_claim("neural_memory")], out, budget_s=20, threads=1)
    assert json.loads((out / "report.json").read_text())["claims"][0]["steps"] == claim["steps"]
