"""What the page shows of `spacetime_patches`: errors, pictures, tables and words from the evidence."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from postformer.claims.film import Film, Strip, Track, strip
from postformer.claims.ledger import Number, Table
from postformer.claims.stats import mean_over, wilson
from postformer.config import Run, parse

NAMES = {
    "dit": "spacetime patches",
    "frames": "patches, in turns",
    "unet": "U-Net, equal operations",
    "timed": "U-Net, equal time",
}
"""The models."""
ANYONE = ("straight line", "last frame", "true clips")
UNITS = {"velocity": "units/s", "place": "units", "radius": "units"}
SIZE = 10.0
"""Units across a frame."""
KNOWN, DT = 4, 0.1
"""Frames that are shown, and seconds from one to the next."""
Evidence = Mapping[str, Any]


def measured(e: Evidence) -> list[str]:
    """The models, in order."""
    return [name for name in NAMES if name in e["figures"]["test"]]


def unets(e: Evidence) -> list[str]:
    """The U-Nets."""
    return [name for name in measured(e) if name not in ("dit", "frames")]


def figure(e: Evidence, model: str, name: str, split: str = "test") -> Number:
    """A figure's mean over clips and seeds."""
    return _mean([of[name] for of in e["figures"][split][model].values()], UNITS.get(name, ""), e["seeds"])


def more(e: Evidence, model: str, name: str, split: str = "test") -> Number:
    """By how much a model's figure exceeds the patches', clip by clip, where both tell it."""
    return less(e, "dit", model, name, split)


def less(e: Evidence, model: str, other: str, name: str, split: str = "test") -> Number:
    """By how much a model's figure is less than that of another one or of one of ANYONE, clip by clip, where both tell it."""
    own, theirs = (e["figures"][split][m] for m in (model, other))
    pairs = [
        [
            b - a if a is not None and b is not None else None
            for a, b in zip(of[name], theirs["" if other in ANYONE else seed][name], strict=True)
        ]
        for seed, of in own.items()
    ]
    return _mean(pairs, UNITS.get(name, ""), e["seeds"])


def kept(e: Evidence, model: str) -> Number:
    """In how many frames the disc is there, in one piece, and alone, in per cent. The interval is at least Wilson's of as many clips: where
    all clips keep all there is nothing that varies, and others may not."""
    shares = [
        [
            100 * there * (whole or 0.0) * alone if there is not None else None
            for there, whole, alone in zip(of["there"], of["whole"], of["alone"], strict=True)
        ]
        for of in e["figures"]["test"][model].values()
    ]
    found = _mean(shares, "%", e["seeds"])
    if found.value is None or found.n is None:
        return found
    least = wilson(round(found.value / 100 * found.n), found.n)
    bounds = [100 * bound for bound in (least.low, least.high) if bound is not None]
    low, high = (edge(b for b in (own, *bounds) if b is not None) for edge, own in ((min, found.low), (max, found.high)))
    return dataclasses.replace(found, low=max(0.0, low), high=min(100.0, high))


def _mean(seeds: Sequence[Sequence[float | None]], unit: str, numbers: Sequence[int]) -> Number:
    found = mean_over(seeds)
    if found is None:
        return Number(None, unit, "measured", note="not told by any clip")
    return found.number(unit, seeds=numbers if len(seeds) > 1 else ())


def said(number: Number) -> str:
    """In words: `0.123 (0.101 to 0.145) units/s`."""
    if number.value is None:
        return "what no clip tells"
    between = f" ({number.low:.3g} to {number.high:.3g})" if number.low is not None and number.high is not None else ""
    return f"{number.value:.3g}{between} {number.unit}"


# ---------------------------------------------------------------- tables and pictures


def velocities(e: Evidence) -> Table:
    """The velocity's error in and out of the ranges that were learned."""
    splits = list(e["figures"])
    head = {"test": "in range", "slow": "slower", "fast": "faster", "small": "smaller", "large": "larger"}
    rows = []
    for name in (*measured(e), *ANYONE):
        cells = (figure(e, name, "velocity", split) for split in splits)
        rows.append((NAMES.get(name, name), *cells, *_counted(e, name)))
    return Table(
        "Velocity error of a disc that flies level, in units/s",
        ("way", *(head[split] for split in splits), "parameters", "operations a clip", "a step of training, about", "steps"),
        tuple(rows),
        note=f"{e['clips']} clips of each kind; in range speeds are 1 to 4 units/s and radii 0.7 to 1.4. The true clips' error is that of "
        "the measure. Steps were timed before training.",
    )


def _counted(e: Evidence, name: str) -> tuple[Number | str, ...]:
    if name not in e["sizes"]:
        return ("", "", "", "")
    own = e["sizes"][name]
    return (
        Number(own["parameters"], "", "counted"),
        Number(own["flops"], "FLOP", "counted"),
        Number(e["step_s"][name], "s", "measured"),
        f"{e['steps'][name]:,}",
    )


def figures(e: Evidence) -> Table:
    """What else is measured in range."""
    names = {"place": "place", "radius": "radius", "there": "there", "whole": "in one piece", "alone": "alone"}
    rows = [
        (NAMES.get(model, model), *(figure(e, model, name) for name in names), kept(e, model))
        for model in (*measured(e), *ANYONE)
    ]
    return Table(
        "What else is kept in range",
        ("way", "error of the place", "error of the radius", "share there", "of those in one piece", "alone", "all three"),
        tuple(rows),
        note="A disc is there where half to twice its area is, in one piece where its colour lies about its centre as a disc's does, and "
        "alone where no other colour makes a disc. One that is there in fewer than half of the frames counts as one that stands still.",
    )


def strip_of(name: str, clip: np.ndarray, scenario: Any) -> Strip:
    """A clip with the true track of its first disc and the one that is measured in it."""
    from postformer.data.motion import LEAST, seen, visible

    found, track = seen(clip, len(scenario.track.radius)), scenario.track
    there = (found.radius**2 >= LEAST * track.radius**2)[:, 0]
    shown = visible(scenario)[:, 0]
    own = [_share(p) if ok else () for p, ok in zip(found.position[:, 0], there, strict=True)]
    true = [_share(p) if ok else () for p, ok in zip(track.position[:, 0], shown, strict=True)]
    return strip(name, clip, (Track("true", tuple(true)), Track("measured", tuple(own))))


def _share(place: np.ndarray) -> tuple[float, float]:
    return round(float(place[0]) / SIZE, 4), round(1 - float(place[1]) / SIZE, 4)


def films(e: Evidence, strips: Mapping[str, Sequence[Any]]) -> tuple[Film, ...]:
    titles = {"test": "A clip in range, as it is and as each goes on", "fast": "A faster disc than any that was learned from"}
    found = []
    for split, own in strips.items():
        parsed = tuple(parse(Strip, one, "strip") for one in own)
        frames = len(parsed[0].tracks[0].points)
        found.append(
            Film(
                title=titles[split],
                columns=tuple(f"{i * DT:.1f} s" for i in range(frames)),
                strips=parsed,
                known=KNOWN,
                note="At the left all frames in one. The true track and the one measured from the pixels are drawn over; the frames before "
                "the line were shown.",
            )
        )
    return tuple(found)


# ---------------------------------------------------------------- words


def limits(e: Evidence, run: Run) -> tuple[str, ...]:
    videos = e["steps"]["dit"] * e["batch"]
    return (
        f"Discs of one colour on black, {run.data['size']} x {run.data['size']} pixels and {run.data['frames']} frames, after {videos:,} "
        "videos: what melts in films of people is not in here.",
        "Pixels, not the latents of a trained encoder; one learning rate, schedule and objective for all, as the recipes have them.",
        f"{len(e['seeds'])} seed{'s' * (len(e['seeds']) > 1)}; "
        + ("the interval is over clips alone." if len(e["seeds"]) == 1 else "Student's interval over so few is wide.")
        + " `python benchmarks/physics.py` has collisions, falls, walls and several discs.",
    )


def consequences(e: Evidence) -> tuple[str, ...]:
    models = {name: v for name in measured(e) if (v := figure(e, name, "velocity").value) is not None}
    line = figure(e, "straight line", "velocity").value or 0.0
    if not models:
        return ("No model has learned enough to draw a disc at all: give more time.",)
    best = min(models, key=lambda name: models[name])
    return (
        f"For videos like these at this budget take: {NAMES[best]} ({models[best]:.3g} units/s).",
        f"A straight line through the last two frames is off by {line:.3g} units/s: "
        + (
            "no model here is worth its training for such videos."
            if line < models[best]
            else "the best model here knows more than that."
        ),
    )
