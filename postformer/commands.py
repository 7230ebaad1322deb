"""What the commands of the command line do: each takes its parsed arguments and returns the exit code. Imports no torch."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from postformer.config import ConfigError, Run, UserError, override, parse, plain, read

DEFAULT_CORPUS = "corpora/default"


def load_run(recipe: str, overrides: Sequence[str]) -> Run:
    """The run of a recipe's name or a file, with overrides. Raises ConfigError."""
    from postformer.recipes import RECIPES

    if recipe in RECIPES:
        data = plain(RECIPES[recipe]())
    elif recipe.endswith((".toml", ".json")):
        data = read(recipe)
    else:
        raise UserError(f"'{recipe}' is not a recipe; choose from {', '.join(RECIPES)}, or give a .toml or .json file")
    data = override(data, overrides)
    try:
        return parse(Run, data)
    except ConfigError as e:
        raise e if recipe in RECIPES else ConfigError(f"{recipe}: {e}") from e


def report(args: argparse.Namespace) -> int:
    from postformer.claims import SENTENCES, load_claim
    from postformer.claims.report import render_file, run_report

    if args.render:
        print(render_file(args.render))
        return 0
    names = args.claims or list(SENTENCES)
    for name in names:
        if name not in SENTENCES:
            raise UserError(f"--claims: unknown '{name}'; choose from {', '.join(SENTENCES)}")
    if args.text:
        _refuse_inside(args.out, args.text)
    claims = [load_claim(name) for name in dict.fromkeys(names)]
    if args.diary_words is not None:
        from postformer.claims.neural_memory import CLAIM, NeuralMemory

        if CLAIM not in claims:
            raise UserError("--diary-words: is for neural_memory, which --claims leaves out")
        claims[claims.index(CLAIM)] = NeuralMemory(args.diary_words)
    if args.images is not None:
        from postformer.claims.patches_see import CLAIM as SEEING
        from postformer.claims.patches_see import PatchesSee
        from postformer.data.images import NAMED

        if SEEING not in claims:
            raise UserError("--images: is for patches_see, which --claims leaves out")
        if args.images not in NAMED:
            if not Path(args.images).exists():
                raise UserError(f"--images {args.images}: no such file or folder; give one, or {' or '.join(NAMED)}")
            _refuse_inside(args.out, Path(args.images))
        claims[claims.index(SEEING)] = PatchesSee(args.images)
    outcome = run_report(
        claims,
        args.out,
        budget_s=args.budget,
        text=args.text,
        seeds=args.seeds,
        threads=args.threads,
        command=["postformer", *sys.argv[1:]],
    )
    for line in outcome.failures:
        print(f"postformer: {line}", file=sys.stderr)
    return outcome.exit_code


def train(args: argparse.Namespace) -> int:
    run = load_run(args.recipe, args.overrides)
    from postformer.train.log import TrackioLog, console_progress
    from postformer.train.session import check, prepare, train_run

    check(run)
    out = args.out or Path("runs") / run.name
    _refuse_file(out)
    if out.is_dir() and any(out.iterdir()) and not any((out / own).exists() for own in ("checkpoints", "log.jsonl", "lock")):
        raise UserError(f"--out {out}: holds files that are no run's; name a new folder or the folder of an earlier run")
    if (
        run.data == {"kind": "text", "path": DEFAULT_CORPUS, "length": run.data.get("length")}
        and not Path(DEFAULT_CORPUS).exists()
    ):
        _build_corpus([], Path(DEFAULT_CORPUS))
    if args.show:
        import json

        print(json.dumps(plain(prepare(run)[0]), indent=1))
        return 0
    logs = [TrackioLog(run)] if args.track else []
    with console_progress(run) as on_step:
        summary = train_run(run, out, on_step=on_step, logs=logs)
    print(f"step {summary.step} of {summary.steps}, loss {summary.loss:.4f}, {summary.seconds:.0f} s: {summary.checkpoint}")
    return 0


def generate(args: argparse.Namespace) -> int:
    from postformer.models.generation import Memory, Sampling, Stream
    from postformer.models.language import LanguageModel
    from postformer.train.session import open_model

    sampling = Sampling(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        max_tokens=args.max_tokens,
        stop=tuple(args.stop),
        seed=args.seed or 0,
    )
    if args.save_state and not args.save_state.parent.is_dir():
        raise UserError(f"--save-state {args.save_state}: the folder {args.save_state.parent} does not exist")
    if args.save_state and args.save_state.is_dir():
        raise UserError(f"--save-state {args.save_state}: is a folder; name a file")
    if args.save_state and args.save_state.exists() and not _may_overwrite(args.save_state):
        raise UserError(f"--save-state {args.save_state}: is there and no state; name a new file or a state to overwrite")
    if args.load_state and not args.load_state.is_file():
        raise UserError(f"--load-state {args.load_state}: {'is no file' if args.load_state.exists() else 'no such file'}")
    prompt = _prompt(args.prompt)
    model = open_model(args.checkpoint, experts=_expert_memory(args))
    if not isinstance(model, LanguageModel):
        raise UserError(f"{args.checkpoint}: is no language model; give a forecaster to evaluate --series")
    memory = Memory.load(args.load_state, model) if args.load_state else None
    if memory and args.seed is not None:
        memory.generator = None
    stream = Stream(model, prompt, sampling, memory)
    try:
        for piece in stream:
            print(piece, end="", flush=True)
        print()
    except UserError:
        args.save_state = None
        raise
    finally:
        if args.save_state:
            stream.remember().save(args.save_state, model)
    return 0


def _expert_memory(args: argparse.Namespace) -> Any:
    """How experts stay on disk; None where they do not."""
    from postformer.models.expert_store import ExpertMemory

    if args.expert_memory is None:
        for name, given in (("--expert-dtype", args.expert_dtype != "own"), ("--read-ahead", args.read_ahead)):
            if given:
                raise UserError(f"{name}: belongs to --expert-memory, which was not given")
        return None
    return ExpertMemory(cap=args.expert_memory, dtype=args.expert_dtype, ahead=args.read_ahead)


def _may_overwrite(path: Path) -> bool:
    from postformer.state import is_state_file

    return path.is_file() and (not path.stat().st_size or is_state_file(path))


def _prompt(prompt: str) -> bytes:
    """The prompt's text, or that of standard input."""
    where, text = ("standard input", sys.stdin.buffer.read()) if prompt == "-" else ("--prompt", os.fsencode(prompt))
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not UTF-8 text (byte {e.start})") from e
    return text


def evaluate(args: argparse.Namespace) -> int:
    if args.series is not None:
        return _evaluate_series(args)
    import math

    from postformer.data.sources import Document, Source, why_bad
    from postformer.objectives.likelihood import streamed_nats, windowed_nats
    from postformer.train.session import open_model

    model = open_model(args.checkpoint)
    if model.tokens is None:
        raise UserError(f"{args.checkpoint}: this model was saved without a tokenizer; it cannot read text")
    nats, size, bad = 0.0, 0, 0
    rows = Source(args.text, split=False).read()
    if args.text.is_file() and args.text.suffix != ".jsonl":  # one document, read whole
        text = args.text.read_bytes()
        rows = iter([] if why_bad(text) else [Document(args.text.name, "text", text)])
        bad += why_bad(text) not in ("", "empty")
    for row in rows:
        if not isinstance(row, Document):
            bad += 1
            continue
        ids = model.tokens.encode(row.text)
        nats += windowed_nats(model, [ids], window=args.window)[0] if args.window else streamed_nats(model, ids)
        size += len(row.text)
    if not size:
        raise UserError(f"--text {args.text}: holds no text" + (f" ({bad} rows could not be read)" if bad else ""))
    if not math.isfinite(nats):
        raise UserError(f"{args.checkpoint}: the model's output is not finite: its weights are damaged")
    print(f"{nats / math.log(2) / size:.4f} bits per byte over {size:,} bytes ({bad} rows left out)")
    return 0


def _evaluate_series(args: argparse.Namespace) -> int:
    from postformer.data import Series
    from postformer.models import FORECASTERS
    from postformer.objectives.errors import errors
    from postformer.train.session import open_model

    if args.window:
        raise UserError("--window: belongs to --text; a forecaster's window is its look_back")
    model = open_model(args.checkpoint)
    if not isinstance(model, tuple(FORECASTERS.values())):
        raise UserError(f"{args.checkpoint}: is no forecaster; give --text")
    found = errors(model, Series(path=args.series, look_back=model.look_back, horizon=model.horizon))
    print(
        f"mse {found.mse:.4f}, mae {found.mae:.4f} over {found.windows:,} windows of the test part, {found.channels} channels"
    )
    return 0


def _refuse_inside(out: Path, source: Path) -> None:
    """What is written must not become part of what is read."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out {out}: lies inside {source}, which is read; name a folder outside of it")


def _refuse_file(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")


def corpus(args: argparse.Namespace) -> int:
    paths, licence = args.paths, args.license
    _refuse_file(args.out)
    if args.hub_rows and not args.hub:
        raise UserError("--hub-rows: belongs to --hub, which was not given")
    if args.hub:
        from postformer.data.hub import hub_source

        if paths:
            raise UserError("--hub: give a data set of the hub or paths, not both")
        rows = args.out.with_name(args.out.name + ".jsonl")
        source = hub_source(args.hub, rows, split=args.hub_split, field=args.field, rows=args.hub_rows)
        paths, licence = [source.path], source.license
    for path in paths:
        _refuse_inside(args.out, path)
    manifest = _build_corpus(paths, args.out, args.vocab, field=args.field, license=licence)
    for count in manifest.counts:
        print(
            f"{count.split:<6} {count.domain:<10} {count.documents:>8,} documents {count.bytes:>13,} bytes {count.tokens:>12,} tokens"
        )
    from postformer.data import remarks

    for line in remarks(manifest):
        print(line)
    return 0


def _build_corpus(paths: Sequence[Path], out: Path, vocab: Any = 4096, **options: Any) -> Any:
    from postformer.data import corpus_from, default_corpus, open_corpus

    with progress_bars() as show:
        if paths:
            corpus_from(paths, out, vocab, progress=show, **options)
        else:
            default_corpus(out, vocab, progress=show)
    return open_corpus(out, verify=False).manifest


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error where that is a terminal, else a line for each thing that begins."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        said: set[str] = set()

        def line(text: str, done: int, total: int) -> None:
            if text not in said:
                said.add(text)
                print(text, file=sys.stderr, flush=True)

        yield line
        return
    with Progress(console=console) as bars:
        tasks: dict[str, Any] = {}

        def move(text: str, done: int, total: int) -> None:
            if text not in tasks:
                tasks[text] = bars.add_task(text, total=total)
            bars.update(tasks[text], completed=done, total=total)

        yield move
