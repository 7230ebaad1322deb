"""How long a search for a plan takes whose samples fork from the model's state, beside one that reads what was seen again for each step.

    python benchmarks/plan_speed.py
    python benchmarks/plan_speed.py --recipe world-rooms --seen 1,4,16 --threads 2

Both search alike: `--samples` plans of `--steps` actions, `--iterations` times, from the same embeddings, and find the same plan. One keeps
a state of what was seen, forks it for each sample and steps it; the other has no state, and predicts each step from the whole row of what
was seen and imagined. Interleaved medians with their 95% intervals, and the ratio's.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from postformer.claims.stats import Estimate, interleaved, median_interval, ratio_interval
from postformer.cli import positive
from postformer.config import UserError
from postformer.embodied.planning import Search, searched, to_goal
from postformer.recipes import RECIPES
from postformer.train.process import threads
from postformer.train.session import prepare


def without_state(model: Any, seen: Tensor, done: Tensor, goal: Tensor) -> Callable[[Tensor], Tensor]:
    """As `to_goal` after some looks [1, m, d] and what was done between them, by a model that keeps nothing."""

    def cost(actions: Tensor) -> Tensor:
        n, steps = actions.shape[1:3]
        row, acts = seen.expand(n, -1, -1), torch.cat([done.expand(n, -1, -1), actions[0]], 1)
        for _ in range(steps):
            made, _ = model.predict(row, acts[:, : row.shape[1]])
            row = torch.cat([row, made[:, -1:]], 1)
        far = (row[:, -steps:] - goal[:, None]).square().mean(-1)
        return far.mean(1)[None]

    return cost


def searches(model: Any, count: int, search: Search) -> dict[str, Callable[[], Tensor]]:
    """Both searches after `count` looks at random embeddings."""
    made = torch.Generator().manual_seed(0)
    seen, goal = torch.randn(1, count, model.dim, generator=made), torch.randn(1, model.dim, generator=made)
    done = torch.randn(1, count - 1, model.actions, generator=made)

    def with_state() -> Tensor:
        state = None
        if count > 1:
            _, state = model.predict(seen[:, :-1], done, model.init_state(1))
        return _found(to_goal(model, seen[:, -1], goal, state=state), model, search)

    return {
        "forked": with_state,
        "read again": lambda: _found(without_state(model, seen, done, goal), model, search),
    }


def _found(cost: Callable[[Tensor], Tensor], model: Any, search: Search) -> Tensor:
    with torch.inference_mode():
        return searched(cost, (1, model.actions), search, generator=torch.Generator().manual_seed(1)).actions


def measured(model: Any, args: argparse.Namespace) -> str:
    """The table. Raises UserError where both do not find the same plan."""
    search = Search(horizon=args.steps, samples=args.samples, iterations=args.iterations, elites=max(args.samples // 10, 2))
    out = [
        f"{args.recipe}, {search.samples} samples x {search.horizon} steps x {search.iterations} iterations, {args.threads} threads",
        "",
        "| looks before | forked states, ms | read again, ms | ratio |",
        "|---|---|---|---|",
    ]
    for count in args.seen:
        both = searches(model, count, search)
        apart = (both["forked"]() - both["read again"]()).abs().max()
        if apart > 1e-2 * search.limit:
            raise UserError(f"--seen {count}: the two searches find plans that differ by {apart:.3g}")
        samples = interleaved(both, args.rounds).samples
        times = [_told(median_interval([1000 * second for second in samples[name]]), 0) for name in both]
        out.append(f"| {count} | {' | '.join(times)} | {_told(ratio_interval(samples['read again'], samples['forked']), 1)} |")
    return "\n".join(out)


def _told(found: Estimate, digits: int) -> str:
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def main() -> int:
    """Measure and print. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="world-rooms", help="whose model searches (default: %(default)s)")
    parser.add_argument("--seen", default="1,4,16", help="looks before a plan (default: %(default)s)")
    parser.add_argument("--samples", type=positive, default=300)
    parser.add_argument("--steps", type=positive, default=10)
    parser.add_argument("--iterations", type=positive, default=10)
    parser.add_argument("--rounds", type=positive, default=9, help="of each row (default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=2)
    args = parser.parse_args()
    if args.recipe not in RECIPES or RECIPES[args.recipe]().model["kind"] != "world":
        worlds = ", ".join(name for name in RECIPES if name.startswith("world-"))
        raise UserError(f"--recipe: unknown '{args.recipe}'; choose from {worlds}")
    args.seen = [int(word) if word.isdigit() else 0 for word in args.seen.split(",")]
    if min(args.seen) < 1:
        raise UserError("--seen: whole numbers of at least 1 with commas between")
    with threads(args.threads):
        model: Any = prepare(RECIPES[args.recipe]())[1].eval().model
        torch.nn.init.normal_(model.head.weight, std=0.02)  # an untrained one predicts that nothing changes
        print(measured(model, args))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"plan_speed: {e}", file=sys.stderr)
        sys.exit(2)
