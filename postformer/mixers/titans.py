"""Titans' neural memory: a small network in each head that learns the text by heart while it reads (LMM).

Behrouz et al. 2024 (arXiv 2501.00663), sections 3 and 4.4.

    q, k, v = SiLU(conv(in(x)));  q, k = q / |q|, k / |k|;  y = M_t(q_t) after the update by (k_t, v_t), postformer/ops/memory.py
    M_0 = the learned memory after the persistent tokens p, which are read by themselves: the convolution does not reach from p into x
    out(RMSNorm(y) * SiLU(z))

What the paper leaves open is an option here; docs/titans.md gives the reasons for the defaults.

b batch, t time, d model width, h heads, e head width, p persistent tokens; W of each matrix of the memory [h, o, i].
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from postformer.ops.conv import causal_conv
from postformer.ops.family import Activation, BiasName, Network, Preset, Retention, Step, Write, learner
from postformer.ops.fast_weights import maps
from postformer.ops.layers import Linear, RMSNorm, checked_word
from postformer.ops.matvec import project
from postformer.ops.memory import Gates, Memory, Places, begun, memory, where
from postformer.ops.norm import rms_norm, unit
from postformer.ops.packing import WHOLE, Packing
from postformer.ops.writer import GatesOf, Writer, above, checked_threshold


class LMMState(NamedTuple):
    """The last inputs of the convolution, the memory (fp32 or wider), and how many tokens were read. The memory of a row that has read
    nothing is the learned one, whatever stands here."""

    conv: Float[Tensor, "b past c"]
    start: tuple[Tensor, ...]
    """The weights with which the chunk began."""
    now: tuple[Tensor, ...]
    surprise: tuple[Tensor, ...]
    recent: tuple[Tensor, ...]
    """With a window the keys, values and shares of the last tokens."""
    seen: Int[Tensor, " b"]


class Recall(NamedTuple):
    """What reading from weights that stand still keeps: the last inputs of the queries' convolution, and the weights."""

    conv: Float[Tensor, "b past c"]
    weights: tuple[Tensor, ...]


class LMM(Writer):
    """`preset` names the choices of one paper (postformer/ops/family.py); what is given besides changes them. The network has `depth`
    matrices, `expand` times as wide inside as a head, and with `residual` (default: where the depth is above 1) answers x + LN(y), the
    norm over sqrt(variance + `damping`). `chunk` tokens share the weights at which their gradients are taken, and `window` tokens take
    part in each step. theta is 1 - eta times at most `rate` (default: 0.5 / chunk), which bounds the step instead where that is Muon's.
    Without `momentum` eta is 0, without `forgetting` alpha is 0. A token of which theta's share is at most `threshold` is not written:
    theta, alpha and Muon's step are 0, and above it they grow from 0, so that what was read of no use adds nothing of its own to the
    memory and wears nothing out; with `momentum` the surprise of before still changes it. `gates` are read off the `token`, or off what
    the convolution made of it and of those before it."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        head_dim: int | None = None,
        preset: Preset = "titans",
        network: Network | None = None,
        depth: int | None = None,
        expand: int | None = None,
        activation: Activation | None = None,
        residual: bool | None = None,
        damping: float | None = None,
        bias: BiasName | None = None,
        p: float | None = None,
        retention: Retention | None = None,
        q: float | None = None,
        step: Step | None = None,
        write: Write | None = None,
        window: int | None = None,
        chunk: int | None = None,
        momentum: bool | None = None,
        forgetting: bool | None = None,
        rate: float | None = None,
        threshold: float = 0.0,
        gates: GatesOf = "token",
        conv: int = 4,
        persistent: int = 0,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        e = dim // max(heads, 1) if head_dim is None else head_dim
        for name, value, least in (("heads", heads, 1), ("head_dim", e, 1), ("conv", conv, 1), ("persistent", persistent, 0)):
            if value < least:
                of = f" (heads={heads} of dim={dim})" if name == "head_dim" and head_dim is None else ""
                raise ValueError(f"{name}={value} must be at least {least}{of}")
        if rate is not None and not rate > 0:
            raise ValueError(f"rate={rate} must be above 0")
        if damping is not None and not damping > 0:
            raise ValueError(f"damping={damping} must be above 0")
        given = {
            "network": network,
            "depth": depth,
            "expand": expand,
            "activation": activation,
            "residual": residual,
            "damping": damping,
            "bias": bias,
            "p": p,
            "retention": retention,
            "q": q,
            "step": step,
            "write": write,
            "window": window,
            "chunk": chunk,
            "momentum": momentum,
            "forgetting": forgetting,
        }
        self.learner = learner(e, preset, given)
        self.net, self.bias, self.rule, self.momentum, self.forgetting, self.chunk = self.learner
        self.dim, self.heads, self.width = dim, heads, e
        self.rate, self.threshold = rate or 0.5 / self.chunk, checked_threshold(threshold)
        self.gated_by = checked_word("gates", gates, GatesOf)
        inner = heads * e
        self.sizes = [3 * inner, inner, *[heads] * len(self._gate_names())]
        self.inp = Linear(dim, sum(self.sizes[:2]), bias=False)
        self.gates = Linear(dim if gates == "token" else 3 * inner, sum(self.sizes[2:]))
        self.conv_weight = nn.Parameter(torch.empty(3 * inner, conv).uniform_(-(conv**-0.5), conv**-0.5))
        self.initial = nn.ParameterList(nn.Parameter(torch.randn(heads, o, i) / math.sqrt(i)) for o, i in self.net.shapes)
        self.prefix = nn.Parameter(torch.randn(persistent, dim) * 0.02) if persistent else None
        self.norm = RMSNorm(e, norm_eps)
        self.out = Linear(inner, dim, bias=False)
        self._open_gates()

    def _gate_names(self) -> list[str]:
        """Of one number a head and token each, beside theta those that the learner has."""
        has = {"eta": self.momentum, "alpha": self.forgetting, "limit": self.bias.takes_limit}
        has |= {"step": self.learner.steps, "share": self.rule.window > 1}
        return ["theta", *(name for name, there in has.items() if there)]

    @torch.no_grad()
    def _open_gates(self) -> None:
        """At first theta and a step are half of what they may be, eta is 0.9, alpha 0.01, a limit 1 and a share in a window half."""
        firsts = {"eta": math.log(9), "alpha": -math.log(99), "limit": math.log(math.e - 1)}
        first = torch.tensor([firsts.get(name, 0.0) for name in self._gate_names()])
        self.gates.bias.copy_(first.repeat_interleave(self.heads))
        self.gates.weight.mul_(0.1)

    def init_state(self, batch: int) -> LMMState:
        """Zeros: nothing was read."""
        like: dict[str, Any] = {"device": self.conv_weight.device, "dtype": self.conv_weight.dtype}
        conv = torch.zeros(batch, self.conv_weight.shape[1] - 1, self.sizes[0], **like)
        like["dtype"] = torch.promote_types(like["dtype"], torch.float32)
        start, now, surprise = (tuple(torch.zeros(batch, self.heads, *s, **like) for s in self.net.shapes) for _ in range(3))
        seen = torch.zeros(batch, dtype=torch.long, device=like["device"])
        recent = ()
        if past := self.rule.window - 1:
            recent = tuple(torch.zeros(batch, self.heads, past, wide, **like) for wide in (self.width, self.width, 1))
        return LMMState(conv, start, now, surprise if self.learner.surprise else (), recent, seen)

    def forward(
        self, x: Float[Tensor, "b t d"], state: LMMState | None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], LMMState | None]:
        """Continue from the state over the new tokens; returns the output and the state after them."""
        b, t, _ = x.shape
        if not b * t:
            return x, state
        past, start, now, surprise, recent, seen = state if state is not None else self.init_state(b)
        position = packing.positions(seen, t)
        held = fresh = Memory(start, now, surprise, recent)
        unread = bool((seen == 0).any())
        if unread or packing.starts is not None or self.rule.at_ends or self.rule.anchored:
            fresh = self._fresh(x.dtype, b)
        if unread:
            held = begun(seen == 0, fresh, held)
        real = packing.real(t)
        begins = (position + (0 if self.prefix is None else len(self.prefix))) % self.chunk == 0
        places = Places(begins if real is None else begins & real, packing.starts, real)
        y, z, held, past = self._read(x, held, fresh, places, past, packing, self.writes, self.observe)
        y = self._answer(y, z)
        if state is None:
            return y, None
        own = Memory(*(tuple(w.clone(memory_format=torch.contiguous_format) for w in part) for part in held))
        return y, LMMState(past, *own, packing.last(position + 1, seen))

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
        q, past = causal_conv(q, self.conv_weight[:inner], None, held.conv, packing.starts, packing.lengths, silu=True)
        q = unit(q.to(held.weights[0].dtype).unflatten(-1, (self.heads, -1)))
        return self._answer(self._recalled(q, held.weights), z), Recall(past, held.weights)

    def _recalled(self, q: Float[Tensor, "b t h e"], weights: tuple[Tensor, ...]) -> Float[Tensor, "b t h e"]:
        return self.net.read(q.transpose(1, 2), maps([self.rule.weights(w) for w in weights])).transpose(1, 2)

    def _stand(self, q: Float[Tensor, "b t h e"], held: Memory, fresh: Memory, places: Places) -> tuple[Tensor, Memory]:
        """The answers of weights that stand still, those of a document that begins here being the fresh ones, and the memory as it was, but
        for the chunk that has begun meanwhile."""
        y = self._recalled(q, held.now)
        begins = places.begins
        if places.starts is not None:
            document = places.starts.cumsum(1)
            y = torch.where((document > 0)[..., None, None], self._recalled(q, fresh.now), y)
            held = begun(document[:, -1] > 0, fresh, held)
            begins = begins & (document == document[:, -1:])
        return y, held._replace(start=where(begins.any(1), held.now, held.start))

    def _answer(self, y: Float[Tensor, "b t h e"], z: Float[Tensor, "b t c"]) -> Float[Tensor, "b t d"]:
        """out(RMSNorm(y) * SiLU(z)), the norm of each head by itself."""
        gain = self.norm.weight.repeat(self.heads)
        return self.out(rms_norm(y.flatten(2).to(z.dtype), gain, self.norm.eps, z, self.heads, after=True))

    def _read(
        self,
        x: Tensor,
        held: Memory,
        fresh: Memory,
        places: Places,
        past: Tensor,
        packing: Packing,
        writes: bool = True,
        observe: Callable[[Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor, Memory, Tensor]:
        """The memory's answers [b, t, h, e], the gate z, and the memory and the convolution's past after the tokens."""
        wide = torch.promote_types(x.dtype, torch.float32)
        mixed, z = self.inp(x).split(self.sizes[:2], -1)
        mixed, past = causal_conv(mixed, self.conv_weight, None, past, packing.starts, packing.lengths, silu=True)
        gate = self._gate(x if self.gated_by == "token" else mixed) if writes else {}
        q, k, v = mixed.to(wide).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k, v = unit(q), unit(k), v.contiguous()
        del mixed  # not held while the memory reads, where most is held
        if writes:
            if observe:
                observe(self._share(gate["theta"]))
            y, held = memory(self.net, self.bias, q, k, v, self._gates(gate), held, fresh, places, self.rule)
        else:
            y, held = self._stand(q, held, fresh, places)
        return y, z, held, past

    def _gate(self, read: Float[Tensor, "b t c"]) -> dict[str, Float[Tensor, "b t h"]]:
        """The gates' logits by their names, in fp32 or wider."""
        values = self.gates(read).to(torch.promote_types(read.dtype, torch.float32)).split(self.sizes[2:], -1)
        return dict(zip(self._gate_names(), values, strict=True))

    def _gates(self, gate: dict[str, Tensor]) -> Gates:
        bound = 1.0 if self.learner.steps else self.rate
        share, carry = self._share(gate["theta"]), None
        rate = bound * share
        if self.momentum:
            rate, carry = rate * torch.sigmoid(-gate["eta"]), F.logsigmoid(gate["eta"])
        keep = torch.zeros_like(rate)
        if self.forgetting:
            keep = F.logsigmoid(-gate["alpha"])
            if self.threshold:
                keep = torch.log1p(share * torch.expm1(keep.clamp(min=-15)))
        limit = F.softplus(gate["limit"]) if "limit" in gate else None
        step = self.rate * gate["step"].sigmoid() if "step" in gate else None
        if step is not None and self.threshold:
            step = step * share
        return Gates(rate, keep, carry, limit, step, gate["share"].sigmoid() if "share" in gate else None)

    def _share(self, theta: Tensor) -> Tensor:
        """Of theta's bound."""
        return above(theta.sigmoid(), self.threshold)

    def _fresh(self, dtype: torch.dtype, batch: int) -> Memory:
        """The memory before a document's first token: the learned one, after the persistent tokens."""
        wide = torch.promote_types(self.conv_weight.dtype, torch.float32)
        W = tuple(w.to(wide).expand(1, *w.shape) for w in self.initial)
        recent = tuple(m.to(wide) for m in self.init_state(1).recent)
        at = Memory(W, W, tuple(torch.zeros_like(w) for w in W) if self.learner.surprise else (), recent)
        if self.prefix is not None:
            p = self.prefix.to(dtype)[None]
            begins = torch.arange(p.shape[1], device=p.device)[None] % self.chunk == 0
            past = p.new_zeros(1, self.conv_weight.shape[1] - 1, self.sizes[0])
            *_, at, _ = self._read(p, at, at, Places(begins), past, WHOLE)
        return Memory(*(tuple(w.expand(batch, *w.shape[1:]) for w in part) for part in at))

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of `length` new tokens after `past` others (a multiply-add is two): projections, convolution, and of
        the memory the update of each token (forward, backward and the outer products, of all tokens of its window) and its read, as if
        token by token; with Muon five Newton-Schulz steps of each matrix, for a token or for a chunk."""
        inner = self.heads * self.width
        projections = 2 * self.dim * 5 * inner + 2 * self.gates.weight.numel()
        weights = self.heads * sum(o * i for o, i in self.net.shapes)
        first = self.heads * self.net.shapes[0][0] * self.net.shapes[0][1]
        learned = self.rule.window * (2 * weights + 2 * (weights - first) + 2 * weights) + 2 * weights
        each = projections + 2 * self.conv_weight.numel() + learned + (2 + self.momentum * 2 + self.rule.anchored * 2) * weights
        begun = 0 if self.prefix is None else len(self.prefix)
        chunks = (begun + past + length - 1) // self.chunk - (begun + past - 1) // self.chunk
        return length * each + (chunks if self.rule.at_ends else length) * self._polishing()

    def _polishing(self) -> int:
        """Operations of Newton-Schulz on S of each matrix: X X^T, its square, and their product with X, five times."""
        if self.rule.polish is None:
            return 0
        return self.heads * sum(5 * (4 * min(o, i) * o * i + 2 * min(o, i) ** 3) for o, i in self.net.shapes)

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
        recent = self.heads * (self.rule.window - 1) * (2 * self.width + 1)
        return channels * (k - 1) * itemsize + ((2 + self.learner.surprise) * weights + recent) * max(itemsize, 4) + 8
