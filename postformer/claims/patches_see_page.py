"""What the page shows of `patches_see`: shares, maps, a table and words from the evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims.ledger import Heat, Number, Table
from postformer.claims.stats import mean_over

NAMES = {"vit": "ViT", "convnet": "convolutional net"}
Evidence = Mapping[str, Any]


def key(model: str, count: int) -> str:
    """A model that learned from so many images."""
    return f"{model} {count}"


def right(e: Evidence, model: str, count: int, side: int | None = None) -> Number:
    """The share of right answers, in per cent."""
    return _percent(e, [_points(e, model, count, seed, [side or e["side"]]) for seed in _seeds(e)])


def gain(e: Evidence, count: int) -> Number:
    """By how many points the ViT's share exceeds the convolutional net's, image by image."""
    return _percent(e, _less(e, count, [e["side"]]))


def elsewhere(e: Evidence) -> list[int]:
    """The sides that were not learned."""
    return [side for side in e["sides"] if side != e["side"]]


def right_elsewhere(e: Evidence, model: str) -> Number:
    """The share of right answers over the other sizes."""
    return _percent(e, [_points(e, model, max(e["counts"]), seed, elsewhere(e)) for seed in _seeds(e)])


def gain_elsewhere(e: Evidence) -> Number:
    """As `gain`, over the other sizes."""
    return _percent(e, _less(e, max(e["counts"]), elsewhere(e)))


def _seeds(e: Evidence) -> list[str]:
    return [str(seed) for seed in e["seeds"]]


def _points(e: Evidence, model: str, count: int, seed: str, sides: Sequence[int]) -> list[float]:
    """Of each image 100 where it is named rightly and 0 where not, a mean over sizes."""
    answers = [e["named"][key(model, count)][seed][str(side)] for side in sides]
    return [100 * sum(int(one) for one in image) / len(sides) for image in zip(*answers, strict=True)]


def _less(e: Evidence, count: int, sides: Sequence[int]) -> list[list[float]]:
    found = []
    for seed in _seeds(e):
        both = (_points(e, model, count, seed, sides) for model in NAMES)
        found.append([a - b for a, b in zip(*both, strict=True)])
    return found


def _percent(e: Evidence, seeds: Sequence[Sequence[float]]) -> Number:
    found = mean_over(seeds)
    assert found is not None
    return found.number("%", seeds=e["seeds"])


# ---------------------------------------------------------------- maps, a table and words


def heats(e: Evidence) -> tuple[Heat, ...]:
    rows, most = tuple(NAMES.values()), max(e["counts"])
    counts = Heat(
        title="Right answers by the number of images that were learned from",
        x_label="images",
        rows=rows,
        columns=tuple(f"{count:,}" for count in e["counts"]),
        cells=tuple(tuple(right(e, model, count) for count in e["counts"]) for model in NAMES),
        note=f"{e['asked']:,} test images of {e['side']} x {e['side']} pixels, after {e['taken']}.",
    )
    sides = Heat(
        title="Right answers by the size of the images that are asked",
        x_label="pixels a side",
        rows=rows,
        columns=tuple(str(side) for side in e["sides"]),
        cells=tuple(tuple(right(e, model, most, side) for side in e["sides"]) for model in NAMES),
        note=f"Learned from {most:,} images of {e['side']} x {e['side']}. Test images are resized; the ViT's learned positions are "
        "interpolated.",
    )
    return counts, sides


def models(e: Evidence) -> Table:
    rows = []
    for model, name in NAMES.items():
        own = e["sizes"][model]
        rows.append(
            (
                name,
                right(e, model, max(e["counts"])),
                Number(own["parameters"], "", "counted"),
                Number(own["flops"], "FLOP", "counted"),
                Number(e["step_s"][model], "s", "measured"),
            )
        )
    return Table(
        f"The two nets, from {max(e['counts']):,} images",
        ("net", "right answers", "parameters", "operations an image", "a step of training, about"),
        tuple(rows),
        note=f"After {e['taken']}, with images moved by up to two pixels. Steps were timed before training.",
    )


def limits(e: Evidence) -> tuple[str, ...]:
    count = len(e["seeds"])
    return (
        f"Images of {e['side']} x {e['side']} pixels in {len(e['classes'])} classes, and nets of half a million parameters or fewer: what "
        "convolution knows of nearness from the start is worth most there.",
        "The published case for ViT is pretraining on 14 to 300 million images; nothing of that is in here.",
        "One learning rate, schedule and number of steps for both, and for every number of images.",
        f"{count} seed{'s' * (count > 1)}; "
        + ("the interval is over images alone." if count == 1 else "Student's interval over so few is wide."),
    )


def consequences(e: Evidence) -> tuple[str, ...]:
    few, most = min(e["counts"]), max(e["counts"])
    apart = gain(e, few), gain(e, most)
    told = [
        "the ViT" if (g.low or 0.0) > 0 else "the convolutional net" if g.high is not None and g.high < 0 else "neither"
        for g in apart
    ]
    slower = e["step_s"]["vit"] / e["step_s"]["convnet"]
    return (
        f"Ahead from {few:,} images: {told[0]}; from {most:,}: {told[1]}.",
        f"At equal operations a step of the ViT takes {slower:.2f} times the convolutional net's on this machine.",
    )
