"""A model of a world: what is seen as an embedding, and from an embedding and an action the next one.

The parts of a joint-embedding predictive architecture with actions (LeCun 2022; EB-JEPA: Terver et al. 2026, arXiv 2602.03604;
LeWorldModel: Maes et al. 2026, arXiv 2603.19312). The predictor is causal over steps and may be any mixer: with one that has a state of
fixed size an imagined step costs the same however much was seen before.

b worlds, t steps, c channels, h rows and w columns of pixels, d numbers of an embedding, k of an action.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from postformer.config import Spec
from postformer.ffn import FFNS
from postformer.mixers import MIXERS
from postformer.models.backbone import Backbone, Cost, State, complete_pattern
from postformer.ops.layers import Linear

KEPT = 0.98
"""Of what was noticed, at each step of training."""
STILL = 0.1
"""What is added to all changes' squares, as a share of their mean: what never changes weighs so much more than the rest at most."""


class Stem(nn.Module):
    """Convolutions, the first with a stride of `first` and the others of 2, whose filters are 2 stride - 1 pixels wide; group norms; and a
    linear layer over what is left."""

    def __init__(self, channels: int, size: tuple[int, int], widths: tuple[int, ...], dim: int, first: int = 4):
        super().__init__()
        inputs = (channels, *widths)
        strides = (first, *[2] * (len(widths) - 1))
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(a, b, 2 * stride - 1, stride=stride, padding=stride - 1)
                for a, b, stride in zip(inputs, widths, strides, strict=False)
            ]
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # twice as fast where channels are few
        self.norms = nn.ModuleList([nn.GroupNorm(1, width) for width in widths])
        rows, columns = size
        self.sizes: list[tuple[int, int]] = []
        for stride in strides:
            rows, columns = -(-rows // stride), -(-columns // stride)
            self.sizes.append((rows, columns))
        self.out = Linear(widths[-1] * rows * columns, dim)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Embeddings of pictures."""
        x = x.contiguous(memory_format=torch.channels_last)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.silu(norm(convolution(x)))
        return self.out(x.flatten(1))

    def flops(self) -> int:
        """Floating-point operations of a picture."""
        each = (
            2 * convolution.weight.numel() * rows * columns  # type: ignore[union-attr]
            for convolution, (rows, columns) in zip(self.convolutions, self.sizes, strict=True)
        )
        return sum(each) + 2 * self.out.weight.numel()


class Look(nn.Module):
    """The stem's way back: from an embedding a picture, by convolutions over ever larger ones, the last in blocks of `stride` x
    `stride` pixels."""

    def __init__(self, channels: int, size: tuple[int, int], stem: Stem, dim: int, stride: int):
        super().__init__()
        widths = [int(convolution.weight.shape[0]) for convolution in stem.convolutions]  # type: ignore[union-attr]
        self.size, self.sizes, self.stride = size, stem.sizes[::-1], stride
        rows, columns = self.sizes[0]
        self.first = Linear(dim, widths[-1] * rows * columns)
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)]
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norms = nn.ModuleList([nn.GroupNorm(1, width) for width in widths[:0:-1]])
        self.out = nn.Conv2d(widths[0], channels * self.stride**2, 3, padding=1)

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        """Pictures of embeddings."""
        x = self.first(z).unflatten(1, (-1, *self.sizes[0])).contiguous(memory_format=torch.channels_last)
        for convolution, norm, size in zip(self.convolutions, self.norms, self.sizes[1:], strict=True):
            x = convolution(F.interpolate(F.silu(norm(x)), size=size))
        x = F.pixel_shuffle(self.out(F.silu(x)), self.stride)
        return x[..., : self.size[0], : self.size[1]]

    def flops(self) -> int:
        """Floating-point operations of a picture."""
        each = (
            2 * convolution.weight.numel() * rows * columns  # type: ignore[union-attr]
            for convolution, (rows, columns) in zip(
                [*self.convolutions, self.out], [*self.sizes[1:], self.sizes[-1]], strict=True
            )
        )
        return 2 * self.first.weight.numel() + sum(each)


class Reach(nn.Module):
    """From an embedding and that of a goal some steps ahead what is done first (the inverse model of arXiv 2605.08732)."""

    def __init__(self, dim: int, actions: int, width: int):
        super().__init__()
        self.inp, self.middle, self.out = Linear(2 * dim, width), Linear(width, width), Linear(width, actions)

    def forward(self, z: Float[Tensor, "*b d"], goal: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """In the units of the data's actions."""
        return self.out(F.silu(self.middle(F.silu(self.inp(torch.cat([z, goal], -1))))))


class World(nn.Module):
    """`encode` embeds pictures of `channels` and `size` in `dim` numbers, `predict` tells of embeddings and the `actions` numbers of what
    is done the next embeddings; with `look` there is `decode`, which draws what embeddings tell of, and with `reach` a network of that
    width, `reach`, which tells what leads from an embedding to another; `in_steps` counts distances in what a step changes. With `carry`
    what the last step changed is added to what the predictor tells: things go on as they did. The encoder has convolutions of `widths`, the
    first with the stride `first`; `width` and `depth` are those of the predictor. In a world where nothing is done `actions` is 0."""

    tokens: None = None
    compute_dtype: torch.dtype | None = None
    changes: Tensor

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        actions: int = 0,
        *,
        dim: int = 64,
        widths: tuple[int, ...] = (32, 64, 64),
        first: int = 4,
        width: int = 128,
        depth: int = 1,
        look: bool = False,
        reach: int = 0,
        carry: bool = False,
        mixers: tuple[Spec, ...] = ({"kind": "gated_delta", "heads": 4},),
        ffns: tuple[Spec, ...] = ({"kind": "mlp"},),
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        if min(channels, dim, width, first, *size, *widths, actions + 1, reach + 1) < 1 or not widths:
            raise ValueError(
                f"channels={channels}, dim={dim}, width={width}, first={first}, size={size} and widths={widths} must be at least 1, "
                f"actions={actions} and reach={reach} at least 0"
            )
        self.config: Spec = {
            "kind": "world",
            "channels": channels,
            "size": list(size),
            "actions": actions,
            "dim": dim,
            "widths": list(widths),
            "first": first,
            "width": width,
            "depth": depth,
            "look": look,
            "reach": reach,
            "carry": carry,
            "mixers": complete_pattern(mixers, MIXERS, "model.mixers"),
            "ffns": complete_pattern(ffns, FFNS, "model.ffns"),
            "norm_eps": norm_eps,
        }
        self.channels, self.size, self.actions, self.dim, self.carry = channels, size, actions, dim, carry
        self.stem = Stem(channels, size, widths, dim, first)
        self.look = Look(channels, size, self.stem, dim, first) if look else None
        if reach and not actions:
            raise ValueError(f"reach={reach}: nothing is done in this world; take 0")
        self.reach = Reach(dim, actions, reach) if reach else None
        self.embed, self.act = Linear(dim, width), Linear(actions, width) if actions else None
        self.backbone = Backbone(width, depth, mixers, ffns, norm_eps)
        self.head = Linear(width, dim)
        self.register_buffer("changes", torch.zeros(dim, dim))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def encode(self, seen: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b d"]:
        """Embeddings of pictures. Raises ValueError for pictures of another size."""
        if (*seen.shape[-3:],) != (self.channels, *self.size):
            raise ValueError(f"pictures of {tuple(seen.shape[-3:])}; the model takes {(self.channels, *self.size)}")
        return self.stem(seen.reshape(-1, *seen.shape[-3:])).reshape(*seen.shape[:-3], self.dim)

    def decode(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b c h w"]:
        """Pictures of embeddings. Raises ValueError for a model without `look`."""
        if self.look is None:
            raise ValueError("this model embeds and does not draw: it was made without look=True")
        return self.look(z.reshape(-1, self.dim)).reshape(*z.shape[:-1], self.channels, *self.size)

    @torch.no_grad()
    def notice(self, z: Float[Tensor, "b t d"]) -> None:
        """Keep in `changes`, slowly, how embeddings of walks change in a step: the mean product of any two numbers' changes, [d, d]."""
        step = (z[:, 1:] - z[:, :-1]).flatten(0, 1).to(self.changes.dtype)
        self.changes.lerp_(step.mT @ step / len(step), 1 - KEPT if self.changes.any() else 1.0)

    def in_steps(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Embeddings in which distances are counted in steps. Raises ValueError for a model that noticed nothing."""
        return z @ self.pace().to(z.dtype)

    def pace(self) -> Float[Tensor, "d d"]:
        """The map to embeddings in which distances are counted in steps: a number that changes little in a step weighs much, and one that
        changes much weighs little (Mahalanobis 1936, by `changes`). Raises ValueError for a model that noticed nothing."""
        if not self.changes.any():
            raise ValueError("this model never noticed how embeddings change: it was not taught walks")
        values, ways = torch.linalg.eigh(self.changes)
        return ways * (values.clamp(min=0) + STILL * values.mean()).rsqrt()

    def init_state(self, batch: int) -> State:
        """Nothing done yet; with `carry` the last embedding, and whether there was one, stand behind the layers' states."""
        state = self.backbone.init_state(batch)
        like = self.head.weight
        return (*state, (like.new_zeros(batch, self.dim), like.new_zeros(batch, 1))) if self.carry else state

    def predict(
        self, z: Float[Tensor, "b t d"], actions: Float[Tensor, "b t k"], state: State | None = None
    ) -> tuple[Float[Tensor, "b t d"], State | None]:
        """Of each step's embedding and action the next embedding, and the state after them, if one was given. A step knows those before
        it. Raises ValueError for actions of other numbers."""
        if actions.shape[-1] != self.actions or actions.shape[:2] != z.shape[:2]:
            raise ValueError(f"actions: {tuple(actions.shape)}; expected {(*z.shape[:2], self.actions)}")
        return self._next(z, self._told(actions), state)

    def _told(self, actions: Float[Tensor, "b t k"]) -> Float[Tensor, "b t w"] | None:
        """What the predictor is told of actions; nothing where there are none."""
        return None if self.act is None else self.act(actions)

    def _next(self, z: Tensor, told: Tensor | None, state: State | None) -> tuple[Tensor, State | None]:
        layers, last = (state[:-1], state[-1]) if self.carry and state is not None else (state, None)
        x = self.embed(z)
        x, layers = self.backbone(x if told is None else x + told, layers)
        after = z + self.head(x)
        if not self.carry:
            return after, layers
        before, known = (z[:, 0], z.new_zeros(len(z), 1)) if last is None else last
        step = torch.cat([known[:, None] * (z[:, :1] - before[:, None]), z[:, 1:] - z[:, :-1]], 1)
        return after + step, None if layers is None else (*layers, (z[:, -1], torch.ones_like(known)))

    def imagine(
        self, z: Float[Tensor, "b d"], actions: Float[Tensor, "b t k"], state: State | None = None
    ) -> tuple[Float[Tensor, "b t d"], State]:
        """The embeddings after each of some actions, none of which was seen: each is predicted from the one before; and the state then.
        Raises ValueError for actions of other numbers."""
        if actions.shape[-1] != self.actions or len(actions) != len(z):
            raise ValueError(f"actions: {tuple(actions.shape)}; expected {(len(z), actions.shape[1], self.actions)}")
        state = self.init_state(len(z)) if state is None else state
        told, out = self._told(actions), []
        for t in range(actions.shape[1]):
            step, state = self._next(z[:, None], None if told is None else told[:, t : t + 1], state)
            assert state is not None
            z = step[:, 0]
            out.append(z)
        return torch.stack(out, 1), state

    def foresee(
        self, z: Float[Tensor, "b known d"], actions: Float[Tensor, "b t k"]
    ) -> tuple[Float[Tensor, "b ahead d"], State]:
        """The embeddings after the last of some known ones, as many as there are more actions than lead from one known one to the next; and
        the state then."""
        state, before = self.init_state(len(z)), z.shape[1] - 1
        if before:
            _, state = self.predict(z[:, :-1], actions[:, :before], state)
        return self.imagine(z[:, -1], actions[:, before:], state)

    def cost(self, length: int) -> Cost:
        """Cost formulas of a row of `length` steps, each of which is seen; a decoded step is an imagined one."""
        parameters, size = sum(p.numel() for p in self.parameters()), self.head.weight.element_size()
        ends = 2 * sum(m.weight.numel() for m in (self.embed, self.act, self.head) if m is not None)
        return Cost(
            parameters=parameters,
            active_parameters=parameters - self.backbone.idle_parameters(),
            prefill_flops=self.backbone.flops(length) / length + ends + self.stem.flops(),
            decode_flops=float(self.backbone.flops(1, length) + ends),
            state_bytes=self.backbone.state_bytes(length, size) + self.carry * (self.dim + 1) * size,
        )
