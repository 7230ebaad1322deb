"""Scores against sums of single predictions, each made from the context that it is said to see."""

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postformer.objectives.likelihood import streamed_nats, windowed_nats

END = 256


def model(mixer: str):
    return small.model(mixer, ascii_only=False).double()


def nats_after(m, context: list[int], target: int) -> float:
    with torch.inference_mode():
        return -float(m(torch.tensor([context]))[0][0, -1].log_softmax(-1)[target])


def brute(m, ids: list[int], window: int) -> tuple[float, list[int]]:
    """Target by target: the first window reads from the start, each later one half a window further on, always `window` tokens."""
    tokens, half = [END, *ids, END], max(1, window // 2)
    ends = [window]
    while ends[-1] < len(tokens) - 1:
        ends.append(ends[-1] + half)
    total, contexts = 0.0, []
    for at in range(1, len(tokens)):
        end = min(next(e for e in ends if at <= e), len(tokens) - 1)
        context = tokens[max(0, end - window) : at]
        contexts.append(len(context))
        total += nats_after(m, context, tokens[at])
    return total, contexts


@pytest.mark.parametrize("mixer", sorted(small.MIXERS))
@settings(max_examples=12)
@given(lengths=st.lists(st.integers(0, 21), min_size=1, max_size=4), window=st.integers(1, 8), batch=st.integers(1, 3))
def test_windowed(mixer, lengths, window, batch):
    m = model(mixer)
    documents = [np.random.default_rng(i).integers(0, 256, n).tolist() for i, n in enumerate(lengths)]
    got = windowed_nats(m, documents, window=window, batch=batch)
    for ids, nats in zip(documents, got, strict=True):
        expected, contexts = brute(m, ids, window)
        assert nats == pytest.approx(expected, rel=1e-5)
        assert all(c >= min(at + 1, max(1, window // 2)) for at, c in enumerate(contexts))
        assert max(contexts) <= window


@pytest.mark.parametrize("mixer", sorted(small.MIXERS))
@given(length=st.integers(0, 40), chunk=st.integers(1, 12))
def test_streamed_is_one_whole_pass(mixer, length, chunk):
    m = model(mixer)
    ids = np.random.default_rng(length).integers(0, 256, length)
    closed = torch.tensor([[END, *ids.tolist(), END]])
    with torch.no_grad():
        whole = torch.nn.functional.cross_entropy(m(closed[:, :-1])[0][0], closed[0, 1:], reduction="sum")
    assert streamed_nats(m, ids, chunk=chunk) == pytest.approx(float(whole), rel=1e-5)


def test_a_wide_window_is_a_stream():
    m, ids = model("mamba"), list(b"the sea and the light")
    assert windowed_nats(m, [ids], window=500)[0] == pytest.approx(streamed_nats(m, ids), rel=1e-5)


def test_documents_do_not_see_each_other():
    m = model("attention")
    documents = [list(small.text(4, seed=i).encode()) for i in range(5)]
    together = windowed_nats(m, documents, window=16, batch=7)
    alone = [windowed_nats(m, [d], window=16)[0] for d in documents]
    assert together == pytest.approx(alone, rel=1e-6)
    assert windowed_nats(m, [], window=16) == []


def test_the_token_before_a_document():
    m, ids = model("mamba"), [1, 2, 3]
    assert streamed_nats(m, ids, start=END) == streamed_nats(m, ids)
    assert streamed_nats(m, ids, start=7) != streamed_nats(m, ids)
    m.tokens = None
    with pytest.raises(ValueError, match="no tokenizer"):
        streamed_nats(m, ids)
    assert windowed_nats(m, [ids], window=9, start=END)[0] == pytest.approx(streamed_nats(m, ids, start=END), rel=1e-6)


def test_a_uniform_model_gives_the_entropy():
    m = model("mamba")
    with torch.no_grad():
        m.head.weight.zero_()
    assert streamed_nats(m, list(b"abc")) == pytest.approx(4 * np.log(257))
    assert windowed_nats(m, [list(b"abc")], window=2) == pytest.approx([4 * np.log(257)])
