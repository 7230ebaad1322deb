"""The default corpus: code and prose of the library itself, with no docstring in both splits and no topic among the code."""

import sysconfig
from pathlib import Path

import pytest

from postformer.data import DataError, corpus_from, default_corpus, embedded, open_corpus
from postformer.data.corpus import Corpus
from postformer.data.embedded import Docstrings, Library, Topics, embedded_documents, embedded_sources
from postformer.data.sources import BadRow, Document, Skipped

STDLIB = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A tenth of the library."""
    return open_corpus(default_corpus(tmp_path_factory.mktemp("embedded") / "default", 600, max_bytes=1_000_000))


@pytest.fixture(scope="module")
def every() -> list[Document]:
    return list(embedded_documents())


def test_the_whole_library_is_there(every: list[Document]):
    code = {d.name: d for d in every if d.domain == "code"}
    prose = [d for d in every if d.domain == "prose"]
    assert len(code) > 400
    assert {"json/decoder.py", "asyncio/events.py", "heapq.py"} <= code.keys()
    assert code["heapq.py"].text == (STDLIB / "heapq.py").read_bytes()
    assert len(prose) > 200
    assert sum(len(d.text) for d in prose) > 1_000_000
    parts = {part for name in code for part in Path(name).parts}
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "pydoc_data", "encodings"}


def test_a_module_and_its_docstrings_share_a_group(every: list[Document]):
    code = {d.name: d.group for d in every if d.domain == "code"}
    docstrings = [d for d in every if d.name.endswith(" docstrings")]
    tables = {d.group for d in docstrings} - code.keys()
    assert len(tables) < 5
    assert all(code.get(d.group, d.group) == d.group and d.name == f"{d.group} docstrings" for d in docstrings)


def test_no_docstring_is_on_both_sides(corpus: Corpus):
    code = {split: "\n".join(text.decode() for _, _, text in corpus.text(split, "code")) for split in ("train", "valid")}
    groups = {split: {d.name.removesuffix(" docstrings") for d in corpus.documents(split)} for split in code}
    assert not groups["train"] & groups["valid"]
    assert groups["valid"]
    prose = [text.decode() for name, _, text in corpus.text("valid", "prose") if name.endswith("docstrings")]
    assert prose
    for text in prose:
        longest = max(text.splitlines(), key=len)
        assert len(longest) < 60 or longest not in code["train"]


def test_every_source_is_counted(corpus: Corpus):
    code, docstrings, topics = corpus.manifest.sources
    assert (code.domain, docstrings.domain, topics.domain) == ("code", "prose", "prose")
    assert {s.license for s in corpus.manifest.sources} == {"PSF-2.0"}
    assert code.label.startswith("Python 3.")
    assert 500_000 < code.bytes < 2_000_000
    assert docstrings.documents > 10
    assert topics.documents > 50 or not (STDLIB / "pydoc_data" / "topics.py").exists()
    assert corpus.tokens.vocab == 600
    assert corpus.count("valid", "prose").bytes > 1_000
    assert corpus.count("valid", "code").bytes > 10_000


def test_it_is_built_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedded, "_docstrings", None)
    assert default_corpus(corpus.path, 600, max_bytes=1_000_000) == corpus.path
    with pytest.raises(DataError, match="tokens=600, not 601"):
        default_corpus(corpus.path, 601, max_bytes=1_000_000)


# ---------------------------------------------------------------- made-up libraries

LONG = "This docstring explains at length what the thing is for. " * 5


@pytest.fixture
def library(tmp_path: Path) -> Path:
    files = {
        "one.py": f'"""{LONG}one"""\n\ndef f():\n    """Short."""\n\nclass C:\n    """{LONG}\n\n        indented\n    """\n',
        "package/two.py": f'"""{LONG}two"""\n\nasync def g():\n    """{LONG}shared"""\n    return "\\d"\n',
        "package/three.py": f'def h():\n    """{LONG}shared"""\n',
        "package/empty.py": "",
        "broken.py": "def (:\n",
        "test/four.py": "x = 4\n",
        "site-packages/five.py": "x = 5\n",
        "_sysconfigdata_linux.py": "x = 6\n",
        "data.txt": "no module\n",
        "pydoc_data/topics.py": "topics = {'with': 'The with statement.', 'assert': 'The assert\\n'}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe9'\n")
    return tmp_path


def test_modules(library: Path):
    rows = list(Library(library).read())
    assert [d.name for d in rows if isinstance(d, Document)] == ["broken.py", "one.py", "package/three.py", "package/two.py"]
    assert [(b.file, b.reason) for b in rows if isinstance(b, BadRow)] == [("latin.py", "not UTF-8 (byte 31)")]


def test_docstrings(library: Path):
    rows = [d for d in Docstrings(library).read() if isinstance(d, Document)]
    assert {d.name for d in rows} == {"one.py docstrings", "package/two.py docstrings"}
    one, two = sorted(rows, key=lambda d: d.name)
    assert one.text.decode() == f"{LONG}one\n\n{LONG}\n\nindented"
    assert two.text.decode() == f"{LONG}two"


def test_topics(library: Path):
    assert [(d.name, d.text) for d in Topics(library).read() if isinstance(d, Document)] == [
        ("topic assert", b"The assert\n"),
        ("topic with", b"The with statement."),
    ]
    (library / "pydoc_data" / "topics.py").unlink()
    assert list(Topics(library).read()) == []
    assert len(Topics(library).sha256()) == 64


def test_a_share_is_a_subset(library: Path):
    names = [{f.name for f in Library(library, share=share).files()} for share in (0.0, 0.4, 0.8, 1.0)]
    assert not names[0]
    assert names[0] <= names[1] <= names[2] <= names[3]
    assert len(names[3]) == 6


def test_nothing_of_the_library_is_run(library: Path):
    (library / "one.py").write_text("raise SystemExit('imported')\n")
    names = [d.name for s in (Library(library), Docstrings(library)) for d in s.read() if isinstance(d, Document)]
    assert "one.py" in names


def test_embedded_sources_of_this_python():
    code, docstrings, _ = embedded_sources(100_000)
    assert code.size() == docstrings.size() < 600_000


# ---------------------------------------------------------------- the user's own text


@pytest.mark.parametrize("vocab", [300, "bytes"])
def test_a_users_file(tmp_path: Path, vocab):
    (tmp_path / "book.txt").write_text("".join(f"Chapter {i}: it was a dark and stormy night.\n" for i in range(900)))
    corpus = open_corpus(corpus_from([tmp_path / "book.txt"], tmp_path / "out", vocab, license="CC0-1.0"))
    assert corpus.manifest.domains == ("text",)
    assert corpus.manifest.sources[0].license == "CC0-1.0"
    assert corpus.tokens.kind == ("bytes" if vocab == "bytes" else "bpe")
    assert corpus.count("valid").bytes > 500
    assert corpus.count("train").bytes > 20_000


def test_several_paths_are_domains(tmp_path: Path):
    for name in ("law.txt", "code.py"):
        (tmp_path / name).write_text("".join(f"{name} line {i}\n" for i in range(500)))
    corpus = open_corpus(corpus_from([tmp_path / "law.txt", str(tmp_path / "code.py")], tmp_path / "out", "bytes"))
    assert corpus.manifest.domains == ("law", "code")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "in.txt: no text in it"),
        (b"\0" * 5000, "in.txt: 3 of 3 rows are bad, more than 5%; the first is row 1: NUL bytes"),
        (b"\xff\xfe" * 1000, r"in.txt: 1 of 1 rows are bad, more than 5%; the first is row 1: not UTF-8 \(byte 0\)"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "in.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        corpus_from([tmp_path / "in.txt"], tmp_path / "out")


def test_tables_of_data_are_skipped_and_counted(tmp_path):
    (tmp_path / "table.py").write_text("NAMES = {\n" + "".join(f"    'name {i}': {i},\n" for i in range(50)) + "}\n")
    (tmp_path / "code.py").write_text("def double(x):\n    return 2 * x\n")
    rows = list(Library(tmp_path).read())
    assert [r.name for r in rows if isinstance(r, Document)] == ["code.py"]
    assert [(r.name, r.reason) for r in rows if isinstance(r, Skipped)] == [("table.py", "a table of data")]
