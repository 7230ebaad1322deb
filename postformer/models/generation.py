"""Text from a language model: sampling, streaming, and batches that rows join and leave."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from postformer import state as states
from postformer.config import UserError
from postformer.models.language import LanguageModel
from postformer.models.memory import Memory, torch_generator
from postformer.tokens.text import StreamDecoder, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Filters apply in this order: repetition penalty, temperature, top-k, top-p, min-p."""

    temperature: float = 1.0
    """0 takes the most probable token."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest tokens whose probabilities sum to p (Holtzman et al. 2019)."""
    min_p: float = 0.0
    """Keep tokens at least this share as probable as the most probable one (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Divide the positive logits of tokens that occurred, and multiply the negative ones (Keskar et al. 2019)."""
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    """Strings before which the text ends."""
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0 <= self.temperature < math.inf, "finite and at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "finite and above 0"),
            "max_tokens": (0 <= self.max_tokens <= 1 << 31, "between 0 and 2147483648"),
            "stop": (all(self.stop), "strings that are not empty"),
            "seed": (0 <= self.seed < 1 << 63, "between 0 and 2^63 - 1"),
        }
        for name, (good, valid) in checks.items():
            if not good:
                raise UserError(f"{name}: {getattr(self, name)!r} is not valid; it must be {valid}")


def choose(logits: Float[Tensor, " v"], sampling: Sampling, occurred: set[int], generator: torch.Generator) -> int:
    """Draw the next token. Raises UserError when the model's output is not finite."""
    logits = logits.detach().to(torch.double, copy=True)
    if not bool(logits.isfinite().all()):
        raise UserError("the model's output is not finite: its weights are damaged, or it overflows in this dtype")
    if sampling.repetition_penalty != 1 and occurred:
        ids = torch.tensor(sorted(occurred), device=logits.device)
        value = logits[ids]
        p = sampling.repetition_penalty
        logits[ids] = torch.where(value > 0, value / p, value * p)
    if sampling.temperature == 0:
        return int(logits.argmax())
    probability = (logits / sampling.temperature).softmax(0)
    if not bool(probability.isfinite().all()):
        raise UserError("temperature and repetition_penalty: too near 0 to compute with")
    kept, order = probability, None
    if 0 < sampling.top_k < len(probability):
        kept, order = probability.topk(sampling.top_k)
    elif sampling.top_p < 1:
        kept, order = probability.sort(descending=True, stable=True)
    if sampling.top_p < 1:
        share = kept / kept.sum()
        kept = kept * (share.cumsum(0) - share < sampling.top_p)
    if sampling.min_p:
        kept = kept * (kept >= sampling.min_p * probability.max())
    drawn = torch.multinomial(kept.cpu(), 1, generator=generator)
    return int(drawn if order is None else order[drawn])


class Row:
    """One text of a batch: its sampling, the tokens it produced, and why it ended (None while it goes on)."""

    def __init__(self, sampling: Sampling, last: int, occurred: set[int], generator: torch.Generator, before: Memory):
        self.sampling, self.last, self.occurred, self.generator = sampling, last, occurred, generator
        self.before = before
        """What was read before it began to write, without the state."""
        self.produced: list[int] = []
        self.ending: Literal["end", "length", "stop"] | None = None if sampling.max_tokens else "length"
        self.memory: Memory | None = None
        """What the text left behind when it ended."""


class Batch:
    """Texts that are decoded together; a row may join at any time, and leaves when it ends.

    A row's text does not depend on the rows beside it, up to the rounding of batched arithmetic.
    """

    def __init__(self, model: LanguageModel):
        if model.tokens is None:
            raise UserError("this model was saved without a tokenizer; it cannot generate text")
        self.model, self.end = model, model.tokens.end
        self.rows: list[Row] = []
        self.state: Any = None

    @torch.inference_mode()
    def join(self, prompt: list[int], sampling: Sampling, memory: Memory | None = None) -> Row:
        """Add a text that goes on with `prompt`, after `memory` if given, or else from the beginning of a document."""
        generator = torch_generator(sampling.seed, memory.generator if memory is not None else None)
        if memory is None:
            memory = Memory.fresh(self.model)
        ids = [*([] if memory.last is None else [memory.last]), *prompt]
        if not ids or min(ids) < 0 or max(ids) >= self.model.vocab:
            raise UserError(f"the prompt's token ids must lie in 0 ... {self.model.vocab - 1}")
        state = states.clone(memory.state)
        if len(ids) > 1:
            device = self.model.embed.weight.device
            _, state = self.model.read(torch.tensor([ids[:-1]], device=device), state)
        before = dataclasses.replace(memory, state=None, tokens=memory.tokens + len(prompt))
        row = Row(sampling, ids[-1], memory.occurred | set(prompt), generator, before)
        self.state = state if not self.rows else states.cat([self.state, state])
        self.rows.append(row)
        return row

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, int]]:
        """Read each row's newest token and draw the next; rows that ended leave. Returns what was drawn."""
        self._leave()
        if not self.rows:
            return []
        ids = torch.tensor([[row.last] for row in self.rows], device=self.model.embed.weight.device)
        logits, state = self.model(ids, self.state)
        drawn = [
            (row, choose(y, row.sampling, row.occurred, row.generator)) for row, y in zip(self.rows, logits[:, -1], strict=True)
        ]
        self.state = state
        for row, token in drawn:
            row.last = token
            row.occurred.add(row.last)
            row.produced.append(row.last)
            if row.last == self.end:
                row.ending = "end"
            elif len(row.produced) >= row.sampling.max_tokens:
                row.ending = "length"
        self._leave()
        return drawn

    def _leave(self) -> None:
        stay = [i for i, row in enumerate(self.rows) if row.ending is None]
        for i, row in enumerate(self.rows):
            if row.ending is not None:
                row.memory = self.remember(row, i)
        if len(stay) < len(self.rows):
            self.rows = [self.rows[i] for i in stay]
            self.state = states.take(self.state, stay)

    def remember(self, row: Row, index: int | None = None) -> Memory:
        """A copy of all that continues a row later."""
        if row.memory is not None:
            return row.memory
        at = self.rows.index(row) if index is None else index
        return dataclasses.replace(
            row.before,
            state=states.take(self.state, [at]),
            last=row.last,
            occurred=set(row.occurred),
            generator=row.generator.get_state().numpy().tobytes(),
            tokens=row.before.tokens + len(row.produced),
            sources=list(row.before.sources),
        )


class Text:
    """A row's tokens as text: whole characters only, cut before the first stop string."""

    def __init__(self, tokens: Tokens, stop: tuple[str, ...]):
        self.decoder, self.stop = StreamDecoder(tokens), stop
        self.held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is now certain. What may be the beginning of a stop string is held back."""
        return self._emit(self.decoder.push(token), final=False)

    def flush(self) -> str:
        """What was held back."""
        return self._emit(self.decoder.flush(), final=True)

    def _emit(self, text: str, final: bool) -> str:
        if self.stopped:
            return ""
        self.held += text
        found = [i for s in self.stop if (i := self.held.find(s)) >= 0]
        if found:
            self.stopped = True
            return self.held[: min(found)]
        keep = 0 if final else max((n for s in self.stop for n in range(1, len(s)) if self.held.endswith(s[:n])), default=0)
        out, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return out


class Stream:
    """One text, piece by piece: iterate for the text, then `remember()` what continues it."""

    def __init__(self, model: LanguageModel, prompt: str | bytes, sampling: Sampling, memory: Memory | None = None):
        self.batch = Batch(model)
        tokens = model.tokens
        assert tokens is not None
        self.row = self.batch.join(tokens.encode(prompt), sampling, memory)
        self.text = Text(tokens, sampling.stop)

    def __iter__(self) -> Iterator[str]:
        while self.row.ending is None:
            for _, token in self.batch.step():
                if piece := self.text.push(token):
                    yield piece
            if self.text.stopped:
                self.row.ending = "stop"
        if piece := self.text.flush():
            yield piece

    def remember(self) -> Memory:
        """A copy of all that continues the text."""
        return self.batch.remember(self.row)


def generate(model: LanguageModel, prompts: list[str], sampling: Sampling, width: int = 8) -> list[str]:
    """The continuation of each prompt, at most `width` texts at a time; a text that ends makes room for the next.

    Prompt i is sampled with seed `sampling.seed + i`. Raises UserError for a single text in place of a list, and for a `width` below 1.
    """
    if isinstance(prompts, str):
        raise UserError("prompts: expected a list of texts, got one text")
    if width < 1:
        raise UserError(f"width: {width} is not valid; it must be at least 1")
    batch = Batch(model)
    tokens = model.tokens
    assert tokens is not None
    waiting = list(enumerate(prompts))[::-1]
    texts: dict[Row, tuple[int, Text]] = {}
    out = [""] * len(prompts)
    while waiting or batch.rows:
        while waiting and len(batch.rows) < width:
            i, prompt = waiting.pop()
            row = batch.join(tokens.encode(prompt), dataclasses.replace(sampling, seed=sampling.seed + i))
            texts[row] = i, Text(tokens, sampling.stop)
        for row, token in batch.step():
            i, text = texts[row]
            out[i] += text.push(token)
            if text.stopped and row.ending is None:
                row.ending = "stop"
        for row in [r for r in texts if r.ending is not None]:
            i, text = texts.pop(row)
            out[i] += text.flush()
    return out
