"""Experiments on mixtures of experts that claims share: what a mixture costs beside dense models of as many parameters, and of as many
active ones."""

import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from postformer.claims.ledger import Context, NotMeasurable, Real
from postformer.claims.sequences import peak_memory
from postformer.claims.stats import interleaved
from postformer.config import build
from postformer.models import MODELS
from postformer.models.hub import save_model
from postformer.models.language import LanguageModel
from postformer.models.routing import routed
from postformer.state import clone
from postformer.train import process

SPARSE, TOTAL, ACTIVE = "sparse", "total", "active"
"""The mixture, and the dense models of as many parameters and of as many as a token of the mixture uses."""
VOCAB, READ_BEFORE, DIFFERENT = 256, 64, 8
"""Of models whose weights are drawn; the tokens that stand in the state when they are timed; and the tokens that take turns then."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a language model with attention and a mixture in every layer."""

    dim: int
    depth: int
    experts: int
    top: int
    hidden: int

    def model(self, kind: str) -> LanguageModel:
        """One of SPARSE, TOTAL and ACTIVE, with weights of seed 0."""
        wide = {TOTAL: self.experts, ACTIVE: self.top}
        ffn = (
            {"kind": "mlp", "hidden": wide[kind] * self.hidden}
            if kind in wide
            else {"kind": "moe", "experts": self.experts, "top": self.top, "hidden": self.hidden}
        )
        words = {"dim": self.dim, "depth": self.depth, "mixers": [{"kind": "attention"}], "ffns": [ffn]}
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return build({"kind": "language", **words}, MODELS, "model", vocab=VOCAB).eval()


EMPTY = Shape(dim=8, depth=1, experts=1, top=1, hidden=8)
"""A model that weighs nothing, whose process is the others' floor."""


def counted(shape: Shape) -> dict[str, dict[str, Real]]:
    """Parameters, those that a token uses, and operations of a token after READ_BEFORE others, by formula."""
    found: dict[str, dict[str, Real]] = {}
    for kind in (SPARSE, TOTAL, ACTIVE):
        with torch.device("meta"):
            cost = shape.model(kind).cost(READ_BEFORE)
        found[kind] = {"parameters": cost.parameters, "active": cost.active_parameters, "flops": cost.decode_flops}
    return found


@torch.inference_mode()
def step_times(
    ctx: Context, shape: Shape, batches: tuple[int, ...], reading: int, rounds: int, seconds: Real
) -> dict[str, Any]:
    """Seconds of one more token in each row of each batch, and of reading a text of one row, in turns; of the mixture also the experts
    of a layer that a step touches, and by formula if tokens chose evenly and apart."""
    found: dict[str, Any] = {"batches": list(batches), "steps": [], "touched": [], "formula": []}
    until = time.perf_counter() + seconds

    def part_s() -> Real:
        """What is left, dealt to what is still to be timed; reading counts three times."""
        return max(1.0, until - time.perf_counter()) / (len(batches) - len(found["steps"]) + 3)

    with process.threads(ctx.threads), process.freed_memory_kept():
        models = {kind: shape.model(kind) for kind in (TOTAL, SPARSE, ACTIVE)}
        for batch in batches:
            ids = torch.randint(VOCAB, (batch, READ_BEFORE + DIFFERENT), generator=torch.Generator().manual_seed(batch))
            text, more = ids[:, :READ_BEFORE], ids[:, READ_BEFORE:].split(1, 1)
            states = {kind: m.hidden(text, m.init_state(batch))[1] for kind, m in models.items()}
            states = {
                kind: m(more[0], states[kind])[1] for kind, m in models.items()
            }  # a cache that grew has room, as at most tokens
            functions = {kind: _steps(m, states[kind], more) for kind, m in models.items()}
            timing = interleaved(functions, rounds, warmup=2, budget_s=part_s())
            found["steps"].append({"samples": timing.samples, "control": timing.control})
            with routed(models[SPARSE]) as routing:
                for one in more:
                    models[SPARSE](one, clone(states[SPARSE]))
            touched = [len(call.experts.unique()) for calls in routing.calls.values() for call in calls]
            found["touched"].append(sum(touched) / len(touched))
            found["formula"].append(shape.experts * (1 - (1 - shape.top / shape.experts) ** batch))
            ctx.progress("one more token of each row", len(found["steps"]), len(batches))
        text = torch.randint(VOCAB, (1, reading), generator=torch.Generator().manual_seed(0))
        functions = {kind: lambda m=m: m.read(text, m.init_state(1)) for kind, m in models.items()}
        timing = interleaved(functions, rounds, warmup=1, budget_s=3 * part_s())
        found["reading"] = {"tokens": reading, "samples": timing.samples, "control": timing.control}
    return found


def _steps(model: LanguageModel, state: Any, tokens: Sequence[Tensor]) -> Callable[[], object]:
    """One step from the state, each time with the next of the tokens."""
    turns = itertools.cycle(tokens)
    return lambda: model(next(turns), state)


def resident_bytes(ctx: Context, shape: Shape, tokens: int = 256) -> dict[str, int] | None:
    """Bytes that a process which has opened each model and read with it holds beyond one of a model that weighs nothing; None where the
    system does not tell."""
    held = {}
    for kind, own in {SPARSE: shape, TOTAL: shape, ACTIVE: shape, "": EMPTY}.items():
        folder = ctx.files / f"model-{kind or 'empty'}"
        save_model(own.model(kind or ACTIVE), folder)
        try:
            held[kind] = peak_memory(folder, tokens, tokens, ctx.threads)["before"]
        except NotMeasurable:
            return None
        finally:
            shutil.rmtree(folder)
    return {kind: of - held[""] for kind, of in held.items() if kind}
