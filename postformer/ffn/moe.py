"""Mixture of experts: a router sends each token to a few of many small networks.

Shazeer et al. 2017 (arXiv 1701.06538). `preset` names the router and the experts of one published family; a keyword given beside it changes
one choice.

| preset | scores | weights | experts, chosen | shared | what makes it even | source |
|---|---|---|---|---|---|---|
| switch | softmax | as scored | 8, 1 of GELU | - | balance 1e-2 | Fedus et al. 2021, arXiv 2101.03961 |
| mixtral | softmax | sum to 1 | 8, 2 | - | balance 1e-2 | Jiang et al. 2024, arXiv 2401.04088 |
| qwen2 | softmax | as scored | 60, 4 | gated | balance 1e-3 | Qwen team 2024, arXiv 2407.10671 |
| qwen3 | softmax | sum to 1 | 128, 8 | - | balance 1e-3 | Qwen team 2025, arXiv 2505.09388 |
| olmoe | softmax | as scored | 64, 8 | - | balance 1e-2, z 1e-3 | Muennighoff et al. 2024, arXiv 2409.02060 |
| deepseek-v2 | softmax | as scored, times 16 | 160, 6 of 3 of 8 groups | 2 | sequence_balance 3e-3 | DeepSeek-AI 2024, arXiv 2405.04434 |
| deepseek-v3 | sigmoid | sum to 2.5 | 256, 8 of 4 of 8 groups | 1 | correction 1e-3, sequences 1e-4 | DeepSeek-AI 2024, arXiv 2412.19437 |
| gpt-oss | softmax over the chosen | sum to 1 | 32, 4, with biases | - | balance 1e-2 | OpenAI 2025, arXiv 2508.10925 |
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from postformer.ops.block_parts import ROUTERS, NetworkPart
from postformer.ops.exchange import Group, total
from postformer.ops.experts import KINDS, Activation, ExpertLinear, Networks, activated, gated, mixed
from postformer.ops.layers import Linear, RMSNorm, bare, checked_word, unaltered, watched
from postformer.ops.routing import (
    Routes,
    balance_loss,
    corrected,
    load,
    sequence_balance_loss,
    sigmoid_top,
    softmax_top,
    top_softmax,
    within_capacity,
    z_loss,
)

Preset = Literal["switch", "mixtral", "qwen2", "qwen3", "olmoe", "deepseek-v2", "deepseek-v3", "gpt-oss"]
Router = Literal["softmax", "sigmoid", "chosen"]
_MIXTRAL: dict[str, Any] = {
    "experts": 8,
    "top": 2,
    "router": "softmax",
    "renormalise": True,
    "scale": 1.0,
    "groups": 1,
    "top_groups": None,
    "activation": "swiglu",
    "biases": False,
    "shared": 0,
    "shared_gate": False,
    "balance": 1e-2,
    "sequence_balance": 0.0,
    "z": 0.0,
    "correction": 0.0,
}
_GROUPS = {"groups": 8}
PRESETS: dict[str, dict[str, Any]] = {
    "switch": {"top": 1, "renormalise": False, "activation": "gelu"},
    "mixtral": {},
    "qwen2": {"experts": 60, "top": 4, "renormalise": False, "shared": 4, "shared_gate": True, "balance": 1e-3},
    "qwen3": {"experts": 128, "top": 8, "balance": 1e-3},
    "olmoe": {"experts": 64, "top": 8, "renormalise": False, "z": 1e-3},
    "deepseek-v2": {
        **_GROUPS,
        "experts": 160,
        "top": 6,
        "renormalise": False,
        "scale": 16.0,
        "top_groups": 3,
        "shared": 2,
        "balance": 0.0,
        "sequence_balance": 3e-3,
    },
    "deepseek-v3": {
        **_GROUPS,
        "experts": 256,
        "top": 8,
        "router": "sigmoid",
        "scale": 2.5,
        "top_groups": 4,
        "shared": 1,
        "balance": 0.0,
        "sequence_balance": 1e-4,
        "correction": 1e-3,
    },
    "gpt-oss": {"experts": 32, "top": 4, "router": "chosen", "activation": "gpt-oss", "biases": True},
}
"""`shared` in widths of an expert. What Mixtral and gpt-oss were balanced with is not published: 1e-2 is Switch's."""


class Routed(NamedTuple):
    """What a call of a mixture did with its tokens; `routed` of `postformer.models.routing` collects it."""

    logits: Float[Tensor, "b t e"]
    scores: Float[Tensor, "b t e"]
    experts: Int[Tensor, "b t k"]
    weights: Float[Tensor, "b t k"]
    """0 where a pair found no room."""


class MoE(nn.Module):
    """Each token goes to `top` of `experts` networks of width `hidden` and, where `shared` is above 0, to one of that width besides.
    Raises ValueError for numbers and words that do not fit together.

    Sources: the module's table; formulas: docs/moe.md.

    `hidden` defaults to what makes the chosen experts together as wide as the default MLP; `shared` to the preset's number of experts.
    `router`: "softmax" over all experts, "sigmoid", or softmax over the "chosen". `renormalise` makes the chosen weights add up to 1
    before they are multiplied with `scale`. Only the best `top_groups` of `groups` (all, where only `groups` is given) are chosen from.
    `biases`: the router and the experts have them; `shared_gate`: the shared network's answer is multiplied with a sigmoid of the token.

    What makes the load even, in training: the losses `balance`, `sequence_balance` and `z` with their coefficients, which the objective
    adds up over layers; and `correction`, the step by which a bias of each expert, which has a say in the choice alone, moves after each
    step of training. `capacity` above 0 drops, in training, pairs beyond that many times an expert's even share; `jitter` multiplies what
    the router sees in training with 1 - jitter to 1 + jitter (Switch, section 2.4).

    Router logits and weights are computed, and the correction is kept, in fp32 or wider whatever the dtype of the tokens and matrices.
    """

    correction: Tensor | None
    loads: Tensor

    def __init__(
        self,
        dim: int,
        *,
        preset: Preset = "mixtral",
        experts: int | None = None,
        top: int | None = None,
        hidden: int | None = None,
        shared: int | None = None,
        shared_gate: bool | None = None,
        router: Router | None = None,
        renormalise: bool | None = None,
        scale: float | None = None,
        groups: int | None = None,
        top_groups: int | None = None,
        activation: Activation | None = None,
        biases: bool | None = None,
        balance: float | None = None,
        sequence_balance: float | None = None,
        z: float | None = None,
        correction: float | None = None,
        capacity: float = 0.0,
        jitter: float = 0.0,
    ):
        given = {name: value for name, value in locals().items() if name in _MIXTRAL and value is not None}
        super().__init__()
        choice = _MIXTRAL | PRESETS[checked_word("preset", preset, Preset)] | given
        for name, words in (("router", Router), ("activation", Activation)):
            checked_word(name, choice[name], words)
        if choice["top_groups"] is None or ("groups" in given and "top_groups" not in given):
            choice["top_groups"] = choice["groups"]
        wide = 8 / 3 if gated(choice["activation"]) else 4
        hidden = -(-int(dim * wide / max(choice["top"], 1)) // 16) * 16 if hidden is None else hidden
        if not choice["shared"] and shared_gate is None:
            choice["shared_gate"] = False
        _check(choice, hidden, capacity, jitter)
        self.top, self.renormalise, self.scale = choice["top"], choice["renormalise"], choice["scale"]
        self.router_kind, self.groups, self.top_groups = choice["router"], choice["groups"], choice["top_groups"]
        self.activation: Activation = choice["activation"]
        self.coefficients = {name: choice[name] for name in ("balance", "sequence_balance", "z") if choice[name]}
        self.rate, self.capacity, self.jitter = choice["correction"], capacity, jitter
        self.router = Linear(dim, choice["experts"], bias=choice["biases"])
        self.up = ExpertLinear(choice["experts"], dim, hidden * (2 if gated(self.activation) else 1), choice["biases"])
        self.out = ExpertLinear(choice["experts"], hidden, dim, choice["biases"])
        width = choice["shared"] if shared is not None else choice["shared"] * hidden
        self.shared = Shared(dim, width, self.activation, choice["shared_gate"]) if width else None
        corrects = self.rate or self.router_kind == "sigmoid"
        self.register_buffer("correction", torch.zeros(choice["experts"]) if corrects else None)
        self.register_load_state_dict_post_hook(_loaded)
        self.register_buffer("loads", torch.zeros(choice["experts"], dtype=torch.long), persistent=False)
        self.observers: list[list[Routed]] = []
        self.group: Group = None
        """The processes over which the experts are split (`postformer.train.expert_parallel`)."""
        self.elsewhere: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        """`mixed` of matrices that this module does not hold: tokens [n, d], their experts and weights [n, k] to answers [n, d]."""

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Each token through its experts."""
        tokens = x.flatten(0, 1)
        logits = self._logits(tokens)
        experts, weights, scores = self.route(logits)
        weights = weights * self.scale
        kept = None
        if self.training and self.capacity:
            kept = within_capacity(experts, len(self.loads), self.capacity, self.group)
            weights = weights.where(kept, 0.0)
        if self.training and self.rate:
            self.loads += load(experts, len(self.loads))
        rows = x.shape[:2]
        for seen_by in self.observers:
            seen_by.append(Routed(*(part.unflatten(0, rows) for part in (logits, scores, experts, weights))))
        y = self._answers(tokens, experts, weights, kept).view_as(x)
        return y if self.shared is None else y + self.shared(x)

    def _answers(
        self, tokens: Float[Tensor, "n d"], experts: Int[Tensor, "n k"], weights: Float[Tensor, "n k"], kept: Tensor | None
    ) -> Float[Tensor, "n d"]:
        """Of all pairs, or of those that are `kept`: an infinite answer times 0 would be NaN."""
        of = self.elsewhere or (lambda x, experts, weights: mixed(x, experts, weights, self.networks, self.group))
        if kept is None:
            return of(tokens, experts, weights)
        token, place = kept.nonzero(as_tuple=True)
        answers = of(tokens[token], experts[token, place, None], weights[token, place, None])
        return torch.zeros_like(tokens).index_add(0, token, answers)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MoE":
        """The correction stays in fp32 or wider: in bf16 its steps would be lost beside what it has grown to."""
        before = self.correction
        super()._apply(fn, recurse)
        _widen(self, before)
        return self

    @property
    def networks(self) -> Networks:
        """The experts', of those that lie in this process."""
        return Networks(self.up.weight, self.out.weight, self.activation, self.up.bias, self.out.bias)

    def _logits(self, tokens: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        seen = tokens if tokens.dtype == torch.float64 else tokens.float()
        if self.training and self.jitter:
            seen = seen * torch.empty_like(seen).uniform_(1 - self.jitter, 1 + self.jitter)
        return self.router(seen)

    def route(self, logits: Float[Tensor, "n e"], corrected: bool = True) -> Routes:
        """Where tokens with these logits go; without the correction if it is not `corrected`. Weights are not scaled yet."""
        if self.router_kind == "chosen":
            return top_softmax(logits, self.top)
        return (sigmoid_top if self.router_kind == "sigmoid" else softmax_top)(
            logits,
            self.top,
            renormalise=self.renormalise,
            correction=self.correction if corrected else None,
            groups=self.groups,
            top_groups=self.top_groups,
        )

    def step_part(self, norm: RMSNorm) -> NetworkPart | None:
        """What the kernel of one token reads; None where somebody asks how tokens are routed, where experts lie elsewhere, in training, and
        where a part was wrapped or is watched."""
        shared, experts = self.shared, (self.up, self.out)
        beside = (None,) * 3 if shared is None else (shared.up, shared.out, shared.gate)
        known = (
            unaltered(self, MoE)
            and (shared is None or unaltered(shared, Shared))
            and all(type(m) is ExpertLinear for m in experts)
        )
        asked = self.observers or self.elsewhere is not None or self.group is not None or self.training
        if (
            not known
            or asked
            or watched(self, *experts, *([] if shared is None else [shared]))
            or not bare(self.router, *beside)
        ):
            return None
        if any(m is not None and m.bias is not None for m in beside) or any(
            m._parameters.get("weight") is None for m in experts
        ):
            return None
        shared_up, shared_down, shared_gate = (None if m is None else m.weight for m in beside)
        return NetworkPart(
            norm.weight,
            up=self.up.weight,
            down=self.out.weight,
            up_bias=self.up.bias,
            down_bias=self.out.bias,
            router=self.router.weight,
            router_bias=self.router.bias,
            correction=self.correction,
            shared_up=shared_up,
            shared_down=shared_down,
            shared_gate=shared_gate,
            eps=norm.eps,
            scale=self.scale,
            activation=KINDS[self.activation],
            top=self.top,
            router_kind=ROUTERS[self.router_kind],
            renormalise=self.renormalise,
            parts=self.groups,
            top_parts=self.top_groups,
        )

    def losses(self, routed: Routed) -> dict[str, Tensor]:
        """The losses of one call, by their names, times their coefficients; where experts are split, of the whole batch."""
        found = {
            "balance": lambda: balance_loss(routed.scores, routed.experts, self.group),
            "sequence_balance": lambda: sequence_balance_loss(routed.scores, routed.experts, self.group),
            "z": lambda: z_loss(routed.logits, self.group),
        }
        return {name: coefficient * found[name]() for name, coefficient in self.coefficients.items()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the correction by what was sent where since the last step of training."""
        if self.rate and self.correction is not None:
            self.correction.copy_(corrected(self.correction, total(self.loads, self.group), self.rate))
            self.loads.zero_()

    def last_weights(self) -> list[Tensor]:
        """The matrices whose products are added to the residual stream."""
        return [self.out.weight, *([] if self.shared is None else [self.shared.out.weight])]

    def flops(self, length: int) -> int:
        """Floating-point operations of `length` tokens, each with its `top` experts (a multiply-add is two)."""
        return 2 * length * self._weights_used()

    def _weights_used(self) -> int:
        own = self.router.weight.numel() + self.top * (self.up.weight[0].numel() + self.out.weight[0].numel())
        return own + (0 if self.shared is None else sum(p.numel() for p in self.shared.parameters()))

    @property
    def chosen_share(self) -> float:
        """Of the experts, how many a token is sent to."""
        return self.top / len(self.loads)

    def active_parameters(self) -> int:
        """Parameters that one token uses."""
        one = sum(p[0].numel() for part in (self.up, self.out) for p in part.parameters())
        return sum(p.numel() for p in self.parameters()) - (len(self.up.weight) - self.top) * one


class Shared(nn.Module):
    """The network that every token goes through."""

    def __init__(self, dim: int, hidden: int, activation: Activation, gate: bool):
        super().__init__()
        self.activation: Activation = activation
        self.up = Linear(dim, hidden * (2 if gated(activation) else 1), bias=False)
        self.out = Linear(hidden, dim, bias=False)
        self.gate = Linear(dim, 1, bias=False) if gate else None

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        y = self.out(activated(self.up(x), self.activation))
        return y if self.gate is None else y * torch.sigmoid(self.gate(x))


def _widen(m: MoE, correction: Tensor | None) -> None:
    """Have a narrower correction be this one in fp32."""
    if correction is not None and m.correction is not None and m.correction.dtype.itemsize < 4:
        m.correction = correction.to(m.correction.device, torch.float32)


def _loaded(m: MoE, _: object) -> None:
    _widen(m, m.correction)


def _check(choice: dict[str, Any], hidden: int, capacity: float, jitter: float) -> None:
    """Raises ValueError."""
    experts, top, groups, top_groups = (choice[name] for name in ("experts", "top", "groups", "top_groups"))
    values = {**choice, "hidden": hidden, "capacity": capacity}
    for least, names in {
        1: ("experts", "top", "groups", "top_groups", "hidden"),
        0: ("shared", "balance", "sequence_balance", "z", "correction", "capacity"),
    }.items():
        for name in names:
            if values[name] < least:
                raise ValueError(f"{name}={values[name]} must be at least {least}")
    if choice["scale"] <= 0:
        raise ValueError(f"scale={choice['scale']} must be above 0")
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter={jitter} must be at least 0 and below 1")
    if experts % groups:
        raise ValueError(f"groups={groups} must divide experts={experts}")
    if top_groups > groups:
        raise ValueError(f"top_groups={top_groups} must be at most groups={groups}")
    if top > (most := experts // groups * top_groups):
        of = "" if groups == 1 else f" of top_groups={top_groups}"
        raise ValueError(f"top={top} must be at most the {most} experts{of}")
    if choice["router"] == "chosen" and groups > 1:
        raise ValueError("router='chosen' has no groups")
    if choice["router"] == "chosen" and choice["correction"]:
        raise ValueError("router='chosen' takes no correction: it has no scores to be corrected")
    if choice["shared_gate"] and not choice["shared"]:
        raise ValueError("shared_gate=True gates a shared network: give shared above 0")
