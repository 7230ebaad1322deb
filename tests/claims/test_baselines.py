"""The table of counts against a slow one, and the compressor's kinds."""

import builtins
import collections
import math

import numpy as np
import pytest
import small

from postformer.claims.baselines import ByteNgrams, zstd_bits
from postformer.config import UserError

TRAIN = [b"the sea and the day", b"the old light", b"", b"a sea of light, a day of sea", b"\xff\x00 odd bytes"]


def slow(train: list[bytes], order: int, document: bytes) -> list[float]:
    """Interpolated Kneser-Ney from dictionaries: probabilities of each byte of a document, zeros before it."""
    grams = collections.Counter()
    for text in train:
        padded = bytes(order - 1) + text
        grams.update(padded[i : i + order] for i in range(len(text)))
    levels = {order: grams}
    for n in range(order - 1, 0, -1):
        levels[n] = collections.Counter(g[1:] for g in levels[n + 1])
    out = []
    padded = bytes(order - 1) + document
    for at in range(order - 1, len(padded)):
        p = 1 / 256
        for n in range(1, order + 1):
            counts = levels[n]
            once, twice = (sum(c == k for c in counts.values()) for k in (1, 2))
            discount = once / (once + 2 * twice) if once else 0.5
            context = padded[at - n + 1 : at]
            follow = {g[-1]: c for g, c in counts.items() if g[:-1] == context}
            if follow:
                total = sum(follow.values())
                p = (max(follow.get(padded[at], 0) - discount, 0) + discount * len(follow) * p) / total
        out.append(p)
    return out


@pytest.mark.parametrize("order", range(1, 6))
def test_equals_a_slow_one(order):
    model = ByteNgrams(TRAIN, order)
    for document in (b"the sea", b"a light day", b"zzz", b"", b"\xff\x00\xff", TRAIN[0]):
        expected = -sum(math.log2(p) for p in slow(TRAIN, order, document))
        assert model.bits(document) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("order", range(1, 6))
@pytest.mark.parametrize("context", [b"", b"the s", b"ay of", b"\xff\x00 od", b"never seen", bytes(4)], ids=str)
def test_probabilities_sum_to_one(order, context):
    model = ByteNgrams(TRAIN, order)
    before = model.bits(context)
    probabilities = [2 ** (before - model.bits(context + bytes([b]))) for b in range(256)]
    assert sum(probabilities) == pytest.approx(1, rel=1e-9)
    assert min(probabilities) > 0


def test_more_text_of_the_kind_needs_fewer_bits():
    held, texts = small.text(40, seed=99).encode(), [small.text(10, seed=i).encode() for i in range(64)]
    bits = [ByteNgrams(texts[:n]).bits(held) / len(held) for n in (1, 4, 16, 64)]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] < 0.75 * bits[0]
    assert bits[-1] < ByteNgrams(texts, 2).bits(held) / len(held)


def test_random_bytes_need_eight_bits():
    random = np.random.default_rng(0).bytes
    assert ByteNgrams([random(50_000)], 1).bits(random(20_000)) / 20_000 == pytest.approx(8, abs=0.02)


def test_orders_that_do_not_fit_are_refused():
    for order in (0, 8):
        with pytest.raises(ValueError, match=r"must lie in 1 \.\.\. 7"):
            ByteNgrams(TRAIN, order)
    assert ByteNgrams(TRAIN, 7).bits(b"the sea") > 0


def test_zstd_with_each_kind_of_dictionary():
    pytest.importorskip("zstandard", reason="the extra 'report' is not installed")
    train = [small.text(20, seed=i).encode() for i in range(300)]
    documents = [small.text(8, seed=1000 + i).encode() for i in range(5)]
    bits = zstd_bits(train, documents)
    assert set(bits) == {"none", "text", "trained"}
    assert all(len(v) == 5 and all(isinstance(b, int) and b % 8 == 0 for b in v) for v in bits.values())
    none, text, trained = (sum(bits[k]) for k in ("none", "text", "trained"))
    assert max(text, trained) < none < 8 * sum(map(len, documents))
    assert zstd_bits(train, documents, sample_bytes=50_000)["none"] == bits["none"]


def test_zstd_without_enough_text_for_a_dictionary():
    pytest.importorskip("zstandard", reason="the extra 'report' is not installed")
    assert set(zstd_bits([], [b"abc"])) == {"none", "trained"}
    bits = zstd_bits([b"abc"], [b"abc" * 50])
    assert bits["trained"] == bits["none"]


def test_zstd_that_is_not_installed(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "zstandard":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"postformer\[report\]"):
        zstd_bits([], [])
