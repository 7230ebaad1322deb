"""benchmarks/sequence.py at tiny sizes: its tables, its file, what it says of targets, peers that are missing, and Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sequence_rows as rows
import sequence_tables as tables

from postformer.claims.words import TIMES
from postformer.ops._cpu import BUILT

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(SCRIPTS / "sequence.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=os.environ | environment)


def made(part: str, name: str, tokens: int, **series: list[float]) -> dict:
    named = {subject.replace("_", " "): s for subject, s in series.items()}
    return rows.row(part, name, tokens, (named, next(iter(named.values()))))["row"]


def test_every_target_names_a_row_and_subjects_of_the_full_run():
    sizes = rows.FULL
    measured = {
        "forward": sizes.forward,
        "backward": sizes.backward,
        "memory": sizes.backward,
        "limits": (*sizes.limits, sizes.scan),
        "model": (sizes.prompt, 1),
    }
    for target in tables.TARGETS:
        part, _, tokens = target.row
        assert tokens in measured[part], target
        assert (target.least is None) != (target.most is None), target


def test_a_target_is_met_missed_or_not_measured():
    both = [
        made("forward", "mamba", 2048, postformer=[1.0, 1.1, 0.9], transformers=[8.0, 9.0, 8.5], mambapy=[8.0, 8.0, 8.1]),
        made("limits", "scan", 2048, scan=[3.0, 3.0], floor=[2.0, 2.0]),
    ]
    judged = {(*t["row"][:2], t["over"][0]): t for t in tables.judge(both, quick=False)}
    ratio = judged["forward", "mamba", "transformers"]
    assert ratio["met"] is True
    assert ratio["ratio"]["value"] == pytest.approx(8.5)
    assert judged["forward", "mamba", "mambapy"]["met"] is False
    assert judged["limits", "scan", "scan"]["met"] is True
    assert judged["memory", "mamba", "mambapy"]["met"] is None
    lines = list(tables.verdicts(tables.judge(both, quick=False)))
    assert [line.split()[0] for line in lines].count("MISSED") == 1
    assert sum("not measured" in line for line in lines) == len(tables.TARGETS) - 3
    assert all(t["met"] is None for t in tables.judge(both, quick=True))


def test_a_target_is_looked_for_in_the_row_that_holds_both_subjects():
    apart = [
        made("backward", "mamba", 512, postformer=[1.0], mambapy=[9.0]),
        made("backward", "mamba", 512, postformer=[1.0], transformers=[50.0]),
    ]
    met = {t["over"][0]: t["met"] for t in tables.judge(apart, quick=False) if t["row"][0] == "backward"}
    assert met == {"transformers": True, "mambapy": None}


def test_a_table_shows_medians_ratios_rates_and_the_control():
    event = rows.row(
        "model", "decode", 1, ({"a": [2.0, 2.0], "b": [4.0, 4.0]}, [2.2, 2.2]), calls=2, work={"a": (1.0, "tokens/s")}
    )
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in tables.table("model", [event["row"]]).splitlines()[2:]
    ]
    assert lines[0] == ["what", "tokens", "subject", "median", f"{TIMES} the first", "rate", "rounds", "A/A"]
    assert lines[2] == ["decode", "1", "a", "1 s", "", "1 tokens/s", "2", "+10.0%"]
    assert lines[3] == ["", "", "b", "2 s", "2", "", "2", ""]
    assert tables.table("forward", [event["row"]]) == ""


def test_a_quick_run_measures_every_library_that_is_here(tmp_path: Path):
    pytest.importorskip("transformers", reason="the extra 'peers' is not installed")
    pytest.importorskip("mambapy", reason="the extra 'peers' is not installed")
    out = tmp_path / "sequence.json"
    done = run("--quick", "--threads", "1", "--parts", "backward,limits,model", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["format"] == "postformer-sequence-1"
    assert (result["complete"], result["failed"], result["settings"]["threads"]) == (True, {}, 1)
    assert result["stamp"]["ended"] is not None
    seen = {(r["part"], r["name"], r["tokens"]): r["samples"] for r in result["rows"]}
    both = [r["samples"].keys() for r in result["rows"] if (r["part"], r["name"]) == ("backward", "mamba")]
    assert both == [{"postformer", "mambapy"}, {"postformer", "transformers"}]
    assert seen["backward", "mamba2", *rows.QUICK.backward].keys() == {"postformer", "transformers"}
    assert {"scan", "exp", "copy", "floor"} == seen["limits", "scan", rows.QUICK.scan].keys()
    assert {"postformer", "postformer bf16", "transformers"} <= seen["model", "decode", 1].keys()
    assert all(s > 0 for samples in seen.values() for series in samples.values() for s in series)
    agree = next(r["agree"] for r in result["rows"] if r["name"] == "decode")
    assert 0 < agree["transformers"] < 1e-4
    gaps = {m["peer"]: m["why"] for m in result["missing"]}
    assert "registry" in gaps["mamba-minimal"]
    assert ("exp kernel" in gaps) == (not BUILT or shutil.which("c++") is None)
    assert "llama.cpp" in gaps or "llama.cpp f32" in seen["model", "decode", 1]
    again = run("--render", str(out))
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() in done.stdout
    assert "none is judged" in again.stdout


def test_peak_memory_is_of_the_passes_alone(tmp_path: Path):
    settings = rows.Settings(threads=1, quick=True, work=tmp_path).dump()
    command = [sys.executable, "-W", "error", str(SCRIPTS / "sequence_memory.py"), "mamba", "postformer"]
    short, long = (
        json.loads(subprocess.run([*command, tokens, settings], capture_output=True, text=True, timeout=300, check=True).stdout)
        for tokens in ("1024", "8192")
    )
    assert len(short) == len(long) == 3
    assert 3 < min(long) / max(short) < 13, "eight times the tokens, about eight times the bytes"


def test_a_peer_that_is_not_installed_is_named_and_ours_is_measured(tmp_path: Path):
    hidden = (
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name in ('transformers', 'mambapy') else find(name, *more)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hidden)
    out = tmp_path / "sequence.json"
    done = run("--quick", "--threads", "1", "--parts", "step", "--out", str(out), PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["rows"][0]["samples"].keys() == {"postformer"}
    assert {"transformers", "mambapy"} <= {m["peer"] for m in result["missing"]}
    assert "not installed" in done.stdout


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path):
    out = tmp_path / "sequence.json"
    command = [
        sys.executable,
        str(SCRIPTS / "sequence.py"),
        "--quick",
        "--threads",
        "1",
        "--parts",
        "limits,model",
        "--out",
        str(out),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "limits mamba" in line:
                os.killpg(process.pid, signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130, rest
    result = json.loads(out.read_text())
    assert result["complete"] is False
    assert result["rows"][0]["part"] == "limits"
    assert "holds what was measured" in rest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parts", "forwards"], "unknown 'forwards'; choose from forward, backward"),
        (["--threads", "0"], "must be at least 1"),
        (["--llama-source", "/proc/nowhere"], "no such folder: /proc/nowhere"),
        (["--render", "/nowhere.json"], "/nowhere.json: cannot be read"),
        (["--render", __file__], "cannot be read"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, tmp_path: Path):
    done = run(*words, "--out", str(tmp_path / "x.json"))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
