"""Models that imagine simulated physics, as two claims and benchmarks/foresee.py measure them: one learns to predict embeddings, its
rival of the same operations pixels, and one learns nothing. What they foresee of a second, and what surprises them.

No torch is imported before it is needed.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from postformer.claims.ledger import Chart, Context, Finding, Mark, Number, Real, Series
from postformer.claims.words import interval, value
from postformer.config import Run
from postformer.recipes.worlds import world_physics, world_pixels

LEARN, SAMPLED = 0.8, 2
"""Training's share of the budget, and the steps of each model that are timed before."""
ASKED = ((600, 200), (150, 50), (0, 20))
"""From which budget of a seed on how many clips of a scene, or pairs of a kind, are asked."""
ASKED_SEED = 1000
"""Clips that are asked are those of this seed and more, one for each seed of a run: no run learns from these."""
NAMES = {"embeddings": "predicts embeddings", "pixels": "predicts pixels", "untrained": "learned nothing"}
SCENES = ("uniform", "collision", "parabola", "occlusion")
AHEAD = 10
"""Frames of a second."""
GROUPS = {"place": "units", "velocity": "units/s", "mass ratio": "log"}
"""Attributes that are foreseen, and their units."""
COLLAPSED = 1.5
"""The effective rank below which training ends (`ops.isotropy.Watch`)."""
CHUNK = 50
"""Pairs that are seen at once."""
Evidence = Mapping[str, Any]


def recipes() -> dict[str, Run]:
    """What is trained."""
    return {"embeddings": world_physics(), "pixels": world_pixels()}


def learned(ctx: Context) -> tuple[dict[str, Run], dict[str, Any]]:
    """Train as many of the recipes' steps as the budget holds, with each seed. The runs, and what evidence tells of them."""
    from postformer.claims import tasks

    whole = recipes()
    runs = tasks.fitted(ctx, whole, LEARN * ctx.budget_s, SAMPLED)
    step_s = ctx.steps[-1]["result"]
    tasks.learn(ctx, runs.values())
    own, steps = runs["embeddings"], whole["embeddings"].train.steps
    return runs, {
        "step_s": step_s,
        "seeds": list(ctx.seeds),
        "asked": next(count for least_s, count in ASKED if ctx.budget_s / len(ctx.seeds) >= least_s),
        "videos": own.train.steps * own.train.batch,
        "side": own.data["size"],
        "frames": own.data["frames"],
        "known": own.objective["known"],
        "taken": f"{own.train.steps:,} of the recipe's {steps:,} steps",
        "taken_share": own.train.steps / steps,
    }


def each(ctx: Context, runs: Mapping[str, Run], doing: str, ask: Any) -> dict[str, dict[str, Any]]:
    """What `ask(model, run, seed)` finds of every model with every seed, under the names of both."""
    from postformer.train.process import freed_memory_kept, threads

    found: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    with threads(ctx.threads), freed_memory_kept():
        for at, name in enumerate(NAMES):
            ctx.progress(f"{doing}: {NAMES[name]}", at, len(NAMES))
            for seed in ctx.seeds:
                found[name][str(seed)] = ask(*opened(ctx, runs, name, seed), seed)
    return found


def ranks(ctx: Context, runs: Mapping[str, Run]) -> dict[str, list[list[float]]]:
    """Of each run with the first seed the effective rank of its embeddings as training went on: steps and ranks."""
    from postformer.claims import tasks

    found = {}
    for name, run in runs.items():
        lines = (tasks.folder(ctx, run, ctx.seeds[0]) / "log.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if "rank" in row]
        found[name] = [[float(row["step"]), round(float(row["rank"]), 3)] for row in rows]
    return found


def rank_charts(found: Mapping[str, list[list[float]]], names: Mapping[str, str]) -> tuple[Chart, ...]:
    """How many directions embeddings spread over while they are learned; none where nothing was logged."""
    series = tuple(
        Series(names[name], tuple(row[0] for row in rows), tuple(row[1] for row in rows), "measured")
        for name, rows in found.items()
        if rows
    )
    if not series:
        return ()
    return (
        Chart(
            title="Effective rank of the embeddings over training",
            x_label="steps of training",
            y_label="effective rank",
            series=series,
            marks=(Mark("y", COLLAPSED, "a collapse, which ends training"),),
            note="Of the first seed. Embeddings that become alike tell nothing and are predicted without error: a run whose rank stays "
            "below the line is stopped and says so.",
        ),
    )


def opened(ctx: Context, runs: Mapping[str, Run], name: str, seed: int) -> tuple[Any, Run]:
    """A model and its run: the untrained one is what the embeddings' began with."""
    from postformer.claims import tasks
    from postformer.train.session import open_model

    if name == "untrained":
        run = dataclasses.replace(runs["embeddings"], seed=seed)
        return untrained(run), run
    return open_model(tasks.folder(ctx, runs[name], seed)).eval(), runs[name]


def untrained(run: Run) -> Any:
    """What a run begins with."""
    from postformer.train.session import prepare

    return prepare(run)[1].eval().model


def world(run: Run, **words: Any) -> Any:
    """A run's simulated physics, of another scene where `scene` says so."""
    from postformer.data.physics import Physics

    return Physics(**{**{name: option for name, option in run.data.items() if name != "kind"}, **words})


def errors(model: Any, run: Run, scene: str, seed: int, clips: int) -> dict[str, dict[str, list[float]]]:
    """Of each group of attributes and each clip of a scene the error a second ahead: of what is imagined, of what truly comes (the probe's
    floor) and of what was seen last. Of places and velocities it is the distance, a mean over discs; of the logarithm of the mass ratio its
    size."""
    from postformer.objectives.foreseen import foreseen

    found = foreseen(model, world(run, scene=scene), run.objective["known"], seed=ASKED_SEED + seed, clips=clips)
    told: dict[str, dict[str, list[float]]] = {}
    for group in GROUPS:
        columns = [i for i, name in enumerate(found.names) if name.startswith(group)]
        if columns:
            told[group] = {}
            for way in ("imagined", "floor", "last"):
                error = getattr(found, way)[:, AHEAD - 1, columns]
                size = error.abs() if group == "mass ratio" else error.unflatten(-1, (-1, 2)).norm(dim=-1)
                told[group][way] = [round(float(one), 5) for one in size.mean(-1)]
    return told


def surprises(model: Any, run: Run, kind: str, seed: int, pairs: int) -> dict[str, list[float]]:
    """The mean surprise of the possible and of the impossible clip of each pair of a kind."""
    import numpy as np
    import torch

    from postformer.data.impossible import pair
    from postformer.objectives.surprise import surprise

    physics, pictures = world(run), run.objective.get("target") == "pictures"
    told: dict[str, list[float]] = {"possible": [], "impossible": []}
    for begin in range(0, pairs, CHUNK):
        drawn = [pair(physics, kind, i, seed=ASKED_SEED + seed) for i in range(begin, min(begin + CHUNK, pairs))]
        for name in told:
            clips = torch.from_numpy(np.stack([getattr(one, name) for one in drawn]))
            told[name] += surprise(model, {"clips": clips}, pictures=pictures).mean(1).tolist()
    return told


def enough(e: Evidence, t: Mapping[str, Real]) -> str:
    """Why nothing is decided yet; empty where enough was learned."""
    if e["taken_share"] < 1:
        return f"after {e['taken']}"
    return f"{t['seeds']:g} seeds are needed" if len(e["seeds"]) < t["seeds"] else ""


def decided(because: str, numbers: dict[str, Number], supported: bool, contradicted: bool, few: str) -> Finding:
    """The verdict; inconclusive where something is too few."""
    if few:
        return Finding("inconclusive", f"{because}; {few}", numbers)
    return Finding("supported" if supported else "contradicted" if contradicted else "inconclusive", because, numbers)


def above(number: Number) -> bool:
    """Whether the whole interval is above zero."""
    return number.low is not None and number.low > 0


def below(number: Number) -> bool:
    """Whether the whole interval is below zero."""
    return number.high is not None and number.high < 0


def said(number: Number) -> str:
    """In words: `0.123 units (0.101 to 0.145)`."""
    between = interval(number)
    return value(number) + (f" ({between})" if between else "")


def limits(e: Evidence) -> tuple[str, ...]:
    """Why this scale may mislead, in both claims."""
    count = len(e["seeds"])
    return (
        f"Discs of one colour on black, {e['side']} x {e['side']} pixels and {e['frames']} frames, after {e['videos']:,} videos. What "
        "predicting pixels is blamed for, the many details of a real film that nobody can foretell, is not in here.",
        "One learning rate, schedule and number of steps for both models, as the recipes have them; a step of training took "
        f"{e['step_s']['embeddings']:.2g} s with embeddings and {e['step_s']['pixels']:.2g} s with pixels.",
        f"{count} seed{'s' * (count > 1)}; "
        + ("the interval is over what is asked alone." if count == 1 else "Student's interval over so few is wide.")
        + " `python benchmarks/foresee.py` measures the same at length.",
    )
