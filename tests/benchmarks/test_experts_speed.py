"""benchmarks/experts.py: what it judges, and one token of all of it where the peer is installed."""

import sys

import experts
import pytest


def row(part: str, ours: float, eager: float, grouped: float, tokens: int = 16):
    samples = {experts.OURS: [ours] * 5, experts.EAGER: [eager] * 5, experts.GROUPED: [grouped] * 5}
    return {"part": part, "name": "E8k2 fp32", "tokens": tokens, "samples": samples}


def test_what_was_wanted_is_judged_against_their_faster_path():
    rows = [
        row("forward", 1.0, 5.0, 1.01),
        row("forward", 1.0, 0.99, 5.0),
        row("forward", 1.0, 2.1, 2.0, tokens=1),
        row("forward", 1.0, 1.9, 3.0, tokens=1),
        row("both", 1.0, 1.2, 1.2),
        row("both", 1.0, 9.0, 1.19),
    ]
    assert [line.split()[0] for line in experts.verdicts(rows)] == ["met", "MISSED"] * 3


def test_one_token_of_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers", reason="pip install 'postformer[peers]'")
    out = tmp_path / "e.json"
    monkeypatch.setattr(sys, "argv", ["experts.py", "--quick", "--tokens", "1", "--threads", "1", "--out", str(out)])
    assert experts.main() == 0
    said = capsys.readouterr().out
    assert said.count("their best takes") == 8
    assert out.exists()


def test_mistakes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experts.py", "--tokens", "7"])
    with pytest.raises(experts.UserError, match="unknown 7; choose from 1, 16, 256"):
        experts.main()
