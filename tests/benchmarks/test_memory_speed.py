"""benchmarks/memory.py: what it counts and judges, and all of it once where the peer is installed."""

import sys

import memory
import pytest


def row(part: str, ours: float, theirs: float, chunk: int = 16):
    samples = {memory.THEIRS: [theirs] * 5, memory.OURS: [ours] * 5}
    return {"part": part, "name": f"chunk {chunk}", "tokens": 1024, "samples": samples}


def test_what_was_wanted_is_judged():
    rows = [row("forward", 1.0, 10.0), row("both", 1.0, 9.9), row("forward", 1.0, 3.0, chunk=64)]
    lines = memory.verdicts(rows, {"chunk 16": {memory.THEIRS: 499, memory.OURS: 100}}, {"forward": 0.51, "other": 0.49})
    assert [line.split()[0] for line in lines] == ["met", "MISSED", "met", "MISSED", "met", "MISSED"]


def test_a_rate_is_flat_by_its_interval():
    """The longest text against the shortest that was warmed up; without a second one nothing is judged."""

    def at(tokens: int, seconds: list[float], part: str = "forward"):
        return {
            "part": part,
            "name": "chunk 64",
            "tokens": tokens,
            "samples": {memory.THEIRS: [1e3 for _ in seconds], memory.OURS: seconds},
        }

    def judged(*rows):
        return [line.split(", ", 1) for line in memory.verdicts(list(rows), {}, {}) if "flat" in line]

    short, longest = at(1024, [1.0] * 5), at(16384, [16.0, 16.5, 17.0])
    assert judged(short) == judged(longest) == judged(longest, at(16384, [9.0], part="both")) == []
    ((met, rest),) = judged(at(4096, [9.0] * 5), short, longest)
    assert met.split() == ["met", "tokens/s", "flat"]
    assert rest.startswith("forward chunk 64, 16,384 tokens to 1,024: 0.97") and rest.endswith("of 0.9")
    ((missed, _),) = judged(short, at(4096, [4.0, 4.0, 4.7, 4.0, 4.7]))
    assert missed.split()[0] == "MISSED", "the median is flat, its interval is not"
    assert [line[0].split()[0] for line in judged(at(1024, [1.0]), at(4096, [4.4]))] == ["met"]
    assert [line[0].split()[0] for line in judged(at(1024, [1.0]), at(4096, [4.5]))] == ["MISSED"]


def test_products_of_a_token_are_those_of_the_dual_form():
    """Width 384, 6 heads of 64, matrices of 64 x 128: counted by hand, with a chunk of one token."""
    head = 2 * (64 * 128) * 2 + 2 * (64 * 128) + 2 * 2 * (64 * 128) * 2 + 2 * 2 * (64 + 128) + 2 * 2 * (64 * 128) * 2
    assert memory.products(1) == 6 * head + 2 * 384 * (5 * 384 + 3 * 6)


def test_all_of_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("titans_pytorch", reason="pip install 'postformer[peers]'")
    monkeypatch.setattr(sys, "argv", ["memory.py", "--quick", "--threads", "1", "--out", str(tmp_path / "m.json")])
    assert memory.main() == 0
    said = capsys.readouterr().out
    assert said.count("; ratio") == 4 and (tmp_path / "m.json").exists()
