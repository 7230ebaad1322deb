"""What the page shows of `latent_physics`: errors a second ahead, films, tables and words from the evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from postformer.claims.film import Film, Strip, Track, strip
from postformer.claims.imagining import AHEAD, GROUPS, NAMES, SCENES, above, below, said
from postformer.claims.ledger import Number, Real, Table
from postformer.claims.stats import mean_over
from postformer.config import parse

UNITS = {**GROUPS, "mass ratio": ""}
WAYS = {"imagined": "imagined", "floor": "truly there", "last": "last frames"}
Evidence = Mapping[str, Any]


def _sizes(e: Evidence, model: str, group: str, way: str, scenes: Sequence[str] = SCENES) -> np.ndarray:
    """Errors [seeds, clips], each the mean over the scenes' clips of a number."""
    told = [e["errors"][scene][model] for scene in scenes if group in e["errors"][scene][model][str(e["seeds"][0])]]
    return np.mean([[of[str(seed)][group][way] for seed in e["seeds"]] for of in told], 0)


def _mean(e: Evidence, sizes: np.ndarray, group: str) -> Number:
    found = mean_over(sizes.tolist())
    assert found is not None
    return found.number(UNITS[group], seeds=e["seeds"])


def error(e: Evidence, model: str, group: str, way: str = "imagined", scenes: Sequence[str] = SCENES) -> Number:
    """The error a second ahead, a mean over scenes, clips and seeds."""
    return _mean(e, _sizes(e, model, group, way, scenes), group)


def excess(e: Evidence, factor: Real) -> Number:
    """By how much the place's error exceeds so many times that of the probe on what truly comes, clip by clip."""
    return _mean(e, _sizes(e, "embeddings", "place", "imagined") - factor * _sizes(e, "embeddings", "place", "floor"), "place")


def before(e: Evidence, group: str, model: str = "embeddings") -> Number:
    """By how much the last frames' error exceeds that of what a model imagines, clip by clip."""
    return _mean(e, _sizes(e, model, group, "last") - _sizes(e, model, group, "imagined"), group)


def beyond(e: Evidence, model: str) -> Number:
    """By how much another model's error of the place exceeds the embeddings', clip by clip."""
    return _mean(e, _sizes(e, model, "place", "imagined") - _sizes(e, "embeddings", "place", "imagined"), "place")


def scenes(e: Evidence) -> Table:
    """Errors by scene and attribute."""
    rows = []
    for scene in SCENES:
        for group in e["errors"][scene]["embeddings"][str(e["seeds"][0])]:
            cells = [error(e, model, group, scenes=(scene,)) for model in NAMES]
            beside = [error(e, "embeddings", group, way, (scene,)) for way in ("floor", "last")]
            rows.append((f"{scene}: {group}", *cells, *beside))
    return Table(
        "Error a second ahead, by scene",
        ("scene and attribute", *NAMES.values(), "what truly comes", "the last frames"),
        tuple(rows),
        note=f"{e['asked']} clips of each scene, {AHEAD} frames after the last of {e['known']} that were seen; the mass ratio as its "
        "logarithm. The last two columns are of the model that predicts embeddings: what its probe misses where nothing needs to be "
        "foretold, and how far off it is where all stands still.",
    )


def models(e: Evidence) -> Table:
    """Errors over all scenes, each model read by its own probe."""
    columns = [(group, way) for group in ("place", "velocity") for way in WAYS]
    return Table(
        "Each model and its own probe, over all scenes",
        ("model", *(f"{group}, {WAYS[way]}" for group, way in columns)),
        tuple((NAMES[model], *(error(e, model, group, way) for group, way in columns)) for model in NAMES),
        note="A model whose embeddings do not tell the place has a large error even of what is truly there.",
    )


def track(name: str, places: np.ndarray, size: float) -> list[Track]:
    """A track for each disc of places [f, n, 2] in units of a frame `size` units across; what is out of the frame stands at its edge."""
    shares = np.stack([places[..., 0] / size, 1 - places[..., 1] / size], -1).clip(0, 1).round(4)
    return [Track(name, tuple((float(x), float(y)) for x, y in shares[:, disc])) for disc in range(shares.shape[1])]


def strip_of(name: str, clip: np.ndarray, true: np.ndarray, read: np.ndarray, size: float) -> Strip:
    """A clip [3, f, h, w] with the discs' true places [f, n, 2] and those that a probe reads [a, n, 2] of the last a frames; before them it
    has the true ones."""
    pairs = zip(
        track("true", true, size), track("read", np.concatenate([true[: len(true) - len(read)], read]), size), strict=True
    )
    return strip(name, clip, [one for both in pairs for one in both])


def films(e: Evidence, strips: Mapping[str, Sequence[Any]]) -> tuple[Film, ...]:
    """The first clip of each scene that is shown, as it is and as it is imagined."""
    return tuple(
        Film(
            title=f"The first clip of the scene {scene}, as it is and as it is imagined",
            columns=tuple(f"{i * e['dt']:.1f} s" for i in range(e["frames"])),
            strips=tuple(parse(Strip, one, "strip") for one in own),
            known=e["known"],
            note="At the left all frames in one. Drawn over: the true places, and after the frames that were seen, which end at the line, "
            "those that a probe reads: in the first row from what truly comes, in the others from what is imagined.",
        )
        for scene, own in strips.items()
    )


def limits(e: Evidence) -> tuple[str, ...]:
    return (
        "Places are read by a linear probe: an attribute that it does not tell may still be there.",
        "A model that imagines one future is right here, where physics is certain; where it is not the mean of several would blur.",
    )


def consequences(e: Evidence) -> tuple[str, ...]:
    off = {model: error(e, model, "place") for model in NAMES}
    best = min(off, key=lambda model: off[model].value or 0.0)
    gain = before(e, "place", best)
    worth = "it foresees more than that" if above(gain) else "which is no ranking"
    return (
        f"Least off a second ahead: the model that {NAMES[best]}, by {said(off[best])}.",
        f"The last frames that it saw are off by {said(error(e, best, 'place', 'last'))}: "
        + ("no model here is worth its training for such clips." if below(gain) else f"{worth}."),
    )
