"""Which expert fires on which text: the loads of a model's mixtures on texts of several domains, beside those of untrained routers.

The control sees what each router sees, the same activations of the trained model, through weights drawn anew, several times: what its
experts seem to specialise in is what any random split of these activations would. Domains count alike, however much text each has.
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
DOCUMENTS = 8
"""From so many of a domain on they are what is resampled; fewer say too little of others."""
UNTRAINED = 8
"""Routers of each layer that stand for the control."""
SHORTEST = 16
"""Tokens of the shortest document that is read."""


class Interval(NamedTuple):
    """A number and where it lies with 95% confidence."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Layer:
    """The pairs that each expert of one mixture had, of every domain's every window [w, e]; `control` of untrained routers [c, w, e].

    Intervals are the bootstrap's over documents, whose numbers `documents` tells for every window, and over windows of a domain with fewer
    than DOCUMENTS of them; and over the untrained routers. `resampled` tells it where another layer's windows decide: of a half the whole.
    """

    name: str
    windows: Mapping[str, Int[np.ndarray, "w e"]]
    control: Mapping[str, Int[np.ndarray, "c w e"]]
    documents: Mapping[str, Int[np.ndarray, " w"]] = dataclasses.field(default_factory=dict)
    resampled: Mapping[str, Int[np.ndarray, " w"]] = dataclasses.field(default_factory=dict)

    @property
    def loads(self) -> Int[np.ndarray, "d e"]:
        """Over all windows, a row for each domain."""
        return np.stack([of.sum(0) for of in self.windows.values()])

    @property
    def control_loads(self) -> Int[np.ndarray, "c d e"]:
        """The same of each untrained router."""
        return np.stack([of.sum(1) for of in self.control.values()], 1)

    def purity_interval(self, control: bool = False, seed: int = 0) -> Interval:
        """`purity`, or the mean of the untrained routers'."""
        own, apart = self._drawn(seed)
        if control:
            return Interval(self._untrained(), *_middle(apart))
        return Interval(purity(self.loads), *_middle(own))

    def excess_interval(self, seed: int = 0) -> Interval:
        """By how much the purity exceeds the untrained routers' mean on the same text."""
        own, apart = self._drawn(seed)
        return Interval(purity(self.loads) - self._untrained(), *_middle([a - b for a, b in zip(own, apart, strict=True)]))

    def _untrained(self) -> float:
        return float(np.mean([purity(of) for of in self.control_loads]))

    def units(self, domain: str) -> Int[np.ndarray, " w"]:
        """The number of the unit that is resampled, for each window of a domain."""
        numbers = self.resampled.get(domain)
        if numbers is None:
            numbers = self._documents(domain)
            numbers = numbers if len(np.unique(numbers)) >= DOCUMENTS else np.arange(len(numbers))
        return np.unique(numbers, return_inverse=True)[1]

    def _documents(self, domain: str) -> Int[np.ndarray, " w"]:
        """Each window's document, by its place among them; where none are told a window is one."""
        return np.unique(self.documents.get(domain, np.arange(len(self.windows[domain]))), return_inverse=True)[1]

    def _drawn(self, seed: int) -> tuple[list[float], list[float]]:
        """Purities of resampled texts: the model's, and on the same texts those of an untrained router that is drawn with them."""
        rng = np.random.default_rng(seed)
        own, apart = [], []
        for domain, windows in self.windows.items():
            weights = self._resampled(domain, rng)
            own.append(weights @ windows)
            apart.append(np.einsum("rw,cwe->rce", weights, self.control[domain], optimize=True))
        which = rng.integers(0, apart[0].shape[1], RESAMPLED)
        whole, alone = np.stack(own, 1), np.stack(apart, 2)
        return [purity(of) for of in whole], [purity(alone[i, c]) for i, c in enumerate(which)]

    def _resampled(self, domain: str, rng: np.random.Generator) -> Int[np.ndarray, "r w"]:
        """How often each window of a domain stands in each resampled text."""
        unit = self.units(domain)
        count = int(unit.max()) + 1
        return np.stack([np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(RESAMPLED)])[:, unit]

    def half(self, number: int) -> "Layer":
        """Every other document of each domain, or window where no documents are told: the even ones (0) or the odd (1)."""
        kept = {domain: self._documents(domain) % 2 == number for domain in self.windows}
        return Layer(
            self.name,
            {d: of[kept[d]] for d, of in self.windows.items()},
            {d: of[:, kept[d]] for d, of in self.control.items()},
            {d: of[kept[d]] for d, of in self.documents.items()},
            {d: self.units(d)[kept[d]] for d in self.windows},
        )

    def specialist(self, domain: str, takes: float, seed: int = 0) -> "Specialist | None":
        """The expert that is most of one domain's, of those that take at least this share of the domain's pairs; None if none does.

        It is chosen on one half of the text and measured on the other.
        """
        number = list(self.windows).index(domain)
        loads, rest = self.half(0).loads, self.half(1)
        own = loads[number] / loads[number].sum()
        share = np.where(own >= takes, np.nan_to_num(given_expert(loads)[number]), -1)
        if share.max() < 0:
            return None
        expert = int(share.argmax())
        found = rest.loads
        takes = float(found[number, expert] / found[number].sum())
        return Specialist(expert, rest._share(number, expert, seed), takes, float(share[expert]))

    def _share(self, number: int, expert: int, seed: int) -> Interval:
        """P(domain | expert)."""
        rng = np.random.default_rng(seed)
        drawn = [self._resampled(domain, rng) @ windows for domain, windows in self.windows.items()]
        shares = [float(given_expert(of)[number, expert]) for of in np.stack(drawn, 1)]
        return Interval(float(given_expert(self.loads)[number, expert]), *_middle(np.nan_to_num(shares).tolist()))


class Specialist(NamedTuple):
    """An expert of one domain."""

    expert: int
    share: Interval
    """P(domain | expert) of equally many tokens of each domain."""
    takes: float
    """Of the domain's pairs."""
    chosen_by: float
    """The share on the half of the text by which it was chosen."""


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
    each: int | None = None,
    seed: int = 0,
    after_window: Callable[[str, int, int], None] = lambda domain, done, total: None,
) -> Telemetry:
    """Read up to so many tokens of each domain's texts, in windows of WINDOW from a fresh state, at most `each` of a document.

    Raises UserError for a model without mixtures or tokenizer, for fewer than two domains, and for a domain of less than a window.
    """
    found = mixtures(model)
    if not found:
        raise UserError("this model has no mixture of experts (model.ffns kind 'moe')")
    if model.tokens is None:
        raise UserError("this model was saved without a tokenizer; it cannot read text")
    if len(texts) < 2:
        raise UserError(f"domains: give at least two, such as code=DIR prose=DIR, got {', '.join(texts) or 'none'}")
    control = {name: _untrained(m, (seed, i)) for i, (name, m) in enumerate(found.items())}
    loads: dict[str, dict[str, list[Tensor]]] = {name: {d: [] for d in texts} for name in found}
    apart: dict[str, dict[str, list[Tensor]]] = {name: {d: [] for d in texts} for name in found}
    numbers: dict[str, list[int]] = {d: [] for d in texts}
    sent, read = [], dict.fromkeys(texts, 0)
    for domain, documents in texts.items():
        for number, ids in _windows(model, documents, each):
            experts, untrained = _routes(model, ids, control)
            for name, m in found.items():
                loads[name][domain].append(torch.bincount(experts[name].flatten(), minlength=len(m.loads)))
                counts = [torch.bincount(one.flatten(), minlength=len(m.loads)) for one in untrained[name]]
                apart[name][domain].append(torch.stack(counts))
            if not read[domain]:
                pieces = tuple(model.tokens.decode_bytes([i]).decode(errors="replace") for i in ids.tolist())
                sent.append(Sent(domain, pieces, tuple(tuple(of[:, 0].tolist()) for of in experts.values())))
            read[domain] += len(ids)
            numbers[domain].append(number)
            after_window(domain, min(read[domain], tokens), tokens)
            if read[domain] >= tokens:
                break
        if read[domain] < WINDOW:
            raise UserError(f"--text {domain}: holds less than a window of {WINDOW} tokens")
    documents_of = {d: np.array(of) for d, of in numbers.items()}
    layers = (
        Layer(
            name,
            {d: torch.stack(of).numpy() for d, of in loads[name].items()},
            {d: torch.stack(of, 1).numpy() for d, of in apart[name].items()},
            documents_of,
        )
        for name in found
    )
    return Telemetry(tuple(texts), read, tuple(layers), tuple(sent))


def _untrained(m: MoE, seed: tuple[int, int]) -> list[nn.Module]:
    """UNTRAINED of a mixture's router as it would begin."""
    with torch.random.fork_rng([]):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        sizes = m.router.in_features, m.router.out_features
        fresh = [type(m.router)(*sizes, bias=m.router.bias is not None) for _ in range(UNTRAINED)]
    return [one.to(m.router.weight.dtype) for one in fresh]


def _routes(
    model: LanguageModel, ids: Int[Tensor, " t"], control: Mapping[str, list[nn.Module]]
) -> tuple[dict[str, Int[Tensor, "t k"]], dict[str, list[Int[Tensor, "t k"]]]]:
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
    apart = {
        name: [m.route(one(seen[name]), corrected=False).experts for one in control[name]]
        for name, m in mixtures(model).items()
    }
    return experts, apart


def _windows(model: LanguageModel, documents: Iterable[bytes], each: int | None) -> Iterator[tuple[int, Int[Tensor, " t"]]]:
    """Whole windows of each document, at most `each`, and its number; a shorter document is one window."""
    assert model.tokens is not None
    for number, document in enumerate(documents):
        ids = torch.tensor([*model.tokens.encode(document), model.tokens.end])
        for window in ids.split(WINDOW)[: max(1, len(ids) // WINDOW)][:each]:
            if len(window) >= SHORTEST:
                yield number, window


def _middle(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
