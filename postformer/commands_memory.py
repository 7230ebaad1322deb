"""What the commands about a memory do: read texts into a file, ask it, look at it, copy it, and go back. Imports no torch."""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from postformer import commands
from postformer.commands import progress_bars
from postformer.commands_judged import evaluate_drawn, evaluate_images, evaluate_physics
from postformer.commands_worlds import evaluate_goals
from postformer.config import UserError, plain


def read(args: argparse.Namespace) -> int:
    from postformer.models.memory import begin_again, half_read, read_file
    from postformer.models.snapshots import snapshot
    from postformer.train.process import stop_signals
    from postformer.train.session import model_folder, reading_of

    file: Path = args.memory
    _check_texts(args.texts, file)
    folder = model_folder(args.model)
    model, memory = _begin(folder, args, begin=reading_of(folder) is None)
    began, saved = memory.tokens, time.monotonic()
    keeping = args.keep and file.exists() and not any(half_read(memory, text) for text in args.texts)
    texts = begin_again(memory, args.texts) if args.again else args.texts

    def after_chunk(text: Path, size: int, done: int) -> bool:
        nonlocal keeping, saved
        if keeping:
            snapshot(file, args.keep)
            keeping = False
        show(f"reading {text}", min(done, size), size)
        if time.monotonic() - saved >= args.every:
            memory.save(file, model)
            saved = time.monotonic()
        return bool(stop)

    with stop_signals() as stop, progress_bars() as show:
        for text in texts:
            after = functools.partial(after_chunk, text, text.stat().st_size)
            if not read_file(model, memory, text, after_chunk=after):
                break
    if memory.tokens == began and not file.exists():
        raise UserError(f"{args.texts[0]}: holds nothing to begin a memory with")
    if memory.tokens == began:
        print(f"{file}: has read all of this already, {memory.tokens:,} tokens")
        return 0
    memory.save(file, model)
    print(f"{file}: {memory.tokens:,} tokens read, {memory.tokens - began:,} of them now; a state of {memory.nbytes:,} bytes")
    if stop:
        print(f"postformer: stopped by {stop[0]}; the same command goes on from there", file=sys.stderr)
    return 130 if stop else 0


def _check_texts(texts: Sequence[Path], memory: Path) -> None:
    for text in texts:
        if not text.is_file():
            raise UserError(f"{text}: {'is no file' if text.exists() else 'no such file'}; name files of text to read")
    if not memory.parent.is_dir():
        raise UserError(f"--memory {memory}: the folder {memory.parent} does not exist")
    if memory.is_dir():
        raise UserError(f"--memory {memory}: is a folder; name a file")


def _begin(folder: Path, args: argparse.Namespace, begin: bool) -> tuple[Any, Any]:
    """The model, and the memory that goes on: that of the file, a fork of --from, or nothing read."""
    from postformer.models.hub import load_model
    from postformer.models.memory import Memory
    from postformer.state import header

    file, other = args.memory, getattr(args, "from")
    parent = header(other).sha256 if other else None
    if file.exists() and other and header(file).note.get("parent") != parent:
        raise UserError(f"--memory {file}: is there and was not begun from {other}; leave out --from, or name a new file")
    model = load_model(folder)
    if model.tokens is None:
        raise UserError(f"{args.model}: this model was saved without a tokenizer; it cannot read text")
    if file.exists():
        return model, Memory.load(file, model)
    memory = Memory.load(other, model) if other else Memory.fresh(model, begin)
    memory.parent = parent
    memory.expect(file)
    return model, memory


# ---------------------------------------------------------------- questions


def ask(args: argparse.Namespace) -> int:
    from postformer.models.hub import load_model
    from postformer.models.readers import StateReader
    from postformer.objectives.rates import load
    from postformer.state import fingerprint
    from postformer.train.session import model_folder

    questions = _questions(args)
    if not args.memory.is_file():
        raise UserError(f"--memory {args.memory}: {'is no file' if args.memory.exists() else 'no such file'}")
    folder = model_folder(args.model)
    task, model = _task(folder, args.model), load_model(folder)
    reader = StateReader.load(args.memory, model, ask=task.asked)
    for where, question in questions:
        try:
            task.asked(question)
        except UserError as e:
            raise UserError(f"{where}: {e}") from e
    rates = load(folder, fingerprint(model))
    for _, question in questions:
        answer, rate = reader.answer(question), _rate(rates, task.sort(question), reader.memory.tokens)
        if args.questions:
            print(question, _shown(" ".join(answer.split())), rate, sep="\t", flush=True)
        else:
            print(f"{_shown(answer)}\n{rate}")
    return 0


def _shown(answer: str) -> str:
    """As it is, but for control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in answer)


def _rate(rates: Any, kind: str, tokens: int) -> str:
    """How often such an answer is right, as far as it was measured."""
    found = rates.of(kind, tokens) if rates else None
    if found:
        facts = f" with at most {rates.data['facts']:,} facts" if rates.data.get("facts") else ""
        texts = f"of generated texts ({rates.data['kind']}{facts}), not of yours"
        return f"right: {found} on questions of this kind ({kind}) after {found.length:,} tokens {texts}"
    lengths = [rate.length for rate in rates.rates if rate.kind == kind] if rates else []
    measured = f", only up to {max(lengths):,}" if lengths else ""
    return f"right: not measured on questions of this kind ({kind}) after {tokens:,} tokens{measured}"


def _questions(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Each question with the place that an error names."""
    if (args.question is None) == (args.questions is None):
        given = (
            "both a question and --questions are given"
            if args.questions
            else "give a question, or --questions FILE with one a line"
        )
        raise UserError(f"ask: {given}")
    if args.questions is None:
        return [("ask", args.question)]
    try:
        lines = args.questions.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise UserError(f"--questions {args.questions}: not UTF-8 text (byte {e.start})") from e
    found = [(f"{args.questions}:{number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"--questions {args.questions}: holds no question")
    return found


def _task(folder: Path, name: str) -> Any:
    from postformer.data import READINGS
    from postformer.train.session import reading_of

    if (task := reading_of(folder)) is None:
        raise UserError(f"{name}: was not trained on texts with questions (data.kind {', '.join(READINGS)})")
    return task


def evaluate(args: argparse.Namespace) -> int:
    if args.questions:
        if args.window:
            raise UserError("--window: belongs to --text, which was not given")
        return _measure(args)
    physics, judge, images, goals = (given is not None for given in (args.physics, args.judge, args.images, args.goals))
    if args.length or (args.seed and not (physics or judge or goals)):
        raise UserError(f"--{'length' if args.length else 'seed'}: belongs to --questions, which was not given")
    if args.window and (images or physics or judge or goals):
        raise UserError("--window: belongs to --text, which was not given")
    if physics:
        return evaluate_physics(args)
    if judge:
        return evaluate_drawn(args)
    if goals:
        return evaluate_goals(args)
    return evaluate_images(args) if images else commands.evaluate(args)


def _measure(args: argparse.Namespace) -> int:
    """Ask a model questions of its task, and keep how often it was right beside it."""
    from postformer.data import READINGS
    from postformer.models.hub import load_model
    from postformer.models.readers import StateReader
    from postformer.objectives import rates
    from postformer.state import fingerprint
    from postformer.train.session import model_folder

    folder = model_folder(args.checkpoint)
    task, model = _task(folder, args.checkpoint), load_model(folder)
    found: list[rates.Rate] = []
    with progress_bars() as show:
        for length in args.length or (task.length,):
            label = f"texts of {length:,} tokens"
            found += rates.measure(
                lambda: StateReader(model, ask=task.asked),
                task,
                length=length,
                questions=args.questions,
                seed=args.seed,
                after_question=lambda done, label=label: show(label, done, args.questions),
            )[0]
    data = {"kind": next(kind for kind, made in READINGS.items() if type(task) is made), **task.identity}
    rates.save(folder, rates.Rates(fingerprint(model), plain(data), args.seed, found))
    print(rates.listed(found))
    return 0


# ---------------------------------------------------------------- the files


def memory(args: argparse.Namespace) -> int:
    return ACTIONS[args.action](args)


def _show(args: argparse.Namespace) -> int:
    from postformer.models.memory import note_of
    from postformer.state import header

    found = header(args.file)
    note = note_of(found, args.file)
    print(f"model    {found.model[:12]}")
    print(f"written  {note.written or 'not told'}")
    print(f"read     {note.tokens:,} tokens")
    print(f"state    {found.nbytes:,} bytes, in a file of {args.file.stat().st_size:,}")
    print(f"this     {found.sha256[:12]}")
    print(f"parent   {(note.parent or 'none')[:12]}")
    for source in note.sources:
        left = f", {source.back:,} of them half read" if source.back else ", not yet to its end" if source.half else ""
        print(f"text     {source.name}: {source.size:,} bytes{left}")
    return 0


def _fork(args: argparse.Namespace) -> int:
    from postformer.models.snapshots import fork

    fork(args.file, *args.new)
    for new in args.new:
        print(f"{new}: a copy of {args.file} that goes its own way")
    return 0


def _snapshot(args: argparse.Namespace) -> int:
    from postformer.models.snapshots import snapshot

    print(_line(snapshot(args.file)))
    return 0


def _snapshots(args: argparse.Namespace) -> int:
    from postformer.models.snapshots import snapshots
    from postformer.state import header

    header(args.file)
    found = snapshots(args.file)
    print("\n".join(map(_line, found)) if found else f"{args.file}: has no snapshot")
    return 0


def _rollback(args: argparse.Namespace) -> int:
    from postformer.models.snapshots import rollback

    print(f"{args.file}: is again what it was: {_line(rollback(args.file, args.number))}")
    return 0


def _line(found: Any) -> str:
    from postformer.models.memory import note_of
    from postformer.state import StateError

    try:
        header = found.header
    except StateError as e:
        return f"snapshot {found.number}: damaged: {e}"
    try:
        note = note_of(header, found.path)
    except StateError as e:
        return f"snapshot {found.number}: {e}"
    by = ", from before a reading" if found.automatic else ""
    return f"snapshot {found.number}, written {note.written or 'at a time not told'}, {note.tokens:,} tokens read{by}"


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "show": _show,
    "fork": _fork,
    "snapshot": _snapshot,
    "snapshots": _snapshots,
    "rollback": _rollback,
}
