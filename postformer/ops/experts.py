"""The experts' networks: each token through those that it is sent to.

n tokens of width d, E experts of width f, k of them a token. Up matrices are [E, f, d], or [E, 2 f, d] with the gate's rows first and then
the values' where the activation gates; those of the output are [E, d, f]. Fused in this way an expert without tokens still has a gradient
(zeros), and a file of the transformers library is read as it is.

    y = sum over a token's experts e of  weight_e (out_e activation(up_e x + up_bias_e) + out_bias_e)

`reference` is the formula, expert by expert. `mixed` sorts the (token, expert) pairs by expert and multiplies each expert's rows at once;
a few tokens that teach nothing go through the kernel of csrc/experts.cpp, which is bound by reading the weights. `gathered` computes the
same where not all matrices are in memory at once.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from postformer.ops import _cpu

Activation = Literal["swiglu", "gelu", "relu", "gpt-oss"]
ALPHA, LIMIT = 1.702, 7.0
"""Of gpt-oss (its config.json: swiglu_alpha, swiglu_limit)."""


def gated(activation: Activation) -> bool:
    """Whether the up matrices hold a gate."""
    return activation in ("swiglu", "gpt-oss")


def activated(h: Float[Tensor, "*b w"], activation: Activation) -> Float[Tensor, "*b f"]:
    """What stands between an expert's two matrices: SwiGLU (Shazeer 2020, arXiv 2002.05202, eq. 6), gpt-oss's clipped form, GELU, ReLU."""
    if activation == "gelu":
        return F.gelu(h)
    if activation == "relu":
        return h.relu()
    gate, up = h.chunk(2, -1)
    if activation == "swiglu":
        return F.silu(gate) * up
    gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
    return gate * torch.sigmoid(ALPHA * gate) * (up + 1)


class Networks(NamedTuple):
    """All experts' matrices, what stands between them, and their biases."""

    up: Float[Tensor, "e w d"]
    out: Float[Tensor, "e d f"]
    activation: Activation
    up_bias: Float[Tensor, "e w"] | None = None
    out_bias: Float[Tensor, "e d"] | None = None


def reference(
    x: Float[Tensor, "n d"], experts: Int[Tensor, "n k"], weights: Float[Tensor, "n k"], networks: Networks
) -> Float[Tensor, "n d"]:
    """The formula, one expert after the other."""
    up, out, activation, up_bias, out_bias = networks
    y = torch.zeros_like(x)
    for e, (w_up, w_out) in enumerate(zip(up, out, strict=True)):
        token, place = (experts == e).nonzero(as_tuple=True)
        h = activated(F.linear(x[token], w_up, None if up_bias is None else up_bias[e]), activation)
        answer = F.linear(h, w_out, None if out_bias is None else out_bias[e])
        y = y.index_add(0, token, answer * weights[token, place, None].to(x.dtype))
    return y


def mixed(
    x: Float[Tensor, "n d"], experts: Int[Tensor, "n k"], weights: Float[Tensor, "n k"], networks: Networks
) -> Float[Tensor, "n d"]:
    """As `reference`, in the dtype of x: the pairs in the order of their experts, one product an expert and matrix."""
    if _few(x, experts, weights, networks, len(networks.up)):
        return through_kernel(x, experts, weights, networks)
    up, out, activation, up_bias, out_bias = networks
    n, k = experts.shape
    order = experts.reshape(-1).argsort(stable=True)
    token, sizes = order // k, torch.bincount(experts.reshape(-1), minlength=len(up))
    weight = weights.reshape(-1)[order].to(x.dtype)
    h = grouped_product(x[token], up.to(x.dtype), sizes)
    if up_bias is not None:
        h = h + up_bias.to(x.dtype).repeat_interleave(sizes, 0)
    y = grouped_product(activated(h, activation) * weight[:, None], out.to(x.dtype), sizes)
    if out_bias is not None:
        y = y + weight[:, None] * out_bias.to(x.dtype).repeat_interleave(sizes, 0)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(n * k, device=order.device))
    return y[back].view(n, k, x.shape[1]).sum(1)


class Group(NamedTuple):
    """Some experts, and where among these networks each expert of the mixture lies; -1 where it is not one of them."""

    networks: Networks
    places: Int[Tensor, " e"]


def gathered(
    x: Float[Tensor, "n d"], experts: Int[Tensor, "n k"], weights: Float[Tensor, "n k"], groups: Iterable[Group]
) -> Float[Tensor, "n d"]:
    """`mixed` without gradients, to the same bits, where matrices come in groups that hold each chosen expert once. A group is done with
    when the next one is asked for."""
    n, k = experts.shape
    answers, few = None, False
    for networks, places in groups:
        if answers is None:
            few = _few(x, experts, weights, networks, len(places))
            if few:  # the kernel adds up in the order of experts
                experts, order = experts.sort(1)
                weights = weights.gather(1, order)
            answers = x.new_empty(n * k, x.shape[1], dtype=torch.float32 if few else x.dtype)
        place, weight = places[experts.reshape(-1)], weights.reshape(-1)
        if few and bool(place.min() >= 0):
            answers = _called(x.repeat_interleave(k, 0), place[:, None], weight[:, None], networks)
            continue
        pairs = (place >= 0).nonzero()[:, 0]
        if few:
            answers[pairs] = _called(x[pairs // k], place[pairs, None], weight[pairs, None], networks)
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
    y = (activated(h, activation) * weight) @ out[i].to(x.dtype).T
    return y if out_bias is None else y + weight * out_bias[i].to(x.dtype)


# ---------------------------------------------------------------- rows times the matrix of their group


def grouped_product(x: Float[Tensor, "m i"], w: Float[Tensor, "e o i"], sizes: Int[Tensor, " e"]) -> Float[Tensor, "m o"]:
    """The first sizes[0] rows times w[0]^T, the next sizes[1] times w[1]^T, and so on; gradients of first order."""
    return _GroupedProduct.apply(x, w, sizes)  # type: ignore[no-any-return]


class _GroupedProduct(torch.autograd.Function):
    """Gradients by formula: autograd of a loop over w[e] would add up a tensor as large as w for each expert."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, sizes: Tensor) -> Tensor:
        ctx.save_for_backward(x, w, sizes)
        return _product(x, w.mT, sizes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, w, sizes = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_x = _product(gradient, w, sizes) if ctx.needs_input_grad[0] else None
        to_w = _outer(gradient, x, sizes) if ctx.needs_input_grad[1] else None
        return to_x, to_w, None


def _product(x: Float[Tensor, "m i"], w: Float[Tensor, "e i o"], sizes: Int[Tensor, " e"]) -> Float[Tensor, "m o"]:
    if _served(x, w):
        return F.grouped_mm(x, w, offs=sizes.cumsum(0).int())
    y = x.new_empty(len(x), w.shape[2])
    for rows, matrix, into in zip(x.split(sizes.tolist()), w, y.split(sizes.tolist()), strict=True):
        if len(rows):
            torch.mm(rows, matrix, out=into)
    return y


def _outer(gradient: Float[Tensor, "m o"], x: Float[Tensor, "m i"], sizes: Int[Tensor, " e"]) -> Float[Tensor, "e o i"]:
    """Each group's gradient^T x; zeros where it is empty."""
    to_w = x.new_empty(len(sizes), gradient.shape[1], x.shape[1])
    for g, rows, into in zip(gradient.split(sizes.tolist()), x.split(sizes.tolist()), to_w, strict=True):
        if len(rows):
            torch.mm(g.mT, rows, out=into)
        else:
            into.zero_()
    return to_w


def _served(x: Tensor, w: Tensor) -> bool:
    """Whether torch's grouped product takes these: on a GPU, of a dtype that it knows, and rows that lie on multiples of 16 bytes. On a
    CPU it is the same loop."""
    aligned = all(s * x.element_size() % 16 == 0 for s in (x.shape[1], w.shape[1], w.shape[2]))
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16, torch.float32) and aligned and len(x) > 0


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

MOST_PAIRS = 8
"""Pairs an expert, on average over as many experts as there are or could be chosen: with more of them matrix products are faster."""
KINDS: dict[Activation, int] = {"swiglu": 0, "relu": 1, "gpt-oss": 2}
"""Activations that the kernel has, by its numbers."""


def _few(x: Tensor, experts: Tensor, weights: Tensor, networks: Networks, count: int) -> bool:
    """Whether the kernel can take these and is worth it, of a mixture of `count` experts."""
    up, out, activation, *biases = networks
    taught = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weights, up, out, *biases))
    few = 0 < experts.numel() <= MOST_PAIRS * min(count, experts.numel())
    return few and not taught and activation in KINDS and _cpu.serves_half(x) and _cpu.serves_half(up, out)


def through_kernel(x: Tensor, experts: Tensor, weights: Tensor, networks: Networks) -> Tensor:
    """As `reference`, sums in fp32; no gradients."""
    return _called(x, experts, weights, networks).to(x.dtype)


def _called(x: Tensor, experts: Tensor, weights: Tensor, networks: Networks) -> Tensor:
    """The kernel's fp32."""
    up, out, activation, *of = networks
    biases = [None if b is None else b.float() for b in of]
    return torch.ops.postformer.experts(x.float(), experts, weights.float(), up, out, *biases, KINDS[activation])


_cpu.LIBRARY.define(
    "experts(Tensor x, Tensor chosen, Tensor weights, Tensor up, Tensor out, Tensor? up_bias, Tensor? out_bias, int activation) -> Tensor"
)


@torch.library.impl(_cpu.LIBRARY, "experts", "CPU")
def _experts_cpu(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    up: Tensor,
    out: Tensor,
    up_bias: Tensor | None,
    out_bias: Tensor | None,
    activation: int,
) -> Tensor:
    (n, d), (_, k), (e, w, _) = x.shape, chosen.shape, up.shape
    f = w if activation == KINDS["relu"] else w // 2
    _cpu.check_half("experts", "up", up)
    _cpu.check("experts", x=(x, (n, d)), weights=(weights, (n, k)), up_bias=(up_bias, (e, w)), out_bias=(out_bias, (e, d)))
    _cpu.check("experts", up.dtype, up=(up, (e, w, d)), out=(out, (e, d, f)))
    _cpu.check("experts", torch.int64, chosen=(chosen, (n, k)))
    y = torch.empty_like(x)
    words = _cpu.contiguous(x, chosen, weights, up, out, up_bias, out_bias)
    _cpu.call("experts_forward", *words, y, up.dtype == torch.bfloat16, n, k, e, d, f, activation)
    return y


@torch.library.register_fake("postformer::experts", lib=_cpu.LIBRARY)
def _experts_fake(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


torch.library.register_autograd("postformer::experts", _cpu.no_gradient, lib=_cpu.LIBRARY)


@register_flop_formula(torch.ops.postformer.experts)
def _flops(
    x: torch.Size, chosen: torch.Size, weights: torch.Size, up: torch.Size, out: torch.Size, *rest: Any, **words: Any
) -> int:
    """As torch counts its own products: a multiply-add is two."""
    return 2 * chosen[0] * chosen[1] * (up[1] * up[2] + out[1] * out[2])
