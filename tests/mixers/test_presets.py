"""Each preset of the memory against its paper's equations, written out here token by token: the answers, the weights afterwards and the
gradients of the initial weights, in float64. Keys, queries, values and gates are the mixer's own."""

import pytest
import torch
import torch.nn.functional as F

from postformer.config import ConfigError, build
from postformer.mixers import MIXERS, titans
from postformer.ops.family import PRESETS, learner
from postformer.ops.memory import Memory
from postformer.state import leaves, nbytes

DIM, T = 6, 10
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def layer_norm(z, damping=1e-5):
    return (z - z.mean()) / (z.var(correction=0) + damping).sqrt()


def gelu(z):
    return z * 0.5 * (1 + torch.erf(z / 2**0.5))


def muon(S):
    """Jordan et al. 2024: five steps of X = a X + (b A + c A A) X with A = X X^T."""
    tall = S.shape[0] > S.shape[1]
    X = (S.T if tall else S) / (S.norm() + 1e-7)
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.T if tall else X


NETS = {
    "titans": lambda W, x: x + layer_norm(W[1] @ F.silu(W[0] @ x), 1.0),
    "titans, as printed": lambda W, x: W[1] @ F.silu(W[0] @ x),
    "titans-linear": lambda W, x: W[0] @ x,
    "ttt-linear": lambda W, x: x + layer_norm(W[0] @ x),
    "ttt-mlp": lambda W, x: x + layer_norm(W[1] @ gelu(W[0] @ x)),
    "lact": lambda W, x: W[2] @ (F.silu(W[0] @ x) * (W[1] @ x)),
    "atlas": lambda W, x: x + layer_norm(W[1] @ F.silu(W[0] @ x), 1.0),
}
for name in ("moneta", "memora"):
    NETS[name] = NETS["ttt-mlp"]
NETS["yaad"] = lambda W, x: x + layer_norm(W[1] @ gelu(W[0] @ x), 1.0)


def huber(e, limit):
    size = e.norm()
    return size**2 / 2 if size <= limit else limit * (size - limit / 2)


def gradients(net, W, k, v, loss=None, slope=None):
    """Of |M(k) - v|^2 by each matrix of W, or of another loss, or of that whose gradient by M(k) is `slope`."""
    y = net(W, k)
    if slope is not None:
        return torch.autograd.grad(y, W, slope(y - v), create_graph=True)
    return torch.autograd.grad((y - v).square().sum() if loss is None else loss(y, v), W, create_graph=True)


def smooth(e):
    """The gradient of |e|_3^3 as in MIRAS, equations 10 and 11, remark 5."""
    return 3 * torch.tanh(10 * e) * (e.square() + 1e-6)


def weights(preset, A):
    if preset == "moneta":  # equation 24 with q = 4
        return [a / a.abs().pow(4).sum().pow(0.25) ** 2 for a in A]
    if preset == "memora":  # equation 27
        return [F.softmax(a, -1) for a in A]
    return A


def loop(preset, q, k, v, gates, W0, size):
    """One head's text, [t, d] each; gates by name, [t]. Returns the answers and the weights after it."""
    net, A, S = NETS[preset], list(W0), [torch.zeros_like(w) for w in W0]
    start, out, chunk = weights(preset, A), [], []
    for t in range(len(q)):
        if t % size == 0:
            if preset == "lact" and chunk:
                for i in chunk:
                    u = gradients(net, A, k[i], v[i], lambda y, v: -(y * v).sum())
                    S = [s - gates["theta"][i] * g for s, g in zip(S, u, strict=True)]
                new = [a + muon(s) for a, s in zip(A, S, strict=True)]
                pairs = zip(new, W0, strict=True)
                A = [w * w0.norm(dim=-1, keepdim=True) / (w.norm(dim=-1, keepdim=True) + 1e-5) for w, w0 in pairs]
                S, chunk = [torch.zeros_like(w) for w in W0], []
            start = weights(preset, A)
        chunk.append(t)
        if preset == "lact":
            out.append(net(A, q[t]))
            continue
        theta, keep = gates["theta"][t], 1 - gates["alpha"][t] if "alpha" in gates else 1
        if preset == "atlas":
            parts = [(gates["share"][i], gradients(net, start, k[i], v[i])) for i in range(max(0, t - 2), t + 1)]
            u = [sum(share * g[j] for share, g in parts) for j in range(len(A))]
        elif preset == "yaad":
            u = gradients(net, start, k[t], v[t], lambda y, v, t=t: huber(y - v, gates["limit"][t]))
        else:
            u = gradients(net, start, k[t], v[t], slope=smooth if preset == "moneta" else None)
        if "eta" in gates:
            S = [gates["eta"][t] * s - theta * g for s, g in zip(S, u, strict=True)]
            steps = [gates["step"][t] * muon(s) for s in S] if preset == "atlas" else S
        else:
            steps = [-theta * g for g in u]
        A = [keep * a + s for a, s in zip(A, steps, strict=True)]
        out.append(net(weights(preset, A), q[t]))
    return torch.stack(out), A


def captured(mixer, x, monkeypatch):
    """What the mixer gave to its memory, and what came back."""
    seen = {}
    real = titans.memory

    def spy(*arguments):
        seen["in"], seen["out"] = arguments, real(*arguments)
        return seen["out"]

    monkeypatch.setattr(titans, "memory", spy)
    mixer(x)
    return seen["in"], seen["out"]


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("preset", [*PRESETS, "titans, as printed"])
def test_a_preset_is_its_papers_equations(preset, chunk, monkeypatch):
    """With what docs/titans.md adds to them: the norm, its damping."""
    torch.manual_seed(0)
    words = {"window": 3} if preset == "atlas" else {}
    words |= {} if preset in ("titans-linear", "ttt-linear") else {"expand": 2}
    if preset.endswith("as printed"):
        words["residual"] = False
    mixer = build(
        {"kind": "lmm", "preset": preset.partition(",")[0], "heads": 1, "chunk": chunk, **words},
        MIXERS,
        "",
        dim=DIM,
    ).double()
    with torch.no_grad():
        mixer.gates.weight.mul_(20)
    (_, _, q, k, v, gates, *_), (y, after) = captured(mixer, 2 * torch.randn(1, T, DIM, dtype=torch.double), monkeypatch)
    assert isinstance(after, Memory)
    named = {"theta": gates.rate, "alpha": 1 - gates.keep.exp(), "limit": gates.limit, "step": gates.step, "share": gates.share}
    named["eta"] = None if gates.carry is None else gates.carry.exp()
    if not mixer.forgetting:
        del named["alpha"]
    one = {name: g[0, :, 0].detach() for name, g in named.items() if g is not None}
    W0 = [w.detach()[0].clone().requires_grad_() for w in mixer.initial]
    wanted, A = loop(preset, *(m[0, :, 0].detach() for m in (q, k, v)), one, W0, chunk)
    torch.testing.assert_close(y[0, :, 0], wanted, **EXACT)
    if preset != "lact":  # which writes at the next chunk's beginning
        for got, a in zip(after.now, A, strict=True):
            torch.testing.assert_close(got[0, 0], a, **EXACT)
    dy = torch.linspace(-1, 1, wanted.numel(), dtype=torch.double).view_as(wanted)
    got = torch.autograd.grad((y[0, :, 0] * dy).sum(), list(mixer.initial))
    for a, b in zip(got, torch.autograd.grad((wanted * dy).sum(), W0), strict=True):
        torch.testing.assert_close(a[0], b, **EXACT)


def test_what_is_given_changes_a_preset():
    m = build({"kind": "lmm", "preset": "yaad", "bias": "lp", "p": 4.0, "expand": 1, "heads": 2}, MIXERS, "", dim=8)
    assert (m.bias.p, m.net.shapes, m.momentum, m.net.residual) == (4.0, ((4, 4), (4, 4)), False, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"preset": "titan"}, "titans, titans-linear, ttt-linear, ttt-mlp, moneta, yaad, memora, lact, atlas"),
        ({"preset": "lact", "momentum": True}, "write='chunks' has no windows, no momentum"),
        ({"write": "chunks", "momentum": False}, "set forgetting=false"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"bias": "lp", "p": 0.5}, "p=0.5 must be at least 1"),
        ({"retention": "lq", "q": 1.0}, "q=1.0 must be at least 2"),
        ({"bias": "huber", "window": 4}, "bias='huber' has a limit for each token; its window must be 1"),
        ({"preset": "atlas", "bias": "huber"}, "its window must be 1"),
        ({"p": 3.0}, "p=3.0 has no effect beside network=mlp, depth=2, residual=True, bias=l2, retention=decay"),
        ({"q": 3.0}, "q=3.0 has no effect beside"),
        ({"network": "swiglu", "depth": 3}, "depth=3 has no effect beside network=swiglu, residual=True, bias"),
        ({"network": "swiglu", "activation": "gelu"}, "activation=gelu has no effect beside network=swiglu"),
        ({"depth": 1, "expand": 2}, "expand=2 has no effect beside network=mlp, depth=1"),
        ({"forgetting": False, "retention": "initial"}, "retention=initial has no effect beside"),
        ({"depth": 1, "damping": 1.0}, "damping=1.0 has no effect beside network=mlp, depth=1, residual=False"),
    ],
    ids=str,
)
def test_what_is_refused(words, says):
    with pytest.raises(ConfigError) as e:
        build({"kind": "lmm", **words}, MIXERS, "here", dim=8)
    assert says in str(e.value)


@pytest.mark.parametrize(
    "word", [("preset", "titan"), ("network", "mpl"), ("step", "moun"), ("write", "token"), ("retention", "l2"), ("bias", "l1")]
)
def test_words_that_are_no_choice_are_refused_without_build_too(word):
    given = dict.fromkeys(["network", "depth", "residual", "damping", "activation", "expand", "bias", "p", "retention", "q"])
    words = {"preset": "titans", **given, "forgetting": None, **dict([word])}
    with pytest.raises(ValueError, match=f"{word[0]}='{word[1]}' is not a choice; choose from "):
        learner(8, words.pop("preset"), words)


def test_a_million_tokens_leave_a_state_as_large_as_a_thousand():
    torch.manual_seed(0)
    m = build({"kind": "lmm", "heads": 1, "chunk": 64}, MIXERS, "", dim=8)
    sizes, state = [], m.init_state(1)
    with torch.inference_mode():
        for read in (1 << 10, *[1 << 16] * 16):
            y, state = m(torch.randn(1, read, 8), state)
            sizes.append((nbytes(state), sum(leaf.untyped_storage().nbytes() for _, leaf in leaves(state))))
    assert int(state.seen) == (1 << 20) + (1 << 10)
    assert bool(y.isfinite().all()) and len(set(sizes)) == 1


@pytest.mark.parametrize("muon", [False, True], ids=["gradient", "muon"])
def test_a_memory_that_is_not_written_returns_to_its_first_weights(muon):
    words = {"kind": "lmm", "retention": "initial", "heads": 2, "persistent": 3, **({"step": "muon"} if muon else {})}
    m = build(words, MIXERS, "", dim=8).double()
    with torch.no_grad():
        m.gates.weight.zero_()
        m.gates.bias.copy_(torch.tensor([-60.0, -60.0, 60.0] + [-60.0] * muon).repeat_interleave(2))
        _, state = m(torch.randn(1, 9, 8, dtype=torch.double), m.init_state(1))
    for w, first in zip(state.now, m.initial, strict=True):
        torch.testing.assert_close(w[0], first)
