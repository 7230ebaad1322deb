"""A memory reads files of any length, in any sittings, and is the same as after reading all at once; over every mixer."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_laws import CASES

from postformer import state as states
from postformer.models import memory as module
from postformer.models import snapshots
from postformer.models.language import LanguageModel
from postformer.models.memory import Memory, MemoryFileError, Source, read_file
from postformer.tokens.text import BPE, Bytes

TEXT = small.text(16)


def model(case: str) -> LanguageModel:
    torch.manual_seed(0)
    made = LanguageModel(257, dim=16, depth=1, mixers=(CASES[case],), ffns=({"kind": "none"},))
    made.tokens = Bytes()
    return made.double().eval()


def same(a: Memory, b: Memory, atol: float = 0.0) -> None:
    assert (a.last, a.occurred, a.tokens) == (b.last, b.occurred, b.tokens)
    for (name, x), (other, y) in zip(states.leaves(a.state), states.leaves(b.state), strict=True):
        assert name == other
        torch.testing.assert_close(x, y, rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 64)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("case", CASES)
def test_any_sittings_are_one(case, text, tmp_path):
    """A kill after every chunk, each time going on from the file, is to the bit what reading at once is."""
    m = model(case)
    whole = Memory.fresh(m)
    assert read_file(m, whole, text)
    plain = Memory.fresh(m)
    plain.read(m, m.tokens.encode(TEXT))
    same(whole, plain, 1e-10)
    Memory.fresh(m, begin=True).save(tmp_path / "m", m)
    sittings = 0
    done = False
    while not done:
        killed = Memory.load(tmp_path / "m", m)
        done = read_file(m, killed, text, after_chunk=lambda n: True)
        killed.save(tmp_path / "m", m)
        sittings += 1
    assert sittings > len(TEXT) / 64
    same(Memory.load(tmp_path / "m", m), whole)
    assert Memory.load(tmp_path / "m", m).sources == whole.sources


@given(st.lists(st.integers(0, 90), max_size=8), st.booleans())
def test_any_split_is_the_whole(lengths, begin):
    m, ids = model("mamba2"), Bytes().encode(TEXT)
    whole, split = Memory.fresh(m, begin), Memory.fresh(m, begin)
    whole.read(m, ids)
    for length in lengths:
        piece, ids = ids[:length], ids[length:]
        split.read(m, piece)
    split.read(m, ids)
    same(whole, split, 1e-10)
    if not begin:
        _, state = m(torch.tensor([Bytes().encode(TEXT)[:-1]]), m.init_state(1))
        same(whole, Memory(state, whole.last, whole.occurred, tokens=len(TEXT)), 1e-10)


def test_a_bpe_text_is_the_same_in_any_sittings(text, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 16)
    monkeypatch.setattr("postformer.tokens.text.CHUNK", 100)
    tokens = BPE.train([TEXT], 300)
    m = LanguageModel(tokens.vocab, dim=16, depth=1)
    m.tokens = tokens
    whole, parts, seen = Memory.fresh(m), Memory.fresh(m), 0
    whole.read(m, tokens.encode(TEXT))
    while not read_file(m, parts, text, after_chunk=lambda n: True):
        seen += parts.sources[0].back > 0
    assert seen
    same(whole, parts, 1e-4)


def test_only_what_is_new_is_read(text, tmp_path):
    m = small.model()
    memory = Memory.fresh(m)
    read_file(m, memory, text)
    first = memory.fork()
    read_file(m, memory, text)
    same(memory, first)
    (other := tmp_path / "copy.txt").write_text(TEXT + "and more")
    read_file(m, memory, other)
    assert memory.tokens == len(TEXT) + 8
    assert [(s.name, s.size) for s in memory.sources] == [(str(text), len(TEXT)), (str(other), len(TEXT) + 8)]
    for path in (text, other):
        read_file(m, memory, path)
    assert memory.tokens == len(TEXT) + 8, "both are known, whichever begins with the other"
    other.write_text(TEXT + "and more, and more")
    read_file(m, memory, other)
    read_file(m, memory, text)
    assert memory.tokens == len(TEXT) + 18 and len(memory.sources) == 2
    read_file(m, memory, text, again=True)
    assert memory.tokens == len(TEXT) + 18 + len(TEXT)
    assert [s.size for s in memory.sources] == [len(TEXT), len(TEXT) + 18, len(TEXT)]


def test_a_state_that_is_not_finite_is_not_written(text, tmp_path):
    m = small.model()
    memory = Memory.fresh(m)
    read_file(m, memory, text)
    memory.save(path := tmp_path / "m", m)
    kept = path.read_bytes()
    with torch.no_grad():
        m.backbone.blocks[0].mixer.A_log.fill_(torch.nan)
    memory.read(m, [65, 66])
    with pytest.raises(MemoryFileError, match=rf"m: not written: after {len(TEXT) + 2:,} tokens the state is not finite"):
        memory.save(path, m)
    assert path.read_bytes() == kept


def test_who_may_read_a_memory_stays_as_it_was(text, tmp_path):
    m = small.model()
    memory = Memory.fresh(m)
    read_file(m, memory, text)
    memory.save(path := tmp_path / "m", m)
    path.chmod(0o600)
    memory.read(m, [65])
    memory.save(path, m)
    copy = snapshots.snapshot(path).path
    snapshots.fork(path, tmp_path / "other")
    snapshots.rollback(path)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (path, copy, tmp_path / "other")} == {0o600}


def test_a_text_that_changed_is_refused(text):
    m = small.model()
    memory = Memory.fresh(m)
    read_file(m, memory, text)
    text.write_text("X" + TEXT[1:])
    with pytest.raises(MemoryFileError, match="has changed where it was read, and a memory cannot unread"):
        read_file(m, memory, text)


def test_a_text_that_changed_is_refused_beside_one_that_it_begins_with(text, tmp_path):
    m = small.model()
    memory = Memory.fresh(m)
    (short := tmp_path / "short.txt").write_text(TEXT[:20])
    for path in (text, short):
        read_file(m, memory, path)
    text.write_text(TEXT[:20] + "something else")
    with pytest.raises(MemoryFileError, match="has changed where it was read"):
        read_file(m, memory, text)


def test_bytes_that_are_no_text(tmp_path):
    m = small.model()
    (tmp_path / "b").write_bytes(data := bytes(range(256)) * 40)
    memory, plain = Memory.fresh(m), Memory.fresh(m)
    read_file(m, memory, tmp_path / "b")
    plain.read(m, list(data))
    same(memory, plain, 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_fork_goes_its_own_way(case, tmp_path):
    m = model(case)
    memory = Memory.fresh(m)
    memory.read(m, Bytes().encode(TEXT[:100]))
    kept = memory.fork()
    forks = [memory.fork() for _ in range(2)]
    for fork in forks:
        fork.read(m, Bytes().encode(TEXT[100:190]))
    same(memory, kept)
    same(*forks)
    assert forks[0].tokens == 190
    assert memory.nbytes == states.nbytes(memory.state) > 0


def test_a_memory_keeps_its_record_when_text_is_written(text):
    from postformer.models.generation import Sampling, Stream

    m = small.model()
    memory = Memory.fresh(m)
    read_file(m, memory, text)
    memory.parent = "abc"
    stream = Stream(m, "the ", Sampling(max_tokens=7), memory)
    "".join(stream)
    after = stream.remember()
    assert (after.tokens, after.sources, after.parent) == (len(TEXT) + 4 + 7, memory.sources, "abc")


def test_a_forged_record_is_refused(text, tmp_path):
    m = small.model()
    memory = Memory.fresh(m)
    read_file(m, memory, text)
    memory.sources = [Source("a", 3, "x")]
    memory.save(tmp_path / "m", m)
    states.rewrite(tmp_path / "m", tmp_path / "n", {**states.header(tmp_path / "m").note, "sources": [{"size": "large"}]})
    assert Memory.load(tmp_path / "m", m).sources == memory.sources
    with pytest.raises(states.StateError, match="not the one text"):
        Memory.load(tmp_path / "n", m)


# ---------------------------------------------------------------- in a process of its own


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "postformer.cli", *map(str, words)]


def test_kill_9_and_the_same_command_again(tmp_path):
    import postformer

    m = small.model()
    postformer.save(m, tmp_path / "model")
    (tmp_path / "long.txt").write_text(small.text(4000))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = command("read", tmp_path / "model", tmp_path / "long.txt", "--memory", tmp_path / "m", "--every", "0.01")
    for _ in range(2):
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
            before = (tmp_path / "m").stat().st_mtime_ns if (tmp_path / "m").exists() else 0
            for _ in range(3000):
                if ((tmp_path / "m").exists() and (tmp_path / "m").stat().st_mtime_ns > before) or p.poll() is not None:
                    break
                time.sleep(0.01)
            p.send_signal(signal.SIGKILL)
    half = states.header(tmp_path / "m").note
    assert 0 < half["tokens"] < len(small.text(4000))
    subprocess.run(words, env=environment, check=True, capture_output=True)
    once = command("read", tmp_path / "model", tmp_path / "long.txt", "--memory", tmp_path / "once")
    subprocess.run(once, env=environment, check=True, capture_output=True)
    a, b = (Memory.load(tmp_path / name, m) for name in ("m", "once"))
    same(a, b)
    assert a.sources == b.sources


def test_memory_does_not_grow_with_the_text(tmp_path):
    """The peak of a process that reads 30 times as much is no more than 12 MB higher."""
    import postformer

    postformer.save(small.model(), tmp_path / "model")
    peaks = []
    for name, times in (("short", 1), ("long", 30)):
        with (tmp_path / name).open("w") as f:
            f.writelines(small.text(5000) for _ in range(2 * times))
        code = (
            f"import resource, postformer; from postformer.models.memory import *; m = postformer.load({str(tmp_path / 'model')!r});"
            f"m.hidden = lambda ids, state: (None, state); read_file(m, Memory.fresh(m), {str(tmp_path / name)!r});"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert (tmp_path / "long").stat().st_size > 4 << 20
    assert peaks[1] - peaks[0] < 12 << 10
