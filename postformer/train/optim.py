"""The optimizer and its schedule: AdamW, or Muon for the hidden matrices with AdamW for the rest.

AdamW: Loshchilov & Hutter 2019 (arXiv 1711.05101). Muon's update is scaled to AdamW's root mean square, so that a learning rate
means the same for both.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from postformer.config import ConfigError, OptimConfig, UserError
from postformer.train.muon import Muon

ENDS = frozenset({"embed", "embedding", "head", "lm_head"})
"""Modules at a model's ends: no hidden matrices."""
ROUTER = "router"


class StateMismatch(UserError):
    """Optimizer tensors that do not belong to these parameters."""


def learning_rate(step: int, config: OptimConfig, total_steps: int) -> float:
    """The learning rate of step 0, 1, ..., total_steps - 1.

    Warm-up: lr (step + 1) / warmup, so that step warmup - 1 is the first at lr; a run shorter than its warm-up ends within
    it. Then, with p = (step + 1 - start) / (total_steps - start) clipped at 0 and lr (final + (1 - final) shape(p)):

    - cosine: start = warmup, shape = (1 + cos(pi p)) / 2;
    - wsd (warm-up, stable, decay; Hägele et al. 2024, arXiv 2405.18392): start = the last `decay` share, shape = 1 - p;
    - constant: shape = 1.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    start = config.warmup
    if config.schedule == "wsd":
        start = max(start, total_steps - round(config.decay * total_steps))
    if step < start:
        return config.lr
    p = (step + 1 - start) / (total_steps - start)
    shape = 1 - p if config.schedule == "wsd" else (1 + math.cos(math.pi * p)) / 2
    return config.lr * (config.final + (1 - config.final) * shape)


class Optimizer:
    """Torch optimizers over disjoint parameters, stepped as one, whose state has names."""

    def __init__(self, parts: Iterable[torch.optim.Optimizer], names: Mapping[Tensor, str]):
        self.parts = list(parts)
        self._names = names

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that is trained."""
        return [p for part in self.parts for group in part.param_groups for p in group["params"]]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self, lr: float) -> None:
        """One update at the given learning rate, of which Muon's matrices and routers take their share."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * group.get("share", 1.0)
            part.step()

    def state(self) -> dict[str, Tensor]:
        """All state as `{"parameter name:key": tensor}`. The tensors are the optimizer's own."""
        return {f"{self._names[p]}:{k}": v for part in self.parts for p, s in part.state.items() for k, v in s.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave. Raises StateMismatch when a name or shape does not belong to these parameters."""
        left = dict(tensors)
        for part in self.parts:
            state: dict[int, dict[str, Tensor]] = {}
            for i, p in enumerate(p for group in part.param_groups for p in group["params"]):
                found = self._take(p, _keys(part), left)
                if found:
                    state[i] = found
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
        if left:
            raise StateMismatch(f"'{min(left)}' belongs to no parameter of this run")

    def _take(self, p: nn.Parameter, keys: Mapping[str, bool], left: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of one parameter, with its order in memory: the fused optimizer counts numbers along that."""
        name = self._names[p]
        found = {key: left.pop(f"{name}:{key}") for key in keys if f"{name}:{key}" in left}
        for key, like_parameter in keys.items():
            if found and key not in found:
                raise StateMismatch(f"'{name}:{key}' is missing")
            shape = tuple(p.shape) if like_parameter else ()
            if found and tuple(found[key].shape) != shape:
                raise StateMismatch(f"'{name}:{key}' has shape {tuple(found[key].shape)}, this run's has {shape}")
        like = {key: torch.empty_like(p, dtype=value.dtype, device=value.device) for key, value in found.items() if keys[key]}
        return {key: like[key].copy_(value) if key in like else value.clone() for key, value in found.items()}


def _keys(part: torch.optim.Optimizer) -> dict[str, bool]:
    """What the optimizer keeps for a parameter, and whether it has the parameter's shape."""
    return {"momentum_buffer": True} if isinstance(part, Muon) else {"exp_avg": True, "exp_avg_sq": True, "step": False}


def make_optimizer(named: Mapping[str, nn.Parameter], config: OptimConfig) -> Optimizer:
    """The optimizer of the parameters that require a gradient.

    Weight decay is for tensors of two and more dimensions; embeddings, heads, routers and parameters with an attribute
    `no_weight_decay = True` go without. `muon` takes, away from the model's ends, the 2-D tensors called `weight` of more than one row and
    column, the filters of 2-D and 3-D convolutions of several channels, and stacks of matrices with an attribute `matrices = True`.
    Routers learn by AdamW at the rate of those: at that of embeddings they send all tokens to two or three experts within fifty steps.
    Raises ConfigError when a setting is out of its range.
    """
    _check(config)
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "plain": [], ROUTER: []}
    trained = {name: p for name, p in named.items() if p.requires_grad}
    for name, p in trained.items():
        groups[_group(name, p, config.kind)].append(p)
    adamw = [
        {"params": groups["decay"], "weight_decay": config.weight_decay},
        {"params": groups["plain"], "weight_decay": 0.0},
        {"params": groups[ROUTER], "weight_decay": 0.0, "share": config.matrix_lr if config.kind == "muon" else 1.0},
    ]
    adamw = [group for group in adamw if group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained.values())
    parts: list[torch.optim.Optimizer] = []
    try:
        if groups["muon"]:
            matrices = [{"params": groups["muon"], "share": config.matrix_lr}]
            parts.append(Muon(matrices, lr=config.lr, weight_decay=config.weight_decay))
        if adamw:
            parts.append(torch.optim.AdamW(adamw, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused))
    except ValueError as e:
        raise ConfigError(f"optim: {e}") from e
    return Optimizer(parts, {p: name for name, p in trained.items()})


def _check(config: OptimConfig) -> None:
    if not 0 < config.eps < math.inf:
        raise ConfigError(f"optim.eps: {config.eps} must be above 0: a parameter without a gradient would become 0 / 0")
    for name, most in {
        "lr": math.inf,
        "weight_decay": math.inf,
        "warmup": math.inf,
        "clip": math.inf,
        "decay": 1,
        "final": 1,
        "matrix_lr": math.inf,
    }.items():
        value = getattr(config, name)
        if not 0 <= value <= most:
            raise ConfigError(
                f"optim.{name}: {value} must be at least 0" + ("" if most == math.inf else f" and at most {most}")
            )


def _group(name: str, p: nn.Parameter, kind: str) -> str:
    *modules, own = name.split(".")
    if ROUTER in modules:
        return ROUTER
    at_an_end = not ENDS.isdisjoint(modules)
    if p.ndim < 2 or at_an_end or getattr(p, "no_weight_decay", False):
        return "plain"
    return "muon" if kind == "muon" and own == "weight" and (_is_matrix(p) or getattr(p, "matrices", False)) else "decay"


def _is_matrix(p: nn.Parameter) -> bool:
    """A single row or column, such as a gate's, is none: Muon would make it of length 1. Filters over several channels are one."""
    return p.ndim in (2, 4, 5) and min(p.shape[:2]) > 1
