"""Titans' neural memory: a small network in each head that learns the text by heart while it reads (LMM).

Behrouz et al. 2024 (arXiv 2501.00663), sections 3 and 4.4.

    q, k, v = SiLU(conv(in(p || x)));  q, k = q / |q|, k / |k|;  y = M_t(q_t) after the update by (k_t, v_t), postformer/ops/memory.py
    out(RMSNorm(y) * SiLU(z))

What the paper leaves open is an option here; docs/titans.md gives the reasons for the defaults.

b batch, t time, d model width, h heads, e head width, p persistent tokens; W of each matrix of the memory [h, o, i].
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from postformer.ops.conv import causal_conv
from postformer.ops.fast_weights import BIASES, MLP, Net, SwiGLU
from postformer.ops.layers import Linear, RMSNorm
from postformer.ops.matvec import project
from postformer.ops.memory import Gates, Memory, Places, memory
from postformer.ops.norm import rms_norm
from postformer.ops.packing import WHOLE, Packing


class LMMState(NamedTuple):
    """The last inputs of the convolution, the memory (fp32 or wider), and how many tokens were read. The memory of a row that has read
    nothing is the learned one, whatever stands here."""

    conv: Float[Tensor, "b past c"]
    start: tuple[Tensor, ...]
    """The weights with which the chunk began."""
    now: tuple[Tensor, ...]
    surprise: tuple[Tensor, ...]
    seen: Int[Tensor, " b"]


class Recall(NamedTuple):
    """What reading from weights that stand still keeps: the last inputs of the queries' convolution, and the weights."""

    conv: Float[Tensor, "b past c"]
    weights: tuple[Tensor, ...]


class LMM(nn.Module):
    """`memory` is a network of `depth` matrices, `expand` times as wide inside as a head; `chunk` tokens share the weights at which their
    gradients are taken. With `residual` (default: where the depth is above 1) a memory answers x + LN(y). theta is 1 - eta times at
    most `rate` (default: 0.5 / chunk). Without `momentum` and `forgetting`, eta is 0 and alpha is 0."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        head_dim: int | None = None,
        memory: Literal["mlp", "swiglu"] = "mlp",
        depth: int = 2,
        expand: int = 2,
        activation: Literal["silu", "gelu"] = "silu",
        residual: bool | None = None,
        bias: Literal["l2", "dot", "lp", "huber"] = "l2",
        chunk: int = 16,
        momentum: bool = True,
        forgetting: bool = True,
        rate: float | None = None,
        conv: int = 4,
        persistent: int = 0,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        e = dim // max(heads, 1) if head_dim is None else head_dim
        sizes = {"heads": heads, "head_dim": e, "depth": depth, "expand": expand, "chunk": chunk, "conv": conv}
        if min(sizes.values()) < 1 or persistent < 0:
            raise ValueError(
                f"{', '.join(f'{k}={v}' for k, v in sizes.items())} must be at least 1 and persistent={persistent} 0"
            )
        if rate is not None and rate <= 0:
            raise ValueError(f"rate={rate} must be above 0")
        self.dim, self.heads, self.width, self.chunk = dim, heads, e, chunk
        self.net: Net = (
            SwiGLU(e, expand * e)
            if memory == "swiglu"
            else MLP(e, depth, expand * e, activation, depth > 1 if residual is None else residual)
        )
        self.bias, self.rate = BIASES[bias](), rate or 0.5 / chunk
        self.momentum, self.forgetting = momentum, forgetting
        inner = heads * e
        self.sizes = [3 * inner, inner, *[heads] * (1 + momentum + forgetting + self.bias.takes_limit)]
        self.inp = Linear(dim, sum(self.sizes[:2]), bias=False)
        self.gates = Linear(dim, sum(self.sizes[2:]))
        self.conv_weight = nn.Parameter(torch.empty(3 * inner, conv).uniform_(-(conv**-0.5), conv**-0.5))
        self.initial = nn.ParameterList(nn.Parameter(torch.randn(heads, o, i) / math.sqrt(i)) for o, i in self.net.shapes)
        self.prefix = nn.Parameter(torch.randn(persistent, dim) * 0.02) if persistent else None
        self.norm = RMSNorm(e, norm_eps)
        self.out = Linear(inner, dim, bias=False)
        self._open_gates()

    @torch.no_grad()
    def _open_gates(self) -> None:
        """At first theta is half of what it may be, eta 0.9, alpha 0.01 and a limit 1."""
        firsts = [0.0] + [math.log(9)] * self.momentum + [-math.log(99)] * self.forgetting
        firsts += [math.log(math.e - 1)] * self.bias.takes_limit
        self.gates.bias.copy_(torch.tensor(firsts).repeat_interleave(self.heads))
        self.gates.weight.mul_(0.1)

    def init_state(self, batch: int) -> LMMState:
        """Zeros: nothing was read."""
        like: dict[str, Any] = {"device": self.conv_weight.device, "dtype": self.conv_weight.dtype}
        conv = torch.zeros(batch, self.conv_weight.shape[1] - 1, self.sizes[0], **like)
        like["dtype"] = torch.promote_types(like["dtype"], torch.float32)
        start, now, surprise = (tuple(torch.zeros(batch, self.heads, *s, **like) for s in self.net.shapes) for _ in range(3))
        seen = torch.zeros(batch, dtype=torch.long, device=like["device"])
        return LMMState(conv, start, now, surprise if self.momentum else (), seen)

    def forward(
        self, x: Float[Tensor, "b t d"], state: LMMState | None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], LMMState | None]:
        """Continue from the state over the new tokens; returns the output and the state after them."""
        b, t, _ = x.shape
        if not b * t:
            return x, state
        past, start, now, surprise, seen = state if state is not None else self.init_state(b)
        position = packing.positions(seen, t)
        held = fresh = Memory(start, now, surprise)
        unread = bool((seen == 0).any())
        if unread or packing.starts is not None:
            fresh = self._fresh(x.dtype, b)
        if unread:
            held = _where(seen == 0, fresh, held)
        real = packing.real(t)
        begins = (position + (0 if self.prefix is None else len(self.prefix))) % self.chunk == 0
        places = Places(begins if real is None else begins & real, packing.starts, real)
        y, z, held, past = self._read(x, held, fresh, places, past, packing)
        y = self._answer(y, z)
        return y, None if state is None else LMMState(past, *held, packing.last(position + 1, seen))

    def init_recall(self, batch: int) -> Recall:
        """Zeros, for `recall`."""
        conv = self.conv_weight.new_zeros(batch, self.conv_weight.shape[1] - 1, self.sizes[1])
        wide = torch.promote_types(conv.dtype, torch.float32)
        return Recall(conv, tuple(torch.zeros(batch, self.heads, *s, device=conv.device, dtype=wide) for s in self.net.shapes))

    def standing(self, state: LMMState, starts: Bool[Tensor, " b"] | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The weights that the next tokens find, of which those in the rows `starts` begin a document."""
        new = state.seen == 0 if starts is None else (state.seen == 0) | starts
        if not bool(new.any()):
            return state.now
        fresh = self._fresh(dtype, len(new)).now
        return tuple(torch.where(new[:, None, None, None], a, b) for a, b in zip(fresh, state.now, strict=True))

    def recall(
        self, x: Float[Tensor, "b t d"], held: Recall, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], Recall]:
        """What the weights answer to the tokens' queries; nothing is learned."""
        inner = self.sizes[1]
        q, z = project(x, self.inp.weight[:inner]), project(x, self.inp.weight[-inner:])
        q, past = causal_conv(q, self.conv_weight[:inner], None, held.conv, *packing, silu=True)
        q = F.normalize(q.to(held.weights[0].dtype).unflatten(-1, (self.heads, -1)), dim=-1)
        y = self.net.read(q.transpose(1, 2), [lambda m, w=w: m @ w.mT for w in held.weights])
        return self._answer(y.transpose(1, 2), z), Recall(past, held.weights)

    def _answer(self, y: Float[Tensor, "b t h e"], z: Float[Tensor, "b t c"]) -> Float[Tensor, "b t d"]:
        """out(RMSNorm(y) * SiLU(z)), the norm of each head by itself."""
        gain = self.norm.weight.repeat(self.heads)
        return self.out(rms_norm(y.flatten(2).to(z.dtype), gain, self.norm.eps, z, self.heads, after=True))

    def _read(
        self, x: Tensor, held: Memory, fresh: Memory, places: Places, past: Tensor, packing: Packing
    ) -> tuple[Tensor, Tensor, Memory, Tensor]:
        """The memory's answers [b, t, h, e], the gate z, and the memory and the convolution's past after the tokens."""
        wide = torch.promote_types(x.dtype, torch.float32)
        mixed, z = self.inp(x).split(self.sizes[:2], -1)
        mixed, past = causal_conv(mixed, self.conv_weight, None, past, *packing, silu=True)
        q, k, v = mixed.to(wide).unflatten(-1, (3, self.heads, -1)).unbind(2)
        y, held = memory(
            self.net, self.bias, F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, self._gates(x), held, fresh, places
        )
        return y, z, held, past

    def _gates(self, x: Tensor) -> Gates:
        wide = torch.promote_types(x.dtype, torch.float32)
        theta, *more = self.gates(x).to(wide).split(self.sizes[2:], -1)
        rate, carry = self.rate * theta.sigmoid(), None
        if self.momentum:
            eta = more.pop(0)
            rate, carry = rate * torch.sigmoid(-eta), F.logsigmoid(eta)
        keep = F.logsigmoid(-more.pop(0)) if self.forgetting else torch.zeros_like(theta)
        limit = F.softplus(more.pop(0)) if self.bias.takes_limit else None
        return Gates(rate, keep, carry, limit)

    def _fresh(self, dtype: torch.dtype, batch: int) -> Memory:
        """The memory before a document's first token: the learned one, after the persistent tokens."""
        wide = torch.promote_types(self.conv_weight.dtype, torch.float32)
        W = tuple(w.to(wide).expand(1, *w.shape) for w in self.initial)
        at = Memory(W, W, tuple(torch.zeros_like(w) for w in W) if self.momentum else ())
        if self.prefix is not None:
            p = self.prefix.to(dtype)[None]
            begins = torch.arange(p.shape[1], device=p.device)[None] % self.chunk == 0
            past = p.new_zeros(1, self.conv_weight.shape[1] - 1, self.sizes[0])
            *_, at, _ = self._read(p, at, at, Places(begins), past, WHOLE)
        return Memory(*(tuple(w.expand(batch, *w.shape[1:]) for w in part) for part in at))

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of `length` new tokens, whatever came before (a multiply-add is two): projections, convolution, and of
        the memory the update of each token (forward, backward and the outer products) and its read, as if token by token."""
        inner = self.heads * self.width
        projections = 2 * self.dim * (4 * inner + inner + self.gates.out_features)
        weights = self.heads * sum(o * i for o, i in self.net.shapes)
        first = self.heads * self.net.shapes[0][0] * self.net.shapes[0][1]
        learned = (2 * weights + 2 * (weights - first) + 2 * weights) + 2 * weights
        return length * (projections + 2 * self.conv_weight.numel() + learned + (2 + self.momentum * 2) * weights)

    def recall_flops(self, length: int) -> int:
        """Floating-point operations of `recall` for `length` tokens."""
        inner, weights = self.heads * self.width, self.heads * sum(o * i for o, i in self.net.shapes)
        return length * (2 * self.dim * 3 * inner + 2 * inner * self.conv_weight.shape[1] + 2 * weights)

    def recall_bytes(self, itemsize: int = 4) -> int:
        """Bytes of one row's `Recall`."""
        weights = self.heads * sum(o * i for o, i in self.net.shapes)
        return self.sizes[1] * (self.conv_weight.shape[1] - 1) * itemsize + weights * max(itemsize, 4)

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """Bytes of one row's state, the same after any number of tokens. The memory is kept in fp32 at least."""
        channels, k = self.conv_weight.shape
        weights = self.heads * sum(o * i for o, i in self.net.shapes)
        return channels * (k - 1) * itemsize + (2 + self.momentum) * weights * max(itemsize, 4) + 8


def _where(rows: Tensor, a: Memory, b: Memory) -> Memory:
    """The memory a in the given rows, and b in the others."""
    at = rows[:, None, None, None]
    return Memory(*(tuple(torch.where(at, x, y) for x, y in zip(p, q, strict=True)) for p, q in zip(a, b, strict=True)))
