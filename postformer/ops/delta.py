"""The gated delta rule: a memory that takes back what it holds under a key before it writes there (Yang, Kautz & Hatamizadeh 2024,
arXiv 2412.06464, equation 10), in chunks of matrix products by the WY form (section 3.3; Yang et al. 2024, arXiv 2406.06484).

    S_t = exp(a_t) S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T        y_t = S_t q_t

b batch, t time, h heads, n key width, p value width; a is the paper's log alpha. Keys of length 1 and beta below 2 keep it stable;
beta above 1 gives negative eigenvalues (Grazzi et al. 2024, arXiv 2411.12537).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from postformer.ops.ssd import CHUNK, decays, weighed


def gated_delta_reference(
    q: Float[Tensor, "b t h n"],
    k: Float[Tensor, "b t h n"],
    v: Float[Tensor, "b t h p"],
    a: Float[Tensor, "b t h"],
    beta: Float[Tensor, "b t h"],
    state: Float[Tensor, "b h p n"],
    starts: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b t h p"], Float[Tensor, "b h p n"]]:
    """The recurrence as it is written, one step after the other; the state is zero before a token where `starts` is true."""
    y = []
    for t in range(q.shape[1]):
        state = state if starts is None else state.masked_fill(starts[:, t, None, None, None], 0)
        state = a[:, t].exp()[..., None, None] * state
        change = beta[:, t, :, None] * (v[:, t] - torch.einsum("bhpn,bhn->bhp", state, k[:, t]))
        state = state + change[..., None] * k[:, t, :, None]
        y.append(torch.einsum("bhpn,bhn->bhp", state, q[:, t]))
    return torch.stack(y, 1) if y else v, state


def gated_delta(
    q: Float[Tensor, "b t h n"],
    k: Float[Tensor, "b t h n"],
    v: Float[Tensor, "b t h p"],
    a: Float[Tensor, "b t h"],
    beta: Float[Tensor, "b t h"],
    state: Float[Tensor, "b h p n"],
    starts: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b t h p"], Float[Tensor, "b h p n"]]:
    """The same, chunk by chunk. Returns y and the state after the last step."""
    if not q.shape[1]:
        return v, state
    if q.shape[1] == 1:
        return gated_delta_reference(q, k, v, a, beta, state, starts)
    y = []
    for i in range(0, q.shape[1], CHUNK):
        at = slice(i, i + CHUNK)
        left = decays(a[:, at], None if starts is None else starts[:, at])
        out, state = _chunk(*(m[:, at].transpose(1, 2) for m in (q, k, v, beta)), state=state, left=left)
        y.append(out.transpose(1, 2))
    return torch.cat(y, 1) if len(y) > 1 else y[0], state


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *, left: tuple[Tensor, Tensor, Tensor, Tensor], state: Tensor
) -> tuple[Tensor, Tensor]:
    """What each token changes, u_i = beta_i (v_i - exp(a_i) S_{i-1} k_i), solves (I + M) U = beta (V - K S^T) with
    M_ij = beta_i L_ij k_i k_j^T below the diagonal."""
    L, arrived, leaving, kept = left
    M = ((k @ k.mT) * L * beta[..., None]).tril(-1)
    target = beta[..., None] * (v - weighed(arrived, k @ state.mT))
    u = torch.linalg.solve_triangular(M, target, upper=False, unitriangular=True)
    y = ((q @ k.mT) * L) @ u + weighed(arrived, q @ state.mT)
    return y, weighed(kept, state) + (u * leaving[..., None]).mT @ k
