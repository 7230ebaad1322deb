"""The memory in weights by torch: the exact dual form, a chunk of tokens at a time (formulas: postformer/ops/memory.py).

n = b h rows and heads, t time, d width of keys and values, c tokens of a piece, o outputs and i inputs of a matrix.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from postformer.ops.fast_weights import Bias, Map, Net, Outer, maps
from postformer.ops.rules import LINEAR, Gates, Mix, Rule, between

Weights = tuple[Tensor, ...]
"""Of each matrix, [b, h, o, i]."""
MOST_PIECES = 64
"""Of one run: what its gates make of pairs of tokens is computed at once."""


class Memory(NamedTuple):
    """What a memory is between two tokens: of one size, whatever was read."""

    start: Weights
    """The weights with which the chunk began."""
    now: Weights
    surprise: Weights
    """S; empty where the rule needs none."""
    recent: tuple[Tensor, ...] = ()
    """With a window: keys and values [b, h, window - 1, d] of the tokens before, and their shares [b, h, window - 1, 1], 0 where there
    was none."""


class Places(NamedTuple):
    """Where chunks begin, where documents do, and what is real; every row's tokens are real where None."""

    begins: Bool[Tensor, "b t"]
    starts: Bool[Tensor, "b t"] | None = None
    real: Bool[Tensor, "b t"] | None = None


def begun(rows: Bool[Tensor, " b"], fresh: Memory, held: Memory) -> Memory:
    """The memory of which documents begin in the given rows."""
    return Memory(*(where(rows, a, b) for a, b in zip(fresh, held, strict=True)))


def where(rows: Bool[Tensor, " b"], a: Sequence[Tensor], b: Sequence[Tensor]) -> Weights:
    """The weights a in the given rows, and b in the others."""
    at = rows.reshape(-1, *[1] * (a[0].ndim - 1)) if a else rows
    return tuple(torch.where(at, x, y) for x, y in zip(a, b, strict=True))


def ended(rule: Rule, now: Weights, surprise: Weights, fresh: Memory) -> tuple[Weights, Weights]:
    """The weights after a chunk has ended, and S for the next."""
    both = [rule.end(w, s, f) for w, s, f in zip(now, surprise, fresh.start, strict=True)]
    return tuple(w for w, _ in both), tuple(s for _, s in both)


def memory_in_torch(
    net: Net,
    bias: Bias,
    q: Float[Tensor, "b t h d"],
    k: Float[Tensor, "b t h d"],
    v: Float[Tensor, "b t h d"],
    gates: Gates,
    memory: Memory,
    fresh: Memory,
    places: Places,
    rule: Rule = LINEAR,
) -> tuple[Float[Tensor, "b t h d"], Memory]:
    """The answers to the queries, and the memory after the text: a run of pieces after the other, no chunk beginning inside a piece in any
    row. For gradients only the memories between runs are kept, and a run is read again: memory grows with the square root of the
    length where chunks begin alike in all rows, and with the number of pieces elsewhere. Arguments as in `memory`."""
    b, _, h, _ = q.shape
    text = _Text(*(m.transpose(1, 2).flatten(0, 1) for m in (q, k, v)), gates.by_head(), places, h)  # type: ignore[call-arg]
    held = Memory(*(tuple(w.flatten(0, 1) for w in part) for part in memory))
    fresh = Memory(*(tuple(w.flatten(0, 1) for w in part) for part in fresh))
    weights = itertools.chain(*held, *fresh)
    needed = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, *gates, *weights))
    out = []
    runs = _runs(places)
    for run in runs:
        if needed and len(runs) > 1:
            y, held = checkpoint(_read, net, bias, rule, text, held, fresh, run, use_reentrant=False, preserve_rng_state=False)
        else:
            y, held = _read(net, bias, rule, text, held, fresh, run)
        out.append(y)
    after = Memory(*(tuple(w.unflatten(0, (b, h)) for w in part) for part in held))
    return torch.cat(out, 1).unflatten(0, (b, h)).transpose(1, 2), after


class _Text(NamedTuple):
    """What is read, with rows and heads in one dimension."""

    q: Float[Tensor, "n t d"]
    k: Float[Tensor, "n t d"]
    v: Float[Tensor, "n t d"]
    gates: Gates
    places: Places
    heads: int

    def rows(self, mask: Bool[Tensor, "b *t"]) -> Bool[Tensor, "n *t"]:
        return mask.repeat_interleave(self.heads, 0)

    def between(self, i: int, j: int) -> "_Text":
        """The tokens i ... j - 1; of the places all."""
        return self._replace(q=self.q[:, i:j], k=self.k[:, i:j], v=self.v[:, i:j], gates=self.gates.between(i, j))


class _Run(NamedTuple):
    """Pieces of one size that follow each other, from token `begin` to `end`. `regular`: a chunk begins with each in all rows, and no
    document does."""

    begin: int
    end: int
    size: int
    regular: bool


def _runs(places: Places) -> list[_Run]:
    """The text as runs, of MOST_PIECES pieces or the square root of all of them, if that is less."""
    cuts = places.begins.any(0)
    regular = places.begins.all(0)
    if places.starts is not None:
        begun = places.starts.any(0)
        cuts, regular = cuts | begun, regular & ~begun
    cuts[0] = False
    at = [0, *cuts.nonzero()[:, 0].tolist(), len(cuts)]
    whole: list[bool] = regular.tolist()
    most = min(MOST_PIECES, math.isqrt(len(at)) + 1)
    runs: list[_Run] = []
    for i, j in itertools.pairwise(at):
        room = bool(runs) and runs[-1].end - runs[-1].begin < most * runs[-1].size
        if room and whole[i] and runs[-1].regular and runs[-1].size == j - i:
            runs[-1] = _Run(runs[-1].begin, j, j - i, True)
        else:
            runs.append(_Run(i, j, j - i, whole[i]))
    return runs


def _read(
    net: Net, bias: Bias, rule: Rule, text: _Text, held: Memory, fresh: Memory, run: _Run
) -> tuple[Float[Tensor, "n t d"], Memory]:
    """The answers to a run's tokens, and the memory after them."""
    places, (i, j) = text.places, (run.begin, run.end)
    if places.starts is not None and not run.regular:
        held = begun(text.rows(places.starts[:, i]), fresh, held)
    real = None if places.real is None else text.rows(places.real[:, i:j])
    count = (j - i) // run.size
    begins = None if run.regular else text.rows(places.begins[:, i])
    out = []
    for piece, mix in enumerate(_mixes(text.gates.between(i, j), real, count)):
        begin = i + piece * run.size
        here = None if real is None else real[:, piece * run.size : (piece + 1) * run.size]
        y, held = _read_piece(net, bias, rule, text.between(begin, begin + run.size), held, fresh, begins, mix, here)
        out.append(y)
    return torch.cat(out, 1), held


def _read_piece(
    net: Net,
    bias: Bias,
    rule: Rule,
    text: _Text,
    held: Memory,
    fresh: Memory,
    begins: Bool[Tensor, " n"] | None,
    mix: Mix,
    real: Bool[Tensor, "n c"] | None,
) -> tuple[Float[Tensor, "n c d"], Memory]:
    """The answers to the tokens of a piece, with which a chunk begins in the rows `begins` (None: in all), and the memory after them."""
    start, now, surprise, _ = held
    if rule.at_ends:
        written, emptied = ended(rule, now, surprise, fresh)
        now = written if begins is None else where(begins, written, now)
        surprise = emptied if begins is None else where(begins, emptied, surprise)
    start = now if begins is None else where(begins, now, start)
    W = [rule.weights(w) for w in start]
    k, v, recent = text.k, text.v, ()
    if held.recent:
        k, v, share, recent = _with_recent(text, held.recent, real)
        mix = mix.over_windows(rule.window, share)
    y, tape = net.forward(k, maps(W))
    u = net.gradients(tape, bias.gradient(y, v, text.gates.limit), W)
    if rule.at_ends:
        S = tuple(s - (mix.N.diagonal(dim1=1, dim2=2)[..., None] * g.delta).mT @ g.a for s, g in zip(surprise, u, strict=True))
        return net.read(text.q, maps([rule.weights(w) for w in now])), Memory(start, now, S)
    home = fresh.now if rule.anchored else ()
    apart = _less(now, home)
    if rule.linear:
        M, S = _after(mix, apart, surprise, u)
        return net.read(text.q, _reads(mix, apart, surprise, u, home)), Memory(start, _plus(M, home), S, recent)
    every = [rule.every(mix, M, S, g) for M, S, g in zip(apart, surprise or [None] * len(now), u, strict=True)]
    each = _plus(tuple(A for A, _ in every), tuple(w[:, None] for w in home))
    y = net.read(text.q, [_one_each(rule.weights(A)) for A in each])
    last = tuple(S[:, -1] for _, S in every) if surprise else ()
    return y, Memory(start, tuple(A[:, -1] for A in each), last, recent)


def _less(weights: Weights, home: Weights) -> Weights:
    """How far they are from home, where there is one."""
    return tuple(w - at for w, at in zip(weights, home, strict=True)) if home else weights


def _plus(weights: Weights, home: Weights) -> Weights:
    return tuple(w + at for w, at in zip(weights, home, strict=True)) if home else weights


def _with_recent(
    text: _Text, recent: tuple[Tensor, ...], real: Bool[Tensor, "n c"] | None
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """Keys, values and shares of a piece and of the tokens before it, and what is recent after it."""
    share = torch.ones_like(text.gates.rate) if text.gates.share is None else text.gates.share
    k, v, g = (torch.cat(pair, 1) for pair in zip(recent, (text.k, text.v, share[..., None]), strict=True))
    window, count = recent[0].shape[1], text.k.shape[1]
    if real is None:
        return k, v, g[..., 0], tuple(m[:, count:] for m in (k, v, g))
    at = real.sum(1)[:, None] + torch.arange(window, device=real.device)
    return k, v, g[..., 0], tuple(m.gather(1, at[..., None].expand(-1, -1, m.shape[2])) for m in (k, v, g))


def _mixes(gates: Gates, real: Bool[Tensor, "n t"] | None, count: int) -> list[Mix]:
    """Of each of `count` pieces: what the weights after each token are made of, M_t = beta_t M_0 + f_t S_0 - sum_i G_ti u_i."""
    keep, carry, theta, step = gates.keep, gates.carry, gates.rate, gates.step
    if real is not None:  # padding adds nothing: neither its gradient nor S once more
        keep, theta = keep.masked_fill(~real, 0), theta.masked_fill(~real, 0)
        carry = None if carry is None else carry.masked_fill(~real, 0)
        step = real.to(theta.dtype) * gates.step_or_one()
    keep, theta = keep.unflatten(1, (count, -1)), theta.unflatten(1, (count, -1))
    carry = None if carry is None else carry.unflatten(1, (count, -1))
    step = None if step is None else step.unflatten(1, (count, -1))
    L, beta = between(keep), keep.cumsum(-1).exp()
    if step is not None:
        L = L * step[..., None, :]
    if carry is None:
        whole = Mix(L, torch.diag_embed(theta), L * theta[..., None, :], beta, None, None)
    else:
        N, fade = between(carry) * theta[..., None, :], carry.cumsum(-1).exp()
        whole = Mix(L, N, L @ N, beta, (L @ fade[..., None])[..., 0], fade)
    return [whole.piece(p) for p in range(count)]


def _reads(mix: Mix, now: Weights, surprise: Weights, u: Sequence[Outer], home: Weights = ()) -> list[Map]:
    """Of each matrix, as it is after each token; `now` is counted from home, where there is one."""
    beta, f = mix.beta[..., None], None if mix.f is None else mix.f[..., None]

    def read(layer: int) -> Map:
        def apply(z: Tensor) -> Tensor:
            y = (beta * z) @ now[layer].mT
            if f is not None:
                y = torch.baddbmm(y, f * z, surprise[layer].mT)
            if home:
                y = torch.baddbmm(y, z, home[layer].mT)
            return torch.baddbmm(y, mix.G * (z @ u[layer].a.mT), u[layer].delta, alpha=-1)

        return apply

    return [read(layer) for layer in range(len(now))]


def _after(mix: Mix, now: Weights, surprise: Weights, u: Sequence[Outer]) -> tuple[Weights, Weights]:
    """The weights and S after the piece."""
    beta, share = mix.beta[:, -1, None, None], mix.G[:, -1, :, None]
    if mix.f is None or mix.fade is None:
        return tuple(torch.baddbmm(beta * m, g.delta.mT, share * g.a, alpha=-1) for m, g in zip(now, u, strict=True)), ()
    f, fade, last = mix.f[:, -1, None, None], mix.fade[:, -1, None, None], mix.N[:, -1, :, None]
    M, S = [], []
    for m, s, g in zip(now, surprise, u, strict=True):
        M.append(torch.baddbmm(torch.addcmul(beta * m, f, s), g.delta.mT, share * g.a, alpha=-1))
        S.append(torch.baddbmm(fade * s, g.delta.mT, last * g.a, alpha=-1))
    return tuple(M), tuple(S)


def _one_each(W: Float[Tensor, "n c o i"]) -> Map:
    """A map with weights of its own for each token."""
    return lambda z: (W @ z[..., None])[..., 0]
