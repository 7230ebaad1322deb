"""What the page shows of `plan_in_latent`: shares of goals, plans in the map, tables and words from the evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from postformer.claims.film import Film, Strip, Track, strip
from postformer.claims.imagining import above, below, said
from postformer.claims.ledger import Number, Table
from postformer.claims.stats import mean_over, share_over
from postformer.config import parse

TASKS = {"rooms": "walls where they always are", "moving": "walls anywhere"}
WAYS = {
    "cem": "a search in imagination",
    "mppi": "the same, samples weighed",
    "reach": "told at once",
    "untrained": "a search with what learned nothing",
    "oracle": "a search in the simulator",
    "straight": "straight for the goal",
    "random": "any actions",
}
LEARNED = ("cem", "mppi", "reach")
"""Ways of a model that learned."""
FILMED = ("cem", "reach", "straight")
Evidence = Mapping[str, Any]


def _each(e: Evidence, task: str, way: str, what: str = "reached") -> list[list[int]]:
    """Of each seed and problem a 1 or a 0; those who learned nothing do the same with every seed."""
    own = e["reached"][task][way]
    return [[int(one) for one in own.get(str(seed), own.get(""))[what]] for seed in e["seeds"]]


def reached(e: Evidence, task: str, way: str, what: str = "reached") -> Number:
    """The share of goals, in per cent."""
    each = _each(e, task, way, what)
    alone = "" in e["reached"][task][way]
    found = share_over([(sum(one), len(one)) for one in (each[:1] if alone else each)])
    low, high = (None if bound is None else 100 * bound for bound in (found.low, found.high))
    return Number(100 * found.value, "%", "measured", low, high, found.n, () if alone else tuple(e["seeds"]))


def gain(e: Evidence, task: str, way: str, other: str) -> Number:
    """By how many points a way reaches more than another, problem by problem."""
    pairs = zip(_each(e, task, way), _each(e, task, other), strict=True)
    found = mean_over([[100.0 * (a - b) for a, b in zip(*both, strict=True)] for both in pairs])
    assert found is not None
    return found.number("points", seeds=e["seeds"])


def table(e: Evidence, task: str) -> Table:
    """What each way reaches in a task."""
    rows = []
    for way, name in WAYS.items():
        own = e["reached"][task][way].values()
        seconds = Number(float(np.mean([one["plan_s"] for one in own])), "s", "measured")
        shares = (reached(e, task, way, what) for what in ("reached", "nearer", "ever"))
        rows.append((name, *shares, seconds))
    return Table(
        f"Goals reached, {TASKS[task]}",
        ("way", "within 4.5 pixels at the end", "within 2", "ever within 4.5", "until the first action"),
        tuple(rows),
        note=f"{e['asked']} problems, the same for all; after {e['taken']}. The simulator and who goes straight know the true state.",
    )


def strip_of(name: str, seen: np.ndarray, goal: np.ndarray, states: np.ndarray, imagined: np.ndarray) -> Strip:
    """Pictures [f, 2, h, w] of dot and walls as frames, the goal's dot in green; with the dot's true places, of states [f, s], and
    imagined ones [f, 2] in pixels, if there are any."""
    dot, walls = seen[:, 0], seen[:, 1]
    ground = 0.35 * walls + dot
    colours = np.stack([ground, np.maximum(ground, goal[0]), ground])
    side = seen.shape[-1]
    tracks = [_track("true", states[:, :2], side)]
    tracks += [_track("imagined", imagined, side)] if len(imagined) else []
    return strip(name, 2 * colours.clip(0, 1) - 1, tracks)


def _track(name: str, places: np.ndarray, side: int) -> Track:
    """Places in pixels, whose middles are whole numbers."""
    shares = ((places + 0.5) / side).clip(0, 1).round(4)
    return Track(name, tuple((float(x), float(y)) for x, y in shares))


def films(strips: Mapping[str, Mapping[str, Sequence[Any]]]) -> tuple[Film, ...]:
    """Of each task the first plans in the map, and what was done."""
    found = []
    for task, own in strips.items():
        plans, gone = ([parse(Strip, one, "strip") for one in own[part]] for part in ("planned", "gone"))
        found.append(
            Film(
                title=f"Plans in the map, {TASKS[task]}",
                columns=tuple(str(i + 1) for i in range(len(plans[0].tracks[0].points))),
                strips=tuple(plans),
                note="The first plan of two problems, action by action, at the left all of it in one map: where the dot would truly come "
                "to, and, as the second line, where the model imagines it to be, read off its embeddings by a linear probe. The goal is "
                "green. Two actions are done before it looks again.",
            )
        )
        found.append(
            Film(
                title=f"What was done until the end, {TASKS[task]}",
                columns=tuple(str(10 * i) for i in range(len(gone[0].tracks[0].points))),
                strips=tuple(gone),
                note="The first problem, every tenth push; at the left the whole way in one map.",
            )
        )
    return tuple(found)


def limits(e: Evidence) -> tuple[str, ...]:
    count = len(e["seeds"])
    return (
        f"A dot in two rooms, seen from above in pictures of 65 x 65 pixels, after {e['walks']:,} walks: no camera that moves, nothing "
        "hidden, nothing to grasp.",
        "The walks are made for the task: 60% go back and forth at the door. Of walks that never come near a door no model "
        "learns where it is.",
        f"{count} seed{'s' * (count > 1)} of each model; one search with one set of settings, the same for all who search.",
    )


def consequences(e: Evidence) -> tuple[str, ...]:
    told = []
    for task, name in TASKS.items():
        best = max(LEARNED, key=lambda way: reached(e, task, way).value or 0.0)
        more, less = gain(e, task, best, "straight"), gain(e, task, best, "oracle")
        worth = (
            "more than going straight"
            if above(more)
            else "less than going straight"
            if below(more)
            else "no more than going straight"
        )
        told.append(
            f"With {name}, {WAYS[best]} reaches {said(reached(e, task, best))}: {worth}, and {said(less)} beside the simulator."
        )
    return tuple(told)
