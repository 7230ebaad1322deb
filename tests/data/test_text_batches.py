"""Batches are a pure function of seed and step, cover each epoch once, and take no memory with the corpus."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.config import ConfigError
from postformer.config import build as build_part
from postformer.data import DATA, DataError, Source, Text, TextBatches, build_corpus, open_corpus
from postformer.data.corpus import Corpus
from postformer.data.text import shuffled
from postformer.tokens import Bytes


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("batches")
    (folder / "in").mkdir()
    for i in range(60):
        (folder / "in" / f"{i:02d}.txt").write_text(f"document {i} " * (1 + i % 7))
    build_corpus([Source(folder / "in")], folder / "out", Bytes(), valid=0.2, shard=700)
    return open_corpus(folder / "out")


ORDER = [7, 2, 5, 4, 0, 8, 3, 9, 1, 6]

# ---------------------------------------------------------------- order


@given(count=st.integers(1, 300), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_shuffled_is_a_permutation(count: int, seed: int, epoch: int):
    assert sorted(shuffled(i, count, seed, epoch) for i in range(count)) == list(range(count))


def test_shuffled_looks_random():
    count = 4096
    orders = [[shuffled(i, count, seed, epoch) for i in range(count)] for seed, epoch in ((0, 0), (0, 1), (1, 0), (1 << 40, 0))]
    straight = np.arange(count)
    for i, order in enumerate(orders):
        assert abs(np.corrcoef(straight, order)[0, 1]) < 0.08
        assert (np.diff(order) == 1).sum() < 12
        for other in orders[:i]:
            assert (np.array(order) == np.array(other)).sum() < 12


def test_the_order_is_fixed_for_good():
    assert [shuffled(i, 10, 0, 0) for i in range(10)] == ORDER


def test_each_epoch_has_each_window_once(corpus: Corpus):
    length = 16
    batches = TextBatches(corpus, length=length, batch=5, seed=3)
    expected = []
    for shard in corpus.shards("train"):
        ids = np.fromfile(corpus.path / f"{shard.name}.bin", "<u2")
        expected += [tuple(ids[i : i + length + 1].tolist()) for i in range(0, len(ids) - length, length)]
    assert batches.windows == len(expected)
    rows = [tuple(row) for step in range(batches.windows) for row in batches.batch(step)["ids"].tolist()]
    epochs = [rows[i : i + batches.windows] for i in range(0, 5 * batches.windows, batches.windows)]
    assert all(sorted(epoch) == sorted(expected) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_batches_are_a_pure_function_of_seed_and_step(corpus: Corpus):
    def make(seed: int) -> TextBatches:
        return TextBatches(open_corpus(corpus.path), length=16, batch=4, seed=seed)

    first, again = make(0), make(0)
    straight = [first.batch(step) for step in range(6)]
    for step in (5, 0, 3):
        out = again.batch(step)
        assert torch.equal(out["ids"], straight[step]["ids"])
        assert out["rows"] == straight[step]["rows"]
    assert not torch.equal(make(1).batch(0)["ids"], straight[0]["ids"])
    assert straight[0]["ids"].dtype == torch.long
    assert straight[0]["ids"].shape == (4, 17)


def test_rows_name_where_they_come_from(corpus: Corpus):
    batches = TextBatches(corpus, length=40, batch=8, seed=0, split="train")
    several = 0
    for step in range(10):
        out = batches.batch(step)
        for ids, row in zip(out["ids"].tolist(), out["rows"], strict=True):
            file, start, stop, name, more = re.fullmatch(r"(\S+)\[(\d+):(\d+)\] (\S+)(?: \+(\d+) more)?", row).groups()  # type: ignore[union-attr]
            assert np.fromfile(corpus.path / file, "<u2")[int(start) : int(stop)].tolist() == ids
            number = int(name.partition(".")[0])
            before_end = corpus.tokens.decode(ids[: ids.index(256)] if 256 in ids else ids)
            assert before_end in f"document {number} " * 7 + f"document {number} "
            assert int(more or 0) == ids[:-1].count(256)
            several += bool(more)
    assert several


def test_the_valid_split_is_apart(corpus: Corpus):
    batches = TextBatches(corpus, length=16, batch=4, seed=0, split="valid")
    assert all(row.startswith("valid-") for step in range(20) for row in batches.batch(step)["rows"])


# ---------------------------------------------------------------- errors


def test_a_corpus_that_is_too_short(corpus: Corpus):
    tokens = corpus.count("valid").tokens
    with pytest.raises(DataError, match=rf"valid has {tokens:,} tokens, fewer than a window of 5000 \+ 1"):
        TextBatches(corpus, length=5000, batch=1, seed=0, split="valid")


def test_a_shard_that_shrinks_while_it_is_read(corpus: Corpus, tmp_path: Path):
    (tmp_path / "in.txt").write_text("some text\n" * 1000)
    build_corpus([Source(tmp_path / "in.txt")], tmp_path / "out", Bytes())
    batches = TextBatches(open_corpus(tmp_path / "out"), length=16, batch=64, seed=0)
    (tmp_path / "out" / "train-00000.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-00000.bin: damaged: it ends before token"):
        batches.batch(0)


# ---------------------------------------------------------------- the run's table


def test_the_table_builds_what_a_run_names(corpus: Corpus):
    data = build_part({"kind": "text", "path": str(corpus.path), "length": 32}, DATA, "data")
    assert data.tokens.vocab == 257
    assert data.batches(batch=2, seed=0).batch(0)["ids"].shape == (2, 33)
    assert data.batches(batch=2, seed=0, split="valid").windows > 0


def test_nothing_is_opened_before_it_is_used(tmp_path: Path):
    data = Text(path=str(tmp_path / "nowhere"))
    assert data.length == 256
    with pytest.raises(DataError, match="nowhere: no such folder"):
        _ = data.tokens


def test_a_length_of_nothing():
    with pytest.raises(ConfigError, match="data: length: expected 1 or more tokens, got 0"):
        build_part({"kind": "text", "path": "x", "length": 0}, DATA, "data")


# ---------------------------------------------------------------- memory


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path):
    """50 MB of tokens in 6 shards: random reads stay within 8 MB, and the build within what a shard and a batch need."""
    code = """
        import re, sys, pathlib
        from postformer.data import Source, TextBatches, build_corpus, open_corpus
        from postformer.tokens import Bytes

        def resident(name):
            return int(re.search(rf"{name}:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

        folder = pathlib.Path(sys.argv[1])
        with open(folder / "in.txt", "wb") as f:
            for i in range(500_000):
                f.write(b"%08d a line of text that fills the corpus up\\n" % i)
        before = resident("VmRSS")
        build_corpus([Source(folder / "in.txt")], folder / "out", Bytes(), shard=1 << 22)
        built = resident("VmHWM") - before
        corpus = open_corpus(folder / "out")
        batches = TextBatches(corpus, length=256, batch=8, seed=0)
        batches.batch(0)
        before = resident("VmRSS")
        for step in range(1, 2500):
            batches.batch(step)
        print(corpus.count("train").tokens, built, resident("VmRSS") - before)
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], capture_output=True, text=True, check=True)
    tokens, built, grown = map(float, out.stdout.split())
    assert tokens > 2e7
    assert grown < 8
    assert built < 100


def test_separate_documents_start_at_the_end_token_before_them(corpus: Corpus):
    batches = Text(str(corpus.path), length=64, separate=True).batches(batch=8, seed=0)
    drawn = batches.batch(0)
    assert torch.equal(drawn["starts"], drawn["ids"][:, :-1] == corpus.tokens.end)
    assert 0 < int(drawn["starts"].sum()) < drawn["starts"].numel() // 4
    plain = Text(str(corpus.path), length=64).batches(batch=8, seed=0).batch(0)
    assert torch.equal(plain["ids"], drawn["ids"]) and "starts" not in plain
