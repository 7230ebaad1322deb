"""A memory reads files of any length, in any sittings, and is the same as after reading all at once; over every mixer."""

import dataclasses
import hashlib
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


def test_a_text_that_begins_with_an_older_one_is_read_whole(tmp_path):
    """Only what was read last, and a file's own text, is passed over."""
    m, texts = (
        small.model(),
        ("Dear diary, ", "Other text. ", "Dear diary, today Ada got a dog.", "Dear diary, today Ada got a dog. Good."),
    )
    memory, files = Memory.fresh(m), [tmp_path / f"p{i}" for i in range(len(texts))]
    for path, text in zip(files, texts, strict=True):
        path.write_text(text)
    for path in files[:3]:
        read_file(m, memory, path)
    assert memory.tokens == sum(map(len, texts[:3]))
    read_file(m, memory, files[3])
    assert memory.tokens == sum(map(len, texts[:2])) + len(texts[3]), "of the newest, only what is new"
    files[0].write_text("Dear diary, all is well.")
    read_file(m, memory, files[0])
    assert memory.tokens == sum(map(len, texts[:2])) + len(texts[3]) + 12, "of its own, only what is new"
    for path in files:
        read_file(m, memory, path)
    assert memory.tokens == sum(map(len, texts[:2])) + len(texts[3]) + 12 and len(memory.sources) == 4
    assert memory.sources[-1].name == str(files[0]), "what was read last stands last"


def test_texts_of_one_name_in_two_folders(tmp_path, monkeypatch):
    m = small.model()
    memory = Memory.fresh(m)
    for name, text in (("a", "Ada got a dog."), ("b", "Bob got a cat."), ("a", "Ada got a dog. It is brown.")):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        Path("diary.txt").write_text(text)
        read_file(m, memory, "diary.txt")
    assert memory.tokens == 14 + 14 + 13
    assert [(s.name, s.path) for s in memory.sources] == [("diary.txt", str(tmp_path / name / "diary.txt")) for name in "ba"]


def test_a_record_without_paths_is_known_by_names(text):
    m = small.model()
    memory = Memory.fresh(m)
    read_file(m, memory, text)
    memory.sources = [dataclasses.replace(source, path="") for source in memory.sources]
    memory.sources.append(Source("newer", 3, "x"))
    text.write_text(TEXT + "more")
    read_file(m, memory, text)
    assert memory.tokens == len(TEXT) + 4 and [source.path for source in memory.sources] == ["", str(text)]


@pytest.mark.parametrize("chunk", [64, 100, 1 << 16])
def test_reading_again_goes_on_too(text, tmp_path, monkeypatch, chunk):
    """Several texts, with a kill after every chunk, also where a piece or a text ends: each is read once more and no more."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr("postformer.tokens.text.CHUNK", 100)
    m, path = small.model(), tmp_path / "m"
    (other := tmp_path / "other").write_text(small.text(4, seed=1))
    (empty := tmp_path / "empty").write_text("")
    texts, whole = [text, empty, other], len(TEXT) + len(small.text(4, seed=1))
    memory = Memory.fresh(m)
    for one in texts:
        read_file(m, memory, one)
    memory.save(path, m)
    going, sittings = texts, 0
    while going:
        killed = Memory.load(path, m)
        going = module.begin_again(killed, texts)
        if sittings and not any(module.half_read(Memory.load(path, m), one) for one in texts):
            break
        sittings += 1
        for one in going:
            if not read_file(m, killed, one, after_chunk=lambda n: True):
                break
        killed.save(path, m)
    killed = Memory.load(path, m)
    assert sittings >= 2 and killed.tokens == 2 * whole
    assert [s.size for s in killed.sources if s.size] == [len(TEXT), whole - len(TEXT)] * 2
    assert not any(s.goes_on for s in killed.sources)
    read_file(m, killed, other, again=True)
    assert killed.tokens == 2 * whole + whole - len(TEXT)


def test_again_reads_what_has_changed_since_it_was_half_read(text):
    m = small.model()
    memory = Memory.fresh(m)
    assert not read_file(m, memory, text, after_chunk=lambda n: True)
    text.write_text("X" + TEXT[1:])
    with pytest.raises(MemoryFileError, match="has changed where it was read"):
        read_file(m, memory, text)
    read_file(m, memory, text, again=True)
    assert memory.tokens == 64 + len(TEXT)
    read_file(m, memory, text)
    assert memory.tokens == 64 + len(TEXT), "and then it is known"


def test_nothing_is_written_over_what_others_wrote(text, tmp_path):
    """Two readers of one file, also of one that was not there yet; a rollback meanwhile; one reader's own saves go on."""
    m, path = small.model(), tmp_path / "m"
    first, second = Memory.fresh(m), Memory.fresh(m)
    for one in (first, second):
        one.expect(path)
        read_file(m, one, text)
    first.save(path, m)
    with pytest.raises(
        MemoryFileError, match=r"m: not written: it was changed by another command meanwhile, .* the same command again"
    ):
        second.save(path, m)
    first, second = (Memory.load(path, m) for _ in range(2))
    snapshots.snapshot(path)
    for _ in range(2):
        first.read(m, [65])
        first.save(path, m)
    kept = path.read_bytes()
    with pytest.raises(MemoryFileError, match="changed by another command"):
        second.save(path, m)
    second.save(tmp_path / "elsewhere", m)
    assert path.read_bytes() == kept
    snapshots.rollback(path)
    with pytest.raises(MemoryFileError, match="changed by another command"):
        first.save(path, m)
    path.unlink()
    first.save(path, m)
    (tmp_path / "link").symlink_to(path)
    again = Memory.load(tmp_path / "link", m)
    first.save(path, m)
    again.save(tmp_path / "link", m)
    first.read(m, [66])
    first.save(path, m)
    with pytest.raises(MemoryFileError, match="link: not written"):
        again.save(tmp_path / "link", m)


def test_another_tokenizer_is_refused(text, tmp_path):
    """One of the same size; a file from before tokenizers were told stays readable."""
    one, other = (BPE.train([t], 280) for t in (TEXT, TEXT.upper()))
    m = LanguageModel(280, dim=16, depth=1)
    m.tokens = one
    memory = Memory.fresh(m)
    read_file(m, memory, text)
    memory.save(path := tmp_path / "m", m)
    note = states.header(path).note
    one.save(tmp_path)
    assert note["tokenizer"] == hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    m.tokens = other
    with pytest.raises(states.StateError, match="m: was read with another tokenizer") as error:
        Memory.load(path, m)
    assert "\n" not in str(error.value)
    states.rewrite(path, tmp_path / "old", {name: value for name, value in note.items() if name != "tokenizer"})
    assert Memory.load(tmp_path / "old", m).tokens == memory.tokens
    m.tokens = BPE.load(tmp_path)
    assert Memory.load(path, m).tokens == memory.tokens


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
