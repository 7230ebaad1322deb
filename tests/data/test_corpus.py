"""An open corpus gives back its documents; a damaged one names the file."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from postformer.data import corpus as module
from postformer.data.build import build_corpus
from postformer.data.corpus import MANIFEST, Corpus, open_corpus
from postformer.data.sources import DataError, Source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(30):
        (texts / f"{i:02d}.txt").write_text(f"document {i} " * (i + 1))
    (texts / "odd\nname.txt").write_text("odd")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(30)) + "bad\n")
    build_corpus([Source(texts, "files"), Source(rows, "rows")], tmp_path / "corpus", 300, valid=0.2, shard=500)
    return tmp_path / "corpus"


def test_documents_by_split_and_domain(folder: Path):
    corpus = open_corpus(folder)
    every = [d for split in ("train", "valid") for d in corpus.documents(split)]
    assert len(every) == 61
    assert {d.name for d in every} >= {"00.txt", "29.txt", "odd name.txt", "rows.jsonl:30"}
    assert len(corpus.shards("train")) > 1
    for d in every:
        assert d.ids.dtype == np.uint16
        assert len(corpus.tokens.decode_bytes(d.ids.tolist())) == d.nbytes
    rows = [d for split in ("train", "valid") for d in corpus.documents(split, "rows")]
    assert len(rows) == 30
    assert {d.domain for d in rows} == {"rows"}
    assert corpus.tokens.decode(rows[0].ids) == "row 0"


def test_unknown_split_and_domain(folder: Path):
    corpus = open_corpus(folder)
    for call in (corpus.shards, corpus.count, lambda split: next(corpus.documents(split))):
        with pytest.raises(DataError, match="no split 'test'; choose from train, valid"):
            call("test")
    for call in (corpus.count, lambda *words: next(corpus.documents(*words))):
        with pytest.raises(DataError, match="no domain 'code'; choose from files, rows"):
            call("train", "code")


def test_ids_are_read_only(folder: Path):
    document = next(open_corpus(folder).documents("train"))
    with pytest.raises(ValueError, match="read-only"):
        document.ids[0] = 1


def test_sha256_is_the_manifests(folder: Path):
    assert open_corpus(folder).sha256 == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


# ---------------------------------------------------------------- damage

FILES = ["train-00000.bin", "train-00000.idx", "train-00000.names", "valid-00000.bin", "tokenizer.json", "quarantine.jsonl"]


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "truncated", "bit"])
def test_damage_is_named(folder: Path, name: str, damage: str):
    file = folder / name
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        data[0] ^= 1
        file.write_bytes(data if damage == "bit" else data[1:-1])
    with pytest.raises(DataError, match=name if damage != "missing" or name != MANIFEST else "not a corpus: no") as caught:
        open_corpus(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_truncation_is_seen_without_reading(folder: Path):
    file = folder / "train-00001.bin"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(DataError, match=rf"train-00001.bin: damaged: {size - 2:,} bytes instead of {size:,}"):
        open_corpus(folder, verify=False)


def tell(folder: Path, change) -> None:
    """Rewrite the manifest after `change(data)`."""
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other-1"), "not a corpus of format postformer-corpus-1"),
        (lambda d: d.pop("shards"), "damaged: Manifest: 'shards' is missing"),
        (lambda d: d.update(shards=3), "damaged: shards: expected a list"),
        (lambda d: d["shards"][0].update(name="../../etc/passwd"), "is not a shard"),
        (lambda d: d["shards"][0].update(name="valid-00000"), "is not a shard"),
        (lambda d: d["shards"][0].update(tokens=-1), "is not a shard"),
        (lambda d: d["shards"][0].update(documents=0), "is not a shard"),
        (lambda d: d["shards"][0].update(extra=0), "unknown 'extra'"),
        (lambda d: d["tokens"].update(vocab=5), "not the tokenizer of manifest.json: bpe with"),
        (lambda d: d.update(domains=["files"]), "its documents do not fill the shard in order"),
    ],
)
def test_a_manifest_is_not_believed(folder: Path, change, message: str):
    tell(folder, change)
    with pytest.raises(DataError, match=message):
        open_corpus(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "[" * 100_000, "\udcff"])
def test_a_manifest_that_is_no_json(folder: Path, text: str):
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"manifest.json: (not a corpus|damaged)"):
        open_corpus(folder)


def reseal(folder: Path, name: str, data: bytes) -> None:
    """Put other content into a shard's file, with a manifest that vouches for it."""
    (folder / name).write_bytes(data)
    stem, _, suffix = name.partition(".")

    def change(manifest: dict) -> None:
        (shard,) = [s for s in manifest["shards"] if s["name"] == stem]
        shard["sha256"][("bin", "idx", "names").index(suffix)] = hashlib.sha256(data).hexdigest()

    tell(folder, change)


def test_ids_that_the_tokenizer_has_not(folder: Path):
    data = (folder / "train-00000.bin").read_bytes()
    reseal(folder, "train-00000.bin", b"\xff\xff" + data[2:])
    with pytest.raises(DataError, match=r"train-00000.bin: damaged: it holds ids that the tokenizer has not"):
        open_corpus(folder)


@pytest.mark.parametrize(
    ("field", "at", "value"), [("start", 0, 1), ("start", 1, 0), ("start", -1, 1 << 40), ("name", 1, -5), ("domain", 0, 9)]
)
def test_an_index_out_of_order(folder: Path, field: str, at: int, value: int):
    index = np.fromfile(folder / "train-00000.idx", module.INDEX)
    index[field][at] = value
    reseal(folder, "train-00000.idx", index.tobytes())
    with pytest.raises(DataError, match=r"train-00000.idx: damaged: its documents do not fill"):
        open_corpus(folder)


def test_what_is_no_corpus(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"not a corpus: no manifest.json in it"):
        open_corpus(tmp_path)


def test_a_corpus_can_move(folder: Path, tmp_path: Path):
    folder.rename(tmp_path / "moved")
    assert isinstance(open_corpus(tmp_path / "moved"), Corpus)
