"""A report like a real one, with invented numbers: what the page is tested and looked at with."""

import json
from typing import Any

import numpy as np

from postformer.claims.film import Film, Track, strip
from postformer.claims.ledger import (
    Chart,
    Criterion,
    Data,
    Finding,
    Headline,
    Mark,
    Number,
    Rule,
    Series,
    Source,
    Step,
    Table,
    conclude,
)
from postformer.claims.words import TIMES
from postformer.config import plain

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
BEYOND = (32768, 131072, 524288, 5242880)


def _linear(evidence: Any, thresholds: Any) -> Finding:
    numbers = {"Mamba's exponent": evidence["mamba"], "attention's exponent, last three lengths": evidence["attention"]}
    verdict = "supported" if evidence["mamba"].high < thresholds["below"] else "contradicted"
    return Finding(verdict, "the whole interval of Mamba's exponent lies below the threshold", numbers)


def _memory(evidence: Any, thresholds: Any) -> Finding:
    return Finding("supported", "the state has the same bytes after 1,024 and after 32,768 bytes of text")


def _faster(evidence: Any, thresholds: Any) -> Finding:
    because = "attention's prefill takes 2.6 times as long at the longest length of this budget; five times was not reached"
    return Finding("inconclusive", because, {"attention / Mamba at 32,768 bytes": evidence["ratio"]})


def _quality(evidence: Any, thresholds: Any) -> Finding:
    return Finding("not measurable here", "the budget ended before both models had read the same amount of text")


class SampleClaim:
    id = "long_text"
    title = "A state space model reads long text in linear time with constant memory"
    sentence = (
        "A selective state space reads long text in linear time with constant memory, "
        "and about five times faster than a Transformer."
    )
    sources = (
        Source(
            "Gu & Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
            "https://arxiv.org/abs/2312.00752",
        ),
        Source("abstract: “five times higher throughput than Transformers”"),
    )
    weight = 1.0
    rule = Rule(
        "Supported if Mamba's prefill time grows with an exponent below 1.15, its state does not grow, attention's prefill "
        "takes at least five times as long at some measured length, and its text is predicted no worse after equal training.",
        (
            Criterion("linear time", "95% interval of the exponent below {below}", _linear, {"below": 1.15}),
            Criterion("constant memory", "state bytes equal at every length", _memory),
            Criterion("five times faster", "ratio's interval above {least} at some length", _faster, {"least": 5.0}),
            Criterion("same quality", "bits per byte at most {worse} above attention's", _quality, {"worse": 0.05}),
        ),
    )

    def plan(self, budget_s: float, seeds: int) -> list[Step]:
        return [Step("corpus", 5), Step("train", budget_s * 0.6), Step("timing", budget_s * 0.35)]

    def run(self, ctx: Any) -> Any:
        evidence = {
            "mamba": Number(0.984, "", "measured", 0.962, 1.011, 6),
            "attention": Number(1.71, "", "measured", 1.66, 1.75, 3),
            "ratio": Number(2.61, TIMES, "measured", 2.52, 2.69, 20),
        }
        return conclude(
            self,
            evidence,
            headline=Headline(
                evidence["ratio"], "Attention's prefill time over Mamba's for 32,768 bytes of text, equal parameters"
            ),
            charts=_charts(),
            tables=_tables(),
            films=(_film(),),
            limits=(
                "Models of 1.6M parameters: at this width the projections outweigh attention's quadratic part up to about "
                "8,192 bytes, so the advantage begins later than at the published scale.",
                "One CPU without a fused attention kernel for long contexts; on a GPU both curves move.",
            ),
            consequences=(
                "For documents below 8,192 bytes on a machine like this, choose by quality: speed does not tell them apart.",
                "For streams that never end, only the constant state stays in memory.",
            ),
            data=Data("The Python 3.11 standard library's source and language reference", False, "5f" * 32, 23_400_000),
        )


def _curve(
    name: str, values: tuple[float, ...], tag: str = "measured", noise: float = 0.04, x: tuple[float, ...] = LENGTHS
) -> Series:
    low, high = (tuple(v * (1 + sign * noise) for v in values) for sign in (-1, 1))
    return Series(name, x, values, tag, low, high)


def _charts() -> tuple[Chart, ...]:
    axis = {"x_label": "bytes of text", "log_x": True, "log_y": True}
    mamba, attention = (0.031, 0.06, 0.118, 0.235, 0.468, 0.94), (0.014, 0.032, 0.083, 0.24, 0.79, 2.45)
    return (
        Chart(
            title="Prefill: attention falls behind beyond 8,192 bytes",
            y_label="time to read the text",
            y_unit="s",
            series=(_curve("Mamba", mamba), _curve("Attention with a KV cache", attention)),
            marks=(Mark("x", 8034, "crossover"),),
            **axis,
        ),
        Chart(
            title="Decode: one more byte costs Mamba the same at every length",
            y_label="time per byte",
            y_unit="s",
            series=(
                _curve("Mamba", (1.21e-3, 1.2e-3, 1.22e-3, 1.21e-3, 1.2e-3, 1.21e-3)),
                _curve("Attention with a KV cache", (0.92e-3, 0.97e-3, 1.08e-3, 1.3e-3, 1.74e-3, 2.6e-3)),
            ),
            **axis,
        ),
        Chart(
            title="State: 1.2 MB for any length, against a cache that grows",
            y_label="bytes of state",
            y_unit="B",
            series=(
                _curve("Mamba", (1.18e6,) * 6, "counted", 0),
                _curve("Attention with a KV cache", tuple(3072.0 * n for n in LENGTHS), "counted", 0),
            ),
            marks=(Mark("y", 16.8e9, "this machine's memory"),),
            **axis,
        ),
        Chart(
            title="Beyond what was measured",
            y_label="time to read the text",
            y_unit="s",
            series=(
                _curve("Mamba", (0.94, 3.76, 15.0, 150.3), "extrapolated", 0.06, BEYOND),
                _curve("Attention with a KV cache", (2.45, 34.8, 540.0, 53_400.0), "extrapolated", 0.12, BEYOND),
            ),
            note="Sum of a fixed, a linear and a quadratic cost, fitted to the measured lengths.",
            **axis,
        ),
    )


def _film() -> Film:
    clip = np.full((3, 4, 8, 8), -1.0)
    clip[0, range(4), 4, range(4)] = 1.0
    points = tuple((0.06 + 0.125 * f, 0.56) for f in range(4))
    tracks = Track("true", points), Track("measured", (*points[:3], ()))
    return Film(title="A disc that flies level", columns=("0", "1", "2", "3"), strips=(strip("U-Net", clip, tracks),), known=2)


def _tables() -> tuple[Table, ...]:
    def bits(value: float, half: float) -> Number:
        return Number(value, "bits/byte", "measured", value - half, value + half, 3, (0, 1, 2))

    def guess(value: float, unit: str, width: float = 0.08) -> Number:
        return Number(value, unit, "extrapolated", value * (1 - width), value * (1 + width), 20)

    quality = Table(
        "Bits per byte on text that was held back; lower is better",
        ("Model", "code", "prose", "both", "trained on"),
        (
            ("Mamba, 1.6M parameters", bits(1.613, 0.02), bits(2.104, 0.03), bits(1.792, 0.02), "4.1 MB, 210 s"),
            ("Attention, 1.6M parameters", bits(1.701, 0.02), bits(2.171, 0.03), bits(1.874, 0.02), "4.1 MB, 210 s"),
            ("5-gram bytes, Kneser-Ney", bits(1.942, 0.0), bits(2.388, 0.0), bits(2.106, 0.0), "the same 4.1 MB"),
            ("zstd -19 with a dictionary", bits(1.883, 0.0), bits(2.510, 0.0), bits(2.113, 0.0), "the same 4.1 MB"),
            ("gzip (as published)", "not given", "not given", Number(2.9, "bits/byte", "quoted", note="enwik8"), "not given"),
        ),
        "Equal steps, batches and learning-rate search for both models.",
    )
    far = Table(
        "Carried on by formula",
        (
            "Text",
            "Mamba reads it in",
            "Attention reads it in",
            "Mamba's state",
            "Attention's cache",
            "Attention: each further byte",
        ),
        tuple(
            (
                f"{words} words",
                guess(a, "s"),
                guess(b, "s", 0.15),
                Number(1.18e6, "B", "counted"),
                Number(c, "B", "counted"),
                guess(d, "s"),
            )
            for words, a, b, c, d in (
                ("100K", 15.6, 602.0, 1.67e9, 0.031),
                ("1M", 156.0, 59_800.0, 16.7e9, 0.31),
                ("50M", 7_810.0, 149e6, 835e9, 15.4),
            )
        ),
        "A word is taken as 5.44 bytes, the mean of this corpus.",
    )
    return quality, far


def entry(claim: Any, status: str = "done", reason: str = "") -> dict[str, Any]:
    steps = [
        ("the rule of judgement", 0.01),
        ("corpus", 4.2),
        ("train mamba", 104.7),
        ("train attention", 103.9),
        ("timing", 68.0),
    ]
    times = [
        {"step": s, "at": f"2026-11-22T08:1{i}:04+00:00", "seconds": t, "load": 1.1 + i / 10} for i, (s, t) in enumerate(steps)
    ]
    return {
        "id": claim.id,
        "title": claim.title,
        "sentence": claim.sentence,
        "status": status,
        "reason": reason,
        "result": plain(claim.run(None)) if status == "done" else None,
        "steps": times if status == "done" else [],
    }


def sample_report(*more: dict[str, Any]) -> dict[str, Any]:
    """The report as `json.load` gives it."""
    report = {
        "schema": "postformer-report-1",
        "complete": not more,
        "settings": {"budget_s": 300.0, "text": None},
        "stamp": {
            "package": "postformer 0.1.0",
            "code_sha256": "ab" * 32,
            "git": {"sha": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
            "command": "postformer report --claims long_text --budget 5m --out report",
            "began": "2026-11-22T08:10:02+00:00",
            "ended": "2026-11-22T08:14:58+00:00",
            "load_at_start": 0.31,
            "load_at_end": 1.97,
            "seeds": [0, 1, 2],
            "threads": 2,
            "hashes": {"settings": "cd" * 32},
            "machine": {
                "cpu": "AMD EPYC 9R14",
                "flags": ["avx", "avx2", "avx512bw", "avx512f", "avx512vl", "f16c", "fma", "sse4_2"],
                "cores": 2,
                "memory_bytes": 16_800_000_000,
                "os": "Debian GNU/Linux 12 (bookworm)",
                "kernel": "Linux 6.1.0",
                "architecture": "x86_64",
            },
            "libraries": {"python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.6", "zstandard": "0.25.0"},
            "torch_build": {"config_sha256": "ef" * 32, "cuda": ""},
            "gpus": [],
        },
        "claims": [entry(SampleClaim()), *more],
    }
    return json.loads(json.dumps(report))
