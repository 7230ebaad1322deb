"""The tree of a state and its file, apart from any mixer; the laws stand in test_laws.py."""

from typing import Any, NamedTuple

import pytest
import small
import torch
from safetensors.torch import save_file
from torch import Tensor

from postformer import state as S


class Pair(NamedTuple):
    a: Tensor
    b: Tensor | None


class Cache(NamedTuple):
    k: Tensor
    grows = (("k", 1),)


def tree(rows: int = 2, length: int = 3):
    return (Pair(torch.arange(rows * length).view(rows, length).float(), None), None, (torch.ones(rows, 2, dtype=torch.long),))


def test_leaves_have_names_and_an_order():
    assert [name for name, _ in S.leaves(tree())] == ["0.a", "2.0"]
    assert [name for name, _ in S.leaves(torch.ones(1))] == [""]
    assert list(S.leaves(None)) == []
    assert isinstance(S.map_leaves(torch.neg, tree())[0], Pair)
    doubled = S.map_leaves(torch.add, tree(), tree())
    assert torch.equal(doubled[0].a, 2 * tree()[0].a)
    with pytest.raises(ValueError):
        S.map_leaves(torch.add, (torch.ones(1), torch.ones(1)), (torch.ones(1),))


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ((torch.zeros(1, 3, 4),), (torch.zeros(1, 2, 4),), r"leaves of \(3, 4\), \(2, 4\) a row"),
        ((Pair(torch.zeros(1, 3, 4), None),), (Pair(torch.zeros(1, 3, 5), None),), r"leaves of \(3, 4\).*\(3, 5\)"),
        ((Cache(torch.zeros(1, 3, 4)),), (Cache(torch.zeros(1, 2, 5)),), r"leaves of \(3, 4\).*\(3, 5\)"),
        ((torch.zeros(1, 3),), (torch.zeros(1, 3),) * 2, "different numbers of parts"),
        ((None,), (torch.zeros(1, 3),), "NoneType, Tensor"),
        ((torch.zeros(1, 3),), ((torch.zeros(1, 3),),), "Tensor, tuple"),
        ((Cache(torch.zeros(1, 3, 4)),), (Pair(torch.zeros(1, 3, 4), None),), "Cache, Pair"),
    ],
)
def test_rows_of_different_models_are_not_joined(one: tuple[Any, ...], other: tuple[Any, ...], reason: str):
    with pytest.raises(S.StateError, match=f"different models cannot be joined: .*{reason}"):
        S.cat([one, other])


def test_only_what_grows_with_the_text_is_padded():
    joined = S.cat([Cache(torch.ones(1, 3, 4)), Cache(torch.ones(2, 0, 4))])
    assert joined.k.shape == (3, 3, 4)
    assert not joined.k[1:].any()


def test_rows_bytes_and_clones():
    assert S.rows(tree(5)) == 5
    assert S.rows((None, ())) is None
    assert S.nbytes(tree(2, 3)) == 2 * 3 * 4 + 2 * 2 * 8
    one = tree()
    other = S.clone(one)
    other[0].a.zero_()
    assert one[0].a.any()


def test_take_and_cat():
    t = tree(4)
    assert torch.equal(S.take(t, [2, 0, 2])[0].a, t[0].a[[2, 0, 2]])
    assert S.rows(S.take(t, torch.tensor([], dtype=torch.long))) == 0
    joined = S.cat([tree(1, 4), tree(2, 4)])
    assert joined[0].a.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert S.rows(joined) == 3
    assert joined[0].b is None


def test_a_leaf_of_one_element_may_have_any_stride(tmp_path):
    one, model = torch.arange(64).view(1, 64)[:, -1], small.model()
    model.init_state = lambda batch: (torch.zeros(1, dtype=torch.long),)
    S.save((one,), tmp_path / "s", model)
    assert S.load(tmp_path / "s", model)[0][0].tolist() == [63]


def test_the_header_says_what_a_file_is(tmp_path):
    model = small.model()
    S.save(model.init_state(3), tmp_path / "s", model, {"a": 1})
    found = S.header(tmp_path / "s")
    assert (found.model, found.note, found.rows) == (S.fingerprint(model), {"a": 1}, 3)
    assert found.nbytes == S.nbytes(model.init_state(3))
    S.rewrite(tmp_path / "s", tmp_path / "t", {"b": 2})
    assert S.load(tmp_path / "t", model)[1] == {"b": 2}
    assert S.header(tmp_path / "t").sha256 != found.sha256
    data = bytearray((tmp_path / "s").read_bytes())
    data[-1] ^= 1
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(S.StateError, match="damaged"):
        S.header(tmp_path / "s")


def test_a_file_that_would_not_load_is_not_written(tmp_path, monkeypatch):
    model, path = small.model(), tmp_path / "s"
    monkeypatch.setattr(S, "LARGEST_HEADER", 4096)
    for write in (
        lambda note: S.save(model.init_state(1), path, model, note),
        lambda note: S.rewrite(path, tmp_path / "t", note),
    ):
        S.save(model.init_state(1), path, model, {"a": 1})
        write({"a": "x" * 100})
        S.save(model.init_state(1), path, model, {"a": 1})
        kept = path.read_bytes()
        with pytest.raises(
            S.StateError, match=r"not written: its note is too long, and a header of [\d,]+ bytes is not read again"
        ):
            write({"a": "x" * 4096})
        assert path.read_bytes() == kept
    assert S.load(tmp_path / "t", model)[1] == {"a": "x" * 100}


def test_a_mark_is_of_the_content(tmp_path):
    model, path = small.model(), tmp_path / "s"
    assert S.mark(path) is None
    path.write_bytes(b"no state")
    assert S.mark(path) == ""
    assert S.save(model.init_state(1), path, model, {"a": 1}) == S.mark(path) == S.header(path).sha256
    S.save(model.init_state(1), tmp_path / "t", model, {"a": 2})
    assert S.mark(tmp_path / "t") != S.mark(path)
    with pytest.raises(KeyError):
        S.save(model.init_state(1), path, model, check=lambda: {}["changed"])
    assert S.header(path).note == {"a": 1} and len(list(tmp_path.iterdir())) == 2, "nothing else is left behind"


def test_the_fingerprint_is_of_the_weights_and_the_configuration():
    model = small.model()
    first = S.fingerprint(model)
    assert S.fingerprint(small.model()) == first
    assert S.fingerprint(model.to(torch.bfloat16)) != first
    other = small.model()
    with torch.no_grad():
        other.embed.weight[3, 3] += 1e-6
    assert S.fingerprint(other) != first
    renamed = small.model()
    renamed.config = {**renamed.config, "norm_eps": 1e-6}
    assert S.fingerprint(renamed) != first


@pytest.mark.parametrize("mixer", sorted(small.MIXERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fresh_state_and_a_read_one_are_kept(mixer, dtype, tmp_path):
    model = small.model(mixer).to(dtype)
    fresh = model.init_state(3)
    with torch.no_grad():
        _, used = model(torch.arange(21).view(3, 7), model.init_state(3))
    for state in (fresh, used):
        S.save(state, tmp_path / "s", model, {"x": "é"})
        again, note = S.load(tmp_path / "s", model)
        assert note == {"x": "é"}
        for (name, a), (other, b) in zip(S.leaves(state), S.leaves(again), strict=True):
            assert name == other
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def forged(model, change) -> dict[str, Tensor]:
    _, state = model(torch.tensor([[1, 2, 3]]), model.init_state(1))
    tensors = {name: leaf.detach().contiguous() for name, leaf in S.leaves(state)}
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("0.k"), "its leaves differ from the model's, first at '0.k'"),
        (lambda t: t.update(odd=torch.zeros(1)), "its leaves differ from the model's, first at 'odd'"),
        (lambda t: t.update({"0.k": torch.zeros(2, 64, 2, 8)}), "its leaves disagree about the number of rows"),
        (lambda t: t.update({"0.k": torch.zeros(1, 64, 2, 4)}), r"'0.k' has shape \(1, 64, 2, 4\)"),
        (lambda t: t.update({"0.k": torch.zeros(())}), "its leaves disagree about the number of rows"),
    ],
)
def test_a_forged_file_with_a_right_checksum_is_refused(change, says, tmp_path):
    model = small.model("attention")
    tensors = forged(model, change)
    meta = {"format": S.FORMAT, "model": S.fingerprint(model), "note": "{}", "sha256": S._checksum(tensors, "{}")}
    save_file(tensors, tmp_path / "s", meta)
    with pytest.raises(S.StateError, match=says):
        S.load(tmp_path / "s", model)
