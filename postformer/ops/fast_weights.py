"""Small networks whose weights are a memory: what they answer to a key, how wrong that is, and the gradient of it.

    mlp         y = W_L s(... s(W_1 x))                          depth 1 is a matrix; `residual`: y = x + LN(...)
    swiglu      y = W_3 (SiLU(W_1 x) * W_2 x)                    Shazeer 2020 (arXiv 2002.05202)

A matrix is read through a map z -> z W^T that the caller gives, so that every token of a chunk can have weights of its own without one
of them being written down (postformer/ops/memory.py). Gradients are taken at weights that the tokens share, and are kept as what they
are products of: the gradient of W by token i is delta_i a_i^T.

n rows and heads, t tokens, d width of keys and values, o outputs and i inputs of a matrix.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def maps(W: Sequence[Tensor]) -> list[Map]:
    """Of weights [*n, o, i] that the tokens share: z -> z W^T."""
    return [lambda z, w=w: z @ w.mT for w in W]


class Outer(NamedTuple):
    """Gradients of one matrix, one of each token, as outer products."""

    delta: Float[Tensor, "*n t o"]
    a: Float[Tensor, "*n t i"]


class Net(ABC):
    """A network over each head's keys."""

    shapes: tuple[tuple[int, int], ...]
    """(outputs, inputs) of each matrix."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "*n t d"], maps: Sequence[Map]) -> tuple[Float[Tensor, "*n t d"], Any]:
        """The answers, and what `gradients` needs."""

    @abstractmethod
    def gradients(self, tape: Any, dy: Float[Tensor, "*n t d"], W: Sequence[Float[Tensor, "*n o i"]]) -> list[Outer]:
        """The gradient of each matrix where the answers' is dy."""

    def read(self, x: Float[Tensor, "*n t d"], maps: Sequence[Map]) -> Float[Tensor, "*n t d"]:
        """The answers."""
        return self.forward(x, maps)[0]


class MLP(Net):
    """`depth` matrices with SiLU or GELU between them, `hidden` wide; with `residual` x is added to the layer-normed output, in whose
    norm `damping` is added to the variance."""

    def __init__(
        self, width: int, depth: int, hidden: int, activation: str = "silu", residual: bool = False, damping: float = 1e-5
    ):
        sizes = [width] + [hidden] * (depth - 1) + [width]
        self.shapes = tuple((o, i) for i, o in itertools.pairwise(sizes))
        self.activation, self.residual = ACTIVATIONS[activation], residual
        self.hidden, self.damping, self.silu = hidden, damping, activation == "silu"

    def forward(self, x: Tensor, maps: Sequence[Map]) -> tuple[Tensor, Any]:
        inputs, outputs = [x], []
        for apply in maps:
            outputs.append(apply(inputs[-1]))
            inputs.append(self.activation.value(outputs[-1]))
        y = outputs[-1]
        return x + F.layer_norm(y, y.shape[-1:], eps=self.damping) if self.residual else y, (inputs[:-1], outputs)

    def gradients(self, tape: Any, dy: Tensor, W: Sequence[Tensor]) -> list[Outer]:
        inputs, outputs = tape
        delta = _layer_norm_gradient(outputs[-1], dy, self.damping) if self.residual else dy
        found = [Outer(delta, inputs[-1])]
        for a, z, w in zip(inputs[-2::-1], outputs[-2::-1], list(W)[:0:-1], strict=True):
            delta = (delta @ w) * self.activation.slope(z)
            found.append(Outer(delta, a))
        return found[::-1]


class SwiGLU(Net):
    """Three matrices, `hidden` wide inside."""

    def __init__(self, width: int, hidden: int):
        self.shapes = (hidden, width), (hidden, width), (width, hidden)

    def forward(self, x: Tensor, maps: Sequence[Map]) -> tuple[Tensor, Any]:
        gate, up = maps[0](x), maps[1](x)
        inner = F.silu(gate) * up
        return maps[2](inner), (x, gate, up, inner)

    def gradients(self, tape: Any, dy: Tensor, W: Sequence[Tensor]) -> list[Outer]:
        x, gate, up, inner = tape
        d = dy @ W[2]
        return [Outer(d * up * _silu_slope(gate), x), Outer(d * F.silu(gate), x), Outer(dy, inner)]


# ---------------------------------------------------------------- between the matrices


class Activation(NamedTuple):
    """A function of each number, and its derivative."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _silu_slope(z: Tensor) -> Tensor:
    s = z.sigmoid()
    return s * (1 + z * (1 - s))


def _gelu_slope(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


ACTIVATIONS = {"silu": Activation(F.silu, _silu_slope), "gelu": Activation(F.gelu, _gelu_slope)}


def _layer_norm_gradient(z: Tensor, dy: Tensor, eps: float) -> Tensor:
    """Through y = LN(z), without gain and shift."""
    centred = z - z.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    unit = centred * scale
    return scale * (dy - dy.mean(-1, keepdim=True) - unit * (dy * unit).mean(-1, keepdim=True))


# ---------------------------------------------------------------- how wrong an answer is (MIRAS: the attentional bias)


class Bias(ABC):
    """A loss between answers y and values v."""

    takes_limit: ClassVar[bool] = False
    """Whether each token sets a limit of its own."""

    @abstractmethod
    def loss(self, y: Float[Tensor, "*b d"], v: Float[Tensor, "*b d"], limit: Tensor | None = None) -> Float[Tensor, "*b"]:
        """Of each token."""

    @abstractmethod
    def gradient(self, y: Tensor, v: Tensor, limit: Tensor | None = None) -> Tensor:
        """By y."""


class L2(Bias):
    """|y - v|^2 (Titans, equation 12)."""

    def loss(self, y: Tensor, v: Tensor, limit: Tensor | None = None) -> Tensor:
        return (y - v).square().sum(-1)

    def gradient(self, y: Tensor, v: Tensor, limit: Tensor | None = None) -> Tensor:
        return 2 * (y - v)


class Dot(Bias):
    """-<y, v> (Hebb's rule; LaCT, equation 6)."""

    def loss(self, y: Tensor, v: Tensor, limit: Tensor | None = None) -> Tensor:
        return -(y * v).sum(-1)

    def gradient(self, y: Tensor, v: Tensor, limit: Tensor | None = None) -> Tensor:
        return -v


class Lp(Bias):
    """|y - v|_p^p, whose gradient p sign(e) |e|^(p-1), e = y - v, is smoothed by sign(e) = tanh(10 e) and |e| = sqrt(e^2 + 1e-6) (MIRAS,
    equations 10 and 11, remark 5)."""

    SHARP, SMALL = 10.0, 1e-6

    def __init__(self, p: float = 3.0):
        if not p >= 1:
            raise ValueError(f"p={p} must be at least 1")
        self.p = p

    def loss(self, y: Tensor, v: Tensor, limit: Tensor | None = None) -> Tensor:
        return (y - v).abs().pow(self.p).sum(-1)

    def gradient(self, y: Tensor, v: Tensor, limit: Tensor | None = None) -> Tensor:
        e = y - v
        return self.p * torch.tanh(self.SHARP * e) * (e.square() + self.SMALL).pow((self.p - 1) / 2)


class Huber(Bias):
    """|e|^2 / 2 for |e| = |y - v|_2 up to the token's limit, which it takes, and limit (|e| - limit / 2) beyond (MIRAS, equation 15)."""

    takes_limit = True

    def loss(self, y: Tensor, v: Tensor, limit: Tensor | None = None) -> Tensor:
        assert limit is not None
        square = (y - v).square().sum(-1)
        far = square > limit.square()
        size = torch.where(far, square, 1.0).sqrt()
        return torch.where(far, limit * (size - limit / 2), square / 2)

    def gradient(self, y: Tensor, v: Tensor, limit: Tensor | None = None) -> Tensor:
        assert limit is not None
        e = y - v
        square = e.square().sum(-1)
        far = square > limit.square()
        return e * torch.where(far, limit * torch.where(far, square, 1.0).rsqrt(), 1.0)[..., None]


BIASES: dict[str, type[Bias]] = {"l2": L2, "dot": Dot, "lp": Lp, "huber": Huber}
