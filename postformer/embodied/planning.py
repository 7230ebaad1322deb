"""Plans: actions whose imagined outcome costs least, found by drawing, weighing and drawing anew, or by following the gradient.

The cross-entropy method: Rubinstein & Kroese 2004; for plans with models of a world: Hafner et al. 2019 (PlaNet, arXiv 1811.04551,
algorithm 2). Model-predictive path integrals: Williams et al. 2017 (arXiv 1509.01149, algorithm 2), with the best samples alone
(Hansen et al. 2024, TD-MPC2, arXiv 2310.16828, section 3.2). Several problems are searched at once, and a search may begin with what was
left of the one before.

b problems, n samples, h actions of a plan, k numbers of an action.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from postformer import state as states
from postformer.ops.layers import checked_word

Method = Literal["cem", "mppi", "gradient"]
Cost = Callable[[Float[Tensor, "b n h k"]], Float[Tensor, "b n"]]
"""What each of some plans costs."""


class Plan(NamedTuple):
    """The actions of each problem Float [b, h, k], and what they cost Float [b]."""

    actions: Tensor
    cost: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """How plans of `horizon` actions are searched for: `samples` in the first of the `iterations`, drawn with a deviation that begins as
    `spread`, of which the best `elites` count: "cem" alike, "mppi" each by exp(-cost / `temperature`), costs counted from the least in
    units of the elites' deviation. "gradient" follows the cost of all samples with Adam at the rate `spread` and takes the best.

    Noise has the power 1 / frequency ** `colour` over a plan's actions: at 0 each action is drawn by itself, above it they go together.
    Each iteration draws `shrink` times fewer samples than the one before, but 2 x `elites` at least, and the share `kept` of its elites is
    among the next one's samples (Pinneri et al. 2020, iCEM, arXiv 2008.06389, sections 3.1 to 3.3).

    Actions are no longer than `limit`. The mean and the deviation keep the share `momentum` of what they were; the deviation stays at
    least `least`.
    """

    method: Method = "cem"
    horizon: int = 16
    samples: int = 300
    iterations: int = 10
    elites: int = 30
    spread: float = 1.0
    least: float = 0.05
    limit: float = 1.0
    momentum: float = 0.1
    temperature: float = 0.5
    colour: float = 0.0
    shrink: float = 1.0
    kept: float = 0.0

    def __post_init__(self) -> None:
        checked_word("method", self.method, Method)
        if min(self.horizon, self.iterations) < 1 or not 2 <= self.elites <= self.samples:
            raise ValueError(
                f"horizon={self.horizon} and iterations={self.iterations} must be at least 1, elites={self.elites} from 2 to "
                f"samples={self.samples}"
            )
        if min(self.spread, self.limit, self.temperature) <= 0 or self.least < 0 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"spread={self.spread}, limit={self.limit} and temperature={self.temperature} must be above 0, least={self.least} at "
                f"least 0, momentum={self.momentum} from 0 to below 1"
            )
        if self.shrink < 1 or not 0 <= self.kept <= 1:
            raise ValueError(f"shrink={self.shrink} must be at least 1, kept={self.kept} from 0 to 1")

    def drawn(self, iteration: int) -> int:
        """How many samples an iteration draws; the first is 0."""
        return max(int(self.samples / self.shrink**iteration), min(2 * self.elites, self.samples))


def searched(
    cost: Cost,
    size: tuple[int, int],
    search: Search,
    *,
    begin: Float[Tensor, "b h k"] | None = None,
    generator: torch.Generator | None = None,
) -> Plan:
    """The cheapest plan that is found for each of `size` = (problems, numbers of an action). A search begins at the plans `begin`, which
    are among its samples, or at none."""
    mean = torch.zeros(size[0], search.horizon, size[1]) if begin is None else begin.clone()
    best = Plan(bounded(mean, search.limit), torch.full((size[0],), torch.inf))
    if search.method == "gradient":
        return _descended(cost, mean, best, search, generator)
    deviation, kept = torch.full_like(mean, search.spread), mean[:, None][:, :0]
    for iteration in range(search.iterations):
        noise = _noise((size[0], search.drawn(iteration), *mean.shape[1:]), search.colour, generator)
        noise[:, 0] = 0  # the mean itself is among them
        drawn = torch.cat([kept, bounded(mean[:, None] + deviation[:, None] * noise, search.limit)], 1)
        with torch.no_grad():
            found = cost(drawn)
        best = _better(best, drawn, found)
        least, which = found.topk(search.elites, 1, largest=False)
        elites = drawn.take_along_dim(which[:, :, None, None], 1)
        kept = elites[:, : round(search.kept * search.elites)]
        weight = _weights(least, search)[:, :, None, None]
        centre = (weight * elites).sum(1)
        width = (weight * (elites - centre[:, None]).square()).sum(1).sqrt()
        mean = torch.lerp(centre, mean, search.momentum)
        deviation = torch.lerp(width, deviation, search.momentum).clamp(min=search.least)
    return best


def _noise(size: tuple[int, ...], colour: float, generator: torch.Generator | None) -> Float[Tensor, "b n h k"]:
    """Normal noise with deviation 1, of the colour along the actions."""
    white, h = torch.randn(size, generator=generator), size[2]
    if not colour or h < 2:
        return white
    frequency = torch.arange(h).clamp(max=h - torch.arange(h)).clamp(min=1).double() / h
    strength = frequency ** (-colour / 2)
    strength = strength / strength.square().mean().sqrt()
    lag = (torch.arange(h)[:, None] - torch.arange(h)) * (2 * torch.pi / h)
    around = (strength * (lag[..., None] * torch.arange(h)).cos()).mean(-1)  # a circulant matrix with these eigenvalues
    return torch.einsum("ij,bnjk->bnik", around.float(), white)


def _weights(least: Float[Tensor, "b e"], search: Search) -> Float[Tensor, "b e"]:
    if search.method == "cem":
        return torch.full_like(least, 1 / search.elites)
    apart = (least - least[:, :1]) / least.std(1, keepdim=True).clamp(min=1e-12)
    return (-apart / search.temperature).softmax(1)


def _better(best: Plan, drawn: Float[Tensor, "b n h k"], found: Float[Tensor, "b n"]) -> Plan:
    least, which = found.min(1)
    take = least < best.cost
    actions = drawn.take_along_dim(which[:, None, None, None], 1)[:, 0]
    return Plan(torch.where(take[:, None, None], actions, best.actions), torch.where(take, least, best.cost))


@torch.enable_grad()
def _descended(cost: Cost, mean: Tensor, best: Plan, search: Search, generator: torch.Generator | None) -> Plan:
    noise = _noise((len(mean), search.samples, *mean.shape[1:]), search.colour, generator)
    noise[:, 0] = 0
    plans = (mean[:, None] + search.spread * noise).requires_grad_()
    optimizer = torch.optim.Adam([plans], lr=search.spread)
    for i in range(search.iterations + 1):
        found = cost(bounded(plans, search.limit))
        best = _better(best, bounded(plans.detach(), search.limit), found.detach())
        if i < search.iterations:
            (plans.grad,) = torch.autograd.grad(found.sum(), plans)  # of the plans alone: no model learns here
            optimizer.step()
    return best


def bounded(actions: Float[Tensor, "*b k"], limit: float) -> Float[Tensor, "*b k"]:
    """Actions no longer than the limit, in their own direction."""
    return actions * (limit / actions.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)


def ahead(plan: Plan, done: int) -> Float[Tensor, "b h k"]:
    """What is left of a plan after some of its actions, with nothing done at its end: where the next search begins."""
    return torch.cat([plan.actions[:, done:], torch.zeros_like(plan.actions[:, :done])], 1)


def to_goal(
    model: Any,
    now: Float[Tensor, "b d"],
    goal: Float[Tensor, "b d"],
    *,
    state: states.State | None = None,
    lasting: int = 1,
    last: float = 0.0,
    paced: bool = False,
) -> Cost:
    """How far from a goal a `World` imagines to be: the mean square over all steps, and `last` times more that of the last one. An action
    is done `lasting` times; where the model's own actions are that many in one, they are told it as one. All samples of a problem fork
    from its state, and none of them changes it. With `paced` distances are counted in steps: what is moved slowly, as a block that has to
    be pushed, weighs more than the finger that pushes it."""
    pace = model.pace().to(now.dtype) if paced else None

    def cost(actions: Tensor) -> Tensor:
        b, n = actions.shape[:2]
        rows = torch.arange(b).repeat_interleave(n)
        forked = None if state is None else states.take(state, rows)
        steps = actions.flatten(0, 1).repeat_interleave(lasting, 1)
        made, _ = model.imagine(now[rows], steps.reshape(b * n, -1, model.actions), forked)
        away = made - goal[rows, None]
        far = (away if pace is None else away @ pace).square().mean(-1)
        return (far.mean(1) + last * far[:, -1]).view(b, n)

    return cost
