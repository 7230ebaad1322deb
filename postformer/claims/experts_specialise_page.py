"""What the page shows of `experts_specialise`: tables, heat maps and words from the evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims.ledger import Headline, Heat, Number, Real, Table
from postformer.config import Run

PLACES = {"purity": "purity", "untrained": "untrained routers'", "excess": "excess"}
Evidence = Mapping[str, Any]


def percent(interval: Sequence[Real], seed: str) -> Number:
    """A share and its interval in per cent."""
    value, low, high = (100 * part for part in interval)
    return Number(value, "%", "measured", low, high, seeds=(int(seed),))


def specialist(layers: Sequence[Mapping[str, Any]], which: str) -> dict[str, Any] | None:
    """Over all layers the expert that is most code of those that take enough of it, by the half of the text that it is not measured on;
    and its layer's name."""
    found = [{**layer[which], "layer": layer["name"]} for layer in layers if layer[which]]
    return max(found, key=lambda one: one["chosen by"], default=None)


def headline(e: Evidence) -> Headline | None:
    found = {seed: specialist(layers, "specialist") for seed, layers in e["layers"].items()}
    if None in found.values():
        return None
    seed, one = min(found.items(), key=lambda pair: pair[1]["share"][0])  # type: ignore[index]
    assert one is not None
    least = "" if len(found) == 1 else ", in the seed that has least"
    return Headline(
        percent(one["share"], seed), f"of the tokens of the best code expert are code, of equally many of each text{least}"
    )


def purities(e: Evidence) -> Table:
    rows = [
        (
            f"{layer['name']}, seed {seed}",
            *(percent(layer[what], seed) for what in PLACES),
            Number(100 * layer["information"], "%", "measured"),
            Number(layer["max_violation"], "", "measured"),
            Number(layer["idle"], "", "counted"),
        )
        for seed, layers in e["layers"].items()
        for layer in layers
    ]
    return Table(
        "What the expert tells of the text",
        ("layer", *PLACES.values(), "information", "MaxVio", "idle experts"),
        tuple(rows),
        note=f"After {e['taken']}. Experts that all texts load alike have a purity of {100 / len(e['domains']):.0f}%. Information: how "
        "much of the text's kind the expert tells. MaxVio: by how much the fullest expert exceeds the mean load.",
    )


def specialists(e: Evidence) -> Table:
    rows = []
    for seed, layers in e["layers"].items():
        for layer in layers:
            for which, name in (("specialist", "trained"), ("untrained specialist", "untrained")):
                if one := layer[which]:
                    takes = Number(100 * one["takes"], "%", "measured")
                    rows.append(
                        (f"{layer['name']}, seed {seed}, {name}", str(one["expert"]), percent(one["share"], seed), takes)
                    )
    return Table(
        "The expert that is most code",
        ("layer", "expert", "code among its tokens", "takes of code's pairs"),
        tuple(rows),
        note="Of the experts that take their even share of code's pairs or more.",
    )


def heats(e: Evidence) -> tuple[Heat, ...]:
    seed, layers = next(iter(e["layers"].items()))
    return tuple(_heat(e, layer, seed) for layer in layers)


def _heat(e: Evidence, layer: Mapping[str, Any], seed: str) -> Heat:
    shares = [[n / sum(loads) for n in loads] for loads in layer["loads"]]
    whole = [sum(column) for column in zip(*shares, strict=True)]
    cells = tuple(
        tuple(Number(100 * share / all_, "%", "measured") if all_ else "idle" for share, all_ in zip(own, whole, strict=True))
        for own in shares
    )
    return Heat(
        title=f"Whose tokens each expert has: {layer['name']}, seed {seed}",
        x_label="expert",
        rows=tuple(e["domains"]),
        columns=tuple(str(i) for i in range(len(whole))),
        cells=cells,
        note="Of an expert's tokens, were there equally many of each text.",
    )


def limits(e: Evidence, about: Mapping[str, Any], run: Run) -> tuple[str, ...]:
    learned = ", ".join(f"{d} {n:,} bytes" for d, n in about["learned"].items())
    return (
        f"A model of width {run.model['dim']} and two layers that took {e['taken']}: routers of large models have seen far more text.",
        f"The texts were learned as there is of them: {learned}. Prose is docstrings and the language's reference, which hold code too.",
        "Activations alone tell texts apart, whoever splits them; what exceeds the untrained routers is the training's. A third "
        "text that holds code too leaves no expert to code alone.",
        "An expert of code may be one of indentation and brackets: that it is chosen does not say what it computes.",
    )


def consequences(e: Evidence) -> tuple[str, ...]:
    return (
        "Do not prune or place experts by domain on the word of others: `postformer experts CHECKPOINT --text code=DIR prose=DIR` tells it "
        "of your model and your text, token by token.",
    )
