"""Causal depthwise convolution along time."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def causal_conv(
    x: Float[Tensor, "b t c"],
    weight: Float[Tensor, "c k"],
    bias: Float[Tensor, " c"] | None,
    past: Float[Tensor, "b k_minus_1 c"],
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b k_minus_1 c"]]:
    """y_t = bias + sum_j weight[:, j] x_{t-k+1+j}, where `past` stands before x.

    Returns y and the last k-1 inputs, which are the `past` of what follows.
    """
    k = weight.shape[1]
    x = torch.cat([past.to(x.dtype), x], 1)
    kept = x[:, x.shape[1] - k + 1 :]
    bias = None if bias is None else bias.to(x.dtype)
    if x.shape[1] == k:
        y = torch.einsum("bkc,ck->bc", x, weight.to(x.dtype))[:, None]
        return (y if bias is None else y + bias), kept
    y = F.conv1d(x.mT, weight.to(x.dtype)[:, None], bias, groups=x.shape[2])
    return y.mT, kept
