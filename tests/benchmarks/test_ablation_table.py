"""benchmarks/ablation.py: from training to the table, small, and once more from what was saved; the table's figures."""

import json
import math
import sys

import pytest
import small

from benchmarks import ablation
from postformer.config import UserError

NO_MOMENTUM = 0.1


def test_a_study_from_training_to_the_table(tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": small.text(60, seed)}) + "\n" for seed in range(200)))
    monkeypatch.setattr(ablation, "LENGTH", 32)
    command = [
        "ablation",
        "--variants",
        "lmm,no momentum",
        "--seeds",
        "0,1",
        "--steps",
        "2",
        "--read",
        "4096",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--text", str(text), "--out", str(tmp_path / "out")])
    assert ablation.main() == 0
    first = capsys.readouterr().out
    assert first.count("perplexity") == 5
    monkeypatch.setattr(ablation, "train_run", None)  # nothing is trained or scored anew
    assert ablation.main() == 0
    assert capsys.readouterr().out == first[first.index("2 steps, read") :]
    monkeypatch.setattr(sys, "argv", [*command, "--text", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"--out: .*out holds a study of .*text.jsonl, not of"):
        ablation.main()
    monkeypatch.setattr(sys, "argv", [*command, "--text", str(text), "--out", str(tmp_path / "out")])
    first_line, rest = text.read_text().split("\n", 1)
    text.write_text(json.dumps({"text": json.loads(first_line)["text"].upper()}) + "\n" + rest)
    with pytest.raises(UserError, match=r"--out: .*out holds a study of .*text.jsonl, not of .*text.jsonl as it is now; give"):
        ablation.main()


def test_a_result_is_told_apart_by_the_whole_text():
    """Also by what is learned of it, and by where its documents end."""
    text = ablation.streams.Text("t", [b"one", b"two"], [b"three"])
    others = [text._replace(learned=[b"one", b"too"]), text._replace(learned=[b"onet", b"wo"]), text._replace(read=[b"4"])]
    assert len({ablation.content(t) for t in (text, *others)}) == 4
    assert ablation.content(text._replace(name="u")) == ablation.content(text)


def test_out_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["ablation", "--out", str(tmp_path / "file")])
    with pytest.raises(UserError, match=r"--out .*file: is a file; name a folder"):
        ablation.main()


def test_a_variant_is_paired_with_the_whole_memory_of_its_seed(tmp_path):
    def found(variant: str, seed: int, nats: float) -> str:
        one = {"variant": variant, "seed": seed, "steps": 400, "stretch": 16384, "nats": nats, "first": nats + 0.5}
        one |= {"bits_per_byte": 2.0, "parameters": 7}
        return json.dumps({**one, "frozen": nats + 0.25})

    nats = {("lmm", 0): 3.0, ("lmm", 1): 4.0, ("no momentum", 0): 3.0 + NO_MOMENTUM, ("no momentum", 1): 4.0 + NO_MOMENTUM}
    (tmp_path / "ablation.jsonl").write_text("\n".join(found(*key, value) for key, value in nats.items()))
    title, _, _, _, whole, without = ablation.render(tmp_path).splitlines()
    assert title == "400 steps, read in stretches of 16,384 tokens"
    assert whole.startswith(
        f"| lmm | {math.exp(3.5):.2f} | {math.exp(3):.2f}, {math.exp(4):.2f} |  |  | +0.250 [+0.250, +0.250] "
    )
    assert whole.endswith("| 2.000 | 7 | 27.01 |  |")
    assert "| +0.100 [+0.100, +0.100] | +0.100 [+0.100, +0.100] |" in without
    assert without.endswith(f"| 28.98 | {math.log(28.98 / 27.01):+.3f} |")


def test_a_study_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablation", "--render", str(tmp_path)])
    with pytest.raises(UserError, match=r"--render: .* holds no ablation.jsonl; give the --out of a study"):
        ablation.main()


def test_an_unknown_variant(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablation", "--variants", "lmm,no memory", "--out", str(tmp_path)])
    with pytest.raises(UserError, match="--variants: unknown 'no memory'; choose from lmm, mac, linear, bare matrix"):
        ablation.main()
