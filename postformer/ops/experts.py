"""The experts' networks: each token through those that it is sent to.

n tokens of width d, E experts of width f, k of them a token. Up matrices are [E, f, d], or [E, 2 f, d] with the gate's rows first and then
the values' where the activation gates; those of the output are [E, d, f]. Fused in this way an expert without tokens still has a gradient
(zeros), and a file of the transformers library is read as it is.

    y = sum over a token's experts e of  weight_e (out_e activation(up_e x + up_bias_e) + out_bias_e)

`reference` is the formula, expert by expert. `mixed` sorts the (token, expert) pairs by expert and multiplies each expert's rows at once;
a few tokens that teach nothing go through the kernel of csrc/experts.cpp, which is bound by reading the weights. `across` does it where the
experts lie on several processes, `by_parts` of expert_parts.py where not all matrices are in memory at once.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

from postformer.ops import _cpu
from postformer.ops.exchange import Group, counts_for, exchange
from postformer.ops.pages import fresh

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


class ExpertLinear(nn.Module):
    """The matrices of all experts [E, out, in], and their biases [E, out]; each starts as `nn.Linear` does."""

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool):
        super().__init__()
        reach = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs).uniform_(-reach, reach))
        self.weight.matrices = True  # type: ignore[attr-defined]
        self.bias = nn.Parameter(torch.empty(experts, outputs).uniform_(-reach, reach)) if bias else None
        if self.bias is not None:
            self.bias.no_weight_decay = True  # type: ignore[attr-defined]


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
    x: Float[Tensor, "n d"],
    experts: Int[Tensor, "n k"],
    weights: Float[Tensor, "n k"],
    networks: Networks,
    group: Group = None,
) -> Float[Tensor, "n d"]:
    """As `reference`, in the dtype of x: the pairs in the order of their experts, one product an expert and matrix. With a `group` the
    networks are this process's part of all, as `across` takes them."""
    if group is not None:
        return across(x, experts, weights, networks, group)
    if kernel_takes(x, experts, weights, networks, len(networks.up)):
        return through_kernel(x, experts, weights, networks)
    n, k = experts.shape
    order = experts.reshape(-1).argsort(stable=True)
    sizes = torch.bincount(experts.reshape(-1), minlength=len(networks.up))
    weight = weights.reshape(-1)[order].to(x.dtype)
    y = _answers(x[order // k], sizes, networks, weight[:, None])
    return y[_back(order)].view(n, k, x.shape[1]).sum(1)


def across(
    x: Float[Tensor, "n d"],
    experts: Int[Tensor, "n k"],
    weights: Float[Tensor, "n k"],
    networks: Networks,
    group: dist.ProcessGroup,
) -> Float[Tensor, "n d"]:
    """As `mixed` of all processes' experts, E / R of them on each: `networks` are those that lie here. Pairs go to where their expert lies,
    and its answers come back to be weighed. Gradients of the experts are sums over the tokens of all processes."""
    n, k = experts.shape
    here = len(networks.up)
    order = experts.reshape(-1).argsort(stable=True)
    mine = torch.bincount(experts.reshape(-1), minlength=here * group.size()).view(-1, here)
    theirs = counts_for(mine, group)
    sent, received = mine.sum(1).tolist(), theirs.sum(1).tolist()
    rows = exchange(x[order // k], sent, received, group)
    expert = torch.arange(here, device=x.device).repeat(len(theirs)).repeat_interleave(theirs.reshape(-1))
    by_expert = expert.argsort(stable=True)
    y = _answers(rows[by_expert], theirs.sum(0), networks)
    y = exchange(y[_back(by_expert)], received, sent, group)
    return (y[_back(order)].view(n, k, x.shape[1]) * weights.to(x.dtype)[..., None]).sum(1)


def _answers(
    x: Float[Tensor, "m d"], sizes: Int[Tensor, " e"], networks: Networks, weight: Float[Tensor, "m 1"] | None = None
) -> Float[Tensor, "m d"]:
    """Of the first sizes[0] rows the first expert's, and so on, each perhaps times its weight."""
    up, out, activation, up_bias, out_bias = networks
    h = grouped_product(x, up.to(x.dtype), sizes)
    if up_bias is not None:
        h = h + up_bias.to(x.dtype).repeat_interleave(sizes, 0)
    bias = None if out_bias is None else out_bias.to(x.dtype).repeat_interleave(sizes, 0)
    return weighed(activated(h, activation), weight, bias, x.shape[1], lambda h: grouped_product(h, out.to(x.dtype), sizes))


def weighed(
    h: Float[Tensor, "m f"],
    weight: Float[Tensor, "m 1"] | None,
    bias: Tensor | None,
    width: int,
    product: Callable[[Tensor], Tensor],
) -> Float[Tensor, "m d"]:
    """The answer of width d to h, the product with the second matrix and its bias, times the weight: of both sides of the matrix the
    narrower is multiplied."""
    if weight is not None and h.shape[1] < width:
        y = product(h * weight)
        return y if bias is None else y + weight * bias
    y = product(h)
    y = y if bias is None else y + bias
    return y if weight is None else y * weight


def _back(order: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """What undoes a permutation."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


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
    y = fresh(x, len(x), w.shape[2])
    for rows, matrix, into in zip(x.split(sizes.tolist()), w, y.split(sizes.tolist()), strict=True):
        if len(rows):
            torch.mm(rows, matrix, out=into)
    return y


def _outer(gradient: Float[Tensor, "m o"], x: Float[Tensor, "m i"], sizes: Int[Tensor, " e"]) -> Float[Tensor, "e o i"]:
    """Each group's gradient^T x; zeros where it is empty."""
    counts = sizes.tolist()
    to_w = fresh(x, len(counts), gradient.shape[1], x.shape[1])
    for g, rows, into in zip(gradient.mT.split(counts, 1), x.split(counts), to_w, strict=True):
        if len(rows):
            torch.mm(g, rows, out=into)
        else:
            into.zero_()
    return to_w


GROUPED = (torch.bfloat16, torch.float16, torch.float32)
if torch.ops.aten._grouped_mm not in flop_registry:

    @register_flop_formula(torch.ops.aten._grouped_mm)
    def _grouped_flops(x: torch.Size, w: torch.Size, *rest: Any, **words: Any) -> int:
        """Each row once, by the matrix of its group."""
        return 2 * x[0] * w[1] * w[2]


def _served(x: Tensor, w: Tensor) -> bool:
    """Whether torch's grouped product takes these: of a dtype that it knows, and rows that lie on multiples of 16 bytes. On a CPU it is
    the same loop, without Python between its products."""
    aligned = all(s * x.element_size() % 16 == 0 for s in (x.shape[1], w.shape[1], w.shape[2]))
    return x.device.type in ("cuda", "cpu") and x.dtype in GROUPED and aligned and len(x) > 0


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

MOST_PAIRS = 8
"""Pairs an expert, on average over as many experts as there are or could be chosen: with more of them matrix products are faster."""
KINDS: dict[Activation, int] = {"swiglu": 0, "relu": 1, "gpt-oss": 2, "gelu": 3}
"""Activations by the kernels' numbers."""
GATED = {number for kind, number in KINDS.items() if gated(kind)}
ODD = 2
"""What the kernel answers where a token is sent to no expert that there is."""


def kernel_takes(x: Tensor, experts: Tensor, weights: Tensor, networks: Networks, count: int) -> bool:
    """Whether the kernel can take these and is worth it, of a mixture of `count` experts."""
    up, out, _, *biases = networks
    taught = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weights, up, out, *biases))
    few = 0 < experts.numel() <= MOST_PAIRS * min(count, experts.numel())
    return few and not taught and _cpu.serves_half(x) and _cpu.serves_half(up, out)


def through_kernel(x: Tensor, experts: Tensor, weights: Tensor, networks: Networks) -> Tensor:
    """As `reference`, sums in fp32; no gradients."""
    return called(x, experts, weights, networks).to(x.dtype)


def called(x: Tensor, experts: Tensor, weights: Tensor, networks: Networks) -> Tensor:
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
    f = out.shape[2]
    if activation not in KINDS.values():
        raise ValueError(f"experts: activation {activation} is none of {', '.join(map(str, KINDS.values()))}")
    if w != (2 * f if activation in GATED else f):
        raise ValueError(f"experts: up has {w} rows for out's {f} columns")
    _cpu.check_half("experts", "up", up)
    _cpu.check("experts", x=(x, (n, d)), weights=(weights, (n, k)), up_bias=(up_bias, (e, w)), out_bias=(out_bias, (e, d)))
    _cpu.check("experts", up.dtype, up=(up, (e, w, d)), out=(out, (e, d, f)))
    _cpu.check("experts", torch.int64, chosen=(chosen, (n, k)))
    y = torch.empty_like(x)
    words = _cpu.contiguous(x, chosen, weights, up, out, up_bias, out_bias)
    addresses = [None if t is None else t.data_ptr() for t in (*words, y)]
    said = _cpu.asked("experts_forward", *addresses, up.dtype == torch.bfloat16, n, k, e, d, f, activation)
    if said == ODD:
        raise ValueError(f"experts: {chosen.min()} to {chosen.max()} are chosen of 0 to {e - 1}")
    if said:
        raise MemoryError("the kernel experts_forward ran out of memory")
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
