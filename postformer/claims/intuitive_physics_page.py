"""What the page shows of `intuitive_physics`: shares of pairs told apart, a chart, a film, a table and words from the evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from postformer.claims.film import Film, Strip
from postformer.claims.imagining import NAMES, above, below, said
from postformer.claims.ledger import Chart, Mark, Number, Series, Table
from postformer.claims.stats import mean_interval, mean_over, share_over
from postformer.config import parse

CLIPS = ("possible", "impossible")
Evidence = Mapping[str, Any]


def _told(e: Evidence, kind: str, model: str) -> list[list[float]]:
    """Of each seed and pair 100 where it is told apart, 50 where both surprise alike, and 0 where not."""
    return [[100 * one for one in e["told"][kind][model][str(seed)]["apart"]] for seed in e["seeds"]]


def share(e: Evidence, kind: str, model: str = "embeddings") -> Number:
    """The share of a kind's pairs that are told apart, in per cent."""
    found = share_over([(round(sum(seed) / 100), len(seed)) for seed in _told(e, kind, model)])
    low, high = (None if end is None else 100 * end for end in (found.low, found.high))
    return Number(100 * found.value, "%", "measured", low, high, found.n, tuple(e["seeds"]))


def harder(e: Evidence, model: str = "embeddings") -> Number:
    """The share over the harder kinds, a mean of theirs."""
    return _mean(e, np.mean([_told(e, kind, model) for kind in e["hard"]], 0), (0.0, 100.0))


def gain(e: Evidence, model: str) -> Number:
    """By how many points the embeddings' share over the harder kinds exceeds another model's, pair by pair."""
    own, other = ([_told(e, kind, name) for kind in e["hard"]] for name in ("embeddings", model))
    return _mean(e, np.mean(np.subtract(own, other), 0), (-100.0, 100.0))


def _mean(e: Evidence, points: np.ndarray, within: tuple[float, float]) -> Number:
    found = mean_over(points.tolist())
    assert found is not None
    low, high = (None if end is None else min(max(end, within[0]), within[1]) for end in (found.low, found.high))
    return found._replace(low=low, high=high).number("%", seeds=e["seeds"])


def area(e: Evidence, kind: str, model: str) -> Number:
    """The area under the ROC curve of a kind's clips, a mean over seeds."""
    found = mean_interval([e["told"][kind][model][str(seed)]["auroc"] for seed in e["seeds"]])
    low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (found.low, found.high))
    return Number(found.value, "", "measured", low, high, found.n, tuple(e["seeds"]))


def kinds(e: Evidence) -> Table:
    """Every kind and model."""
    heads = [head for name in NAMES.values() for head in (name, f"{name}: AUROC")]
    rows = [
        (
            f"{kind} (easy)" if kind in e["easy"] else kind,
            *(cell for model in NAMES for cell in (share(e, kind, model), area(e, kind, model))),
        )
        for kind in (*e["easy"], *e["hard"])
    ]
    mean = tuple(cell for model in NAMES for cell in (harder(e, model), ""))
    return Table(
        "Pairs told apart, by what cannot be",
        ("what cannot be", *heads),
        (*rows, ("mean of those that are not easy", *mean)),
        note=f"{e['asked']} pairs of each kind and seed; 50% is chance. Easy is what a frame beside the one before tells. AUROC, the area "
        "under the ROC curve, compares every impossible clip with every possible one and not with its own alone.",
    )


def chart(e: Evidence) -> Chart:
    """Surprise along both clips of a pair."""
    shown = e["pair"]
    frames = tuple(range(2, 2 + len(shown["possible"])))
    return Chart(
        title=f"Surprise along the first pair of the kind '{shown['kind']}'",
        x_label="frame",
        y_label="surprise of the model that predicts embeddings",
        series=tuple(Series(name, frames, tuple(shown[name]), "measured") for name in CLIPS),
        marks=(Mark("x", shown["frame"] + 1, "cannot be from here"),),
        note="The squared error of each frame's embedding, predicted from all frames before; the clips stand above.",
    )


def film(e: Evidence, strips: Sequence[Any]) -> Film:
    """Both clips of that pair."""
    shown = e["pair"]
    return Film(
        title=f"The first pair of the kind '{shown['kind']}'",
        columns=tuple(str(i) for i in range(1, 2 + len(shown["possible"]))),
        strips=tuple(parse(Strip, one, "strip") for one in strips),
        note=f"At the left all frames in one. The clips are the same before frame {shown['frame'] + 1}.",
    )


def limits() -> tuple[str, ...]:
    return (
        "The clips of a pair share all but what cannot be, and only which of the two surprises more is asked. IntPhys 2 asks it of "
        "rendered films, where most models are near chance.",
        "Models learned all physics of these scenes and nothing else: what is possible and was never seen surprises too.",
    )


def consequences(e: Evidence) -> tuple[str, ...]:
    least = min(e["hard"], key=lambda kind: share(e, kind).value or 0.0)
    ahead = {model: gain(e, model) for model in NAMES if model != "embeddings"}
    ranked = {model: "fewer" if above(more) else "more" if below(more) else "no ranking" for model, more in ahead.items()}
    beside = "; ".join(f"by the one that {NAMES[model]}: {said(harder(e, model))}, {ranked[model]}" for model in ahead)
    return (
        f"Least told apart by the model that predicts embeddings: {least}, {said(share(e, least))}.",
        f"Told apart over the harder kinds: {said(harder(e))}; {beside}.",
    )
