"""Experiments on readers of diaries: what is still known after how many words, of how many facts, at which cost.

Every diary streams: no more than one entry of it is held. A reader keeps a state, or the passages of the text (`RetrievalReader`).
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model

from postformer.claims import tasks
from postformer.claims.ledger import Context, Real
from postformer.claims.stats import interleaved
from postformer.config import Run
from postformer.data.diary import HEADING, Diaries, Diary, sentences
from postformer.data.diary import written as pieces_of
from postformer.data.facts import UNKNOWN
from postformer.data.reading import FILLER, asking, chunks
from postformer.data.statements import Kind
from postformer.models.encoder import TextEncoder
from postformer.models.language import LanguageModel
from postformer.models.readers import Reader, StateReader, tokens_of
from postformer.models.retrieval import Dense, RetrievalReader
from postformer.models.writing import observed
from postformer.objectives.contrastive import asked_pairs, fit_encoder
from postformer.recipes.memory import remembering_by
from postformer.state import clone, nbytes
from postformer.tokens import BPE, Tokens
from postformer.train import process
from postformer.train.session import open_model

BY_WORDS, BY_MEANING = "bm25", "dense"
"""Passages found by BM25, or by the vectors of an encoder that knows questions and statements, and read by the model of ANSWERS."""
ANSWERS = "attention"
VOCAB = 4096
"""Pieces at most: fewer are found, and every name of a person or a pet is one."""
MADE_OF, WORDS, FACTS = 40, 3000, 100
"""Diaries that the tokenizer is made of, and the words and statements of each."""
SHORTEST, PLAIN = 104, 116
"""Tokens of the shortest diaries with their questions, little more than three facts and what is asked about one, and of those up to which
all is told in plain words."""
TRAINING = 1 << 20
"""Seeds of the diaries that the tokenizer is made of begin here; those that are asked lie below."""
ENCODED, ENCODER_STEPS = 700, 150
"""Bytes of the diaries that the encoder learns from, and its steps: about ten seconds."""
APART = 1 << 24
"""Each seed's model is asked diaries of its own, whose seeds begin so far apart."""
CHUNK = 1024
"""Tokens that a reader is given at once."""
ASKED = 32
"""Questions after a diary, at most."""


def tokenizer(ctx: Context) -> Path:
    """The folder of the BPE, made from diaries apart from those that are asked."""
    folder = ctx.files / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(exist_ok=True)
        BPE.train((_whole(TRAINING + i) for i in range(MADE_OF)), VOCAB).save(folder)
    return folder


def _whole(seed: int) -> str:
    diary = Diary(words=WORDS, facts=FACTS, seed=seed)
    questions = "".join(f"{asking(q.text)} {q.answer}" for q in diary.questions())
    return "".join(f"\n\n{entry.text}" for entry in diary.entries()) + questions


def runs(run: Run, methods: Sequence[str], folder: Path) -> dict[str, Run]:
    """The same run with each way of remembering, its texts as short at first as the tokenizer allows."""
    data = {**run.data, "tokenizer": str(folder), "shortest": SHORTEST, "start": SHORTEST, "plain": PLAIN}
    return {m: dataclasses.replace(remembering_by(run, m), data=data) for m in methods}


def reader(ctx: Context, fitted: dict[str, Run], method: str, seed: int) -> Reader:
    """A new reader with the trained model."""
    if method in (BY_WORDS, BY_MEANING):
        rank = Dense(encoder(ctx, _world(fitted[ANSWERS])).encode) if method == BY_MEANING else None
        return RetrievalReader(open_model(tasks.folder(ctx, fitted[ANSWERS], seed)), ask=asking, rank=rank)
    return StateReader(open_model(tasks.folder(ctx, fitted[method], seed)), ask=asking)


def _world(run: Run) -> dict[str, Any]:
    """What the run's diaries tell of, and in which wordings."""
    return {"topics": tuple(run.data["topics"]), "reach": run.data["reach"]}


def encoder(ctx: Context, world: dict[str, Any]) -> TextEncoder:
    """The encoder of BY_MEANING, trained on diaries of that world where it is not there yet."""
    path, found = ctx.files / "encoder.safetensors", TextEncoder()
    if path.exists():
        load_model(found, path)
        return found.eval()
    with process.threads(ctx.threads):
        diaries = Diaries(length=ENCODED, kinds=("single", "updated"), **world)
        found = fit_encoder(asked_pairs(diaries), steps=ENCODER_STEPS)
    save_model(found, str(path))
    return found


def streamed(diary: Diary, tokens: Tokens) -> Iterator[Any]:
    """The diary's ids as arrays of CHUNK."""
    return chunks((tokens.encode(f"\n\n{entry.text}") for entry in diary.entries()), CHUNK)


# ---------------------------------------------------------------- what is still known


def recall(
    ctx: Context,
    fitted: dict[str, Run],
    method: str,
    *,
    words: int,
    facts: int,
    diaries: int = 1,
    kind: Kind = "single",
    span: tuple[float, float] = (0.0, 1.0),
    timed: bool = False,
) -> dict[str, Any]:
    """How many questions at the end of new diaries every seed's model answers rightly, or with the outdated value, and what it cost.

    `held` counts the questions whose answer stands in the passages that were found.
    With `timed`, `stream` is the cost of reading on at the last diary's begin and end, for a reader of a state.
    """
    told = {"facts": facts, "kinds": (kind,), "span": span, **_world(fitted[method if method in fitted else ANSWERS])}
    each, total = [], Counter[str]()
    last: dict[str, Any] = {}
    with process.threads(ctx.threads), process.freed_memory_kept():
        for seed in ctx.seeds:
            own = Counter[str]()
            for number in range(diaries):
                diary = Diary(words=words, seed=APART * seed + number, **told)
                kept = reader(ctx, fitted, method, seed)
                early = _read(ctx, kept, diary, f"{method}: diary of {words:,} words")
                own += _asked(kept, diary)
                last = {"bytes": kept.nbytes, "stream": _stream(kept, early) if timed and number == diaries - 1 else None}
                total += Counter(tokens=kept.spent.written, questions=kept.spent.answered)
                total["write_ns"] += int(1e9 * kept.spent.write_s)
                total["answer_ns"] += int(1e9 * kept.spent.answer_s)
            each.append([own["right"], own["asked"]])
            total += Counter(outdated=own["outdated"], unknown=own["unknown"], held=own["held"])
    return {
        "words": words,
        "facts": facts,
        "diaries": diaries,
        "right": sum(right for right, _ in each),
        "asked": sum(asked for _, asked in each),
        "outdated": total["outdated"],
        "unknown": total["unknown"],
        "held": total["held"],
        "each": each,
        "tokens": total["tokens"] // (diaries * len(ctx.seeds)),
        "write_s": total["write_ns"] / 1e9 / total["tokens"],
        "answer_s": total["answer_ns"] / 1e9 / total["questions"],
        **last,
    }


@torch.inference_mode()
def written(ctx: Context, run: Run, facts: int, diaries: int) -> list[dict[str, Any]]:
    """Of each neural memory of the model, by depth: how much of the tokens of facts and of the rest it writes, 0 to 1, on average over the
    heads ("mean"), and the share of them that any head writes ("any"); over diaries of the training length and all seeds."""
    rest, length = (FILLER, HEADING), run.data["length"]
    about = {"facts": facts, "kinds": ("single",), **_world(run)}
    shares: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    with process.threads(ctx.threads):
        for seed in ctx.seeds:
            model = open_model(tasks.folder(ctx, run, seed))
            tokens = tokens_of(model)
            for number in range(diaries):
                told, rng = Diary(words=length, seed=number, **about).plan, random.Random(number)
                pieces = list(pieces_of(told, sentences(None, rng, told.people), tokens.encode, length, 10.0, rng))
                fact = torch.tensor([label not in rest for piece, label in pieces for _ in piece])
                with observed(model) as found:
                    model.hidden(torch.tensor([[i for piece, _ in pieces for i in piece]]))
                for name, parts in found.items():
                    shares.setdefault(name, []).append((torch.cat(parts, 1)[0], fact))
    layers = [(torch.cat([s for s, _ in each]), torch.cat([fact for _, fact in each])) for each in shares.values()]
    return [{"facts": _shares(share[fact]), "rest": _shares(share[~fact])} for share, fact in layers]


def _shares(share: torch.Tensor) -> dict[str, float]:
    return {"mean": float(share.mean()), "any": float((share.amax(-1) > 0).float().mean())}


def _read(ctx: Context, kept: Reader, diary: Diary, saying: str) -> tuple[int, Any] | None:
    """The tokens and the state after the first chunk, of a reader that keeps one."""
    early, done = None, 0
    for ids in streamed(diary, kept.tokens):  # type: ignore[attr-defined]
        kept.write(ids)
        if isinstance(kept, StateReader) and early is None:
            early = kept.spent.written, clone(kept.memory.state)
        done += len(ids)
        if done % (64 * CHUNK) == 0:
            ctx.progress(saying, min(done, 2 * diary.words), 2 * diary.words)
    return early


def _asked(kept: Reader, diary: Diary) -> Counter[str]:
    questions = diary.questions()
    questions = questions[:: -(-len(questions) // ASKED)]
    found = Counter(asked=len(questions))
    for question in questions:
        said = kept.answer(question.text)
        found["right"] += said == question.answer
        if isinstance(kept, RetrievalReader):
            found["held"] += any(question.answer in kept.passages.text(n) for n in kept.find(question.text))
        found["unknown"] += said == UNKNOWN
        found["outdated"] += bool(question.outdated) and said == question.outdated
    return found


@torch.inference_mode()
def _stream(kept: Reader, early: tuple[int, Any] | None, reading: int = 256, rounds: int = 40) -> dict[str, Any] | None:
    """Bytes of the state, and seconds a token to read on, after the first chunk and at the end, timed in turns."""
    if not isinstance(kept, StateReader) or early is None:
        return None
    model: LanguageModel = kept.model
    states = {"begin": early[1], "end": kept.memory.state}
    more = torch.randint(model.vocab, (1, reading), generator=torch.Generator().manual_seed(1))
    timing = interleaved({n: lambda s=s: model.hidden(more, s) for n, s in states.items()}, rounds, warmup=2)
    return {
        "tokens": [early[0], kept.spent.written],
        "bytes": [nbytes(s) for s in states.values()],
        "samples": [[t / reading for t in timing.samples[n]] for n in states],
        "control": [t / reading for t in timing.control],
    }


def expected_s(method: str, before: dict[str, Any], words: int, diaries: int) -> Real:
    """Seconds that diaries of so many words will take, from a shorter one: a growing cache makes them quadratic."""
    ratio = words / before["words"]
    return before["write_s"] * before["tokens"] * ratio ** (2 if method == ANSWERS else 1) * diaries
