"""Rows of a data set become a file, once; without the package one line says what to install."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

from postformer.data.corpus import open_corpus
from postformer.data.embedded import build_corpus
from postformer.data.hub import hub_source
from postformer.data.sources import DataError
from postformer.tokens import Bytes


class Stream(list):
    info = types.SimpleNamespace(license="odc-by")


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> list:
    """A stand-in for the library: a list of the calls it got."""
    calls: list = []

    def load_dataset(*words, **named):
        calls.append((words, named))
        if words[0] == "nobody/nothing":
            raise FileNotFoundError("no such data set\nsecond line")
        return Stream([{"body": f"row {i}"} for i in range(30)] + [{"body": None}, {"other": 1}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))  # type: ignore[arg-type]
    return calls


def test_rows_become_a_source(datasets: list, tmp_path: Path):
    source = hub_source("team/texts", tmp_path / "texts.jsonl", config="en", field="body", revision="abc", domain="web")
    assert datasets == [(("team/texts", "en"), {"split": "train", "revision": "abc", "streaming": True})]
    assert (source.license, source.domain, source.field) == ("odc-by", "web", "body")
    manifest = build_corpus([source], tmp_path / "out", Bytes(), max_bad=0.1)
    assert manifest.sources[0].documents == 30
    assert manifest.quarantine == {"'body' is not text": 2}
    assert {text for split in ("train", "valid") for _, _, text in open_corpus(tmp_path / "out").text(split)} >= {b"row 0"}


def test_the_hub_is_asked_once(datasets: list, tmp_path: Path):
    first = hub_source("team/texts", tmp_path / "texts.jsonl", field="body", rows=5)
    assert len((tmp_path / "texts.jsonl").read_text().splitlines()) == 5
    assert hub_source("team/texts", tmp_path / "texts.jsonl", field="body", rows=5) == first
    assert len(datasets) == 1
    with pytest.raises(DataError, match=r"texts.jsonl: holds rows of team/texts fetched with other arguments"):
        hub_source("team/texts", tmp_path / "texts.jsonl", field="body", rows=6)


def test_a_file_that_did_not_come_from_the_hub_is_kept(datasets: list, tmp_path: Path):
    (tmp_path / "mine.jsonl").write_text("mine")
    with pytest.raises(DataError, match=r"mine.jsonl: is there already and did not come from the hub"):
        hub_source("team/texts", tmp_path / "mine.jsonl", field="body")
    assert (tmp_path / "mine.jsonl").read_text() == "mine"


def test_what_the_library_raises_is_one_line(datasets: list, tmp_path: Path):
    with pytest.raises(DataError) as caught:
        hub_source("nobody/nothing", tmp_path / "texts.jsonl")
    assert str(caught.value) == "nobody/nothing: the hub's data set cannot be read: FileNotFoundError: no such data set"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"needs the 'datasets' package: pip install 'postformer\[hub\]'"):
        hub_source("team/texts", tmp_path / "texts.jsonl")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="the datasets library is not installed")
def test_the_library_itself_reads_a_local_file(tmp_path: Path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(3)))
    source = hub_source(str(tmp_path / "set"), tmp_path / "texts.jsonl")
    assert [row.text for row in source.read()] == [b"row 0", b"row 1", b"row 2"]  # type: ignore[union-attr]
