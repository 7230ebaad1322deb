"""The rule on made-up evidence at each threshold, and the whole claim, small, stopped in the middle and gone on with."""

import dataclasses
import functools
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import small
import torch
from rich.console import Console

from postformer.claims import SENTENCES, load_claim, long_text, sequences
from postformer.claims import long_text_page as page
from postformer.claims.ledger import Criterion, combine
from postformer.claims.long_text import CLAIM
from postformer.claims.long_text_rule import RULE
from postformer.claims.report import Outcome, run_report
from postformer.claims.stats import Estimate, interleaved
from postformer.config import OptimConfig, Run
from postformer.models.language import LanguageModel

SCHEMA = json.loads((Path(__file__).parents[2] / "postformer/claims/report.schema.json").read_text())
LENGTHS = [1024, 2048, 4096, 8192]
FLOOR = Estimate(0.0, -0.01, 0.01, 20)


def series(value: float, noise: float = 0.01, seed: int = 0) -> list[float]:
    """Twenty samples, of median `value`, spread evenly."""
    return (value * (1 + noise * np.random.default_rng(seed).permutation(np.linspace(-1, 1, 21)))).tolist()


def evidence(
    *,
    exponent: float = 1.0,
    reading: float = 5.0,
    writing: float = 5.0,
    noise: float = 0.01,
    states: tuple[int, ...] = (100, 100, 100, 100),
    growth: float | None = 0.0,
    wobble: int = 0,
    quality: tuple[float, ...] = (1.0,),
    spread: float = 0.001,
    lengths: list[int] = LENGTHS,
) -> dict[str, Any]:
    """What a run would have found: ratios at the longest text, the exponent of Mamba's reading, its states, and its process's
    growth as a share of the Transformer's 100 bytes a token."""
    prefill, decode = [], []
    for i, n in enumerate(lengths):
        mamba = 1e-4 * n**exponent
        ratio = reading * n / lengths[-1]
        prefill.append({"mamba": series(mamba, noise, i), "attention": series(mamba * ratio, noise, 10 + i)})
        samples = {"mamba": series(1e-3, noise, 20 + i), "attention": series(1e-3 * writing * n / lengths[-1], noise, 30 + i)}
        decode.append({"samples": samples, "state_bytes": {"mamba": states[i], "attention": 100 * n}})
    peaks = []
    for n, mixers in ((lengths[0], ("mamba", "attention")), (2 * lengths[-1], ("attention",)), (8 * lengths[-1], ("mamba",))):
        added = round((growth or 0.0) * 100 * (n - lengths[0]))
        one = [{"before": 1000, "peak": 10**6 + added + wobble * i * (n > lengths[0])} for i in range(3)]
        peaks.append({"length": n, "mamba": [], "attention": [], **{m: one[: 3 if m == "mamba" else 1] for m in mixers}})
    bits = {}
    for seed, ratio in enumerate(quality):
        documents = np.random.default_rng(seed).uniform(500, 1500, 200)
        other = documents * ratio * (1 + spread * np.random.default_rng(seed + 1).standard_normal(200))
        bits[str(seed)] = {"attention": {"windowed": documents.tolist()}, "mamba": {"windowed": other.tolist()}}
    floors = {"prefill_floors": [FLOOR] * len(lengths), "decode_floors": [FLOOR] * len(lengths)}
    return {
        "lengths": lengths,
        "prefill": prefill,
        "decode": decode,
        "peaks": [] if growth is None else peaks,
        "bits": bits,
    } | floors


def criterion(name: str) -> Criterion:
    return next(c for c in RULE.criteria if c.name == name)


def test_a_fixed_cost_that_could_be_fused_supports_nothing():
    writing = criterion("five times faster at writing")
    for fixed, growing, verdict in ((1e-4, 4e-3, "supported"), (3e-3, 2e-3, "inconclusive"), (3e-3, 5e-4, "contradicted")):
        e = evidence(noise=0.001)
        for i, (n, d) in enumerate(zip(e["lengths"], e["decode"], strict=True)):
            slower = fixed + growing * n / e["lengths"][-1]
            d["samples"] = {"mamba": series(1e-3, 0.001, i), "attention": series(slower, 0.001, 9 + i)}
        found = writing.judge(e, writing.thresholds)
        assert found.verdict == verdict, found
        alike = found.numbers["Transformer / Mamba, were that no more than Mamba's"]
        assert alike.value == pytest.approx(1 + growing / 1e-3, rel=0.05)


def test_memory_is_judged_only_as_far_as_the_rule_says():
    memory, e = criterion("constant memory"), evidence()
    e["peaks"] = [{**p, "length": min(p["length"], 2 * e["lengths"][-1])} for p in e["peaks"]]
    assert memory.judge(e, memory.thresholds).verdict == "inconclusive"


SPEED = "five times faster at reading", "five times faster at writing"
CASES = [
    ("linear time", {"exponent": 1.0}, "supported"),
    ("linear time", {"exponent": 1.08}, "supported"),
    ("linear time", {"exponent": 1.12}, "contradicted"),
    ("linear time", {"exponent": 2.0}, "contradicted"),
    ("linear time", {"exponent": 1.1, "noise": 0.3}, "inconclusive"),
    ("constant memory", {}, "supported"),
    ("constant memory", {"growth": 0.049}, "supported"),
    ("constant memory", {"growth": 0.051}, "contradicted"),
    ("constant memory", {"growth": -0.3}, "supported"),
    ("constant memory", {"growth": 0.045, "wobble": 160_000}, "inconclusive"),
    ("constant memory", {"states": (100, 100, 100, 101)}, "contradicted"),
    ("constant memory", {"growth": None}, "inconclusive"),
    ("constant memory", {"growth": None, "states": (100, 100, 100, 101)}, "contradicted"),
    *((name, {way: 4.1}, "supported") for name, way in zip(SPEED, ("reading", "writing"), strict=True)),
    *((name, {way: 3.9}, "contradicted") for name, way in zip(SPEED, ("reading", "writing"), strict=True)),
    *((name, {way: 0.5}, "contradicted") for name, way in zip(SPEED, ("reading", "writing"), strict=True)),
    *((name, {way: 4.0, "noise": 0.4}, "inconclusive") for name, way in zip(SPEED, ("reading", "writing"), strict=True)),
    *(
        (name, {way: 9.0, "lengths": [n // 2 - 1 for n in LENGTHS]}, "inconclusive")
        for name, way in zip(SPEED, ("reading", "writing"), strict=True)
    ),
    *(
        (name, {way: 9.0, "lengths": [*LENGTHS[1:], 16384]}, "supported")
        for name, way in zip(SPEED, ("reading", "writing"), strict=True)
    ),
    ("as good", {}, "supported"),
    ("as good", {"quality": (1.028,)}, "supported"),
    ("as good", {"quality": (1.049,)}, "inconclusive"),
    ("as good", {"quality": (1.051,)}, "inconclusive"),
    ("as good", {"quality": (1.073,)}, "contradicted"),
    ("as good", {"quality": (1.049,) * 3}, "supported"),
    ("as good", {"quality": (1.051,) * 3}, "contradicted"),
    ("as good", {"quality": (1.05,), "spread": 0.1}, "inconclusive"),
    ("as good", {"quality": (1.0, 1.0)}, "supported"),
    ("as good", {"quality": (1.2, 1.2)}, "contradicted"),
    ("as good", {"quality": (1.0, 1.2)}, "inconclusive"),
]


@pytest.mark.parametrize(("name", "words", "verdict"), CASES, ids=str)
def test_each_part_of_the_rule(name, words, verdict):
    c = criterion(name)
    finding = c.judge(evidence(**words), c.thresholds)
    assert finding.verdict == verdict, finding.because
    assert finding.numbers


def test_every_part_is_tested_on_each_side():
    for c in RULE.criteria:
        assert {v for name, _, v in CASES if name == c.name} == {"supported", "contradicted", "inconclusive"}


def test_the_rule_says_its_thresholds():
    for c in RULE.criteria:
        for key, value in c.thresholds.items():
            assert f"{value:.0f}" in c.sentence if key == "length" else str(value) in c.sentence
            other = dataclasses.replace(c, thresholds={**c.thresholds, key: 7777})
            assert "7777" in other.sentence, "the sentence is filled from the thresholds that the judge is given"
        assert "{" not in c.sentence


@pytest.mark.parametrize(
    ("words", "whole"),
    [({}, "supported"), ({"exponent": 1.5}, "contradicted"), ({"growth": None}, "inconclusive")],
    ids=str,
)
def test_the_verdict_on_the_whole(words, whole):
    assert combine(RULE.judge(evidence(**words))) == whole


def test_the_plan_is_the_budget_or_the_least_that_a_run_takes():
    assert sum(s.seconds for s in CLAIM.plan(600.0, 1)) == pytest.approx(600)
    scores = [s.seconds for n in (1, 3) for s in CLAIM.plan(600.0, n) if s.name.startswith("score")]
    assert scores[1] == 3 * scores[0]
    assert 60 < sum(s.seconds for s in CLAIM.plan(1.0, 1)) < 180
    assert all(s.seconds >= 0 for budget in (1.0, 90.0, 299.0, 300.0) for s in CLAIM.plan(budget, 1))


def test_the_command_line_knows_the_claim_without_importing_it():
    for name, sentence in SENTENCES.items():
        assert (load_claim(name).id, load_claim(name).sentence) == (name, sentence)


def test_each_length_has_its_own_noise_floor():
    e = evidence(reading=9.0)
    wide = Estimate(0.0, -0.9, 9.0, 20)
    assert "Mamba is faster" in criterion(SPEED[0]).judge(e, {"least": 4.0, "length": 8192}).because
    e["prefill_floors"][-1] = wide
    unsure = criterion(SPEED[0]).judge(e, {"least": 4.0, "length": 8192})
    assert "neither is faster" in unsure.because
    assert unsure.verdict == "inconclusive"
    assert "Mamba is faster" in criterion(SPEED[0]).judge(e, {"least": 4.0, "length": 4096}).because


# ---------------------------------------------------------------- the whole claim


@pytest.fixture
def tiny(monkeypatch, tmp_path) -> Path:
    """A text, and everything of the claim made small; peak memory is made up, for its processes take seconds each."""

    def recipe(mixer: str) -> Run:
        return dataclasses.replace(small.run("", mixer), name=mixer, optim=OptimConfig(warmup=2, lr=5e-3))

    monkeypatch.setattr(long_text, "text_mamba", lambda: recipe("mamba"))
    monkeypatch.setattr(long_text, "text_attention", lambda: recipe("attention"))
    monkeypatch.setattr(long_text, "WINDOW", 32)
    monkeypatch.setattr(sequences, "VOCAB", 280)
    monkeypatch.setattr(sequences, "interleaved", lambda f, repeats, **words: interleaved(f, 3, **words))
    monkeypatch.setattr(sequences, "decode_times", functools.partial(sequences.decode_times, repeats=3, steps=1))

    def peak(folder: Path, length: int, *rest: int) -> dict[str, int]:
        return {"before": 10**8, "peak": 10**8 + 50 * length * folder.name.startswith("attention")}

    monkeypatch.setattr(sequences, "peak_memory", peak)
    (tmp_path / "text.txt").write_text(small.text(3000))
    return tmp_path


def report(tmp: Path, text: str = "text.txt") -> tuple[Outcome, dict[str, Any], str]:
    heard = io.StringIO()
    words: dict[str, Any] = {"budget_s": 1, "command": ["postformer", "report"], "console": Console(file=heard, width=200)}
    outcome = run_report([CLAIM], tmp / "report", text=tmp / text, seeds=(0,), threads=1, **words)
    return outcome, json.loads((tmp / "report" / "report.json").read_text()), heard.getvalue()


def test_the_claim_is_stopped_and_gone_on_with(tiny, monkeypatch):
    taken: list[str] = []
    train_one, decode_times = sequences.train_one, sequences.decode_times

    def counted(ctx, run, folder):
        taken.append(run.name)
        return train_one(ctx, run, folder)

    def broken(*args):
        raise RuntimeError("the machine went away")

    monkeypatch.setattr(sequences, "train_one", counted)
    monkeypatch.setattr(sequences, "decode_times", broken)
    outcome, first, _ = report(tiny)
    jsonschema.validate(first, SCHEMA)
    assert outcome.exit_code == 1
    assert first["claims"][0]["status"] == "failed"
    assert "the machine went away" in first["claims"][0]["reason"]
    done = [s["step"] for s in first["claims"][0]["steps"]]
    assert done[-1] == "read 1,024 tokens"

    monkeypatch.setattr(sequences, "decode_times", decode_times)
    outcome, second, _ = report(tiny)
    jsonschema.validate(second, SCHEMA)
    claim = second["claims"][0]
    assert outcome.exit_code == 0, claim["reason"]
    assert second["complete"]
    assert taken == ["mamba", "attention"], "what is journaled is not done again"
    assert claim["steps"][: len(done)] == first["claims"][0]["steps"]
    result = claim["result"]
    assert result["rule_sha256"] == RULE.sha256
    assert [f["criterion"] for f in result["findings"]] == [c.name for c in RULE.criteria]
    assert {f["criterion"]: f["verdict"] for f in result["findings"]}["constant memory"] == "supported"
    assert result["data"]["own"] is True
    assert "index.html" in {p.name for p in outcome.page.parent.iterdir()}

    outcome, third, _ = report(tiny)
    assert third["claims"] == second["claims"], "a finished report is made again from its journal"
    assert taken == ["mamba", "attention"]


def test_too_little_text_is_not_measurable(tiny):
    (tiny / "short.txt").write_text("One line.\n")
    outcome, found, heard = report(tiny, "short.txt")
    jsonschema.validate(found, SCHEMA)
    result = found["claims"][0]["result"]
    assert outcome.exit_code == 0
    assert result["verdict"] == "not measurable here"
    reasons = {f["because"] for f in result["findings"]}
    assert len(reasons) == 1
    assert "\n" not in reasons.pop()
    assert "long_text: not measurable here" in heard


def test_peak_memory_is_that_of_reading(tmp_path):
    """A process where the state grows tells more for a longer text."""
    from postformer.models.hub import save_model

    model = small.model("attention", depth=1)
    save_model(model, tmp_path / "m")
    short, long = (sequences.peak_memory(tmp_path / "m", n, 256, 1) for n in (512, 32768))
    assert 0 < short["before"] <= short["peak"]
    grown = model.cost(32768).state_bytes - model.cost(512).state_bytes
    assert long["peak"] - long["before"] > short["peak"] - short["before"] + grown / 2
    with pytest.raises(Exception, match="peak memory could not be measured"):
        sequences.peak_memory(tmp_path / "none", 512, 256, 1)


def test_the_page_says_who_is_ahead_where_the_curves_do_not_cross():
    assert "Mamba was the faster of the two at every length" in page.consequences(evidence(reading=50.0))[0]
    behind = evidence(reading=0.01)
    behind["prefill"] = [{"mamba": p["mamba"], "attention": [0.1 * x for x in p["mamba"]]} for p in behind["prefill"]]
    assert "the Transformer was the faster of the two at every length" in page.consequences(behind)[0]


def test_too_few_rounds_decide_nothing():
    few = evidence(reading=9.0)
    few["prefill"][-1] = {name: samples[:5] for name, samples in few["prefill"][-1].items()}
    verdicts = {f.criterion: f.verdict for f in RULE.judge(few)}
    assert verdicts["linear time"] == verdicts["five times faster at reading"] == "inconclusive"


def test_without_a_fused_scan_slowness_refutes_nothing():
    slow = {f.criterion: f.verdict for f in RULE.judge({**evidence(reading=0.5, writing=0.5), "fused": False})}
    assert slow["five times faster at reading"] == slow["five times faster at writing"] == "inconclusive"


def test_a_timed_step_does_not_copy_the_cache():
    model = LanguageModel(31, dim=16, depth=1, mixers=({"kind": "attention", "heads": 2},)).eval()
    seen = []
    forward = type(model).forward
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(
            LanguageModel,
            "forward",
            lambda self, ids, state=None: seen.append(state[0].k.shape[2]) or forward(self, ids, state),
        )
        sequences.decode_times({"attention": model}, torch.zeros(1, 128, dtype=torch.long), repeats=2, steps=1)
    assert seen[0] == 128
    assert set(seen[1:]) == {192}
