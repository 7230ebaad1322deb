"""The experts' networks where not all matrices are in memory at once: the formula of experts.py, some experts after the others."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from postformer.ops.experts import Networks, activated, called, kernel_takes, weighed


class Part(NamedTuple):
    """Some experts, and where among these networks each expert of the mixture lies; -1 where it is not one of them."""

    networks: Networks
    places: Int[Tensor, " e"]


def by_parts(
    x: Float[Tensor, "n d"], experts: Int[Tensor, "n k"], weights: Float[Tensor, "n k"], parts: Iterable[Part]
) -> Float[Tensor, "n d"]:
    """`mixed` without gradients, to the same bits, where matrices come in parts that hold each chosen expert once. A part is done with
    when the next one is asked for."""
    n, k = experts.shape
    answers, few = None, False
    for networks, places in parts:
        if answers is None:
            few = kernel_takes(x, experts, weights, networks, len(places))
            if few:  # the kernel adds up in the order of experts
                experts, order = experts.sort(1)
                weights = weights.gather(1, order)
            answers = x.new_empty(n * k, x.shape[1], dtype=torch.float32 if few else x.dtype)
        place, weight = places[experts.reshape(-1)], weights.reshape(-1)
        if few and bool(place.min() >= 0):
            answers = called(x.repeat_interleave(k, 0), place[:, None], weight[:, None], networks)
            continue
        pairs = (place >= 0).nonzero()[:, 0]
        if few:
            answers[pairs] = called(x[pairs // k], place[pairs, None], weight[pairs, None], networks)
            continue
        for i in place[pairs].unique().tolist():
            own = (place == i).nonzero()[:, 0]
            answers[own] = _one(x[own // k], weight[own, None].to(x.dtype), networks, i)
    if answers is None:
        return torch.zeros_like(x)
    if not few:
        return answers.view(n, k, x.shape[1]).sum(1)
    first, *rest = answers.view(n, k, x.shape[1]).unbind(1)
    for answer in rest:
        first = first + answer
    return first.to(x.dtype)


def _one(x: Float[Tensor, "m d"], weight: Float[Tensor, "m 1"], networks: Networks, i: int) -> Float[Tensor, "m d"]:
    """The weighted answers of one of the networks, as `mixed` computes them."""
    up, out, activation, up_bias, out_bias = networks
    h = x @ up[i].to(x.dtype).T
    if up_bias is not None:
        h = h + up_bias[i].to(x.dtype)
    bias = None if out_bias is None else out_bias[i].to(x.dtype)
    return weighed(activated(h, activation), weight, bias, x.shape[1], lambda h: h @ out[i].to(x.dtype).T)
