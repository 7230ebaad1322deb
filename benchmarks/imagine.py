"""What makes a predictor's imagination precise: that of world-rooms alone, with the true state in the place of embeddings.

    python benchmarks/imagine.py --steps 600
    python benchmarks/imagine.py --ways recipe,adamw --seeds 0,1,2

Of walks through two rooms whose walls move a predictor learns what an action of five pushes makes of the state, as the recipe says but for
one thing. Told is how far it is from the true place, in pixels, when it imagines walks that it never learned, after 1, 2, 4, 8 and 16
actions. Nothing is drawn and no encoder is learned, so that a way takes a minute.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import study_results as results
import torch
from torch import Tensor

from postformer.claims.stats import mean_interval
from postformer.cli import positive, seed_list
from postformer.config import Run, UserError, build
from postformer.data.rooms import Rooms
from postformer.models import MODELS
from postformer.objectives.latent import Latent
from postformer.recipes import RECIPES
from postformer.train.optim import learning_rate, make_optimizer
from postformer.train.process import threads

MIDDLE, SPREAD = (32.0, 32.0, 32.0, 32.0), (16.0, 16.0, 7.0, 13.0)
"""Of the state's numbers, about."""
ASKED, AFTER = 512, (1, 2, 4, 8, 16)


def _changed(**words: Any) -> Callable[[Run], Run]:
    """The recipe with other words: of the model, and `optim` and `objective` for those."""
    optim, objective = words.pop("optim", {}), words.pop("objective", {})
    return lambda run: dataclasses.replace(
        run,
        model={**run.model, **words},
        objective={**run.objective, **objective},
        optim=dataclasses.replace(run.optim, **optim),
    )


ADAMW = {"kind": "adamw", "lr": 2e-3}
SQUARE = {"error": "square", "imagined": 1.0}
WAYS: dict[str, tuple[str, Callable[[Run], Run]]] = {
    "recipe": ("as the recipe says", lambda run: run),
    "adamw": ("AdamW at 2e-3 in Muon's place", _changed(optim=ADAMW)),
    "squares": ("squares in the place of distances", _changed(objective=SQUARE)),
    "one": ("one layer", _changed(depth=1)),
    "four": ("four layers", _changed(depth=4)),
    "plain": ("one layer, AdamW, squares", _changed(depth=1, optim=ADAMW, objective=SQUARE)),
    "wide": (
        "the same, four times as wide inside",
        _changed(depth=1, ffns=({"kind": "mlp", "hidden": 512},), optim=ADAMW, objective=SQUARE),
    ),
}


class Known(torch.nn.Module):
    """A `World` whose embeddings are the true state, mixed."""

    def __init__(self, run: Run, data: Rooms):
        super().__init__()
        self.world = build({**run.model, "reach": 0}, MODELS, "model", **data.sizes)
        self.dim, self.actions = self.world.dim, self.world.actions
        mixing = torch.randn(len(MIDDLE), self.dim, generator=torch.Generator().manual_seed(0)) / len(MIDDLE) ** 0.5
        self.register_buffer("mixing", mixing)
        self.predict, self.foresee, self.notice = self.world.predict, self.world.foresee, self.world.notice

    def encode(self, seen: Tensor) -> Tensor:
        """The state's numbers [..., 4, 1, 1], which are what is seen, as an embedding [..., d]."""
        return (seen.flatten(-3) - torch.tensor(MIDDLE)) / torch.tensor(SPREAD) @ self.mixing  # type: ignore[operator]

    def place(self, z: Tensor) -> Tensor:
        """The dot's place in an embedding, in pixels."""
        return ((z @ torch.linalg.pinv(self.mixing)) * torch.tensor(SPREAD) + torch.tensor(MIDDLE))[..., :2]  # type: ignore[arg-type]


def errors(run: Run, steps: int) -> tuple[list[float], int, float]:
    """Pixels after some actions, the predictor's parameters, and the seconds of training."""
    data = Rooms(**{**{name: word for name, word in run.data.items() if name != "kind"}, "fixed": False})
    torch.manual_seed(run.seed)
    model = Known(run, data)
    words = {name: run.objective[name] for name in ("error", "imagined") if name in run.objective}
    objective = Latent(model, normal=0.0, **words)
    predictor = {name: p for name, p in model.world.named_parameters() if not name.startswith("stem.")}
    config = dataclasses.replace(run.optim, warmup=min(run.optim.warmup, steps // 6))
    optimizer, batches, began = make_optimizer(predictor, config), data.batches(run.train.batch, run.seed), time.perf_counter()
    for step in range(steps):
        states, actions = (torch.from_numpy(part).float() for part in batches.walks(step))
        objective({"observations": states[..., None, None], "actions": actions})["loss"].backward()
        torch.nn.utils.clip_grad_norm_(predictor.values(), config.clip)
        optimizer.step(learning_rate(step, config, steps))
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    states, actions = (torch.from_numpy(part).float() for part in data.batches(ASKED, run.seed, "test").walks(0))
    with torch.no_grad():
        made, _ = model.foresee(model.encode(states[:, :1, :, None, None]), actions)
    far = (model.place(made) - states[:, 1:, :2]).norm(dim=-1).mean(0)
    return [float(far[after - 1]) for after in AFTER], sum(p.numel() for p in predictor.values()), seconds


def main() -> int:
    """Train each way with each seed, and print the table. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", default=",".join(WAYS), help="of %(default)s")
    parser.add_argument("--seeds", type=seed_list, default=(0,), help="default: 0")
    parser.add_argument("--steps", type=positive, default=600, help="default: %(default)s")
    parser.add_argument("--threads", type=positive, default=1)
    args = parser.parse_args()
    ways = results.chosen("ways", args.ways, WAYS)
    print(f"| {args.steps:,} steps | parameters | seconds | " + " | ".join(f"after {n}" for n in AFTER) + " |")
    print("|" + "---|" * (3 + len(AFTER)))
    for way in ways:
        name, change = WAYS[way]
        with threads(args.threads):
            found = [
                errors(dataclasses.replace(change(RECIPES["world-rooms"]()), seed=seed), args.steps) for seed in args.seeds
            ]
        cells = [_cell([pixels[i] for pixels, _, _ in found]) for i in range(len(AFTER))]
        print(f"| {name} | {found[0][1]:,} | {found[0][2]:.0f} | " + " | ".join(cells) + " |", flush=True)
    return 0


def _cell(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    found = mean_interval(values)
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}] ({'/'.join(f'{value:.2f}' for value in values)})"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"imagine: {e}", file=sys.stderr)
        sys.exit(2)
