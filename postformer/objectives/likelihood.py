"""How well a language model predicts a text, in nats: divide by ln 2 and by the text's bytes for bits per byte."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from postformer.models.language import LanguageModel
from postformer.ops.loss import cross_entropy

Ids = Sequence[int] | np.ndarray


@torch.inference_mode()
def windowed_nats(
    model: LanguageModel, documents: Sequence[Ids], *, window: int, batch: int = 16, start: int | None = None
) -> list[float]:
    """Nats of each document and its end token, each token predicted from at least the `window // 2` tokens before it.

    Windows of `window` tokens overlap by half, and none reaches into another document: what a model trained on `window`
    tokens can be asked for, whatever its mixers. `start` is the token before a document (default: the tokenizer's end).
    """
    end = _end(model, start)
    totals = [0.0] * len(documents)
    full: list[tuple[int, Tensor, int]] = []
    for number, ids in enumerate(documents):
        for piece, fresh in _windows(_closed(ids, end), window):
            if len(piece) < window + 1:
                totals[number] += float(_score(model, piece[None], fresh)[0])
                continue
            full.append((number, piece, fresh))
            if len(full) == batch:
                _flush(model, full, totals)
    _flush(model, full, totals)
    return totals


@torch.inference_mode()
def streamed_nats(model: LanguageModel, ids: Ids, *, chunk: int = 1024, start: int | None = None) -> float:
    """Nats of one document and its end token when the model reads it whole, carrying its state from chunk to chunk."""
    closed = _closed(ids, _end(model, start))
    state, total = model.init_state(1), 0.0
    for piece, target in zip(closed[:-1].split(chunk), closed[1:].split(chunk), strict=True):
        logits, state = model(piece[None].to(model.embed.weight.device), state)
        total += float(cross_entropy(logits[0], target.to(logits.device)).double().sum())
    return total


def _end(model: LanguageModel, start: int | None) -> int:
    if start is not None:
        return start
    if model.tokens is None:
        raise ValueError("the model has no tokenizer; give the token that stands before a document")
    return model.tokens.end


def _closed(ids: Ids, end: int) -> Tensor:
    return torch.from_numpy(np.concatenate([[end], np.asarray(ids, np.int64), [end]]))


def _windows(ids: Tensor, window: int) -> Iterator[tuple[Tensor, int]]:
    """Pieces of window + 1 tokens (inputs and targets), and how many targets at the end of each are new."""
    last, done = len(ids) - 1, 0
    half = max(1, window // 2)
    while done < last:
        end = min(done + (window if done == 0 else half), last)
        yield ids[max(0, end - window) : end + 1], end - done
        done = end


def _score(model: LanguageModel, pieces: Tensor, fresh: int) -> Tensor:
    """Nats of the last `fresh` targets of each row [b]."""
    pieces = pieces.to(model.embed.weight.device)
    x, _ = model.hidden(pieces[:, :-1])
    logits = model.logits(x[:, -fresh:])
    losses = cross_entropy(logits.flatten(0, 1), pieces[:, -fresh:].flatten())
    return losses.double().view(len(pieces), -1).sum(1)


def _flush(model: LanguageModel, full: list[tuple[int, Tensor, int]], totals: list[float]) -> None:
    for fresh in {f for _, _, f in full}:
        rows = [(number, piece) for number, piece, f in full if f == fresh]
        for (number, _), nats in zip(rows, _score(model, torch.stack([p for _, p in rows]), fresh).tolist(), strict=True):
            totals[number] += nats
    full.clear()
