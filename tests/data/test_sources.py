"""What becomes a document, what is a bad row, what is skipped."""

import json
import os
from pathlib import Path

import pytest

from postformer.data import sources
from postformer.data.sources import BadRow, DataError, Document, Skipped, Source, jsonl_text


def test_a_folder_gives_its_files_in_order(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name, data in {
        "b/two.py": b"x = 2\n",
        "a.txt": b"one\n",
        "README": b"read me\n",
        "image.png": b"\x89PNG",
        "table.txt": b"a\0b",
        "empty.py": b"",
        "odd.md": b"caf\xe9",
        ".git/config.txt": b"hidden",
        "rows.jsonl": b'{"text": "row"}\n',
    }.items():
        (tmp_path / name).write_bytes(data)
    rows = list(Source(tmp_path, "mixed").read())
    assert [(d.name, d.text) for d in rows if isinstance(d, Document)] == [
        ("README", b"read me\n"),
        ("a.txt", b"one\n"),
        ("b/two.py", b"x = 2\n"),
        ("rows.jsonl:1", b"row"),
    ]
    assert {d.domain for d in rows if isinstance(d, Document)} == {"mixed"}
    assert [(s.name, s.reason) for s in rows if isinstance(s, Skipped)] == [
        ("empty.py", "empty"),
        ("image.png", "not a text file's suffix"),
        ("table.txt", "binary"),
    ]
    (bad,) = [b for b in rows if isinstance(b, BadRow)]
    assert (bad.file, bad.row, bad.reason) == (str(tmp_path / "odd.md"), 1, "not UTF-8 (byte 3)")


BAD = {
    "{": "not JSON",
    "[1]": "not a JSON object",
    "{}": "no 'text'",
    '{"text": null}': "'text' is not text",
    '{"text": 3}': "'text' is not text",
    '{"text": ""}': "empty",
    '{"text": " \\n"}': "empty",
    '{"text": "a\\u0000b"}': "NUL bytes",
    '{"text": "\\ud800"}': "half of a surrogate pair",
    '{"text": "a"} {"text": "b"}': "not JSON",
    "[" * 100_000: "nested too deeply",
    '{"text": "a", "n": ' + "1" * 10_000 + "}": "not JSON",
}


@pytest.mark.parametrize("line", BAD, ids=[f"{reason}-{i}" for i, reason in enumerate(BAD.values())])
def test_bad_rows(line: str):
    assert jsonl_text(line.encode(), "text") == (jsonl_text(line.encode(), "text")[0], BAD[line])


def test_jsonl_rows_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "LARGEST_ROW", 100)
    file = tmp_path / "rows.jsonl"
    long = json.dumps({"body": "x" * 300}).encode()
    file.write_bytes(b'\xef\xbb\xbf{"body": "one"}\n\n' + long + b'\r\n{"body": "\xff"}\n{"body": "last", "k": NaN}')
    rows = list(Source(file, field="body").read())
    assert [(d.name, d.text) for d in rows if isinstance(d, Document)] == [("rows.jsonl:1", b"one"), ("rows.jsonl:5", b"last")]
    assert [(b.row, b.reason) for b in rows if isinstance(b, BadRow)] == [
        (3, "longer than 0 MiB"),
        (4, "not UTF-8 (byte 10)"),
    ]
    assert all(len(b.start) <= 200 for b in rows if isinstance(b, BadRow))


def test_a_lone_file_is_cut_into_parts(tmp_path: Path):
    file = tmp_path / "book.txt"
    text = "".join(f"Zeile {i}: größer als {i - 1}\n" for i in range(5000)).encode()
    file.write_bytes(text)
    parts = [d for d in Source(file).read() if isinstance(d, Document)]
    assert 40 <= len(parts) <= 51
    assert b"".join(d.text for d in parts) == text
    assert all(d.text.endswith(b"\n") for d in parts)
    assert parts[2].name == "book.txt#3"
    assert not parts[2].group


def test_parts_never_cut_a_character(tmp_path: Path):
    file = tmp_path / "one-line.txt"
    text = ("a" + "日本語" * 40_000).encode()
    file.write_bytes(text)
    rows = list(Source(file).read())
    assert all(isinstance(d, Document) for d in rows)
    assert b"".join(d.text for d in rows if isinstance(d, Document)) == text


def test_a_long_file_of_a_folder_stays_in_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "LARGEST_PART", 1000)
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text("line\n" * 1000)
    (tmp_path / "short.txt").write_text("line\n")
    rows = [d for d in Source(tmp_path).read() if isinstance(d, Document)]
    assert {d.group for d in rows} == {"", *(f"{i}.txt" for i in range(12))}
    assert len(rows) == 5 * 12 + 1


def test_a_file_with_a_large_share_of_a_folder_is_split_by_its_parts(tmp_path: Path):
    (tmp_path / "long.txt").write_text("line\n" * 20_000)
    (tmp_path / "short.txt").write_text("line\n")
    rows = [d for d in Source(tmp_path).read() if isinstance(d, Document)]
    assert {d.group for d in rows} == {""}
    assert len(rows) > 40


def test_sha256_knows_names_and_content(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a")
    seen = {Source(tmp_path).sha256()}
    (tmp_path / "a.txt").write_text("b")
    seen.add(Source(tmp_path).sha256())
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    seen.add(Source(tmp_path).sha256())
    assert len(seen) == 3


def test_what_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        Source(tmp_path / "nowhere").sha256()
    with pytest.raises(DataError, match="/dev/zero: neither a file nor a folder"):
        Source(Path("/dev/zero")).sha256()


def test_what_is_no_text_file_in_a_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("b")
    (tmp_path / "linked.txt").symlink_to("a.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere.txt").symlink_to("missing.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    rows = list(Source(tmp_path).read())
    assert [r.name for r in rows if isinstance(r, Document)] == ["a.txt", "linked.txt", "sub/b.txt"]
    skipped = {(r.name, r.reason) for r in rows if isinstance(r, Skipped)}
    assert skipped == {
        ("loop", "a link to a folder"),
        ("nowhere.txt", "no regular file"),
        ("pipe.txt", "no regular file"),
    }
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="sub: Permission denied"):
        list(Source(tmp_path).read())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_text("a")
    file.chmod(0)
    with pytest.raises(DataError, match=r"a.txt: Permission denied"):
        Source(tmp_path).sha256()
