"""What the page shows of `sparse_cost`: tables, charts and words from the evidence, and a model of 80 billion parameters by formula."""

from collections.abc import Mapping
from typing import Any

from postformer.claims.ledger import Chart, Context, Number, Real, Series, Table
from postformer.claims.stats import median_interval, noise_floor, ratio_interval
from postformer.claims.words import MINUS, TIMES
from postformer.devices import DEVICES, Step, step
from postformer.published import PUBLISHED, Experts, Grouped, Published

NAMES = {"sparse": "mixture", "total": "dense, equal size", "active": "dense, equal active size"}
EIGHTY = Published(
    dim=4096,
    depth=38,
    vocab=65536,
    mixing=Grouped(heads=48, kv_heads=8, head_dim=128),
    experts=Experts(count=64, top=6, hidden=2560),
)
"""A shape of 79.3 billion parameters, 9.95 billion of them active."""
COMPARED = ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3")
DEVICE, CONTEXT, ITEM = "b200", 1024, 2
"""Where the computed steps are, the tokens that each text has had, and bytes of a number (bf16)."""
COMPUTED = (1, 8, 32, 128, 512)
Evidence = Mapping[str, Any]


# ---------------------------------------------------------------- numbers


def of_formula(e: Evidence, what: str) -> Number:
    """Dense of equal size / mixture."""
    return Number(e["counted"]["total"][what] / e["counted"]["sparse"][what], TIMES, "counted")


def sparsity(e: Evidence) -> Number:
    """Parameters of the mixture, all / active."""
    own = e["counted"]["sparse"]
    return Number(own["parameters"] / own["active"], TIMES, "counted")


def _at(e: Evidence, batch: Real) -> Mapping[str, Any]:
    return e["times"]["steps"][e["times"]["batches"].index(batch)]


def at_batch(e: Evidence, batch: Real, dense: str) -> Number:
    """Time of a step of so many rows, dense / mixture."""
    samples = _at(e, batch)["samples"]
    return ratio_interval(samples[dense], samples["sparse"]).number(TIMES)


def floor_at(e: Evidence, batch: Real) -> Number:
    return noise_floor(_at(e, batch)["samples"]["total"], _at(e, batch)["control"]).number()


def touched_at(e: Evidence, batch: Real) -> Number:
    """Experts of a layer, on average, that one step of so many rows touches."""
    return Number(e["times"]["touched"][e["times"]["batches"].index(batch)], "", "measured")


def reading(e: Evidence, dense: str) -> Number:
    samples = e["times"]["reading"]["samples"]
    return ratio_interval(samples[dense], samples["sparse"]).number(TIMES)


# ---------------------------------------------------------------- tables and charts


def tables(e: Evidence) -> tuple[Table, ...]:
    return (_steps(e), _sizes(e), _published(), _eighty())


def _steps(e: Evidence) -> Table:
    rows = []
    for i, batch in enumerate(e["times"]["batches"]):
        samples = e["times"]["steps"][i]["samples"]
        times = (median_interval(samples[kind]).number("s") for kind in NAMES)
        touched = Number(e["times"]["touched"][i], "", "measured"), Number(e["times"]["formula"][i], "", "counted")
        rows.append((f"{batch} rows", *times, at_batch(e, batch, "total"), at_batch(e, batch, "active"), *touched))
    samples = e["times"]["reading"]["samples"]
    times = (median_interval(samples[kind]).number("s") for kind in NAMES)
    rows.append(
        (f"reading {e['times']['reading']['tokens']:,} tokens", *times, reading(e, "total"), reading(e, "active"), "", "")
    )
    return Table(
        "Time of a step",
        (
            "one more token in",
            *NAMES.values(),
            "equal size / mixture",
            "equal active size / mixture",
            "experts touched",
            "by formula",
        ),
        tuple(rows),
        note=f"Medians of rounds in turns, fp32. Experts touched are of {e['experts']}, the mean over layers; by formula "
        f"E (1 {MINUS} (1 {MINUS} k/E)^rows), tokens choosing evenly and apart.",
    )


def _sizes(e: Evidence) -> Table:
    held = e["resident"] or {}
    rows = []
    for kind, name in NAMES.items():
        own = e["counted"][kind]
        numbers = (
            Number(own["parameters"], "", "counted"),
            Number(own["active"], "", "counted"),
            Number(own["flops"], "FLOP", "counted"),
            Number(held[kind], "B", "measured") if held.get(kind, 0) > 0 else "not told",
        )
        rows.append((name, *numbers))
    return Table(
        "Sizes",
        ("model", "parameters", "used by a token", "operations of a token", "resident memory"),
        tuple(rows),
        note="Resident memory of a process that opened the model and read with it, less that of one whose model weighs nothing.",
    )


def _published() -> Table:
    rows = []
    for name, shape in {**{n: PUBLISHED[n] for n in COMPARED}, "80 billion, 10 active": EIGHTY}.items():
        share = (Number(100 * shape.touched(b) / shape.touched(10**6), "%", "counted") for b in (1, 8, 32, 128))
        sizes = (Number(n, "", "counted") for n in (shape.parameters, shape.active_parameters))
        rows.append((name, *sizes, Number(shape.parameters / shape.active_parameters, TIMES, "counted"), *share))
    return Table(
        "Weights that a step reads",
        ("model", "parameters", "active", "all / active", "1 row", "8 rows", "32 rows", "128 rows"),
        tuple(rows),
        note="Per cent of what a step of very many rows reads; tokens choosing evenly and apart. "
        "The last is a shape of 38 layers of width 4,096 with 64 experts, 6 chosen; `postformer cost` counts others.",
    )


def _least(shape: Published, batch: int, dense: bool) -> Step:
    """Of one step of so many rows, each after CONTEXT tokens; `dense`: were all parameters used by every token."""
    weights = shape.touched(10**6 if dense else batch)
    state, of = ITEM * shape.state_numbers(CONTEXT), DEVICES[DEVICE]
    operations = 2 * weights + shape.flops(CONTEXT) - shape.flops(0) if dense else shape.flops(CONTEXT)
    resident = ITEM * shape.parameters
    return step(of, weights=ITEM * weights, resident=resident, state=state, operations=operations, batch=batch)


def _eighty() -> Table:
    rows = []
    for batch in COMPUTED:
        sparse, dense = (_least(EIGHTY, batch, whole) for whole in (False, True))
        times = (Number(s.seconds, "s", "counted") for s in (sparse, dense))
        fits = "" if sparse.fits else "more than its memory"
        rows.append((f"{batch} rows", *times, Number(dense.seconds / sparse.seconds, TIMES, "counted"), fits))
    return Table(
        "80 billion parameters, 10 billion active: the least time of a step",
        ("one more token in", "mixture", "dense, equal size", "dense / mixture", ""),
        tuple(rows),
        note=f"By formula on {DEVICES[DEVICE].source}: the larger of reading what a step touches, the cache of {CONTEXT:,} tokens a row "
        f"included, and of multiplying, in bf16. Both models hold {ITEM * EIGHTY.parameters / 1e9:.0f} GB of weights.",
    )


def charts(e: Evidence) -> tuple[Chart, ...]:
    batches = e["times"]["batches"]
    x = tuple(float(b) for b in batches)
    measured = [
        Series(
            name,
            x,
            tuple(float(n.value or 0.0) for n in of),
            "measured",
            tuple(float(n.low or n.value or 0.0) for n in of),
            tuple(float(n.high or n.value or 0.0) for n in of),
        )
        for name, of in ((NAMES[k], [at_batch(e, b, k) for b in batches]) for k in ("total", "active"))
    ]
    fitting = [b for b in COMPUTED if _least(EIGHTY, b, False).fits]
    eighty = tuple(_least(EIGHTY, b, True).seconds / _least(EIGHTY, b, False).seconds for b in fitting)
    bound = Series("80 billion, 10 active, by formula", tuple(float(b) for b in fitting), eighty, "counted")
    return (
        Chart(
            title="Time of a step, dense / mixture",
            x_label="rows of the batch",
            y_label="times as long",
            y_unit=TIMES,
            series=(*measured, bound),
            log_x=True,
            note="Above the line of 1 the mixture is faster. The computed curve is of a large model on a data-centre GPU.",
        ),
    )


def limits(e: Evidence, ctx: Context) -> tuple[str, ...]:
    return (
        "Weights are drawn, not learned: routers that send many tokens to the same experts touch fewer of them at large batches, and are "
        "bound to wait for the fullest expert where these lie on several devices.",
        f"fp32 on {ctx.threads} thread{'s' * (ctx.threads > 1)} of a CPU, few layers, short texts: attention and its cache, which experts "
        "do not make cheaper, weigh little here and more in long texts.",
        "Memory is not an eighth: all experts lie in it, unless they are read from a disk as they are needed, which takes time.",
        "Cost alone is compared. How good a mixture is beside either dense model is the claim experts_quality.",
    )


def consequences(e: Evidence) -> tuple[str, ...]:
    batches = e["times"]["batches"]
    ratios = {b: at_batch(e, b, "total").value or 0.0 for b in (batches[0], batches[-1])}
    few, many = ratios.values()
    told = f"the dense model of equal size takes {few:.1f} times as long for a token of one text, {many:.1f} for {batches[-1]}"
    return (
        f"Here {told}: "
        + ("take experts to write few texts at a time." if few > many else "experts gain as much on many texts."),
        "Where many texts are written at once, compare with the dense model of equal *active* size: "
        f"it takes {at_batch(e, batches[-1], 'active').value or 0.0:.2f} times as long as the mixture for {batches[-1]} texts.",
    )
