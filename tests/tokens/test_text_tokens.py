"""Bytes and BPE are exact on every byte string; a file that `save` did not write is refused in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from postformer.config import UserError
from postformer.tokens import BPE, TOKENS, Bytes, StreamDecoder, TokenizerError, Tokens, load_tokens
from postformer.tokens import text as module

TEXTS = [
    "def add(left, right):\n    return left + right\n\n\nclass Adder:\n    total = 12345\n",
    "The quick brown fox; the quick brown dog. Grüße aus Köln, 日本語のテキスト。\n",
] * 4


@pytest.fixture(scope="module")
def bpe() -> BPE:
    return BPE.train(TEXTS, 400)


@pytest.fixture(scope="module", params=list(TOKENS))
def tokens(request: pytest.FixtureRequest, bpe: BPE) -> Tokens:
    return {"bytes": Bytes(), "bpe": bpe}[request.param]


# ---------------------------------------------------------------- encoding


@given(data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | st.sampled_from([t.encode() for t in TEXTS]))
def test_every_byte_string_comes_back(tokens: Tokens, data: bytes):
    ids = tokens.encode(data)
    assert tokens.decode_bytes(ids) == data
    assert all(0 <= i < tokens.vocab and i != tokens.end for i in ids)


@given(ids=st.lists(st.integers(0, 256)), more=st.integers(0, 10**6))
def test_any_ids_decode(tokens: Tokens, ids: list[int], more: int):
    ids = [*ids, more % tokens.vocab]
    assert tokens.decode(ids) == tokens.decode_bytes(ids).decode("utf-8", "replace")


@given(data=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_a_stream_never_emits_half_a_character(tokens: Tokens, data: bytes):
    decoder = StreamDecoder(tokens)
    ids = [*tokens.encode(data), tokens.end]
    pieces = [decoder.push(i) for i in ids]
    assert "".join(pieces) + decoder.flush() == tokens.decode(ids)
    if "\ufffd" not in tokens.decode(ids):
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_stream_holds_back_an_open_character():
    decoder = StreamDecoder(Bytes())
    assert [decoder.push(byte) for byte in "é!".encode()] == ["", "é", "!"]
    assert decoder.push("é".encode()[0]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_the_end_token_is_no_text(tokens: Tokens):
    assert tokens.decode([*tokens.encode("a"), tokens.end, *tokens.encode("b")]) == "ab"
    assert tokens.end not in tokens.encode(module.END_TEXT)


def test_batches_equal_single_texts(tokens: Tokens):
    texts = [*TEXTS, b"\xff\xfe", "", "é".encode()[:1]]
    assert tokens.encode_batch(texts) == [tokens.encode(text) for text in texts]


def test_bytes_of_the_command_line_pass_and_half_surrogates_do_not(tokens: Tokens):
    assert tokens.decode_bytes(tokens.encode("a\udcff")) == b"a\xff"
    with pytest.raises(TokenizerError, match="character 1 is half of a surrogate pair"):
        tokens.encode("a\ud800")


@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_long_text_goes_in_pieces(bpe: BPE, monkeypatch: pytest.MonkeyPatch, chunk: int):
    text = b"\xff" + TEXTS[1].encode() * 9 + b"\xc3\xff\xfe" + b"x \n  \n\ty\r\n\r\nz\n" * 9
    monkeypatch.setattr(module, "CHUNK", chunk)
    assert max(map(len, module._chunks(text))) <= 2 * chunk + 3
    assert bpe.decode_bytes(bpe.encode(text)) == text


@given(st.binary(max_size=80), st.lists(st.integers(0, 30), max_size=12), st.integers(1, 40))
def test_a_stream_of_any_blocks_is_the_whole(bpe: BPE, odd: bytes, lengths: list[int], chunk: int):
    text = TEXTS[1].encode() + odd + b"x \n  \n\ty\r\n\r\nz\n" + odd + TEXTS[0].encode()
    rest, blocks = text, []
    for length in lengths:
        blocks.append(rest[:length])
        rest = rest[length:]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(module, "CHUNK", chunk)
        pieces = list(bpe.stream([*blocks, rest]))
        assert b"".join(raw for raw, _ in pieces) == text
        assert [i for _, ids in pieces for i in ids] == bpe.encode(text)
        for raw, ids in pieces:
            assert [again for again, _ in bpe.stream([raw])] == [raw]
            assert bpe.encode(raw) == ids


@given(text=st.text(alphabet="aé1_.) \t\r\n", max_size=60).map(lambda text: TEXTS[0] + text + TEXTS[1]))
@settings(max_examples=200)
def test_cuts_at_line_ends_change_no_token(bpe: BPE, text: str):
    whole = bpe.encode(text)
    cuts = [match.end() for match in module._CUT.finditer(text)]
    assert cuts
    for cut in cuts:
        assert bpe.encode(text[:cut]) + bpe.encode(text[cut:]) == whole


def test_long_runs_are_quick(bpe: BPE):
    for text in (" " * 10**6, "a" * 10**6, "\n " * 10**6, "=" * 10**6, "1" * 10**6, "é" * 10**5):
        assert bpe.decode(bpe.encode(text)) == text


def test_pieces_never_cross_what_the_pattern_splits(bpe: BPE):
    for i in range(257, bpe.vocab):
        piece = bpe.decode_bytes([i]).decode("utf-8", "replace")
        assert not (len(piece) > 1 and any(c in "0123456789" for c in piece))


# ---------------------------------------------------------------- training


def test_training_learns_and_counts(bpe: BPE):
    assert 257 < bpe.vocab <= 400
    assert len(bpe.encode("".join(TEXTS))) < len("".join(TEXTS).encode()) / 2.5
    assert BPE.train([], 300).vocab == 257


@pytest.mark.parametrize("vocab", [0, 256, (1 << 17) + 1])
def test_vocab_out_of_range(vocab: int):
    with pytest.raises(TokenizerError, match="vocab: expected 257 to 131072"):
        BPE.train(TEXTS, vocab)


def test_training_is_deterministic_across_processes_and_orders(bpe: BPE, tmp_path: Path):
    bpe.save(tmp_path)
    code = "import sys; from postformer.tokens import BPE; BPE.train(eval(sys.stdin.read())[::-1], 400).save(sys.argv[1])"
    other = tmp_path / "other"
    other.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, other], input=repr(TEXTS), text=True, check=True, env=environment)
    assert (other / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


# ---------------------------------------------------------------- files


def test_save_and_load(tokens: Tokens, tmp_path: Path):
    tokens.save(tmp_path)
    for found in (load_tokens(tmp_path), load_tokens(tmp_path / "tokenizer.json")):
        assert type(found) is type(tokens)
        assert found.vocab == tokens.vocab
        assert found.encode(TEXTS[0]) == tokens.encode(TEXTS[0])


def test_other_programs_read_the_file(bpe: BPE, tmp_path: Path):
    bpe.save(tmp_path)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.get_vocab_size() == bpe.vocab
    assert library.token_to_id(module.END_TEXT) == bpe.end
    for text in TEXTS:
        assert library.encode(text).ids == bpe.encode(text)
        assert library.decode(bpe.encode(text)) == text


def test_load_of_another_kind(tmp_path: Path):
    Bytes().save(tmp_path)
    with pytest.raises(TokenizerError, match="a bytes tokenizer, not a BPE one"):
        BPE.load(tmp_path)


def hostile(change):
    """A saved tokenizer's JSON after `change(data)`, which edits it or returns another value."""

    def write(path: Path, bpe: BPE) -> None:
        bpe.save(path.parent)
        data = json.loads(path.read_text())
        out = change(data)
        path.write_text(json.dumps(data if out is None else out))

    return write


def raw(data: bytes):
    return lambda path, bpe: path.write_bytes(data)


def truncated(path: Path, bpe: BPE) -> None:
    bpe.save(path.parent)
    path.write_bytes(path.read_bytes()[:-100])


def doubling(data: dict) -> None:
    data["model"]["merges"] = [["a" * 2**i, "a" * 2**i] for i in range(10)]


HOSTILE = {
    "a regex that blows up": (
        hostile(lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="(a+)+c")),
        r"'pre_tokenizer.pretokenizers\[0\].pattern.Regex' is not as postformer writes it",
    ),
    "a normalizer": (
        hostile(lambda d: d.update(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+c"}, "content": ""})),
        "'normalizer' is not as",
    ),
    "a decoder": (hostile(lambda d: d.update(decoder={"type": "Fuse"})), "'decoder.add_prefix_space' is not as|'decoder.type'"),
    "a post-processor": (hostile(lambda d: d.update(post_processor={"type": "ByteLevel"})), "'post_processor' is not"),
    "one more step": (
        hostile(lambda d: d["pre_tokenizer"]["pretokenizers"].append({"type": "Punctuation"})),
        "'pre_tokenizer.pretokenizers' is not",
    ),
    "an added token": (
        hostile(lambda d: d["added_tokens"].append({**d["added_tokens"][0], "id": 300, "content": "the"})),
        "'added_tokens' is not",
    ),
    "truncation": (hostile(lambda d: d.update(truncation={"max_length": 1})), "'truncation' is not"),
    "an unknown key": (hostile(lambda d: d.update(extra=1)), "'extra' is not"),
    "a missing key": (hostile(lambda d: d["model"].pop("dropout") and None), "'model.dropout' is not"),
    "dropout": (hostile(lambda d: d["model"].update(dropout=0.5)), "'model.dropout' is not"),
    "ids with a hole": (hostile(lambda d: d["model"]["vocab"].update(th=99_999)), "'model.vocab.th' is not"),
    "a token too many": (hostile(lambda d: d["model"]["vocab"].update(zzzz=400)), "'model.vocab.zzzz' is not"),
    "another model": (hostile(lambda d: d["model"].update(type="WordPiece")), "'model.type' is not"),
    "a merge of nothing": (
        hostile(lambda d: d["model"]["merges"].insert(0, ["qqq", "zz"])),
        r"model.merges\[0\]: expected two",
    ),
    "a merge of three": (
        hostile(lambda d: d["model"]["merges"].insert(3, ["a", "b", "c"])),
        r"model.merges\[3\]: expected two",
    ),
    "a merge as text": (hostile(lambda d: d["model"]["merges"].insert(3, "a b")), r"model.merges\[3\]: expected two"),
    "tokens that double": (hostile(doubling), "a token of more than 64 bytes"),
    "too many merges": (hostile(lambda d: d["model"].update(merges=[0] * 140_000)), "140,000 merges; at most 131,072"),
    "merges as a table": (hostile(lambda d: d["model"].update(merges={})), "not a tokenizer of postformer's"),
    "a list": (hostile(lambda d: [d]), "not a tokenizer of postformer's"),
    "a number": (raw(b"1"), "not a tokenizer of postformer's"),
    "another format": (raw(b'{"format": "postformer-bytes-2"}'), "not a tokenizer of postformer's"),
    "nothing": (raw(b""), "not a JSON file"),
    "half a file": (truncated, "not a JSON file"),
    "no UTF-8": (raw(b'{"format": "\xff"}'), "not a JSON file"),
    "deep nesting": (raw(b"[" * 200_000), "not a JSON file"),
    "a huge number": (raw(b"1" * 10_000), "not a JSON file"),
    "a huge file": (raw(b" " * ((16 << 20) + 1)), "16,777,217 bytes; a tokenizer file has at most"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str, bpe: BPE, tmp_path: Path):
    write, message = HOSTILE[name]
    path = tmp_path / "tokenizer.json"
    write(path, bpe)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokens(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(TokenizerError, match="No such file"):
        load_tokens(tmp_path)


@given(
    junk=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_is_refused_in_one_line(junk, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "junk.json"
    for data in (junk, {"model": junk}, {"model": {"type": "BPE", "merges": [junk]}}):
        path.write_text(json.dumps(data))
        with pytest.raises(TokenizerError):
            load_tokens(path)


def test_a_panic_of_the_library_does_not_pass():
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    with pytest.raises(UserError, match="the tokenizers library failed: boom"), module._no_panic():
        raise panic("boom")
    with pytest.raises(KeyboardInterrupt), module._no_panic():
        raise KeyboardInterrupt
