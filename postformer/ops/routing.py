"""Which experts a token is sent to, how evenly that loads them, and the losses that make it even.

n tokens, E experts, k = `top` of them a token; z the router's logits [n, E], in fp32 or wider.

| function | scores s | choice | weights | published as |
|---|---|---|---|---|
| `softmax_top` | softmax(z) | top k of s | s, perhaps over their sum | Switch, Mixtral, Qwen-MoE, OLMoE, DeepSeek-V2 |
| `sigmoid_top` | sigmoid(z) | top k of s + correction | s over their sum | DeepSeek-V3 (arXiv 2412.19437, equations 12 to 16) |
| `top_softmax` | softmax(z) | top k of z | softmax over the k | gpt-oss (OpenAI 2025, arXiv 2508.10925) |

Loads and losses take a `group` of processes that hold one batch together (`postformer.ops.exchange`): they are then of the whole batch, a
loss as this process's share of it.

Both of the first two choose among the best groups of experts where there are groups. Of equal scores any may be chosen.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from postformer.ops.exchange import Group, gathered, mean_over, total

TINY = 1e-20
"""What keeps a sum of sigmoids from 0."""


class Routes(NamedTuple):
    """Where tokens go. `scores` are of all experts, as the losses take them: they add up to 1."""

    experts: Int[Tensor, "n k"]
    weights: Float[Tensor, "n k"]
    scores: Float[Tensor, "n e"]


def softmax_top(
    z: Float[Tensor, "n e"],
    top: int,
    *,
    renormalise: bool,
    correction: Float[Tensor, " e"] | None = None,
    groups: int = 1,
    top_groups: int = 1,
) -> Routes:
    """The k largest of softmax(z) + correction, with groups only of those whose largest is largest; weighed by softmax(z), which the
    correction has no part in, as it is or divided by the sum."""
    scores = z.softmax(-1)
    experts = _chosen(scores, correction, top, groups, top_groups, best_of=1)
    weights = scores.gather(-1, experts)
    return Routes(experts, weights / weights.sum(-1, keepdim=True) if renormalise else weights, scores)


def sigmoid_top(
    z: Float[Tensor, "n e"],
    top: int,
    *,
    renormalise: bool,
    correction: Float[Tensor, " e"] | None = None,
    groups: int = 1,
    top_groups: int = 1,
) -> Routes:
    """As `softmax_top` of sigmoid(z), with groups only of those whose two largest add up to most."""
    s = z.sigmoid()
    experts = _chosen(s, correction, top, groups, top_groups, best_of=2)
    weights = s.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + TINY)
    return Routes(experts, weights, s / (s.sum(-1, keepdim=True) + TINY))


def top_softmax(z: Float[Tensor, "n e"], top: int) -> Routes:
    """The k largest logits, and their softmax."""
    chosen = z.topk(top, -1)
    return Routes(chosen.indices, chosen.values.softmax(-1), z.softmax(-1))


def _chosen(
    scores: Float[Tensor, "n e"], correction: Tensor | None, top: int, groups: int, top_groups: int, best_of: int
) -> Int[Tensor, "n k"]:
    wanted = (scores if correction is None else scores + correction).detach()
    if top_groups < groups:
        size = scores.shape[-1] // groups
        best = wanted.unflatten(-1, (groups, size)).topk(min(best_of, size), -1).values.sum(-1)
        chosen = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, best.topk(top_groups, -1).indices, True)
        wanted = wanted.masked_fill(~chosen.repeat_interleave(size, -1), -torch.inf)
    return wanted.topk(top, -1).indices


# ---------------------------------------------------------------- load


def load(experts: Int[Tensor, "*b k"], count: int, group: Group = None) -> Int[Tensor, " e"]:
    """How many (token, expert) pairs each expert has."""
    return total(torch.bincount(experts.reshape(-1), minlength=count), group)


def within_capacity(experts: Int[Tensor, "n k"], count: int, factor: float, group: Group = None) -> Tensor:
    """Which pairs find room [n, k], where an expert takes at most ceil(factor n k / E) of them: first every token's first choice, then the
    second ones, each in the tokens' order (Switch, section 2.2; GShard, arXiv 2006.16668, algorithm 1)."""
    n, k = experts.shape
    chosen = experts.T.reshape(-1)
    order, sizes = chosen.argsort(stable=True), torch.bincount(chosen, minlength=count)
    first = sizes.cumsum(0) - sizes
    rank = torch.empty_like(order)
    rank[order] = torch.arange(n * k, device=order.device) - first[chosen[order]]
    rank = rank.view(k, n).T
    if group is not None:
        everyone = gathered(torch.stack([torch.bincount(choice, minlength=count) for choice in experts.T]), group)
        earlier, mine = everyone[: group.rank()].sum(0), everyone[group.rank()]
        before = everyone.sum(0) - mine
        ahead = before.cumsum(0) - before + earlier
        rank, n = rank + ahead.T.gather(0, experts), int(everyone.sum()) // k
    return rank < -int(-factor * n * k // count)


def max_violation(loads: Int[Tensor, "*b e"]) -> Float[Tensor, "*b"]:
    """MaxVio: how far the fullest expert lies above the mean, as a share of it; 0 when all are equal (Wang et al. 2024, arXiv 2408.15664,
    equation 4)."""
    mean = loads.double().mean(-1)
    return (loads.amax(-1) - mean) / mean


def load_entropy(loads: Int[Tensor, "*b e"]) -> Float[Tensor, "*b"]:
    """Entropy of the load as a share of the largest possible, log E: 1 when all are equal, 0 when one has all."""
    share = loads.double() / loads.sum(-1, keepdim=True)
    return -torch.xlogy(share, share).sum(-1) / max(torch.log(torch.tensor(loads.shape[-1])).item(), 1e-300)


# ---------------------------------------------------------------- losses, each of one layer


def balance_loss(scores: Float[Tensor, "*b e"], experts: Int[Tensor, "*b k"], group: Group = None) -> Float[Tensor, ""]:
    """E sum f P: f the share of pairs and P the mean score of each expert; 1 when both are even, E when one expert has all (Switch,
    equations 4 to 6, with f over all k choices).

    It is of one layer. Pooled over layers it takes layers of which each has collapsed onto other experts for balanced ones.
    """
    count = scores.shape[-1]
    pairs = load(experts, count, group)
    share = pairs.to(scores.dtype) / pairs.sum()
    return count * (share * mean_over(scores.reshape(-1, count), group)).sum()


def sequence_balance_loss(
    scores: Float[Tensor, "b t e"], experts: Int[Tensor, "b t k"], group: Group = None
) -> Float[Tensor, ""]:
    """`balance_loss` of each row by itself, their mean (DeepSeek-V2, equations 23 to 25; DeepSeek-V3, equations 17 to 20).

    A token counts for the experts that it goes to, in V3's equation 18 for the k largest of its scores before they are corrected."""
    count = scores.shape[-1]
    share = torch.zeros_like(scores[:, 0]).scatter_add_(
        1, experts.flatten(1), torch.ones_like(experts.flatten(1), dtype=scores.dtype)
    )
    pairs = experts.shape[1] * experts.shape[2]
    return count * mean_over((share / pairs * scores.mean(1)).sum(-1), group)


def z_loss(z: Float[Tensor, "*b e"], group: Group = None) -> Float[Tensor, ""]:
    """The mean of logsumexp(z)^2, which keeps logits small (Zoph et al. 2022, arXiv 2202.08906, equation 5)."""
    return mean_over(z.logsumexp(-1).square().reshape(-1), group)


def corrected(correction: Float[Tensor, " e"], loads: Int[Tensor, " e"], rate: float) -> Float[Tensor, " e"]:
    """b + rate sign(mean load - load), re-centred: a common shift would change no choice (Wang et al. 2024, algorithm 1)."""
    moved = correction + rate * (loads.double().mean() - loads).sign().to(correction.dtype)
    return moved - moved.mean()
