"""Memory in weights: a small network that learns each token's value under its key while it reads, in the exact dual form.

Titans (Behrouz et al. 2024, arXiv 2501.00663), sections 3.1 and 3.2, equations 8 to 18; gradients of a chunk are taken at the weights with
which it begins (equation 16). For each matrix of the network, with u_i the gradient by token i:

    S_t = eta_t S_{t-1} - theta_t u_t        M_t = (1 - alpha_t) M_{t-1} + S_t        y_t = M_t(q_t)

Since u_i = delta_i a_i^T, a read with the weights of token t is z M_t^T = beta_t z M_0^T + f_t z S_0^T - sum_i G_ti (z a_i) delta_i,
with beta_t = prod (1 - alpha), f_t = sum_j L_tj prod eta, and G = L N diag(theta), where L and N hold the products of (1 - alpha) and of
eta between two tokens. So a chunk is matrix products, and no token's weights are written down.

b batch, t time, h heads, d width of keys and values, c tokens of a chunk, o outputs and i inputs of a matrix.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from postformer.ops.fast_weights import Bias, Map, Net, Outer

Weights = tuple[Tensor, ...]
"""Of each matrix, [b, h, o, i]."""


class Gates(NamedTuple):
    """What each token does to the memory."""

    rate: Float[Tensor, "b t h"]
    """theta: how much of the token's gradient is taken in."""
    keep: Float[Tensor, "b t h"]
    """log (1 - alpha), at most 0: what stays of the memory."""
    carry: Float[Tensor, "b t h"] | None = None
    """log eta, at most 0: what stays of the earlier gradients; none of them without it."""
    limit: Float[Tensor, "b t h"] | None = None
    """For a bias that takes one."""


class Memory(NamedTuple):
    """What a memory is between two tokens: of one size, whatever was read."""

    start: Weights
    """The weights with which the chunk began."""
    now: Weights
    surprise: Weights
    """S; empty without momentum."""


class Places(NamedTuple):
    """Where chunks begin, where documents do, and what is real; every row's tokens are real where None."""

    begins: Bool[Tensor, "b t"]
    starts: Bool[Tensor, "b t"] | None = None
    real: Bool[Tensor, "b t"] | None = None


def memory_reference(
    net: Net,
    bias: Bias,
    q: Float[Tensor, "b t h d"],
    k: Float[Tensor, "b t h d"],
    v: Float[Tensor, "b t h d"],
    gates: Gates,
    memory: Memory,
    fresh: Memory,
    places: Places,
) -> tuple[Float[Tensor, "b t h d"], Memory]:
    """One token after the other, each with weights of its own, and gradients by autograd. `fresh` is the memory of a document of which
    nothing was read."""
    start, now, surprise = memory
    out = []
    for t in range(q.shape[1]):
        if places.starts is not None:
            start, now, surprise = _forget(places.starts[:, t], fresh, Memory(start, now, surprise))
        start = _where(places.begins[:, t], now, start)
        with torch.enable_grad():
            W = [w if w.requires_grad else w.detach().requires_grad_() for w in start]
            y = net.read(k[:, t, :, None], _plain(W))
            limit = None if gates.limit is None else gates.limit[:, t, :, None]
            dy = bias.gradient(y, v[:, t, :, None], limit)
            u = torch.autograd.grad(y, W, dy, create_graph=torch.is_grad_enabled())
        theta, keep = (m[:, t, :, None, None] for m in (gates.rate, gates.keep.exp()))
        eta = None if gates.carry is None else gates.carry[:, t, :, None, None].exp()
        S = tuple(-theta * g if eta is None else eta * s - theta * g for s, g in zip(surprise or now, u, strict=True))
        M = tuple(keep * m + s for m, s in zip(now, S, strict=True))
        real = None if places.real is None else places.real[:, t]
        now = M if real is None else _where(real, M, now)
        surprise = () if eta is None else S if real is None else _where(real, S, surprise)
        out.append(net.read(q[:, t, :, None], _plain(now)).squeeze(2))
    return torch.stack(out, 1), Memory(start, now, surprise)


def _plain(W: Sequence[Tensor]) -> list[Map]:
    return [lambda z, w=w: z @ w.mT for w in W]


def _forget(rows: Bool[Tensor, " b"], fresh: Memory, held: Memory) -> Memory:
    """The memory of which documents begin in the given rows."""
    return Memory(*(_where(rows, a, b) for a, b in zip(fresh, held, strict=True)))


def _where(rows: Bool[Tensor, " b"], a: Sequence[Tensor], b: Sequence[Tensor]) -> Weights:
    """The weights a in the given rows, and b in the others."""
    return tuple(torch.where(rows[:, None, None, None], x, y) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------- in chunks


def memory(
    net: Net,
    bias: Bias,
    q: Float[Tensor, "b t h d"],
    k: Float[Tensor, "b t h d"],
    v: Float[Tensor, "b t h d"],
    gates: Gates,
    memory: Memory,
    fresh: Memory,
    places: Places,
) -> tuple[Float[Tensor, "b t h d"], Memory]:
    """The same in matrix products, a piece of the text after the other: no chunk begins inside a piece in any row."""
    q, k, v = (m.transpose(1, 2) for m in (q, k, v))
    gates = Gates(*(None if m is None else m.transpose(1, 2) for m in gates))  # type: ignore[arg-type]
    start, now, surprise = memory
    out = []
    for i, j in _pieces(places):
        if places.starts is not None:
            start, now, surprise = _forget(places.starts[:, i], fresh, Memory(start, now, surprise))
        start = _where(places.begins[:, i], now, start)
        here = Gates(*(None if m is None else m[:, :, i:j] for m in gates))  # type: ignore[arg-type]
        mix = _mix(here, None if places.real is None else places.real[:, i:j])
        y, tape = net.forward(k[:, :, i:j], _plain(start))
        u = net.gradients(tape, bias.gradient(y, v[:, :, i:j], here.limit), start)
        out.append(net.read(q[:, :, i:j], _reads(mix, now, surprise, u)))
        now, surprise = _after(mix, now, surprise, u)
    return torch.cat(out, 2).transpose(1, 2), Memory(start, now, surprise)


def _pieces(places: Places) -> list[tuple[int, int]]:
    """From each place where some row's chunk begins to the next."""
    cuts = places.begins.any(0)
    if places.starts is not None:
        cuts = cuts | places.starts.any(0)
    cuts[0] = False
    ends = [0, *cuts.nonzero()[:, 0].tolist(), len(cuts)]
    return list(itertools.pairwise(ends))


class Mix(NamedTuple):
    """Of what the weights after each token of a piece are made: M_t = beta_t M_0 + f_t S_0 - sum_i G_ti u_i, and the last S likewise."""

    G: Float[Tensor, "b h c c"]
    beta: Float[Tensor, "b h c"]
    f: Float[Tensor, "b h c"] | None
    last: Float[Tensor, "b h c"]
    """Of each gradient in S."""
    left: Float[Tensor, "b h"] | None
    """Of S_0 in S."""


def _between(log: Float[Tensor, "b h c"]) -> Float[Tensor, "b h c c"]:
    """The product after token j up to token i, at [i, j]; 0 above the diagonal."""
    total = log.cumsum(-1)
    apart = (total[..., :, None] - total[..., None, :]).tril()
    return apart.exp().tril()


def _mix(gates: Gates, real: Bool[Tensor, "b c"] | None) -> Mix:
    keep, carry, theta = gates.keep, gates.carry, gates.rate
    if real is not None:  # padding adds nothing: neither its gradient nor S once more
        keep, theta = (m.masked_fill(~real[:, None], 0) for m in (keep, theta))
        carry = None if carry is None else carry.masked_fill(~real[:, None], 0)
    L, beta = _between(keep), keep.cumsum(-1).exp()
    if real is not None:
        L = L.masked_fill(~real[:, None, None], 0)
    if carry is None:
        return Mix(L * theta[..., None, :], beta, None, theta[..., -1:], None)
    N = _between(carry)
    fade = carry.cumsum(-1).exp()
    f = (L @ fade[..., None])[..., 0]
    return Mix(L @ N * theta[..., None, :], beta, f, N[..., -1, :] * theta, fade[..., -1])


def _reads(mix: Mix, now: Weights, surprise: Weights, u: Sequence[Outer]) -> list[Map]:
    def read(layer: int) -> Map:
        def apply(z: Tensor) -> Tensor:
            y = mix.beta[..., None] * (z @ now[layer].mT)
            if mix.f is not None:
                y = y + mix.f[..., None] * (z @ surprise[layer].mT)
            return y - (mix.G * (z @ u[layer].a.mT)) @ u[layer].delta

        return apply

    return [read(layer) for layer in range(len(now))]


def _after(mix: Mix, now: Weights, surprise: Weights, u: Sequence[Outer]) -> tuple[Weights, Weights]:
    """The weights and S after the piece."""
    beta, share = mix.beta[..., -1, None, None], mix.G[..., -1, :, None]
    M = tuple(beta * m - (share * g.delta).mT @ g.a for m, g in zip(now, u, strict=True))
    if mix.f is None or mix.left is None:
        return M, ()
    M = tuple(m + mix.f[..., -1, None, None] * s for m, s in zip(M, surprise, strict=True))
    left, last = mix.left[..., None, None], mix.last[..., None]
    return M, tuple(left * s - (last * g.delta).mT @ g.a for s, g in zip(surprise, u, strict=True))
