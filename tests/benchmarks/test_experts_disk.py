"""benchmarks/experts_disk.py: what it judges and tells, and a tiny run of it."""

import json
import sys

import experts_disk
import pytest
import torch
from experts_disk_model import TINY, widened

from postformer.models.language import LanguageModel
from postformer.models.routing import routed
from postformer.models.upcycle import furthest


def found(**ways):
    """Runs of (seconds a token, peak in MB, token, what the store told)."""
    runs = {
        way.replace("_", " "): [
            {"seconds": [s, s, 9.0], "peak": mb * 10**6, "tokens": [t, t], **({"told": told} if told else {})}
        ]
        * 3
        for way, (s, mb, t, told) in ways.items()
    }
    return {"base": {"base": 300 * 10**6}, "runs": runs}


TOLD = {
    "count": {"asked": 40, "hits": 30},
    "read": 10,
    "read_bytes": 6_000_000,
    "guessed": 8,
    "guessed_right": 6,
    "predicted": 10,
    "predicted_right": 9,
}
QUIET = {**TOLD, "guessed": 0, "guessed_right": 0, "predicted": 0, "predicted_right": 0}


def test_what_was_wanted_is_judged():
    good = found(
        memory=(1.0, 900, 7, None), warm=(2.0, 510, 7, QUIET), cold_int8=(2.0, 510, 8, QUIET), accelerate=(6.1, 900, 1, None)
    )
    lines = experts_disk.verdicts(good, 200 * 10**6)
    assert [line.split()[0] for line in lines] == ["met"] * 3
    assert "peak of warm: 210 MB above a model without experts, cap 200 MB" in lines[1]
    assert "3.05" in lines[2]
    bad = found(memory=(1.0, 900, 7, None), warm=(2.0, 530, 8, QUIET), accelerate=(5.9, 900, 7, None))
    assert [line.split()[0] for line in experts_disk.verdicts(bad, 200 * 10**6)] == ["MISSED"] * 3


def test_the_tables_tell():
    of = found(memory=(1.0, 900, 7, None), cold_ahead=(2.0, 500, 7, TOLD), cold_int8=(4.0, 500, 8, QUIET))
    table = experts_disk.ways_table(of)
    assert table[2:] == [
        "| memory | 1.0 | 1 (; 3 rounds) | 600 | - | - | yes |",
        "| cold ahead | 0.5 | 2 (; 3 rounds) | 200 | 75.0% | 2.0 | yes |",
        "| cold int8 | 0.2 | 4 (; 3 rounds) | 200 | 75.0% | 2.0 | no |",
    ]
    assert experts_disk.ahead_lines(of["runs"]) == [
        "cold ahead: 90.0% of the experts that it named were chosen, and 75.0% of those that it had to read (8)"
    ]


def test_a_wide_model_is_the_narrow_one():
    torch.manual_seed(0)
    ffns = ({"kind": "moe", "preset": "olmoe", "experts": 8, "top": 2, "hidden": 16},)
    narrow = LanguageModel(257, dim=16, depth=2, mixers=({"kind": "attention", "heads": 2},), ffns=ffns).eval()
    wide = widened(narrow, 4)
    assert furthest(narrow, wide) < 1e-5
    ids, chosen = torch.randint(257, (2, 9)), []
    for model in (narrow, wide):
        with torch.no_grad(), routed(model) as routing:
            model(ids)
        chosen.append([calls[0].experts for calls in routing.calls.values()])
    assert all(torch.equal(a, b) for a, b in zip(*chosen, strict=True))


def test_a_tiny_run(tmp_path, monkeypatch, capsys):
    ways = {way: experts_disk.WAYS[way] for way in ("memory", "warm", "cold int8")}
    monkeypatch.setattr(experts_disk, "WAYS", ways)
    monkeypatch.setattr(sys, "argv", ["experts_disk.py", "--quick", "--threads", "1", "--folder", str(tmp_path)])
    assert experts_disk.main() == 0
    said = capsys.readouterr().out
    assert "met     the same tokens: memory, warm" in said
    assert f"| 24 of {TINY.depth * TINY.experts} |" in said
    saved = json.loads((tmp_path / "quick" / "experts_disk.json").read_text())
    assert sorted(saved["runs"]) == sorted(ways)
    assert saved["runs"]["warm"][0]["bytes"] <= TINY.expert_bytes // experts_disk.SHARE


def test_a_process_that_fails_is_told(tmp_path):
    words = {"threads": 1, "cap": 1000, "prompt": [1], "tokens": 1, "warm": 0, "temperature": 0.0}
    with pytest.raises(experts_disk.UserError, match=r"warm: .*no such folder"):
        experts_disk.subject("warm", tmp_path / "none", words)
