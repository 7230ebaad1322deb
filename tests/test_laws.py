"""The seven laws of state, each over every mixer in the table, in float64."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer import state as S
from postformer.config import build
from postformer.mixers import MIXERS
from postformer.models.language import LanguageModel
from postformer.ops.packing import Packing

CASES = {
    "attention": {"kind": "attention", "heads": 2},
    "attention-grouped-qknorm": {"kind": "attention", "heads": 4, "kv_heads": 2, "qk_norm": True},
    "attention-whole-norm-bias": {
        "kind": "attention",
        "heads": 4,
        "kv_heads": 2,
        "qk_norm": "whole",
        "bias": True,
        "persistent": 2,
    },
    "attention-persistent": {"kind": "attention", "heads": 2, "persistent": 3},
    "attention-conv": {"kind": "attention", "heads": 4, "kv_heads": 2, "conv": 3, "persistent": 2},
    "attention-window-conv": {"kind": "attention", "heads": 2, "window": 4, "conv": 4, "qk_norm": True},
    "attention-window": {"kind": "attention", "heads": 4, "kv_heads": 2, "window": 5},
    "attention-window-1": {"kind": "attention", "heads": 2, "window": 1},
    "attention-window-persistent": {"kind": "attention", "heads": 2, "window": 4, "persistent": 2, "qk_norm": True},
    "mamba": {"kind": "mamba"},
    "mamba-small": {"kind": "mamba", "state": 3, "conv": 2, "rank": 2, "expand": 1},
    "mamba2": {"kind": "mamba2", "state": 6, "head_dim": 8},
    "mamba2-groups": {"kind": "mamba2", "state": 3, "head_dim": 4, "groups": 2, "conv": 1, "expand": 1},
    "mamba3": {"kind": "mamba3", "state": 8, "head_dim": 8},
    "mamba3-mimo": {"kind": "mamba3", "state": 6, "head_dim": 4, "groups": 2, "rank": 3, "expand": 1},
    "mamba3-real": {"kind": "mamba3", "state": 5, "head_dim": 16, "rotated": 0.0, "decay": "heavy"},
    "gated-delta": {"kind": "gated_delta", "heads": 2},
    "gated-delta-small": {"kind": "gated_delta", "heads": 1, "head_dim": 3, "value_expand": 1, "conv": 2, "negative": False},
    "mamba2-threshold": {"kind": "mamba2", "state": 3, "head_dim": 8, "threshold": 0.05, "gates": "conv"},
    "gated-delta-threshold": {"kind": "gated_delta", "heads": 2, "threshold": 0.5, "gates": "conv"},
    "mingru": {"kind": "mingru", "expand": 2},
    "lmm": {"kind": "lmm", "heads": 2, "chunk": 4},
    "lmm-matrix": {"kind": "lmm", "heads": 2, "depth": 1, "chunk": 3, "momentum": False, "forgetting": False, "conv": 1},
    "lmm-persistent": {"kind": "lmm", "heads": 1, "depth": 3, "expand": 1, "chunk": 5, "persistent": 3, "bias": "huber"},
    "lmm-initial": {"kind": "lmm", "heads": 2, "chunk": 4, "retention": "initial", "persistent": 3},
    "lmm-moneta": {"kind": "lmm", "heads": 1, "head_dim": 4, "preset": "moneta", "chunk": 3},
    "lmm-memora": {"kind": "lmm", "heads": 1, "head_dim": 4, "preset": "memora", "chunk": 3},
    "lmm-lact": {"kind": "lmm", "heads": 1, "head_dim": 4, "preset": "lact", "chunk": 3, "conv": 2},
    "lmm-atlas": {"kind": "lmm", "heads": 1, "head_dim": 4, "preset": "atlas", "chunk": 4, "window": 3},
    "lmm-swiglu": {"kind": "lmm", "heads": 2, "network": "swiglu", "chunk": 2, "bias": "lp"},
    "lmm-threshold": {"kind": "lmm", "heads": 2, "chunk": 4, "threshold": 0.5, "gates": "conv"},
    "mac": {"kind": "mac", "memory": {"heads": 1, "chunk": 4, "rate": 0.02}, "attention": {"heads": 2}, "segment": 8},
    "mac-conv": {"kind": "mac", "memory": {"heads": 1, "chunk": 4}, "attention": {"heads": 2, "conv": 4}, "segment": 6},
    "mac-persistent": {
        "kind": "mac",
        "memory": {"heads": 2, "depth": 1, "chunk": 5, "rate": 0.03, "conv": 2, "persistent": 2},
        "attention": {"heads": 4, "kv_heads": 2, "qk_norm": True},
        "segment": 7,
        "persistent": 3,
        "gate": "both",
    },
    "mag": {
        "kind": "mag",
        "memory": {"heads": 1, "depth": 1, "chunk": 4},
        "attention": {"heads": 2, "window": 5},
        "persistent": 2,
    },
    "mag-growing": {"kind": "mag", "memory": {"kind": "gated_delta", "heads": 1}, "attention": {"kind": "attention"}},
    "mal": {"kind": "mal", "memory": {"heads": 1, "depth": 1, "chunk": 4}, "attention": {"heads": 2, "window": 5}},
}
GROWING = [
    "attention",
    "attention-conv",
    "attention-grouped-qknorm",
    "attention-whole-norm-bias",
    "attention-persistent",
    "mag-growing",
]
RECURRENT = [c for c in CASES if c not in GROWING]
DIM = 16
EXACT = {"rtol": 0.0, "atol": 1e-10}

pieces = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def test_every_mixer_has_a_case():
    assert {c["kind"] for c in CASES.values()} == set(MIXERS)


def mixer(case: str):
    torch.manual_seed(0)
    return build(CASES[case], MIXERS, case, dim=DIM).double()


def tokens(rows: int, length: int, seed: int = 1):
    return torch.randn(rows, length, DIM, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    for (name, x), (other, y) in zip(S.leaves(a), S.leaves(b), strict=True):
        assert name == other
        torch.testing.assert_close(x, y, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


def run(m, x, state, cuts):
    ys = []
    for piece in x.split(cuts, 1):
        y, state = m(piece, state)
        ys.append(y)
    return torch.cat(ys, 1), state


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "grad"])
@pytest.mark.parametrize("case", CASES)
@given(cuts=pieces)
def test_law_1_any_split_gives_the_same(case, grad, cuts):
    m, x = mixer(case), tokens(2, sum(cuts))
    with torch.set_grad_enabled(grad):
        whole, nothing = m(x)
        at_once, end = m(x, m.init_state(2))
        y, state = run(m, x, m.init_state(2), cuts)
    assert nothing is None  # law 2
    torch.testing.assert_close(at_once, whole, **EXACT)
    torch.testing.assert_close(y, whole, **EXACT)
    same(state, end)


@pytest.mark.parametrize("case", CASES)
@given(cuts=st.lists(st.integers(1, 5), min_size=2, max_size=3))
def test_law_1_gradients_through_a_state(case, cuts):
    m, x = mixer(case), tokens(1, sum(cuts)).requires_grad_()
    weight = tokens(1, sum(cuts), seed=2)
    (whole,) = torch.autograd.grad((m(x)[0] * weight).sum(), x)
    (split,) = torch.autograd.grad((run(m, x, m.init_state(1), cuts)[0] * weight).sum(), x)
    torch.testing.assert_close(split, whole, **EXACT)


@pytest.mark.parametrize("case", CASES)
@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=4), cuts=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_law_3_rows_join_and_leave(case, lengths, cuts):
    """Rows that have read different lengths go on together, one leaves, and each is as if it were alone."""
    m, more = mixer(case), sum(cuts)
    texts = [tokens(1, n + 2 * more, seed=i) for i, n in enumerate(lengths)]
    alone = [m(x)[0] for x in texts]
    with torch.no_grad():
        state = S.cat([m(x[:, :n], m.init_state(1))[1] for x, n in zip(texts, lengths, strict=True)])
        step = torch.cat([x[:, n : n + more] for x, n in zip(texts, lengths, strict=True)])
        y, state = run(m, step, state, cuts)
        for i, n in enumerate(lengths):
            torch.testing.assert_close(y[i], alone[i][0, n : n + more], **EXACT)
        stay = [i for i in reversed(range(len(lengths))) if i != 0]
        step = torch.cat([texts[i][:, lengths[i] + more :] for i in stay])
        y, _ = run(m, step, S.take(state, stay), cuts)
    for row, i in enumerate(stay):
        torch.testing.assert_close(y[row], alone[i][0, lengths[i] + more :], **EXACT)


@pytest.mark.parametrize("case", CASES)
@given(first=st.integers(1, 5), second=st.integers(1, 5), cuts=st.lists(st.integers(1, 3), min_size=1, max_size=8))
def test_laws_1_and_3_in_fp32_where_kernels_serve(case, first, second, cuts):
    """Two batches read one after the other are joined, to fewer rows than the one-token kernel takes or more, and read on."""
    exact, m, length = mixer(case), mixer(case).float(), sum(cuts)
    x = tokens(first + second, length + 7)
    truth, _ = exact(x)
    with torch.no_grad():
        starts = [m(rows[:, :7].float(), m.init_state(len(rows)))[1] for rows in x.split([first, second])]
        y, _ = run(m, x[:, 7:].float(), S.cat(starts), cuts)
    steep = 10 if case.startswith("lmm-") else 1  # layer norms of small numbers
    torch.testing.assert_close(y.double(), truth[:, 7:], rtol=1e-4 * steep, atol=1e-5 * steep)


@pytest.mark.parametrize("case", CASES)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    before=st.integers(0, 6),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_packed_documents_are_as_if_alone(case, lengths, before, cuts):
    """A row that goes on with a state and then holds several documents, read in pieces: outputs, and the last one's state."""
    m, total = mixer(case), sum(lengths)
    x = tokens(1, total, seed=2)
    starts = torch.zeros(1, total, dtype=torch.bool)
    firsts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    starts[0, firsts[1:-1]] = True
    cuts = [c for c in cuts if c < total] or [total]
    cuts = cuts[:1] + ([total - cuts[0]] if total > cuts[0] else [])
    with torch.no_grad():
        first = m(tokens(1, before), m.init_state(1))[1] if before else m.init_state(1)
        state, ys = S.clone(first), []
        for piece, begun in zip(x.split(cuts, 1), starts.split(cuts, 1), strict=True):
            y, state = m(piece, state, Packing(starts=begun))
            ys.append(y)
        y = torch.cat(ys, 1)
        for i, (a, b) in enumerate(itertools.pairwise(firsts)):
            alone, after = m(x[:, a:b], S.clone(first) if i == 0 else m.init_state(1))
            torch.testing.assert_close(y[:, a:b], alone, **EXACT)
    used = dict(S.leaves(after))
    for name, leaf in S.leaves(state):
        leaf = leaf if leaf.shape == used[name].shape else leaf[:, :, : used[name].shape[2]]
        torch.testing.assert_close(leaf, used[name], **EXACT)


@pytest.mark.parametrize("case", CASES)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=2, max_size=3).filter(any),
    before=st.integers(0, 6),
    more=st.integers(1, 3),
    packed=st.booleans(),
)
def test_padded_rows_are_as_if_alone(case, lengths, before, more, packed):
    """Rows of different lengths beside each other, some of them empty, then decoded on together."""
    m, rows, t = mixer(case), len(lengths), max(lengths)
    first, x, later = (tokens(rows, n, seed=i) for i, n in enumerate((before, t + 1, more)))
    packing = Packing(torch.zeros(rows, t + 1, dtype=torch.bool) if packed else None, torch.tensor(lengths))
    with torch.no_grad():
        start = m(first, m.init_state(rows))[1] if before else m.init_state(rows)
        y, state = m(x, S.clone(start), packing)
        assert bool(y.isfinite().all())
        z, _ = m(later, state)
        for row, n in enumerate(lengths):
            own = S.take(start, [row])
            if n:
                alone, own = m(x[row : row + 1, :n], own)
                torch.testing.assert_close(y[row, :n], alone[0], **EXACT)
            torch.testing.assert_close(z[row], m(later[row : row + 1], own)[0][0], **EXACT)


@pytest.mark.parametrize("case", CASES)
def test_law_4_all_zeros_is_fresh(case):
    m, x = mixer(case), tokens(2, 7)
    _, used = m(tokens(2, 11, seed=3), m.init_state(2))
    y, _ = m(x, S.map_leaves(torch.zeros_like, used))
    torch.testing.assert_close(y, m(x)[0], **EXACT)
    assert all(not leaf.any() for _, leaf in S.leaves(m.init_state(3)))


@pytest.mark.parametrize("case", CASES)
def test_law_5_a_clone_is_kept(case):
    m, x = mixer(case), tokens(2, 9)
    with torch.no_grad():
        _, state = m(x[:, :4], m.init_state(2))
        kept = S.clone(state)
        first, _ = m(x[:, 4:], state)
        again, _ = m(x[:, 4:], kept)
    assert torch.equal(first, again)


@pytest.mark.parametrize("case", RECURRENT)
@given(length=st.integers(1, 40))
def test_law_7_a_recurrent_state_has_a_fixed_size(case, length):
    m = mixer(case)
    with torch.no_grad():
        _, state = m(tokens(1, length), m.init_state(1))
    assert S.nbytes(state) == S.nbytes(m.init_state(1)) == m.state_bytes(length, 8)


@pytest.mark.parametrize("case", RECURRENT)
def test_law_7_in_bf16_and_what_a_state_keeps_alive(case):
    """A state is no view of the text that it read: its memory, too, has a fixed size."""
    m, fresh = mixer(case).bfloat16(), []
    for length in (0, 1, 2, 400):
        with torch.no_grad():
            _, state = m(tokens(1, length).bfloat16(), m.init_state(1))
        assert S.nbytes(state) == m.state_bytes(length, 2)
        fresh.append(sum(leaf.untyped_storage().nbytes() for _, leaf in S.leaves(state)))
    assert fresh[-1] <= 3 * fresh[0]


@pytest.mark.parametrize("case", CASES)
@given(cuts=pieces)
def test_state_bytes_formula(case, cuts):
    m = mixer(case)
    with torch.no_grad():
        _, state = run(m, tokens(1, sum(cuts)), m.init_state(1), cuts)
    assert S.nbytes(state) == m.state_bytes(sum(cuts), 8)


def language_model(case: str, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(31, dim=DIM, depth=2, mixers=(CASES[case],)).double()


@pytest.mark.parametrize("case", CASES)
def test_law_6_a_state_is_a_file_of_one_model(case, tmp_path):
    model = language_model(case)
    ids = torch.randint(31, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, state = model(ids[:, :13], model.init_state(2))
        S.save(state, tmp_path / "s", model, note={"day": 1})
        expected, _ = model(ids[:, 13:], state)
        loaded, note = S.load(tmp_path / "s", model)
        y, _ = model(ids[:, 13:], loaded)
    torch.testing.assert_close(y, expected, **EXACT)
    assert note == {"day": 1}
    with pytest.raises(S.StateError, match="belongs to another model"):
        S.load(tmp_path / "s", language_model(case, seed=1))


def test_a_damaged_state_is_refused(tmp_path):
    model, path = language_model("mamba"), tmp_path / "s"
    _, state = model(torch.tensor([[1, 2, 3]]), model.init_state(1))
    S.save(state, path, model)
    good = path.read_bytes()
    for at in range(0, len(good), max(1, len(good) // 200)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        with pytest.raises(S.StateError):
            S.load(path, model)
    for size in [0, 1, 7, 8, 9, len(good) // 2, len(good) - 1]:
        path.write_bytes(good[:size])
        with pytest.raises(S.StateError):
            S.load(path, model)
    with pytest.raises(S.StateError, match="No such file"):
        S.load(tmp_path / "none", model)
