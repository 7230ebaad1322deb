"""The rule of `reads_better` on made-up evidence for each verdict, what is read and how, and the claim, small, from end to end."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from postformer.claims import load_claim, streams
from postformer.claims import reads_better as R
from postformer.claims import reads_better_page as P
from postformer.claims.ledger import Context, NotMeasurable
from postformer.claims.report import run_report
from postformer.mixers.titans import LMM, LMMState
from postformer.mixers.titans_attention import MAG
from postformer.models.language import LanguageModel
from postformer.objectives.likelihood import streamed_nats
from postformer.state import leaves
from postformer.tokens.text import Bytes

SCHEMA = json.loads((Path(__file__).parents[2] / "postformer/claims/report.schema.json").read_text())
UNITS = 60
MODEL = {
    "dim": 16,
    "depth": 2,
    "mixers": ({"kind": "mag", "memory": {"heads": 2, "chunk": 4}, "attention": {"heads": 2, "window": 8}},),
    "ffns": ({"kind": "mlp", "hidden": 16},),
}


def made(frozen: float, window: float, seeds: int = 1, spread: float = 0.0, apart: float = 1.0) -> dict[str, Any]:
    """Evidence of units of 1,000 bytes with gains of so many bits per byte, noisy, and moved by `spread` from seed to seed."""
    noise = np.random.default_rng(0).permutation(np.linspace(-100, 100, UNITS))
    on = 2000 + 3 * noise
    bits = {}
    for seed in range(seeds):
        moved = 1000 * spread * (seed - (seeds - 1) / 2)
        others = {"frozen": frozen, "anew": frozen / 2, "window": window}
        bits[str(seed)] = {"on": on.tolist()} | {w: (on + 1000 * g + noise + moved).tolist() for w, g in others.items()}
    times = np.linspace(0.9, 1.1, 20)
    return {
        "units": {"bytes": [1000] * UNITS, "at": [1000 * (i % 30) for i in range(UNITS)]},
        "bits": bits,
        "costs": {
            "samples": {w: (times * 1e-3 * (1 + i)).tolist() for i, w in enumerate(("on", "frozen", "window"))},
            "state_bytes": {"memory": 9000, "window": 3000},
            "parameters": {"memory": 100_000, "window": int(100_000 * apart)},
        },
        "taken": "2,000 of the recipe's 2,000 steps",
        "taken_share": 1.0,
        "rows": 2,
    }


def judge(name: str, evidence: dict[str, Any]) -> str:
    criterion = next(c for c in R.RULE.criteria if c.name == name)
    return criterion.judge(evidence, criterion.thresholds).verdict


@pytest.mark.parametrize(
    ("evidence", "still", "none"),
    [
        (made(0.1, 0.05, seeds=2), "supported", "supported"),
        (made(0.1, 0.05), "supported", "inconclusive"),  # one pair of models
        (made(0.1, -0.05, seeds=2), "supported", "contradicted"),
        (made(-0.1, 0.05, seeds=2), "contradicted", "supported"),
        (made(0.01, -0.01, seeds=2), "inconclusive", "inconclusive"),
        (made(0.1, 0.05, seeds=2, apart=1.04), "supported", "supported"),
        (made(0.1, 0.05, seeds=2, apart=1.06), "supported", "inconclusive"),
        (made(0.1, -0.05, seeds=2, apart=0.94), "supported", "inconclusive"),
        (made(0.1, 0.1, seeds=3), "supported", "supported"),
        (made(0.1, -0.1, seeds=3, spread=0.1), "inconclusive", "inconclusive"),
    ],
)
def test_rule(evidence, still, none):
    assert judge("written against standing still", evidence) == still
    assert judge("written against none", evidence) == none


@pytest.mark.parametrize("gain", [0.1, -0.1])
def test_too_few_steps_decide_nothing(gain):
    evidence = made(gain, gain, seeds=3)
    evidence["taken_share"] = 0.5
    assert judge("written against standing still", evidence) == judge("written against none", evidence) == "inconclusive"


def test_one_unit_decides_nothing():
    evidence = made(0.1, 0.1)
    evidence["units"] = {"bytes": [1000], "at": [0]}
    evidence["bits"] = {"0": {way: of[:1] for way, of in evidence["bits"]["0"].items()}}
    assert judge("written against standing still", evidence) == "inconclusive"
    assert P.charts(evidence) and P.along(evidence).rows


def test_gains_are_bits_per_byte():
    evidence = made(0.1, -0.05)
    assert P.gain(evidence, "frozen").value == pytest.approx(0.1)
    assert P.gain(evidence, "window").value == pytest.approx(-0.05)
    assert P.bits(evidence, "on").value == pytest.approx(2.0)
    stretches = P.stretches(evidence)
    assert [(low, high) for low, high, _ in stretches] == [(0, 8000), (8000, 16000), (16000, 32000)]
    assert sum(int(c.sum()) for *_, c in stretches) == UNITS


# ---------------------------------------------------------------- what is read


def text(documents: int = 12, size: int = 500) -> streams.Text:
    read = [(f"{i:03d} " * (size // 4)).encode() for i in range(documents)]
    return streams.Text("made", [b"learned"], read)


def test_rows_begin_at_documents_and_units_are_theirs(monkeypatch):
    monkeypatch.setattr(streams, "LEAST", 100)
    s = streams.streams(text(), Bytes(), 1100)
    assert s.ids.shape == (4, 1101) and s.nbytes.shape == s.unit.shape == (4, 1100)
    assert s.ids[:, 0].tolist() == [256] * 4
    assert [bytes(row[1:4].tolist()) for row in s.ids] == [b"000", b"003", b"006", b"009"]
    assert s.unit[0, 0] == 0 and s.unit[0, 500] == 0 and s.unit[0, 501] == 1
    units = streams.units_of(s)
    assert units["bytes"] == [500, 500, 98] * 4
    assert units["at"] == [0, 500, 1000] * 4


def test_a_long_document_is_cut_into_units(monkeypatch):
    monkeypatch.setattr(streams, "LEAST", 100)
    monkeypatch.setattr(streams, "PART", 200)
    s = streams.streams(text(), Bytes(), 501)
    assert streams.units_of(s)["bytes"] == [200, 200, 100] * 4


def test_too_little_text_is_told():
    with pytest.raises(NotMeasurable, match="at least 4,096 are needed"):
        streams.streams(text(), Bytes(), 4096)


def test_the_texts_order_is_kept(tmp_path, data_folder, monkeypatch):
    monkeypatch.setenv("POSTFORMER_DATA", str(data_folder))
    diary = streams.text_of(None)
    assert len(diary.learned) + len(diary.read) == 3415
    assert diary.learned[0].startswith(b"Blessed be God, at the end of the last year")
    assert 0.68 < sum(map(len, diary.learned)) / sum(map(len, diary.learned + diary.read)) < 0.72
    monkeypatch.delenv("POSTFORMER_DATA")
    assert "Python" in streams.text_of(None).name
    (tmp_path / "one.jsonl").write_text('{"text": "alone"}\n')
    with pytest.raises(NotMeasurable, match="1 documents are too few"):
        streams.text_of(tmp_path / "one.jsonl")


# ---------------------------------------------------------------- reading


def test_nats_are_those_of_reading_whole(monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 16)
    torch.manual_seed(0)
    model = LanguageModel(257, **MODEL)
    ids = torch.randint(256, (1, 50))
    closed = torch.cat([torch.tensor([[256]]), ids, torch.tensor([[256]])], 1)
    nats = streams.token_nats(model, closed)
    assert nats.shape == (1, 51)
    assert nats.sum() == pytest.approx(streamed_nats(model, ids[0].numpy(), start=256), rel=1e-5)


@torch.inference_mode()
def test_a_memory_begun_anew_is_the_learned_one_beside_attention_that_goes_on(monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 16)
    torch.manual_seed(0)
    model = LanguageModel(257, **MODEL)
    ids = torch.randint(256, (2, 65))
    whole, anew = streams.token_nats(model, ids), streams.token_nats(model, ids, renewed=True)
    np.testing.assert_allclose(whole[:, :16], anew[:, :16], rtol=1e-5)
    assert not np.allclose(whole[:, 16:], anew[:, 16:])
    mixer, x = MAG(16, memory={"heads": 2, "chunk": 4}, attention={"heads": 2, "window": 8}), torch.randn(1, 16, 16)
    _, state = mixer(x, mixer.init_state(1))
    begun = streams.begun_anew(((state,),))[0][0]
    assert isinstance(begun.memory, LMMState) and begun.memory.seen.tolist() == [0]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(leaves(begun.attention), leaves(state.attention), strict=True))


def test_ways_of_reading_differ_and_leave_the_model_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LEAST", 100)
    torch.manual_seed(0)
    model = LanguageModel(257, **MODEL)
    monkeypatch.setattr(streams, "open_model", lambda folder: model)
    ctx = Context(folder=tmp_path, settings="0" * 64, budget_s=10)
    s = streams.streams(text(), Bytes(), 1100)
    on, still, again = (streams.unit_bits(ctx, tmp_path, s, way) for way in ("on", "frozen", "on"))
    assert len(on) == len(still) == 12 and on == again != still
    assert sum(on) == pytest.approx(float(streams.token_nats(model, s.ids).sum()) / math.log(2))
    assert all(m.writes for m in model.modules() if isinstance(m, LMM))


def test_the_claim_small(tmp_path, monkeypatch):
    """From training to the page, with texts and nets cut down; the same command again measures nothing anew."""
    monkeypatch.setattr(streams, "LEAST", 512)
    monkeypatch.setattr(streams, "CHUNK", 128)
    monkeypatch.setattr(streams, "VOCAB", 300)
    monkeypatch.setattr(R, "LONGEST", 600)
    monkeypatch.setattr(R, "SAMPLED", 2)
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, 5)) for _ in range(50)]
    rows = [json.dumps({"text": " ".join(words[i] for i in rng.integers(0, 50, 200))}) for _ in range(40)]
    (tmp_path / "diary.jsonl").write_text("\n".join(rows) + "\n")
    whole = R._recipes

    def small(ctx):
        return {
            name: dataclasses.replace(run, model={**run.model, "dim": 32}, data={**run.data, "length": 64})
            for name, run in whole(ctx).items()
        }

    monkeypatch.setattr(R, "_recipes", small)
    words = {"budget_s": 4, "threads": 1, "seeds": (0, 1), "text": tmp_path / "diary.jsonl"}
    outcome = run_report([load_claim("reads_better")], tmp_path / "out", **words)
    assert outcome.exit_code == 0, outcome.failures
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    (claim,) = report["claims"]
    assert claim["status"] == "done" and claim["result"]["verdict"] != "not measurable here"
    assert len(claim["result"]["findings"]) == 2 and claim["result"]["data"]["own"]
    assert claim["result"]["tables"] and claim["result"]["charts"] and claim["result"]["limits"]
    assert "Learning while reading" in (tmp_path / "out" / "index.html").read_text()
    run_report([load_claim("reads_better")], tmp_path / "out", **words)
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert again["claims"][0]["steps"] == claim["steps"]
