"""Experiments on readers of diaries: what is still known after how many words, of how many facts, at which cost.

Every diary streams: no more than one entry of it is held. A reader keeps a state, or the passages of the text (`RetrievalReader`).
"""

import dataclasses
import math
import random
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from postformer.claims import tasks
from postformer.claims.ledger import Context, Real
from postformer.claims.peak import resident
from postformer.claims.stats import interleaved
from postformer.config import Run
from postformer.data.diary import HEADING, Diaries, Diary, sentences
from postformer.data.diary import written as pieces_of
from postformer.data.facts import UNKNOWN
from postformer.data.reading import FILLER, asking, chunks
from postformer.data.statements import GAP, Kind
from postformer.files import durable_file
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
MADE_OF_TEXT = 10
"""Further ones with the user's text, so few that every name stays one piece."""
SHORTEST, PLAIN = 104, 116
"""Tokens of the shortest diaries with their questions, little more than three facts and what is asked about one, and of those up to which
all is told in plain words."""
TRAINING = 1 << 20
"""Seeds of the diaries that the tokenizer is made of begin here; those that are asked lie below."""
SIZES, FEW, SHARES = (16, 32, 64), (1, 2, 3), (0.25, 1.0)
"""Settings of retrieval that are tried: tokens of a passage, how many are read, and shares of the training length that they fill."""
TRIED_FACTS, TRIED_DIARIES, WORDS_A_FACT = 32, 2, 60
"""Diaries on which they are, of each length that is asked and apart from those that are, with a fact for so many words at most."""
ROOM = 64
"""Tokens of the training length that are left for the question and its answer."""
ENCODED, ENCODER_STEPS = 700, 150
"""Bytes of the diaries that the encoder learns from, and its steps: about ten seconds."""
ASKED_FROM = 1 << 16
"""Seeds of the diaries that are asked begin here: those from 0 on were looked at while the recipe was sought."""
APART, CELL, CELLS = 1 << 24, 1 << 8, 1 << 11
"""Each seed's model is asked diaries of its own, whose seeds begin APART from each other, and those of each number of words, facts and kind
at one of CELLS places CELL apart: no two cells ask the same."""
CHUNK = 1024
"""Tokens that a reader is given at once."""
ASKED = 32
"""Questions after a diary, at most."""


def tokenizer(ctx: Context) -> Path:
    """The folder of the BPE, made from diaries apart from those that are asked, where it is not there yet."""
    folder, text = ctx.files / "tokenizer", _text(ctx)
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(exist_ok=True)
        told = [_whole(TRAINING + i) for i in range(MADE_OF)]
        told += [_whole(TRAINING + MADE_OF + i, text) for i in range(MADE_OF_TEXT if text else 0)]
        BPE.train(told, VOCAB).save(folder)
    return folder


def _text(ctx: Context) -> str | None:
    return None if ctx.text is None else str(ctx.text)


def _whole(seed: int, text: str | None = None) -> str:
    diary = Diary(words=WORDS, facts=FACTS, seed=seed, text=text, split="train")
    questions = "".join(f"{asking(q.text)} {q.answer}" for q in diary.questions())
    return "".join(f"\n\n{entry.text}" for entry in diary.entries()) + questions


def runs(ctx: Context, run: Run, methods: Sequence[str]) -> dict[str, Run]:
    """The same run with each way of remembering, its texts as short at first as the tokenizer allows, and the user's text between the facts
    where there is one."""
    own = {"tokenizer": str(tokenizer(ctx)), "shortest": SHORTEST, "start": SHORTEST, "plain": PLAIN, "text": _text(ctx)}
    return {m: dataclasses.replace(remembering_by(run, m), data={**run.data, **own}) for m in methods}


def world(run: Run) -> dict[str, Any]:
    """What the run's diaries tell of, in which wordings, and between what."""
    return {"topics": tuple(run.data["topics"]), "reach": run.data["reach"], "text": run.data["text"]}


class Readers:
    """New readers of each method, with the trained models of its run; `retrieval` is what `choose` found for each RetrievalReader."""

    def __init__(self, ctx: Context, runs: Mapping[str, Run]):
        self.ctx, self.runs = ctx, runs
        self.retrieval: dict[str, list[dict[str, Any]]] = {}

    def run(self, method: str) -> Run:
        """What its model was trained by."""
        return self.runs[method if method in self.runs else ANSWERS]

    def new(self, method: str, seed: int, words: int = 0, kind: Kind = "single", **retrieval: Any) -> Reader:
        """One that has read nothing, for a diary of so many words and questions of this kind."""
        model = open_model(tasks.folder(self.ctx, self.run(method), seed))
        if method not in (BY_WORDS, BY_MEANING):
            return StateReader(model, ask=asking)
        rank = Dense(encoder(self.ctx, world(self.run(method)), seed).encode) if method == BY_MEANING else None
        return RetrievalReader(model, ask=asking, rank=rank, **(retrieval or self.setting(method, words, kind)))

    def setting(self, method: str, words: int, kind: Kind) -> dict[str, Any]:
        """The passages that were chosen for this kind, and of several for the length nearest to so many words."""
        found = [one for one in self.retrieval[method] if one["kind"] == kind]
        return min(found, key=lambda one: abs(math.log(one["words"] / max(words, 1))))["chosen"]

    def choose(self, method: str, words: int, kind: Kind = "single", span: tuple[float, float] = (0.0, 1.0)) -> dict[str, Any]:
        """Try SIZES, FEW and SHARES with the first seed's model on diaries of so many words: what each found and answered, and the one that
        answered most ("chosen"); of equal ones that which found most, then that which reads least."""
        length, seed = self.run(method).data["length"] - ROOM, self.ctx.seeds[0]
        facts = min(TRIED_FACTS, max(2, words // WORDS_A_FACT))
        told = {"facts": facts, "kinds": (kind,), "span": span, **world(self.run(method))}
        first = TRAINING + MADE_OF + MADE_OF_TEXT
        diaries = [Diary(words=words, seed=first + i, split="valid", **told) for i in range(TRIED_DIARIES)]
        tried = []
        with process.threads(self.ctx.threads):
            for size in SIZES:
                counts = [*FEW, *(max(1, int(share * length / size)) for share in SHARES)]
                found = {k: Counter[str]() for k in sorted({k for k in counts if k * size <= length})}
                for diary in diaries:
                    kept = self.new(method, seed, size=size, k=1)
                    assert isinstance(kept, RetrievalReader)
                    for ids in streamed(diary, kept.tokens):
                        kept.write(ids)
                    for kept.k, counted in found.items():
                        counted += _asked(kept, diary)
                tried += [{"size": size, "k": k, **{of: n[of] for of in ("right", "held", "asked")}} for k, n in found.items()]
        best = max(tried, key=lambda one: (one["right"], one["held"], -one["size"] * one["k"]))
        return {"words": words, "kind": kind, "tried": tried, "chosen": {key: best[key] for key in ("size", "k")}}


def encoder(ctx: Context, told: dict[str, Any], seed: int) -> TextEncoder:
    """The seed's encoder of BY_MEANING, trained on diaries that tell so where it is not there yet."""
    path, found = ctx.files / f"encoder-{seed}.safetensors", TextEncoder()
    try:
        load_model(found, path)
        return found.eval()
    except (OSError, SafetensorError, RuntimeError):  # it is not there, or not whole
        found = TextEncoder()
    with process.threads(ctx.threads):
        diaries = Diaries(length=ENCODED, kinds=("single", "updated"), **told)
        found = fit_encoder(asked_pairs(diaries, seed=seed), steps=ENCODER_STEPS, seed=seed)
    with durable_file(path) as temporary:
        save_model(found, str(temporary))
    return found


def streamed(diary: Diary, tokens: Tokens) -> Iterator[Any]:
    """The diary's ids as arrays of CHUNK."""
    return chunks((tokens.encode(f"\n\n{entry.text}") for entry in diary.entries()), CHUNK)


# ---------------------------------------------------------------- what is still known


def recall(
    readers: Readers,
    method: str,
    *,
    words: int,
    facts: int,
    diaries: int = 1,
    kind: Kind = "single",
    span: tuple[float, float] = (0.0, 1.0),
    timed: bool = False,
    within_s: Real = math.inf,
) -> dict[str, Any] | None:
    """How many questions at the end of new diaries every seed's model answers rightly, or with the outdated value, and what it cost.

    `each` counts those that are right and all, of every seed, or of a single one's every diary. `held` counts the questions whose statement
    stands whole in a passage that was found. With `timed`, `stream` is the cost of reading on at the last diary's begin and end, for a
    reader of a state. None where reading takes longer than `within_s`.
    """
    ctx, until = readers.ctx, time.perf_counter() + within_s
    told = {"facts": facts, "kinds": (kind,), "span": span, **world(readers.run(method))}
    each, total = [], Counter[str]()
    last: dict[str, Any] = {}
    parameters = 0
    with process.threads(ctx.threads), process.freed_memory_kept():
        for seed in ctx.seeds:
            own = list[Counter[str]]()
            for number in range(diaries):
                at = ASKED_FROM + APART * seed + _place(words, facts, kind) + number
                diary = Diary(words=words, seed=at, split="test", **told)
                kept = readers.new(method, seed, words, kind)
                try:
                    early = _read(ctx, kept, diary, f"{method}: diary of {words:,} words", until)
                except TimeoutError:
                    return None
                own.append(_asked(kept, diary))
                parameters = sum(p.numel() for p in kept.model.parameters())  # type: ignore[attr-defined]
                last = {"bytes": kept.nbytes, "stream": _stream(kept, early) if timed and number == diaries - 1 else None}
                total += Counter(tokens=kept.spent.written, questions=kept.spent.answered)
                total["write_ns"] += int(1e9 * kept.spent.write_s)
                total["answer_ns"] += int(1e9 * kept.spent.answer_s)
            found = sum(own, Counter[str]())
            each += [[one["right"], one["asked"]] for one in ([found] if len(ctx.seeds) > 1 else own)]
            total += Counter({key: found[key] for key in ("outdated", "unknown", "held")})
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
        "parameters": parameters,
        "tokens": total["tokens"] // (diaries * len(ctx.seeds)),
        "write_s": total["write_ns"] / 1e9 / total["tokens"],
        "answer_s": total["answer_ns"] / 1e9 / total["questions"],
        **last,
    }


def _place(words: int, facts: int, kind: Kind) -> int:
    """Where the seeds of such diaries begin, apart from those of others."""
    return CELL * (1 + zlib.crc32(f"{words} {facts} {kind}".encode()) % (CELLS - 1))


@torch.inference_mode()
def written(ctx: Context, run: Run, facts: int, diaries: int) -> list[dict[str, Any]]:
    """Of each memory of the model whose gates write, by depth: how much of the tokens of facts and of the rest it writes, 0 to 1, on
    average over the heads ("mean"), and the share of them that any head writes ("any"); over diaries of the training length, all seeds."""
    rest, length = (FILLER, HEADING), run.data["length"]
    about = {"facts": facts, "kinds": ("single",), **world(run)}
    shares: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    with process.threads(ctx.threads):
        for seed in ctx.seeds:
            model = open_model(tasks.folder(ctx, run, seed))
            tokens = tokens_of(model)
            for number in range(diaries):
                told, rng = Diary(words=length, seed=ASKED_FROM + number, **about).plan, random.Random(number)
                talk = sentences(about["text"], rng, told.people, "test")
                pieces = list(pieces_of(told, talk, tokens.encode, length, 10.0, rng))
                fact = torch.tensor([label not in rest for piece, label in pieces for _ in piece])
                with observed(model) as found:
                    model.hidden(torch.tensor([[i for piece, _ in pieces for i in piece]]))
                for name, parts in found.items():
                    shares.setdefault(name, []).append((torch.cat(parts, 1)[0], fact))
    layers = [(torch.cat([s for s, _ in each]), torch.cat([fact for _, fact in each])) for each in shares.values()]
    return [{"facts": _shares(share[fact]), "rest": _shares(share[~fact])} for share, fact in layers]


def _shares(share: torch.Tensor) -> dict[str, float]:
    return {"mean": float(share.mean()), "any": float((share.amax(-1) > 0).float().mean())}


class Early(NamedTuple):
    """The tokens after the first chunk, the state, and the process's resident bytes, where the system tells them."""

    tokens: int
    state: Any
    resident: int | None


def _read(ctx: Context, kept: Reader, diary: Diary, saying: str, until: Real) -> Early | None:
    """Write all of the diary; what was after its first chunk, of a reader that keeps a state. Raises TimeoutError."""
    early, done = None, 0
    for ids in streamed(diary, kept.tokens):  # type: ignore[attr-defined]
        if time.perf_counter() > until:
            raise TimeoutError
        kept.write(ids)
        if isinstance(kept, StateReader) and early is None:
            early = Early(kept.spent.written, clone(kept.memory.state), _resident())
        done += len(ids)
        if done % (64 * CHUNK) == 0:
            ctx.progress(saying, min(done, 2 * diary.words), 2 * diary.words)
    return early


def _resident() -> int | None:
    try:
        return resident("VmRSS")
    except OSError:
        return None


def _asked(kept: Reader, diary: Diary) -> Counter[str]:
    questions = diary.questions()
    questions = questions[:: -(-len(questions) // ASKED)]
    found = Counter(asked=len(questions))
    for question in questions:
        said = kept.answer(question.text)
        found["right"] += said == question.answer
        if isinstance(kept, RetrievalReader):
            statement = question.gap.replace(GAP, question.answer)
            found["held"] += bool(statement) and any(statement in kept.passages.text(n) for n in kept.find(question.text))
        found["unknown"] += said == UNKNOWN
        found["outdated"] += bool(question.outdated) and said == question.outdated
    return found


@torch.inference_mode()
def _stream(kept: Reader, early: Early | None, reading: int = 256, rounds: int = 40) -> dict[str, Any] | None:
    """Bytes of the state and of the process, and seconds a token to read on, after the first chunk and at the end, timed in turns."""
    if not isinstance(kept, StateReader) or early is None:
        return None
    held = [early.resident, _resident()]
    model: LanguageModel = kept.model
    states = {"begin": early.state, "end": clone(kept.memory.state)}
    more = torch.randint(model.vocab, (1, reading), generator=torch.Generator().manual_seed(1))
    timing = interleaved({n: lambda s=s: model.hidden(more, s) for n, s in states.items()}, rounds, warmup=2)
    return {
        "tokens": [early.tokens, kept.spent.written],
        "resident": held,
        "bytes": [nbytes(s) for s in states.values()],
        "samples": [[t / reading for t in timing.samples[n]] for n in states],
        "control": [t / reading for t in timing.control],
    }


def expected_s(method: str, before: dict[str, Any], words: int, diaries: int) -> Real:
    """Seconds that diaries of so many words will take, from a shorter one: a growing cache makes them quadratic."""
    ratio = words / before["words"]
    return before["write_s"] * before["tokens"] * ratio ** (2 if method == ANSWERS else 1) * diaries
