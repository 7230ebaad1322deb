"""Corpora are exact, deterministic, resumable, and never silently drop a row."""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from postformer.data import build, sources
from postformer.data.build import build_corpus
from postformer.data.corpus import open_corpus, remarks
from postformer.data.sources import DataError, Source
from postformer.tokens import BPE, Bytes


def files_of(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of 40 files of a few lines."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        (folder / f"file{i:02d}.txt").write_text(f"Text number {i} of forty.\n" * (i + 1) + "Ende, größer.\n")
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """100 rows of JSONL, of which three are bad and two are duplicates."""
    lines = [json.dumps({"text": f"row {i}"}) for i in range(95)] + [json.dumps({"text": "row 1"})] * 2
    lines[10:10] = ['{"text": 5}', "nonsense", '{"text": ""}']
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


# ---------------------------------------------------------------- content


@pytest.mark.parametrize("tokens", [Bytes(), 300], ids=["bytes", "bpe"])
def test_every_document_comes_back(texts: Path, rows: Path, tmp_path: Path, tokens):
    manifest = build_corpus([Source(texts, "files", "CC0-1.0"), Source(rows, "rows")], tmp_path / "out", tokens, valid=0.2)
    corpus = open_corpus(tmp_path / "out")
    found = {name: text for split in ("train", "valid") for name, _, text in corpus.text(split)}
    expected = {f.name: f.read_bytes() for f in texts.iterdir()} | {f"rows.jsonl:{i + 1}": b"row %d" % i for i in range(10)}
    assert expected.items() <= found.items()
    assert len(found) == 40 + 95

    counts = {(c.split, c.domain): c for c in manifest.counts}
    for (split, domain), count in counts.items():
        texts_of = [text for _, _, text in corpus.text(split, domain)]
        documents = list(corpus.documents(split, domain))
        assert count.documents == len(texts_of) > 0
        assert count.bytes == sum(map(len, texts_of)) == sum(d.nbytes for d in documents)
        assert count.tokens == sum(len(d.ids) + 1 for d in documents)
        assert corpus.count(split, domain) == count
    assert corpus.count("train").bytes + corpus.count("valid").bytes == sum(s.bytes for s in manifest.sources)


def test_the_manifest_tells_everything(texts: Path, rows: Path, tmp_path: Path):
    seen = []
    out = tmp_path / "out"
    sources_ = [Source(texts, "files", "CC0-1.0"), Source(rows, "rows")]
    manifest = build_corpus(sources_, out, Bytes(), progress=lambda *x: seen.append(x))
    files, lines = manifest.sources
    assert (files.label, files.domain, files.license, files.documents, files.bad) == (str(texts), "files", "CC0-1.0", 40, 0)
    assert files.sha256 == sources_[0].sha256()
    assert (lines.documents, lines.duplicates, lines.bad, lines.license) == (95, 2, 3, "unknown")
    assert lines.sha256 == hashlib.sha256(rows.read_bytes()).hexdigest()
    assert manifest.quarantine == {"'text' is not text": 1, "empty": 1, "not JSON": 1}
    quarantined = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(q["row"], q["reason"]) for q in quarantined] == [(11, "'text' is not text"), (12, "not JSON"), (13, "empty")]
    assert quarantined[1] == {"source": str(rows), "row": 12, "reason": "not JSON", "start": r"b'nonsense\n'"}
    assert not (out / "journal.jsonl").exists()
    assert {stage for stage, _, _ in seen} == {"reading", "encoding"}
    assert all(0 <= done <= total for _, done, total in seen)


def test_too_many_bad_rows_stop_the_build(rows: Path, tmp_path: Path):
    message = r"rows.jsonl: 3 of 100 rows are bad, more than 2%; the first is row 11: 'text' is not text"
    with pytest.raises(DataError, match=message):
        build_corpus([Source(rows)], tmp_path / "out", Bytes(), max_bad=0.02)
    assert build_corpus([Source(rows)], tmp_path / "other", Bytes(), max_bad=0.03).sources[0].bad == 3


def test_nothing_to_read(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "image.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"in: no text in it \(0 bad rows, 1 files skipped\)"):
        build_corpus([Source(tmp_path / "in")], tmp_path / "out", Bytes())


def test_wide_vocabularies_use_four_bytes(texts: Path, tmp_path: Path):
    class Wide(Bytes):
        vocab = 70_000

        def encode_batch(self, texts):
            return [[60_000 + byte for byte in text] for text in texts]

        def decode_bytes(self, ids):
            return b"".join(bytes([i - 60_000]) for i in ids if 0 <= i - 60_000 < 256)

    manifest = build_corpus([Source(texts)], tmp_path / "out", Wide())
    assert (tmp_path / "out" / "train-00000.bin").stat().st_size == 4 * manifest.shards[0].tokens


# ---------------------------------------------------------------- splits


def test_splits_follow_content_alone(texts: Path, tmp_path: Path):
    def valid(name: str, **arguments) -> set[bytes]:
        build_corpus([Source(texts)], tmp_path / name, Bytes(), **arguments)
        return {text for _, _, text in open_corpus(tmp_path / name).text("valid")}

    few, more, other = valid("a", valid=0.2), valid("b", valid=0.5), valid("c", valid=0.2, seed=1)
    assert few < more
    assert few != other
    for f in list(texts.iterdir()):
        f.rename(f.with_name("x" + f.name))
    assert valid("d", valid=0.2) == few


@pytest.mark.parametrize(("documents", "share"), [(2, 1e-9), (40, 1e-9), (2, 0.999), (40, 0.999)])
def test_neither_split_is_empty(tmp_path: Path, documents: int, share: float):
    (tmp_path / "in").mkdir()
    for i in range(documents):
        (tmp_path / "in" / f"{i}.txt").write_text(f"{i}")
    build_corpus([Source(tmp_path / "in")], tmp_path / "out", Bytes(), valid=share)
    corpus = open_corpus(tmp_path / "out")
    counts = {split: corpus.count(split).documents for split in ("train", "valid")}
    assert min(counts.values()) == 1 if documents == 2 or share < 0.5 else min(counts.values()) >= 1
    assert sum(counts.values()) == documents


def test_valid_zero_holds_nothing_out(texts: Path, tmp_path: Path):
    build_corpus([Source(texts)], tmp_path / "out", Bytes(), valid=0.0)
    assert open_corpus(tmp_path / "out").count("valid").documents == 0
    with pytest.raises(DataError, match="valid: expected a share"):
        build_corpus([Source(texts)], tmp_path / "other", Bytes(), valid=1.0)


def test_parts_of_a_file_share_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "LARGEST_PART", 100)
    (tmp_path / "in").mkdir()
    for i in range(12):
        (tmp_path / "in" / f"{i}.txt").write_text("".join(f"file {i} line {j}\n" for j in range(60)))
    build_corpus([Source(tmp_path / "in")], tmp_path / "out", Bytes(), valid=0.4)
    corpus = open_corpus(tmp_path / "out")
    names = {split: {d.name.partition("#")[0] for d in corpus.documents(split)} for split in ("train", "valid")}
    assert names["train"]
    assert names["valid"]
    assert not names["train"] & names["valid"]


def test_the_tokenizer_learns_from_the_train_split_alone(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for i in range(20):
        (tmp_path / "in" / f"{i}.txt").write_text(f"{chr(97 + i) * 7} " * 40)
    build_corpus([Source(tmp_path / "in")], tmp_path / "out", 400, valid=0.3)
    corpus = open_corpus(tmp_path / "out")
    for split, learnt in (("train", True), ("valid", False)):
        for _, _, text in corpus.text(split):
            assert (len(corpus.tokens.encode(text[:7])) < 7) is learnt


# ---------------------------------------------------------------- again, and after an interruption


def test_the_same_input_gives_the_same_bytes(texts: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    both = [Source(texts), Source(rows, "rows")]
    build_corpus(both, tmp_path / "a", 300, shard=2000)
    monkeypatch.setattr(build, "BATCH", 100)
    build_corpus(both, tmp_path / "b", 300, shard=2000)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert sum(name.endswith(".bin") for name in files_of(tmp_path / "a")) > 3


def test_a_finished_corpus_is_taken_as_it_is(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = build_corpus([Source(texts)], tmp_path / "out", 300)
    monkeypatch.setattr(build, "Scan", None)
    assert build_corpus([Source(texts)], tmp_path / "out", 300) == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed=0, not 1"),
        ({"valid": 0.5}, "valid=0.02, not 0.5"),
        ({"tokens": 301}, "tokens=300, not 301"),
        ({"tokens": Bytes()}, "tokens=300, not bytes"),
        ({"sources": "changed"}, "other sources, or they have changed"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_corpus_is_not_overwritten(texts: Path, tmp_path: Path, change: dict, message: str, finished: bool):
    """Once its first shard is there."""

    def stop(what: str, done: int, total: int) -> None:
        if not finished and what == "encoding":
            raise KeyboardInterrupt

    arguments = {"sources": [Source(texts)], "tokens": 300, "seed": 0, "valid": 0.02, "shard": 100}
    try:
        build_corpus(out=tmp_path / "out", progress=stop, **arguments)
    except KeyboardInterrupt:
        assert not finished
    before = files_of(tmp_path / "out")
    if "sources" in change:
        (texts / "new.txt").write_text("new")
        change = {}
    with pytest.raises(DataError, match=f"holds a corpus built from {message}"):
        build_corpus(out=tmp_path / "out", **{**arguments, **change})
    assert files_of(tmp_path / "out") == before


def test_what_ended_before_its_first_shard_stands_in_no_ones_way(texts: Path, tmp_path: Path):
    def stop(what: str, done: int, total: int) -> None:
        if what == "training the tokenizer":
            raise KeyboardInterrupt

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"body": "a line of text"}\n' * 3)
    with pytest.raises(DataError, match="no 'text'"):
        build_corpus([Source(rows)], tmp_path / "out", Bytes())
    with pytest.raises(KeyboardInterrupt):
        build_corpus([Source(texts)], tmp_path / "out", 300, progress=stop)
    made = build_corpus([Source(texts)], tmp_path / "out", Bytes())
    assert made == build_corpus([Source(texts)], tmp_path / "other", Bytes())
    assert files_of(tmp_path / "out") == files_of(tmp_path / "other")


def test_a_folder_of_few_large_files_is_split_near_what_was_asked(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text("".join(f"book {i} line {j}\n" for j in range(20_000)))
    (folder / "note.txt").write_text("a note\n")
    made = build_corpus([Source(folder)], tmp_path / "out", Bytes(), valid=0.05)
    size = {c.split: c.bytes for c in made.counts}
    assert 0.02 < size["valid"] / sum(size.values()) < 0.1
    assert not remarks(made)


def test_remarks_tell_what_was_left_out_and_a_split_that_is_far_off(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"text": "one"}\n' * 2 + '{"text": "two words"}\n' + '{"body": "x"}\n')
    (folder / "picture.png").write_bytes(b"\0")
    made = build_corpus([Source(folder)], tmp_path / "out", Bytes(), valid=0.05, max_bad=0.5)
    quarantined, skipped, duplicates, share = remarks(made)
    assert quarantined == "1 rows quarantined: no 'text' (see quarantine.jsonl)"
    assert skipped == f"{folder}: 1 files skipped: not a text file's suffix"
    assert duplicates == f"{folder}: 1 exact duplicates left out"
    assert "is held out where 5% was asked for: it has only 2 documents" in share


def test_a_folder_of_other_files_is_left_alone(texts: Path, tmp_path: Path):
    with pytest.raises(DataError, match="holds files that are no corpus"):
        build_corpus([Source(tmp_path)], texts, Bytes())
    with pytest.raises(DataError, match=r"file00.txt: File exists"):
        build_corpus([Source(texts)], texts / "file00.txt", Bytes())
    assert len(list(texts.iterdir())) == 40


def test_an_interrupted_build_goes_on(texts: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "BATCH", 500)
    both = [Source(texts), Source(rows, "rows")]
    build_corpus(both, tmp_path / "straight", 300, shard=2000)
    calls = 0

    def count(*_) -> None:
        nonlocal calls
        calls += 1

    build_corpus(both, tmp_path / "counted", 300, shard=2000, progress=count)
    assert calls > 20
    out = tmp_path / "interrupted"
    for stop in range(0, calls, 3):
        left = stop

        def interrupt(*_) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_corpus(both, out, 300, shard=2000, progress=interrupt)
        with pytest.raises(DataError, match="its building was interrupted; build it again to go on"):
            open_corpus(out)
        with (out / "journal.jsonl").open("ab") as f:
            f.write(b'{"shard": {"na')
    build_corpus(both, out, 300, shard=2000)
    assert files_of(out) == files_of(tmp_path / "straight")


def test_finished_shards_are_not_encoded_again(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "BATCH", 500)
    encoded: list[int] = []

    class Counted(Bytes):
        def encode_batch(self, texts):
            encoded.append(sum(map(len, texts)))
            return super().encode_batch(texts)

    def interrupt(what: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_corpus([Source(texts)], tmp_path / "out", Counted(), shard=1000, valid=0.0, progress=interrupt)
    first, total = sum(encoded), sum(f.stat().st_size for f in texts.iterdir())
    encoded.clear()
    build_corpus([Source(texts)], tmp_path / "out", Counted(), shard=1000, valid=0.0)
    assert first > total // 2
    assert sum(encoded) < total - first + 2000


def test_a_killed_build_goes_on(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "BATCH", 500)
    build_corpus([Source(texts)], tmp_path / "straight", Bytes(), shard=500)
    out = tmp_path / "killed"
    unfinished = 0
    for delay in (0.002, 0.005, 0.01, 0.02, 0.04):
        child = os.fork()
        if child == 0:
            build_corpus([Source(texts)], out, Bytes(), shard=500, progress=lambda *_: time.sleep(0.001))
            os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        unfinished += not (out / "manifest.json").exists()
    assert unfinished
    build_corpus([Source(texts)], out, Bytes(), shard=500)
    assert files_of(out) == files_of(tmp_path / "straight")


def test_a_second_builder_waits(texts: Path, tmp_path: Path):
    out = tmp_path / "out"
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            build_corpus([Source(texts)], out, Bytes(), shard=500, progress=lambda *_: time.sleep(0.01))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    build_corpus([Source(texts)], tmp_path / "straight", Bytes(), shard=500)
    assert files_of(out) == files_of(tmp_path / "straight")


def test_a_full_disk_is_one_line(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = build.write_durably

    def full(path: Path, data: bytes | str) -> None:
        if path.name == "train-00003.idx":
            raise OSError(28, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(build, "write_durably", full)
    with pytest.raises(DataError, match=r"train-00003.idx: No space left on device"):
        build_corpus([Source(texts)], tmp_path / "out", Bytes(), shard=500)
    monkeypatch.setattr(build, "write_durably", write)
    build_corpus([Source(texts)], tmp_path / "out", Bytes(), shard=500)
    build_corpus([Source(texts)], tmp_path / "straight", Bytes(), shard=500)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "straight")


def test_a_source_that_changes_under_the_build(texts: Path, tmp_path: Path):
    def change(what: str, done: int, total: int) -> None:
        if what == "training the tokenizer":
            (texts / "file03.txt").write_text("now something else")

    with pytest.raises(DataError, match="texts: it changed while it was read"):
        build_corpus([Source(texts)], tmp_path / "out", 300, progress=change)


def test_a_given_tokenizer_is_saved_with_the_corpus(texts: Path, tmp_path: Path):
    tokens = BPE.train([f.read_text() for f in texts.iterdir()], 350)
    build_corpus([Source(texts)], tmp_path / "out", tokens)
    text = "Text number 3"
    assert open_corpus(tmp_path / "out").tokens.encode(text) == tokens.encode(text)
