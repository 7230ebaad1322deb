"""Which expert fires on which text: the loads of a model's mixtures on texts of several domains, beside those of untrained routers.

The control sees what each router sees, the same activations of the trained model, through weights drawn anew: what its experts seem to
specialise in is what any random split of these activations would. Domains count alike, however much text each has.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from postformer.config import UserError
from postformer.ffn.moe import MoE
from postformer.models.language import LanguageModel
from postformer.models.routing import mixtures, routed

WINDOW = 256
"""Tokens that are read from a fresh state, and the unit of the bootstrap."""
RESAMPLED = 1000


class Interval(NamedTuple):
    """A number and where it lies with 95% confidence."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Layer:
    """The pairs that each expert of one mixture had, of every domain's every window [w, e]; `control` of the untrained router."""

    name: str
    windows: Mapping[str, Int[np.ndarray, "w e"]]
    control: Mapping[str, Int[np.ndarray, "w e"]]

    @property
    def loads(self) -> Int[np.ndarray, "d e"]:
        """Over all windows, a row for each domain."""
        return np.stack([of.sum(0) for of in self.windows.values()])

    @property
    def control_loads(self) -> Int[np.ndarray, "d e"]:
        """The same of the untrained router."""
        return np.stack([of.sum(0) for of in self.control.values()])

    def purity_interval(self, control: bool = False, seed: int = 0) -> Interval:
        """`purity` with the bootstrap's 95% interval over windows."""
        windows = self.control if control else self.windows
        drawn = _resampled(windows, seed)
        return Interval(purity(self.control_loads if control else self.loads), *_middle([purity(of) for of in drawn]))

    def excess_interval(self, seed: int = 0) -> Interval:
        """By how much the purity exceeds the control's on the same windows, with the bootstrap's 95% interval."""
        both = zip(_resampled(self.windows, seed), _resampled(self.control, seed), strict=True)
        excess = purity(self.loads) - purity(self.control_loads)
        return Interval(excess, *_middle([purity(one) - purity(other) for one, other in both]))

    def specialist(self, domain: str, takes: float, control: bool = False, seed: int = 0) -> "Specialist | None":
        """The expert that is most of one domain's, of those that take at least this share of the domain's pairs; None if none does.

        It is chosen by every other window and measured by those between, so that choosing the largest flatters nothing.
        """
        windows = self.control if control else self.windows
        number = list(windows).index(domain)
        chosen, apart = ({d: of[first::2] for d, of in windows.items()} for first in (0, 1))
        loads = np.stack([of.sum(0) for of in chosen.values()])
        own = loads[number] / loads[number].sum()
        share = np.where(own >= takes, np.nan_to_num(given_expert(loads)[number]), -1)
        if share.max() < 0:
            return None
        expert = int(share.argmax())
        rest = np.stack([of.sum(0) for of in apart.values()])
        drawn = [given_expert(of)[number, expert] for of in _resampled(apart, seed)]
        found = Interval(float(given_expert(rest)[number, expert]), *_middle(drawn))
        return Specialist(expert, found, float(rest[number, expert] / rest[number].sum()))


class Specialist(NamedTuple):
    """An expert of one domain."""

    expert: int
    share: Interval
    """P(domain | expert) of equally many tokens of each domain."""
    takes: float
    """Of the domain's pairs."""


@dataclasses.dataclass(frozen=True)
class Sent:
    """The first window of a domain token by token: its pieces of text, and the first choice of each layer for each."""

    domain: str
    pieces: tuple[str, ...]
    experts: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Telemetry:
    """Of every mixture of a model, the first layer's first."""

    domains: tuple[str, ...]
    tokens: Mapping[str, int]
    layers: tuple[Layer, ...]
    sent: tuple[Sent, ...]


def purity(loads: Int[np.ndarray, "d e"]) -> float:
    """How well an expert tells the domain: the share of tokens, of equally many of each domain, that would be named rightly by their
    expert's commonest domain. 1 / d for experts that all domains load alike, 1 where no two share an expert."""
    share = loads / loads.sum(1, keepdims=True)
    return float(share.max(0).sum() / len(loads))


def information(loads: Int[np.ndarray, "d e"]) -> float:
    """What the expert tells of the domain, of equally many tokens of each, as a share of all there is to tell: 0 to 1."""
    share = loads / loads.sum(1, keepdims=True) / len(loads)
    independent = share.sum(0, keepdims=True) / len(loads)
    told = np.where(
        share > 0, share * np.log(np.where(share > 0, share, 1) / np.where(independent > 0, independent, 1)), 0
    ).sum()
    return float(told / math.log(len(loads)))


def given_expert(loads: Int[np.ndarray, "d e"]) -> Float[np.ndarray, "d e"]:
    """P(domain | expert) of equally many tokens of each domain; NaN for an expert that had none."""
    share = loads / loads.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return share / share.sum(0)


@torch.inference_mode()
def telemetry(
    model: LanguageModel,
    texts: Mapping[str, Iterable[bytes]],
    *,
    tokens: int = 65_536,
    seed: int = 0,
    after_window: Callable[[str, int, int], None] = lambda domain, done, total: None,
) -> Telemetry:
    """Read up to so many tokens of each domain's texts, in windows of WINDOW from a fresh state.

    Raises UserError for a model without mixtures or tokenizer, for fewer than two domains, and for a domain of less than a window.
    """
    found = mixtures(model)
    if not found:
        raise UserError("this model has no mixture of experts (model.ffns kind 'moe')")
    if model.tokens is None:
        raise UserError("this model was saved without a tokenizer; it cannot read text")
    if len(texts) < 2:
        raise UserError(f"domains: give at least two, such as code=DIR prose=DIR, got {', '.join(texts) or 'none'}")
    control = {name: _untrained(m, seed + i) for i, (name, m) in enumerate(found.items())}
    loads: dict[str, dict[str, list[Tensor]]] = {name: {d: [] for d in texts} for name in found}
    apart: dict[str, dict[str, list[Tensor]]] = {name: {d: [] for d in texts} for name in found}
    sent, read = [], {}
    for domain, documents in texts.items():
        total = max(1, tokens // WINDOW)
        for number, ids in enumerate(_windows(model, documents, total)):
            experts, untrained = _routes(model, ids, control)
            for name, m in found.items():
                loads[name][domain].append(torch.bincount(experts[name].flatten(), minlength=len(m.loads)))
                apart[name][domain].append(torch.bincount(untrained[name].flatten(), minlength=len(m.loads)))
            if not number:
                pieces = tuple(model.tokens.decode_bytes([i]).decode(errors="replace") for i in ids.tolist())
                sent.append(Sent(domain, pieces, tuple(tuple(of[:, 0].tolist()) for of in experts.values())))
            read[domain] = (number + 1) * WINDOW
            after_window(domain, number + 1, total)
        if domain not in read:
            raise UserError(f"{domain}: holds less than a window of {WINDOW} tokens")
    layers = (
        Layer(name, *({d: torch.stack(of).numpy() for d, of in part[name].items()} for part in (loads, apart)))
        for name in found
    )
    return Telemetry(tuple(texts), read, tuple(layers), tuple(sent))


def _untrained(m: MoE, seed: int) -> nn.Module:
    """A mixture's router as it would begin."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        fresh = type(m.router)(m.router.in_features, m.router.out_features, bias=m.router.bias is not None)
    return fresh.to(m.router.weight.dtype)


def _routes(
    model: LanguageModel, ids: Int[Tensor, " t"], control: Mapping[str, nn.Module]
) -> tuple[dict[str, Int[Tensor, "t k"]], dict[str, Int[Tensor, "t k"]]]:
    """The experts of each mixture for each token, and those that the untrained routers would choose."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, given: seen.update({name: given[0]})

    hooks = [m.router.register_forward_pre_hook(keep(name)) for name, m in mixtures(model).items()]
    try:
        with routed(model) as routing:
            model.hidden(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    experts = {name: calls[0].experts[0] for name, calls in routing.calls.items()}
    return experts, {name: m.route(control[name](seen[name]), corrected=False).experts for name, m in mixtures(model).items()}


def _windows(model: LanguageModel, documents: Iterable[bytes], count: int) -> Iterator[Int[Tensor, " t"]]:
    """The first tokens of a domain's texts, which follow each other, a window at a time."""
    assert model.tokens is not None
    rest: list[int] = []
    for document in documents:
        rest += [*model.tokens.encode(document), model.tokens.end]
        while len(rest) >= WINDOW:
            yield torch.tensor(rest[:WINDOW])
            rest, count = rest[WINDOW:], count - 1
            if not count:
                return


def _resampled(windows: Mapping[str, Int[np.ndarray, "w e"]], seed: int) -> list[Int[np.ndarray, "d e"]]:
    rng = np.random.default_rng(seed)
    drawn = [of[rng.integers(0, len(of), (RESAMPLED, len(of)))].sum(1) for of in windows.values()]
    return [np.stack(rows) for rows in zip(*drawn, strict=True)]


def _middle(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
