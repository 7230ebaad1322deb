"""Layers that make dtype explicit: parameters may be kept in fp32 while activations are bf16; there is no autocast."""

import math
import typing
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from postformer.ops import matvec
from postformer.ops.affine import affine
from postformer.ops.norm import rms_norm


class Linear(nn.Linear):
    """`nn.Linear` that casts its parameters to the input's dtype."""

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        if self.bias is None:
            return matvec.project(input, self.weight)
        return affine(input, self.weight.to(input.dtype), self.bias.to(input.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in fp32 or wider (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = checked_eps(eps)
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` computed in fp32 or wider, that answers in the input's dtype (Ba et al. 2016, arXiv 1607.06450)."""

    def forward(self, input: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        wide = input if input.dtype == torch.float64 else input.float()
        weight, bias = (None if p is None else p.to(wide.dtype) for p in (self.weight, self.bias))
        return F.layer_norm(wide, self.normalized_shape, weight, bias, self.eps).to(input.dtype)


Norm = Literal["rms", "layer"]


def norm_of(kind: Norm, dim: int, eps: float, affine: bool = True) -> nn.Module:
    """A norm over the last dimension; "rms" has a weight, "layer" a weight and a bias where it is `affine`. Raises ValueError."""
    if checked_word("norm", kind, Norm) == "layer":
        return LayerNorm(dim, checked_eps(eps), elementwise_affine=affine)
    return RMSNorm(dim, eps)


def checked_word(name: str, word: str, choices: object) -> str:
    """A word that must be one of those of a `Literal`: `build` has checked it, a caller of the class has not. Raises ValueError."""
    if word not in typing.get_args(choices):
        raise ValueError(f"{name}={word!r} is not a choice; choose from {', '.join(typing.get_args(choices))}")
    return word


def checked_eps(eps: float) -> float:
    """What a norm adds to the mean of squares. Raises ValueError."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"norm_eps={eps} must be at least 0")
    return eps


class Embedding(nn.Embedding):
    """`nn.Embedding` that starts at a standard deviation of 0.02 and whose weight can serve as a tied output head."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def head(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """Logits against the embedding's own rows."""
        return matvec.project(x, self.weight)

    def forward(self, input: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        return F.embedding(input, self.weight)


def dt_bias(count: int, dt_min: float, dt_max: float) -> Float[Tensor, " count"]:
    """Biases whose softplus is log-uniform from dt_min to dt_max (Gu & Dao 2023, section 3.6). Raises ValueError."""
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"dt_min={dt_min} and dt_max={dt_max} must satisfy 0 < dt_min <= dt_max")
    dt = torch.empty(count).uniform_(math.log(dt_min), math.log(dt_max)).exp()
    return dt + torch.log(-torch.expm1(-dt))


def head_width(dim: int, heads: int, kv_heads: int | None, head_dim: int | None) -> int:
    """The width of each of an attention's heads. Raises ValueError for numbers that do not fit together."""
    groups = kv_heads or heads
    if heads < 1 or groups < 1 or heads % groups:
        raise ValueError(f"heads={heads} must be a positive multiple of kv_heads={kv_heads}")
    if head_dim is None and dim % heads:
        raise ValueError(f"dim={dim} is not divisible by heads={heads}; give head_dim, or another number of heads")
    return head_dim or dim // heads


def heads_of(channels: int, head_dim: int, groups: int) -> int:
    """How many heads of `head_dim` the channels make, which `groups` must divide. Raises ValueError."""
    if channels % head_dim or channels // head_dim % groups:
        raise ValueError(
            f"head_dim={head_dim} must divide expand * dim = {channels}, and groups={groups} the number of heads that this makes"
        )
    return channels // head_dim


def unaltered(module: nn.Module, cls: type) -> bool:
    """Whether a module is of exactly this class, which does what it was written to do, and has no method of its own in a method's place."""
    forward = cls.forward  # type: ignore[attr-defined]
    as_written = forward.__module__ == cls.__module__ and forward.__qualname__ == f"{cls.__qualname__}.forward"
    return type(module) is cls and as_written and not vars(cls).keys() & module.__dict__.keys()


def bare(*linear: nn.Module | None) -> bool:
    """Whether all are our `Linear` as it was made, neither wrapped, pruned nor watched, so that a kernel may read their weights."""
    there = [m for m in linear if m is not None]
    return all(unaltered(m, Linear) and m._parameters.get("weight") is not None for m in there) and not watched(*there)


def watched(*modules: nn.Module) -> bool:
    """Whether a forward hook listens to one of the modules, or its forward was replaced: a kernel would pass it by."""
    for m in modules:
        if m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__:
            return True
    return bool(nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks)
