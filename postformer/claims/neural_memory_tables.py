"""The tables of `neural_memory`: which method to choose, changes, capacity, and what the memories write."""

from collections.abc import Callable, Iterator, Mapping

from postformer.claims.ledger import Number, Table
from postformer.claims.neural_memory_page import (
    NAMES,
    Cell,
    Evidence,
    at,
    capacity,
    first,
    learned,
    named,
    per_cent,
    right,
    share_of,
)
from postformer.claims.words import EN_DASH


def tables(e: Evidence) -> tuple[Table, ...]:
    """All of them."""
    return decisions(e), changes(e), capacities(e), writes(e), passages(e)


def changes(e: Evidence) -> Table:
    """How each method takes an update and a deletion."""
    rows = []
    for method in e["methods"]:
        updated, deleted = e["changes"][method]["updated"], e["changes"][method]["deleted"]
        told = [_count(cell, key) for cell, key in ((updated, "outdated"), (deleted, "outdated"), (updated, "unknown"))]
        rows.append((named(e, method), right(updated), told[0], right(deleted), *told[1:]))
    return Table(
        "Changes and deletions",
        (
            "method",
            "updated: the later value",
            "updated: the outdated",
            "deleted: says unknown",
            "deleted: still tells",
            "unknown, of what stands",
        ),
        tuple(rows),
        note="Who says unknown of what stands as well has not understood the deletion, a sentence of the diary. Passages are removed for "
        "good by `RetrievalReader.delete`; of a state nothing can be removed but by reading the diary anew.",
    )


def _count(cell: Cell, key: str) -> Number:
    return per_cent([(cell[key], cell["asked"])])


def capacities(e: Evidence) -> Table:
    """Learned at the training length, and facts until recall is half."""
    rows = []
    for method in e["methods"]:
        share = share_of(e["learned"][method]) if method in e["learned"] else "as attention"
        cells = e["facts"][method]
        sizes = (Number(cells[0]["parameters"], "", "counted"), Number(cells[0]["bytes"], "B", "counted"))
        rows.append((NAMES[method], share, *sizes, capacity(cells)))
    length = e["learned"][e["neural"]]["length"]
    return Table(
        "Capacity",
        ("method", f"right at {length:,} tokens", "parameters", "bytes kept", "facts until recall is half"),
        tuple(rows),
        note=f"All models after {e['taken']}. Parameters of the model that reads; bytes after a diary of "
        f"{first(e, 'facts')['words']:,} words.",
    )


def decisions(e: Evidence) -> Table:
    """Which method to choose where, from the cells alone."""
    rows = tuple((where, *_choice(cells, among)) for where, cells, among in _situations(e))
    return Table(
        "Which to choose",
        ("where", "recalls most", "right", "fewest bytes", "writes fastest", "answers fastest"),
        rows,
        note="The last three name the cheapest method among those whose interval is not wholly below that of the one which recalls most. "
        "A dash: no method answers half of the questions, or a single one was asked. Methods that have not learned are left out.",
    )


def _situations(e: Evidence) -> Iterator[tuple[str, dict[str, Cell], int]]:
    """Noise, facts, kinds and bytes that were measured, each with the cells of the methods that have learned, and how many of these were
    asked there."""

    def compared(where: str, cells: Mapping[str, Cell]) -> tuple[str, dict[str, Cell], int]:
        found = {m: c for m, c in cells.items() if learned(e, m)}
        return where, found, len(found)

    distance = e["distance"]
    lengths = sorted({c["words"] for cells in distance.values() for c in cells})
    for words in lengths:
        yield compared(f"{words:,} words, {first(e, 'distance')['facts']} facts", at(distance, "words", words))
    for facts in sorted({c["facts"] for cells in e["facts"].values() for c in cells}):
        yield compared(f"{facts:,} facts, {first(e, 'facts')['words']:,} words", at(e["facts"], "facts", facts))
    updated = {m: cells["updated"] for m, cells in e["changes"].items()}
    yield (among := compared("a fact is updated", updated))
    knowing = [m for m, cell in updated.items() if cell["right"] >= cell["asked"] / 2]
    deleted = {m: e["changes"][m]["deleted"] for m in knowing}
    yield compared("a fact is deleted, of those that take updates", deleted)[:2] + among[2:]
    several = [words for words in lengths if compared("", at(distance, "words", words))[2] > 1]
    for words in several[-1:]:
        _, cells, among = compared("", at(distance, "words", words))
        for most in sorted({c["bytes"] for c in cells.values()}):
            yield f"{words:,} words, at most {most:,} bytes kept", {m: c for m, c in cells.items() if c["bytes"] <= most}, among


def _choice(cells: Mapping[str, Cell], among: int) -> tuple[Number | str, ...]:
    """The method that recalls most and the cheapest of those that cannot be told from it; dashes where there was nothing to choose from."""
    if among < 2:
        return (EN_DASH,) * 5
    shares = {m: right(c) for m, c in cells.items()}
    best = max(cells, key=lambda m: (shares[m].value or 0.0, -cells[m]["bytes"]))
    if (shares[best].value or 0.0) < 50:
        return (EN_DASH, shares[best], EN_DASH, EN_DASH, EN_DASH)
    alike = [m for m in cells if (shares[m].high or 0.0) >= (shares[best].low or 0.0) and (shares[m].value or 0.0) >= 50]

    def least(cost: Callable[[Cell], float]) -> str:
        return NAMES[min(alike, key=lambda m: cost(cells[m]))]

    return (
        NAMES[best],
        shares[best],
        least(lambda c: c["bytes"]),
        least(lambda c: c["write_s"]),
        least(lambda c: c["answer_s"]),
    )


def writes(e: Evidence) -> Table:
    """How much of facts and of the rest each neural memory writes: what it leaves alone cannot wear out what it knows."""
    rows = []
    for method, layers in e["writes"].items():
        for number, layer in enumerate(layers, 1):
            shares = [Number(100 * layer[part][how], "%", "measured") for part in ("facts", "rest") for how in ("mean", "any")]
            rows.append((f"{NAMES[method]}, layer {number}", *shares))
    return Table(
        "What is written",
        ("memory", "facts: how much", "facts: tokens written", "small talk: how much", "small talk: tokens written"),
        tuple(rows),
        note="How much: the mean share of the largest step. Tokens written: those whose share is above 0 in any head; a threshold keeps "
        "the others from leaving a trace. Small talk with the dates of entries.",
    )


def passages(e: Evidence) -> Table:
    """Which passages the methods that keep the text were given at each length, and what else was tried."""
    rows = []
    for method, lengths in e["passages"].items():
        for found in lengths:
            for size in sorted({one["size"] for one in found["tried"]}):
                tried = [one for one in found["tried"] if one["size"] == size]
                best = max(tried, key=lambda one: (one["right"], one["held"], -one["k"]))
                all_k = ", ".join(f"{one['k']}: {one['right']}" for one in tried)
                taken = found["chosen"] == {"size": size, "k": best["k"]}
                shares = (per_cent([(best[key], best["asked"])]) for key in ("held", "right"))
                asked = Number(found["words"], "", "counted"), found["kind"]
                numbers = (*asked, Number(size, "", "counted"), Number(best["k"], "", "counted"))
                rows.append((NAMES[method], *numbers, *shares, all_k, "taken" if taken else ""))
    return Table(
        "Passages",
        (
            "method",
            "words",
            "kind",
            "tokens of a passage",
            "passages read",
            "the statement is in them",
            "right",
            "right by passages read",
            "",
        ),
        tuple(rows),
        note="Tried on diaries of that length apart from those that are asked; the setting that answers most is taken, of equal ones that "
        "which finds most, then that which reads least. A statement that is cut in two is in no passage.",
    )
