"""Mamba-1: a selective state space with a short convolution and a gate.

Gu & Dao 2023 (arXiv 2312.00752), section 3.4 and algorithm 2, with the parametrisation of the authors' code.

    x, z = in(x);  x = SiLU(conv(x));  dt, B, C = select(x);  dt = softplus(W dt + b)
    y = scan(x, dt, A, B, C) + D x;    out(y * SiLU(z))

b batch, t time, d model width, c = expand * d channels, n state size, k convolution width.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from postformer.ops.conv import causal_conv
from postformer.ops.layers import Linear, RMSNorm, dt_bias, watched
from postformer.ops.mamba_step import Stepper, Weights, mamba_step, serves
from postformer.ops.packing import WHOLE, Packing
from postformer.ops.scan import selective_scan


class MambaState(NamedTuple):
    """The last k-1 inputs of the convolution, and the state of the recurrence (fp32 or wider)."""

    conv: Float[Tensor, "b past c"]
    ssm: Float[Tensor, "b c n"]


OWN = {"conv_weight", "conv_bias", "A_log", "D"}
"""Parameters of the mixer itself; one that is pruned or parametrized is no longer among them."""


class MambaSteps:
    """One token through layers x + mixer(norm(x)) of one form that follow each other, in one call: on a CPU, under inference."""

    def __init__(self) -> None:
        self._step = Stepper()

    @staticmethod
    def layers(blocks: Sequence[Any]) -> list[tuple[Weights, RMSNorm]]:
        """What `__call__` takes of the first of these blocks, as many as go in one call."""
        found: list[tuple[Weights, RMSNorm]] = []
        form = None
        for block in blocks:
            mixer, norm = block._modules["mixer"], block._modules["norm"]
            own = isinstance(mixer, Mamba) and type(mixer).forward is Mamba.forward and mixer.bare()
            if not own or block._modules.get("ffn") is not None or form not in (None, (mixer.form, norm.eps)):
                break
            found.append((mixer.weights(), norm))
            form = mixer.form, norm.eps
        return found

    def __call__(
        self, x: Float[Tensor, "b 1 d"], states: Sequence[MambaState], layers: Sequence[tuple[Weights, RMSNorm]]
    ) -> tuple[Float[Tensor, "b 1 d"], list[MambaState]] | None:
        """The residual stream and the states after the layers; None where they must be called one by one."""
        norms = [norm for _, norm in layers]
        stepped = self._step(x[:, 0], states, [w for w, _ in layers], [norm.weight for norm in norms], norms[0].eps)
        if stepped is None:
            return None
        y, after = stepped
        return y[:, None], [MambaState(*state) for state in after]


class Mamba(nn.Module):
    """`state` is the paper's N, `rank` the width through which dt is predicted (default: dim / 16, rounded up).

    Raises ValueError for sizes below 1 and unless 0 < dt_min <= dt_max.
    """

    Steps = MambaSteps

    def __init__(
        self,
        dim: int,
        *,
        state: int = 16,
        expand: int = 2,
        conv: int = 4,
        rank: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
    ):
        super().__init__()
        if min(state, expand, conv, 1 if rank is None else rank) < 1:
            raise ValueError(f"state={state}, expand={expand}, conv={conv} and rank={rank} must be at least 1")
        c = expand * dim
        self.dim, self.channels, self.n, self.rank = dim, c, state, rank or math.ceil(dim / 16)
        self.inp = Linear(dim, 2 * c, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(c, conv).uniform_(-(conv**-0.5), conv**-0.5))
        self.conv_bias = nn.Parameter(torch.empty(c).uniform_(-(conv**-0.5), conv**-0.5))
        self.select = Linear(c, self.rank + 2 * state, bias=False)
        self.dt = Linear(self.rank, c)
        nn.init.uniform_(self.dt.weight, -(self.rank**-0.5), self.rank**-0.5)
        self.dt.bias = nn.Parameter(dt_bias(c, dt_min, dt_max))
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(c, 1))
        self.D = nn.Parameter(torch.ones(c))
        self.out = Linear(c, dim, bias=False)
        for p in (self.A_log, self.D, self.dt.bias):
            p.no_weight_decay = True  # type: ignore[attr-defined]
        self.form = dim, c, conv, self.rank, state
        """The sizes: layers of one form can be stepped in one call."""
        self._step = Stepper()

    def init_state(self, batch: int) -> MambaState:
        """Zeros: nothing was read."""
        conv = self.D.new_zeros(batch, self.conv_weight.shape[1] - 1, self.channels)
        wide = torch.promote_types(self.D.dtype, torch.float32)
        return MambaState(conv, self.D.new_zeros(batch, self.channels, self.n, dtype=wide))

    def forward(
        self, x: Float[Tensor, "b t d"], state: MambaState | None = None, packing: Packing = WHOLE
    ) -> tuple[Float[Tensor, "b t d"], MambaState | None]:
        """Continue from the state over the new tokens; returns the output and the state after them."""
        past, h = state if state is not None else self.init_state(len(x))
        if state is not None and packing.whole and self.bare() and serves(x, state, weights := self.weights()):
            stepped = self._step(x[:, 0], [state], [weights])
            if stepped is None:
                y, *after = mamba_step(x[:, 0], *state, weights)
            else:
                y, (after,) = stepped
            return y[:, None], MambaState(*after)
        wide = torch.promote_types(x.dtype, torch.float32)
        u, z = self.inp(x).chunk(2, -1)
        u, past = causal_conv(u, self.conv_weight, self.conv_bias, past, packing.starts, packing.lengths, silu=True)
        low, B, C = self.select(u).split([self.rank, self.n, self.n], -1)
        dt, bias = F.linear(low.to(wide), self.dt.weight.to(wide)), self.dt.bias.to(wide)
        if packing.lengths is not None:
            dt, bias = packing.silence(F.softplus(dt + bias)), None
        A, D = -self.A_log.to(wide).exp(), self.D.to(wide)
        y, h = selective_scan(u, dt, A, B, C, h.to(wide), packing.starts, dt_bias=bias, D=D, z=z)
        return self.out(y), None if state is None else MambaState(past, h)

    def bare(self) -> bool:
        """Whether it and its projections are as they were made, neither wrapped nor watched, so that a kernel may read their weights."""
        parts: dict[str, Any] = self._modules
        inp, select, dt, out = parts["inp"], parts["select"], parts["dt"], parts["out"]
        own = self._parameters.keys() >= OWN
        return own and type(inp) is type(select) is type(dt) is type(out) is Linear and not watched(inp, select, dt, out)

    def weights(self) -> Weights:
        """What the kernel of one token reads. Taken from the modules' own tables: attributes of a module take longer, and a token needs
        hundreds."""
        own: dict[str, Any] = self._parameters
        parts: dict[str, Any] = self._modules
        inp, select, dt, out = (parts[name]._parameters for name in ("inp", "select", "dt", "out"))
        matrices = inp["weight"], select["weight"], dt["weight"], out["weight"]
        return Weights(*matrices, own["conv_weight"], own["conv_bias"], dt["bias"], own["A_log"], own["D"])

    def flops(self, length: int, past: int = 0) -> int:
        """Floating-point operations of `length` new tokens, whatever came before (a multiply-add is two, an exp is one)."""
        c, n = self.channels, self.n
        projections = 2 * (self.dim * 2 * c + c * (self.rank + 2 * n) + self.rank * c + c * self.dim)
        conv, scan = 2 * c * self.conv_weight.shape[1], 7 * c * n + 3 * c
        return length * (projections + conv + scan)

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        """Bytes of one row's state: the same after any number of tokens. The recurrence is kept in fp32 at least."""
        return self.channels * ((self.conv_weight.shape[1] - 1) * itemsize + self.n * max(itemsize, 4))
