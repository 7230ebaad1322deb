"""benchmarks/diffusion.py: what it judges, and tiny sizes of all of it where the peer is installed."""

import sys

import diffusion
import pytest


def test_what_was_wanted_is_judged():
    rows = [
        {"part": "forward", "name": name, "tokens": 16, "samples": {diffusion.OURS: [1.0] * 5, diffusion.THEIRS: [theirs] * 5}}
        for name, theirs in (("fp32", 1.31), ("fp32", 1.29), ("bf16", 1.61), ("bf16", 1.59))
    ]
    lines = diffusion.verdicts(rows, {"forward fp32": 0.71, "forward bf16": 0.69})
    assert [line.split()[0] for line in lines] == ["met", "MISSED"] * 3


def test_tiny_sizes_of_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers", reason="pip install 'postformer[peers]'")
    out = tmp_path / "d.json"
    monkeypatch.setattr(sys, "argv", ["diffusion.py", "--quick", "--threads", "1", "--out", str(out)])
    assert diffusion.main() == 0
    assert capsys.readouterr().out.count("diffusers") == 6
    assert out.exists()
