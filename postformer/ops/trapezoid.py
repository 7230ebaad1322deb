"""The recurrence of Mamba-3: the trapezoidal rule over a rotating state (arXiv 2603.15569, sections 3.1 to 3.3).

    h_t = exp(a_t) (h_{t-1} + beta_t sum_r x_{t-1,r} B_{t-1,r}^T) + gamma_t sum_r x_{t,r} B_{t,r}^T        y_{t,r} = h_t C_{t,r}

b batch, t time, r rank (1 without MIMO), h heads, p head width, n state size; a is dt A, beta (1 - lambda) dt, gamma lambda dt; B and C
come rotated.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from postformer.ops.packing import WHOLE, Packing
from postformer.ops.ssd import Weights, ssd


class TrapezoidState(NamedTuple):
    """h after the last token, and that token's B and x, which the next one weighs."""

    h: Float[Tensor, "b h p n"]
    B: Float[Tensor, "b r h n"]
    x: Float[Tensor, "b r h p"]


def trapezoid_reference(
    x: Float[Tensor, "b t r h p"],
    a: Float[Tensor, "b t h"],
    beta: Float[Tensor, "b t h"],
    gamma: Float[Tensor, "b t h"],
    B: Float[Tensor, "b t r h n"],
    C: Float[Tensor, "b t r h n"],
    state: TrapezoidState,
) -> tuple[Float[Tensor, "b t r h p"], TrapezoidState]:
    """The recurrence as it is written (proposition 1), one step after the other."""
    h, B_last, x_last = state
    y = []
    for t in range(x.shape[1]):
        before = h + beta[:, t, :, None, None] * torch.einsum("brhp,brhn->bhpn", x_last, B_last)
        now = torch.einsum("brhp,brhn->bhpn", x[:, t], B[:, t])
        h = a[:, t, :, None, None].exp() * before + gamma[:, t, :, None, None] * now
        y.append(torch.einsum("bhpn,brhn->brhp", h, C[:, t]))
        B_last, x_last = B[:, t], x[:, t]
    return torch.stack(y, 1) if y else x, TrapezoidState(h, B_last, x_last)


def trapezoid(
    x: Float[Tensor, "b t r h p"],
    a: Float[Tensor, "b t h"],
    beta: Float[Tensor, "b t h"],
    gamma: Float[Tensor, "b t h"],
    B: Float[Tensor, "b t r h n"],
    C: Float[Tensor, "b t r h n"],
    state: TrapezoidState,
    packing: Packing = WHOLE,
    D: Float[Tensor, " h"] | None = None,
) -> tuple[Float[Tensor, "b t r h p"], TrapezoidState]:
    """The same by one recurrence: a token enters with gamma_t, and once it was read, with beta_{t+1}. `D` is how much of x skips it.

    At padding a, beta and gamma must be 0. A document's first token weighs no token before it.
    """
    if not x.shape[1]:
        return x, state
    if packing.starts is not None:
        beta = beta.masked_fill(packing.starts[..., None], 0)
    h = state.h + beta[:, 0, :, None, None] * torch.einsum("brhp,brhn->bhpn", state.x, state.B)
    y, h = ssd(x, a, B, C, h, packing.starts, Weights(gamma, F.pad(beta[:, 1:], (0, 0, 0, 1)), D))
    return y, TrapezoidState(h, packing.last(B, state.B), packing.last(x, state.x))
