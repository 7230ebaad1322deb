"""MAC, MAG and MAL against their equations, written out in float64: explicit softmax, the memory one token after the other."""

import pytest
import torch
import torch.nn.functional as F

from postformer.config import build, complete
from postformer.mixers import MIXERS
from postformer.ops.attention import rotate
from postformer.ops.memory import Gates, Memory, Places, memory_reference

DIM = 8
LMM = {"heads": 2, "chunk": 3, "rate": 0.05, "conv": 3}
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def make(spec):
    torch.manual_seed(0)
    m = build(spec, MIXERS, "here", dim=DIM).double()
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return m


def text(length: int, rows: int = 2):
    return torch.randn(rows, length, DIM, dtype=torch.double, generator=torch.Generator().manual_seed(1)).requires_grad_()


def norm(x, weight, eps: float = 1e-5):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def convolved(lmm, x, begin: int, end: int):
    """SiLU of the convolution of the channels begin ... end - 1 of in(x)."""
    y, w = x @ lmm.inp.weight[begin:end].mT, lmm.conv_weight[begin:end]
    k = w.shape[1]
    y = F.pad(y, (0, 0, k - 1, 0))
    return F.silu(sum(w[:, j] * y[:, j : j + x.shape[1]] for j in range(k)))


def answered(lmm, y, x):
    """out(RMSNorm(y) * SiLU(z)) of y [b, t, h, e]."""
    z = x @ lmm.inp.weight[-lmm.heads * lmm.width :].mT
    return (norm(y, lmm.norm.weight).flatten(2) * F.silu(z)) @ lmm.out.weight.mT


def queries(lmm, x):
    q = convolved(lmm, x, 0, lmm.heads * lmm.width).unflatten(2, (lmm.heads, -1))
    return q / q.norm(dim=-1, keepdim=True)


def learned(lmm, x):
    """Equations 13 to 16 and 19: what the memory answers to each token, and its weights after all; P was read before."""
    inner = lmm.heads * lmm.width
    parts = [x] if lmm.prefix is None else [lmm.prefix.expand(len(x), -1, -1), x]
    k, v = (torch.cat([convolved(lmm, p, i * inner, (i + 1) * inner) for p in parts], 1) for i in (1, 2))
    q, both = torch.cat([queries(lmm, p) for p in parts], 1), torch.cat(parts, 1)
    k, v = (m.unflatten(2, (lmm.heads, -1)) for m in (k, v))
    theta, eta, alpha = (both @ lmm.gates.weight.mT + lmm.gates.bias).sigmoid().chunk(3, -1)
    gates = Gates(lmm.rate * (1 - eta) * theta, (1 - alpha).log(), eta.log())
    W = tuple(w.expand(len(x), *w.shape) for w in lmm.initial)
    start = Memory(W, W, tuple(torch.zeros_like(w) for w in W))
    begins = (torch.arange(both.shape[1]) % lmm.chunk == 0).expand(len(x), -1)
    k = k / k.norm(dim=-1, keepdim=True)
    y, after = memory_reference(lmm.net, lmm.bias, q, k, v, gates, start, start, Places(begins))
    return answered(lmm, y[:, both.shape[1] - x.shape[1] :], x), after.now


def recalled(lmm, x, W, upto: int):
    """Equation 21 for the last tokens of x, from `upto` on: x + LN of two matrices with SiLU between them."""
    q = y = queries(lmm, x)[:, upto:]
    for i, w in enumerate(W):
        y = torch.einsum("bthi,bhoi->btho", F.silu(y) if i else y, w)
    y = q + F.layer_norm(y, y.shape[-1:], eps=lmm.net.damping)
    return answered(lmm, y, x[:, upto:])


def taps(a, name):
    """Of the convolution, for queries, keys or values; one that changes nothing where attention has none."""
    q, kv = a.heads * a.width, a.groups * a.width
    begin, size = {"q": (0, q), "k": (q, kv), "v": (q + kv, kv)}[name]
    return torch.ones(size, 1, dtype=torch.double) if a.conv_weight is None else a.conv_weight[begin : begin + size]


def softmax(a, x, others, window: int = 10**6, all_x=None):
    """Softmax attention of x over P, `others` (at the same positions) and x, pair by pair; x are the last of `all_x` and its answers of
    `others`, which the convolution also sees."""
    all_x = x if all_x is None else all_x
    (b, t, _), now = x.shape, torch.arange(x.shape[1]).expand(len(x), -1)

    def split(m, w):
        return (m @ w.mT).unflatten(-1, (-1, a.width))

    def mixed(name, m):
        """Queries, keys or values of the last t of the tokens m, convolved."""
        y, w = m @ getattr(a, name).weight.mT, taps(a, name)
        y = F.pad(y, (0, 0, w.shape[1] - 1, 0))
        y = sum(w[:, j] * y[:, j : j + m.shape[1]] for j in range(w.shape[1]))
        return y[:, -t:].unflatten(-1, (-1, a.width))

    q = rotate(mixed("q", all_x), now)
    sources = [m for m in (others, all_x) if m is not None]
    k = [rotate(mixed("k", m), now) for m in sources]
    v = [mixed("v", m) for m in sources]
    out = torch.zeros_like(q)
    for i in range(t):
        seen = slice(max(0, i - window + 1), i + 1)
        keys, values = [m[:, seen] for m in k], [m[:, seen] for m in v]
        if a.prefix is not None:
            keys.append(split(a.prefix, a.k.weight).expand(b, -1, -1, -1))
            values.append(split(a.prefix, a.v.weight).expand(b, -1, -1, -1))
        share = (torch.einsum("bhe,bjhe->bhj", q[:, i], torch.cat(keys, 1)) / a.width**0.5).softmax(-1)
        out = torch.cat([out[:, :i], torch.einsum("bhj,bjhe->bhe", share, torch.cat(values, 1))[:, None], out[:, i + 1 :]], 1)
    return out.flatten(2) @ a.out.weight.mT


JOINS = {
    "memory": lambda y, m: y * torch.sigmoid(m),
    "both": lambda y, m: torch.sigmoid(y) * torch.sigmoid(m),
    "product": lambda y, m: torch.sigmoid(y * m),
}


def mac(m, x, gate: str):
    """Segment by segment; the memory reads all answers so far from the beginning."""
    ys = hs = x[:, :0]
    W = tuple(w.expand(len(x), *w.shape) for w in m.memory.initial)
    if m.memory.prefix is not None:
        W = learned(m.memory, ys)[1]
    for i in range(0, x.shape[1], m.segment):
        hs = torch.cat([hs, recalled(m.memory, x[:, : i + m.segment], W, i)], 1)  # 21
        y = softmax(m.attention, x[:, i : i + m.segment], hs, all_x=x[:, : i + m.segment])  # 22, 23
        y = y + x[:, i : i + m.segment] if m.residual else y
        ys = torch.cat([ys, norm(y, m.norm.weight)], 1)
        told, W = learned(m.memory, ys)  # 24
    return JOINS[gate](ys, norm(told, m.memory_norm.weight)) @ m.out.weight.mT  # 25


def mag(m, x, gate: str):
    y, (told, _) = softmax(m.attention, x, None, m.attention.window), learned(m.memory, x)
    return JOINS[gate](norm(y, m.norm.weight), norm(told, m.memory_norm.weight)) @ m.out.weight.mT


def mal(m, x, gate: str):
    return softmax(m.attention, norm(learned(m.memory, x)[0], m.norm.weight), None, m.attention.window)


CASES = {
    "mac": (mac, {"kind": "mac", "memory": LMM, "attention": {"heads": 2}, "segment": 5}),
    "mac-residual": (mac, {"kind": "mac", "memory": LMM, "attention": {"heads": 2}, "segment": 5, "residual": True}),
    "mac-one": (mac, {"kind": "mac", "memory": LMM, "attention": {"heads": 2}, "segment": 1, "gate": "product"}),
    "mac-p": (
        mac,
        {
            "kind": "mac",
            "memory": LMM | {"persistent": 2},
            "attention": {"heads": 2},
            "segment": 6,
            "persistent": 3,
            "gate": "both",
        },
    ),
    "mac-conv": (mac, {"kind": "mac", "memory": LMM, "attention": {"heads": 2, "conv": 3}, "segment": 5, "persistent": 2}),
    "mag-conv": (mag, {"kind": "mag", "memory": LMM, "attention": {"heads": 2, "window": 4, "conv": 4}, "persistent": 2}),
    "mag": (mag, {"kind": "mag", "memory": LMM, "attention": {"heads": 2, "window": 4}, "gate": "both"}),
    "mag-p": (mag, {"kind": "mag", "memory": LMM, "attention": {"heads": 2, "window": 4}, "persistent": 2}),
    "mal": (mal, {"kind": "mal", "memory": LMM, "attention": {"heads": 2, "window": 4}}),
    "mal-p": (mal, {"kind": "mal", "memory": LMM, "attention": {"heads": 2, "window": 4}, "persistent": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mixer_is_its_equations(case):
    """Outputs and the gradients of the tokens and of all parameters."""
    equations, spec = CASES[case]
    m, x = make(spec), text(13)
    leaves = [x, *m.parameters()]
    got, wanted = m(x)[0], equations(m, x, spec.get("gate", "memory"))
    torch.testing.assert_close(got, wanted, **EXACT)
    weight = torch.linspace(-1, 1, got.numel(), dtype=torch.double).view_as(got)
    for name, a, b in zip(
        ["x", *(name for name, _ in m.named_parameters())],
        torch.autograd.grad((got * weight).sum(), leaves),
        torch.autograd.grad((wanted * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **EXACT, msg=lambda says, name=name: f"{name}: {says}")


@pytest.mark.parametrize("kind", ["mac", "mag", "mal"])
@pytest.mark.parametrize("token", ["same", "loud"])
def test_at_first_a_memory_of_repeated_tokens_stays_small(kind, token):
    torch.manual_seed(0)
    m = build({"kind": kind}, MIXERS, "here", dim=64)
    x = torch.randn(1, 1, 64).expand(1, 1024, 64) * (4 if token == "loud" else 1)
    with torch.no_grad():
        _, state = m(x, m.init_state(1))
    assert max(float(w.abs().max()) for w in state.memory.now) < 10


def test_a_part_without_a_kind_changes_the_default():
    full = complete({"kind": "mag", "memory": {"chunk": 32}, "attention": {"kind": "attention"}}, MIXERS, "here", "dim")
    assert full["memory"]["kind"] == "lmm"
    assert (full["memory"]["chunk"], full["memory"]["heads"]) == (32, 4)
    assert full["attention"]["window"] is None
    assert complete(full, MIXERS, "here", "dim") == full
    assert build({"kind": "mal"}, MIXERS, "here", dim=8).attention.window == 128


def test_persistent_tokens_are_those_of_both_parts():
    m = build({"kind": "mag", "persistent": 3}, MIXERS, "here", dim=8)
    assert m.memory.prefix.shape == m.attention.prefix.shape == (3, 8)


def test_any_two_mixers_may_be_joined():
    for kind in ("mag", "mal"):
        m = build({"kind": kind, "memory": {"kind": "gated_delta"}, "attention": {"kind": "mamba"}}, MIXERS, "here", dim=16)
        y, state = m(torch.randn(2, 5, 16), m.init_state(2))
        assert y.shape == (2, 5, 16)
        assert type(state.memory).__name__ == "DeltaState"
