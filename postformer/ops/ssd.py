"""A recurrence with one decay per head, in chunks of matrix products: state space duality (Dao & Gu 2024, arXiv 2405.21060,
sections 3 and 6), with the several inputs and outputs a token of Mamba-3's MIMO (arXiv 2603.15569, section 3.3).

    h_t = exp(a_t) h_{t-1} + sum_r x_{t,r} B_{t,r}^T        y_{t,r} = h_t C_{t,r}

b batch, t time, r rank, h heads, p head width, g groups of heads that share B and C (h a multiple of g), n state size; a is the
paper's dt A, and x its dt x.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

CHUNK = 64
"""Rows, of r a token, whose influence on each other is one matrix product; between chunks the state is carried."""


def ssd_reference(
    x: Float[Tensor, "b t r h p"],
    a: Float[Tensor, "b t h"],
    B: Float[Tensor, "b t r g n"],
    C: Float[Tensor, "b t r g n"],
    state: Float[Tensor, "b h p n"],
    starts: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b t r h p"], Float[Tensor, "b h p n"]]:
    """The recurrence as it is written, one step after the other; the state is zero before a token where `starts` is true."""
    B, C = (m.repeat_interleave(x.shape[3] // m.shape[3], 3) for m in (B, C))
    y = []
    for t in range(x.shape[1]):
        decay = a[:, t].exp() if starts is None else a[:, t].exp().masked_fill(starts[:, t, None], 0)
        state = decay[..., None, None] * state + torch.einsum("brhp,brhn->bhpn", x[:, t], B[:, t])
        y.append(torch.einsum("bhpn,brhn->brhp", state, C[:, t]))
    return torch.stack(y, 1), state


def ssd(
    x: Float[Tensor, "b t r h p"],
    a: Float[Tensor, "b t h"],
    B: Float[Tensor, "b t r g n"],
    C: Float[Tensor, "b t r g n"],
    state: Float[Tensor, "b h p n"],
    starts: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b t r h p"], Float[Tensor, "b h p n"]]:
    """The same, chunk by chunk (section 6; listing 1). Returns y and the state after the last step."""
    if x.shape[1] == 1:
        return ssd_reference(x, a, B, C, state, starts)
    y, size = [], max(1, CHUNK // x.shape[2])
    for i in range(0, x.shape[1], size):
        at = slice(i, i + size)
        part, state = _chunk(x[:, at], a[:, at], B[:, at], C[:, at], state, None if starts is None else starts[:, at])
        y.append(part)
    return torch.cat(y, 1) if len(y) != 1 else y[0], state


def _chunk(x: Tensor, a: Tensor, B: Tensor, C: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """y = (L o C B^T) x + exp(s) C h and h = exp(s_q) h + (exp(s_q - s) x)^T B, where s is the running sum of a and
    L_ij = exp(s_i - s_j) for j <= i."""
    b, q, r, h, p = x.shape
    g, n = B.shape[3:]
    L, arrived, leaving, kept = (m.repeat_interleave(r, -1) if r > 1 else m for m in decays(a, starts))
    L = L.repeat_interleave(r, -2) if r > 1 else L
    x = x.permute(0, 3, 1, 2, 4).reshape(b, h, q * r, p)
    B, C = (m.permute(0, 3, 1, 2, 4).reshape(b, g, q * r, n) for m in (B, C))
    weights = ((C @ B.mT)[:, :, None] * L.view(b, g, -1, q * r, q * r)).view(b, h, q * r, q * r)
    carried = (C @ state.reshape(b, g, -1, n).mT).view(b, g, q * r, -1, p).transpose(2, 3).reshape(b, h, q * r, p)
    y = weights @ x + arrived[..., None] * carried
    added = ((x * leaving[..., None]).mT.reshape(b, g, -1, q * r) @ B).view(b, h, p, n)
    y = y.view(b, h, q, r, p).permute(0, 2, 3, 1, 4)
    return y, kept[..., :1, None] * state + added


def decays(a: Float[Tensor, "b q h"], starts: Bool[Tensor, "b q"] | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is left in a chunk of q tokens: of token j at token i [b, h, q, q], of the state before the chunk at token i [b, h, q],
    of token j at the chunk's end [b, h, q], and of the state before at the end [b, h, 1]; nothing across a start.

    Sums are in float64, since their differences are what counts.
    """
    s = a.mT.double().cumsum(-1)
    seen = torch.ones(s.shape[-1], s.shape[-1], dtype=torch.bool, device=a.device).tril()
    between = s[..., None] - s[..., None, :]
    if starts is None:
        between = between.to(a.dtype).masked_fill(~seen, -torch.inf)
        return between.exp(), s.to(a.dtype).exp(), (s[..., -1:] - s).to(a.dtype).exp(), s[..., -1:].to(a.dtype).exp()
    document = starts.cumsum(1)[:, None]
    seen = seen & (document[..., None] == document[..., None, :])
    first, last = document == 0, document == document[..., -1:]
    L = between.to(a.dtype).masked_fill(~seen, -torch.inf).exp()
    arrived = s.to(a.dtype).exp() * first
    leaving = (s[..., -1:] - s).to(a.dtype).exp() * last
    return L, arrived, leaving, s[..., -1:].to(a.dtype).exp() * first[..., -1:]
