"""What a memory does with its gradients: which weights its accumulator stands for, how a surprise is made even, and when it is written.

    weights     W = A                                   gradient descent with decay (Titans, equations 13 and 14)
                W = A / |A|_q^(q-2)                     MIRAS's Moneta (Behrouz et al. 2025, arXiv 2504.13173, equations 23 and 24)
                W = softmax(A) over the inputs          MIRAS's Memora: A = alpha A - eta u is W = softmax(alpha log W - eta u), equation 27
    polished    NS5(S)                                  ATLAS (Behrouz et al. 2025, arXiv 2505.23735, section 5): Muon in the memory
    at_ends     W = |W_0| norm(W + NS5(S))              LaCT (Zhang et al. 2025, arXiv 2505.23884, section 3.1): S of a whole chunk at once
    anchored    M_t = (1 - alpha) M + alpha M_0 + S_t       decay towards the weights before the first token (L2-SP, Li et al. 2018, arXiv
                                                        1802.01483), not towards 0
    window      S_t = eta S_{t-1} - theta sum_i g_i u_i  ATLAS's Omega rule (equation 9): over the last tokens, each with a share g_i

n rows and heads, c tokens of a chunk, o outputs and i inputs of a matrix.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from postformer.ops.fast_weights import Outer


class Gates(NamedTuple):
    """What each token does to the memory; all [b, t, h], or [n, t] inside of `memory`."""

    rate: Tensor
    """theta: how much of the token's gradient is taken in."""
    keep: Tensor
    """log (1 - alpha), at most 0: what stays of the memory."""
    carry: Tensor | None = None
    """log eta, at most 0: what stays of the earlier gradients; none of them without it."""
    limit: Tensor | None = None
    """For a bias that takes one."""
    step: Tensor | None = None
    """How much of S is added to the memory; 1 without it."""
    share: Tensor | None = None
    """g: of the token's gradient in each window that it is in; 1 without it."""

    def step_or_one(self) -> Tensor:
        """The step of each token."""
        return torch.ones_like(self.rate) if self.step is None else self.step

    def by_head(self) -> "Gates":
        """[b, t, h] as [n, t]."""
        return Gates(*(None if m is None else m.transpose(1, 2).flatten(0, 1) for m in self))  # type: ignore[arg-type]

    def between(self, i: int, j: int) -> "Gates":
        """Of the tokens i ... j - 1, [n, t]."""
        return Gates(*(None if m is None else m[:, i:j] for m in self))  # type: ignore[arg-type]


class Mix(NamedTuple):
    """Of what the weights after each token of a piece are made: M_t = beta_t M_0 + f_t S_0 - sum_i G_ti u_i."""

    L: Float[Tensor, "n *p c c"]
    """What of each token's S is in M_t."""
    N: Float[Tensor, "n *p c k"]
    """What of each gradient -u is in S_t: of the piece's tokens, with a window also of those before it."""
    G: Float[Tensor, "n *p c k"]
    beta: Float[Tensor, "n *p c"]
    f: Float[Tensor, "n *p c"] | None
    """Of S_0 in M_t; None without momentum."""
    fade: Float[Tensor, "n *p c"] | None
    """Of S_0 in S_t."""

    def piece(self, p: int) -> "Mix":
        """The p-th of several [n, p, ...]."""
        return Mix(*(None if m is None else m[:, p] for m in self))  # type: ignore[arg-type]

    def over_windows(self, window: int, share: Float[Tensor, "n k"]) -> "Mix":
        """The same where each token takes in the last `window` gradients of k = window - 1 + c, each times its share."""
        c, k = self.G.shape[-1], share.shape[-1]
        place = torch.arange(k, device=share.device) - torch.arange(c, device=share.device)[:, None]
        band = ((place >= 0) & (place < window)) * share[:, None]
        return self._replace(N=self.N @ band, G=self.G @ band)


def between(log: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c c"]:
    """The product after token j up to token i, at [i, j]; 0 above the diagonal."""
    total = log.cumsum(-1)
    apart = (total[..., :, None] - total[..., None, :]).tril()
    return apart.exp().tril()


class Rule(NamedTuple):
    """The same for all tokens."""

    weights: Callable[[Tensor], Tensor] = lambda A: A
    """The weights [..., o, i] that an accumulator stands for."""
    polish: Callable[[Tensor], Tensor] | None = None
    """What is added to the memory for S; S itself where None."""
    at_ends: bool = False
    """Whether a chunk is written when it has ended, and read with the weights before it."""
    window: int = 1
    """Tokens whose gradients each token takes in, its own with them."""
    anchored: bool = False
    """Whether the memory decays towards what it was before the document's first token, and not towards 0."""

    @property
    def linear(self) -> bool:
        """Whether the weights are linear in the gradients, so that no token's weights need to be written down."""
        return self.weights is IDENTITY and self.polish is None

    def polished(self, S: Tensor) -> Tensor:
        """What is added for S."""
        return S if self.polish is None else self.polish(S)

    def every(
        self, mix: Mix, M: Tensor, S: Tensor | None, u: Outer
    ) -> tuple[Float[Tensor, "n c o i"], Float[Tensor, "n c o i"]]:
        """The accumulator and S after each token."""
        each = -_over_tokens(mix.N, u.delta[..., None] * u.a[..., None, :])
        if mix.fade is not None and S is not None:
            each = mix.fade[..., None, None] * S[:, None] + each
        return mix.beta[..., None, None] * M[:, None] + _over_tokens(mix.L, self.polished(each)), each

    def end(self, W: Tensor, S: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """The weights after a chunk whose gradients made S, each row of them as long as in the fresh ones; and S for the next."""
        new = W + self.polished(S)
        written = new * (fresh.norm(dim=-1, keepdim=True) / (new.norm(dim=-1, keepdim=True) + 1e-5))
        read = (S != 0).any(-1, keepdim=True).any(-2, keepdim=True)
        return torch.where(read, written, W), torch.zeros_like(S)


def _over_tokens(mix: Float[Tensor, "n c k"], of: Float[Tensor, "n k o i"]) -> Float[Tensor, "n c o i"]:
    return (mix @ of.flatten(2)).unflatten(2, of.shape[2:])


IDENTITY = Rule().weights
LINEAR = Rule(IDENTITY)


def lq(q: float = 4.0) -> Callable[[Tensor], Tensor]:
    """A / |A|_q^(q-2) over a matrix (MIRAS, equation 24). Raises ValueError for q below 2."""
    if q < 2:
        raise ValueError(f"q={q} must be at least 2")

    def weights(A: Tensor) -> Tensor:
        size = A.abs().pow(q).sum((-2, -1), keepdim=True)
        return A * size.clamp(min=torch.finfo(A.dtype).tiny).pow((2 - q) / q)

    return weights


def softmax(A: Tensor) -> Tensor:
    """Each output weighs its inputs: rows of positive weights that add up to 1."""
    return F.softmax(A, -1)


def newton_schulz(S: Float[Tensor, "*n o i"], steps: int = 5) -> Float[Tensor, "*n o i"]:
    """About U V^T of S = U s V^T: singular values of 0.7 to 1.2 (Jordan et al. 2024, Muon)."""
    tall = S.shape[-2] > S.shape[-1]
    X = S.mT if tall else S
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.mT if tall else X
