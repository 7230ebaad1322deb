"""The command line. torch is imported inside the commands only, so that `--help` answers at once."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from postformer import __version__
from postformer.config import Run, UserError, override, parse, plain, read


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 when it did what was asked, 2 for a mistake of the user's, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser(argv)
    args, rest = parser.parse_known_args(argv)
    if rest and not (hasattr(args, "overrides") and all("=" in word and not word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # overrides that stand after an option
        args.overrides += rest
    try:
        code = args.command(args)
        sys.stdout.flush()
    except UserError as e:
        sys.exit(_fail(str(e), 2))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (MemoryError, RecursionError) as e:
        sys.exit(_fail(f"too large for this machine: {str(e) or type(e).__name__}", 2))
    except OSError as e:
        sys.exit(_fail(f"{e.filename or 'the disk'}: {e.strerror or e}", 2))
    sys.exit(code)


def _fail(line: str, code: int) -> int:
    print("postformer: " + " ".join(line.split()), file=sys.stderr)
    return code


# ---------------------------------------------------------------- what the commands take


def _parser(argv: Sequence[str]) -> Parser:
    """Only the command that is called gets its arguments, so that none waits for another's imports."""
    parser = Parser(prog="postformer", description="Build, train, run and measure what comes after the Transformer.")
    parser.add_argument("--version", action="version", version=f"postformer {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    for name, (run, summary, add_arguments) in COMMANDS.items():
        form = argparse.RawDescriptionHelpFormatter
        p = commands.add_parser(name, help=summary, description=summary, formatter_class=form)
        p.set_defaults(command=run)
        if name in argv[:1]:
            add_arguments(p)
    return parser


def _report_arguments(p: Parser) -> None:
    from postformer.claims import CLAIMS

    listed = "\n".join(f"  {name:<12} {claim.sentence}" for name, claim in CLAIMS.items())
    p.epilog = f"claims:\n{listed}"
    p.add_argument("--claims", type=_names, metavar="A,B", help="which claims (default: all)")
    p.add_argument(
        "--budget", type=_seconds, default="10m", metavar="TIME", help="about how long, such as 5m or 2h (default: 10m)"
    )
    p.add_argument("--text", type=Path, metavar="PATH", help="your text: a file, a folder or a .jsonl (default: Python's own)")
    p.add_argument("--seeds", type=_seeds, default=(0,), metavar="0,1", help="seeds to train with (default: 0)")
    p.add_argument("--threads", type=_positive, help="threads to compute with (default: all cores)")
    p.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="where the page goes (default: report)")
    p.add_argument("--render", type=Path, metavar="REPORT.JSON", help="only write the page of an existing report.json anew")


def _train_arguments(p: Parser) -> None:
    from postformer.recipes import RECIPES

    lines = (f"  {name:<16} {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items())
    p.epilog = "recipes:\n" + "\n".join(lines)
    p.add_argument("recipe", help="a recipe's name, or a .toml or .json file of a run")
    p.add_argument("overrides", nargs="*", metavar="a.b=value", help="such as model.depth=8 train.steps=2000")
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="run directory (default: runs/NAME); an interrupted run goes on there"
    )
    p.add_argument("--track", action="store_true", help="also log to trackio")
    p.add_argument("--show", action="store_true", help="print the complete run as JSON and stop")


def _generate_arguments(p: Parser) -> None:
    p.add_argument("checkpoint", help="a run directory, a checkpoint, a model folder or a hub's owner/name")
    p.add_argument("--prompt", default="", help="the text to continue; - reads it from standard input")
    p.add_argument("--max-tokens", type=int, default=256, metavar="N")
    p.add_argument("--temperature", type=float, default=0.8, help="0 takes the most probable token (default: 0.8)")
    p.add_argument("--top-k", type=int, default=0, metavar="K", help="keep the K most probable tokens")
    p.add_argument("--top-p", type=float, default=1.0, metavar="P", help="keep the fewest tokens that hold probability P")
    p.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="keep tokens at least P times as probable as the first"
    )
    p.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1 makes repetition rarer")
    p.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given often")
    p.add_argument("--seed", type=int, help="of the sampling (default: 0, or where a loaded state left off)")
    p.add_argument("--save-state", type=Path, metavar="FILE", help="write what continues the text later")
    p.add_argument(
        "--load-state", type=Path, metavar="FILE", help="continue the text of --save-state, without reading it again"
    )


def _evaluate_arguments(p: Parser) -> None:
    p.add_argument("checkpoint", help="a run directory, a checkpoint, a model folder or a hub's owner/name")
    p.add_argument("--text", type=Path, required=True, metavar="PATH", help="a file, a folder or a .jsonl")
    p.add_argument("--window", type=_positive, metavar="N", help="tokens a prediction may see (default: all of the document)")


def _corpus_arguments(p: Parser) -> None:
    p.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="files, folders or .jsonl (default: Python's own text)")
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the corpus's folder; an interrupted build goes on there"
    )
    p.add_argument("--vocab", type=_vocab, default=4096, metavar="N", help="BPE tokens to train, or 'bytes' (default: 4096)")
    p.add_argument("--field", default="text", help="the field of a .jsonl row that holds its text (default: text)")
    p.add_argument("--license", default="unknown", help="the text's licence, kept in the manifest")
    p.add_argument("--hub", metavar="OWNER/NAME", help="a data set of the hub instead of PATH (needs the extra 'hub')")
    p.add_argument("--hub-split", default="train", metavar="NAME", help="its split (default: train)")
    p.add_argument("--hub-rows", type=_positive, metavar="N", help="how many of its rows (default: all)")


def _cost_arguments(p: Parser) -> None:
    p.add_argument("recipe", help="a recipe's name, or a .toml or .json file of a run")
    p.add_argument("overrides", nargs="*", metavar="a.b=value", help="such as model.depth=8")
    p.add_argument("--length", type=_lengths, default=(1024, 16384, 131072), metavar="A,B", help="text lengths in tokens")
    p.add_argument("--vocab", type=_positive, default=4096, metavar="N", help="tokens in the vocabulary (default: 4096)")


# ---------------------------------------------------------------- values


def _positive(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(_positive(t) for t in text.split(","))


def _seeds(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text) or len(set(text.split(","))) < text.count(",") + 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of different whole numbers such as 0,1,2")
    return tuple(map(int, text.split(",")))


def _names(text: str) -> list[str]:
    names = [t for t in text.split(",") if t]
    if not names:
        raise argparse.ArgumentTypeError(f"'{text}' names no claim")
    return names


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text)
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a time such as 90s, 10m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]


def _vocab(text: str) -> Any:
    return "bytes" if text == "bytes" else _positive(text)


def load_run(recipe: str, overrides: Sequence[str]) -> Run:
    """The run of a recipe's name or a file, with overrides. Raises ConfigError."""
    from postformer.recipes import RECIPES

    if recipe in RECIPES:
        data = plain(RECIPES[recipe]())
    elif recipe.endswith((".toml", ".json")):
        data = read(recipe)
    else:
        raise UserError(f"'{recipe}' is not a recipe; choose from {', '.join(RECIPES)}, or give a .toml or .json file")
    return parse(Run, override(data, overrides))


# ---------------------------------------------------------------- commands


def report(args: argparse.Namespace) -> int:
    from postformer.claims import CLAIMS
    from postformer.claims.report import render_file, run_report

    if args.render:
        print(render_file(args.render))
        return 0
    names = args.claims or list(CLAIMS)
    for name in names:
        if name not in CLAIMS:
            raise UserError(f"--claims: unknown '{name}'; choose from {', '.join(CLAIMS)}")
    if args.text:
        _refuse_inside(args.out, args.text)
    claims = [CLAIMS[name] for name in dict.fromkeys(names)]
    outcome = run_report(
        claims,
        args.out,
        budget_s=args.budget,
        text=args.text,
        seeds=args.seeds,
        threads=args.threads,
        command=["postformer", *sys.argv[1:]],
    )
    return outcome.exit_code


def train(args: argparse.Namespace) -> int:
    run = load_run(args.recipe, args.overrides)
    from postformer.train.log import TrackioLog, console_progress
    from postformer.train.session import check, prepare, train_run

    check(run)
    out = args.out or Path("runs") / run.name
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


DEFAULT_CORPUS = "corpora/default"


def generate(args: argparse.Namespace) -> int:
    from postformer.models.generation import Memory, Sampling, Stream
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
    model = open_model(args.checkpoint)
    memory = Memory.load(args.load_state, model) if args.load_state else None
    if memory and args.seed is not None:
        memory.generator = None
    prompt = sys.stdin.buffer.read() if args.prompt == "-" else os.fsencode(args.prompt)
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


def evaluate(args: argparse.Namespace) -> int:
    import math

    from postformer.data.sources import Document, Source, why_bad
    from postformer.objectives.likelihood import streamed_nats, windowed_nats
    from postformer.train.session import open_model

    model = open_model(args.checkpoint)
    if model.tokens is None:
        raise UserError(f"{args.checkpoint}: this model was saved without a tokenizer; it cannot read text")
    nats, size, bad = 0.0, 0, 0
    rows = Source(args.text, "text", "unknown").read()
    if args.text.is_file() and args.text.suffix != ".jsonl":  # one document, read whole
        text = args.text.read_bytes()
        rows = iter([] if why_bad(text) else [Document(args.text.name, "text", text)])
        bad += bool(why_bad(text))
    for row in rows:
        if not isinstance(row, Document):
            bad += 1
            continue
        ids = model.tokens.encode(row.text)
        nats += windowed_nats(model, [ids], window=args.window)[0] if args.window else streamed_nats(model, ids)
        size += len(row.text)
    if not size:
        raise UserError(f"--text {args.text}: holds no text ({bad} rows could not be read)")
    if not math.isfinite(nats):
        raise UserError(f"{args.checkpoint}: the model's output is not finite: its weights are damaged")
    print(f"{nats / math.log(2) / size:.4f} bits per byte over {size:,} bytes ({bad} rows left out)")
    return 0


def _refuse_inside(out: Path, source: Path) -> None:
    """What is written must not become part of what is read."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out {out}: lies inside {source}, which is read; name a folder outside of it")


def corpus(args: argparse.Namespace) -> int:
    paths, licence = args.paths, args.license
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
    return 0


def _build_corpus(paths: Sequence[Path], out: Path, vocab: Any = 4096, **options: Any) -> Any:
    from postformer.data import corpus_from, default_corpus, open_corpus

    with _progress() as progress:
        if paths:
            corpus_from(paths, out, vocab, progress=progress, **options)
        else:
            default_corpus(out, vocab, progress=progress)
    return open_corpus(out, verify=False).manifest


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
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


def cost(args: argparse.Namespace) -> int:
    run = load_run(args.recipe, args.overrides)
    import torch

    from postformer.config import build
    from postformer.models import MODELS

    with torch.device("meta"):
        model = build({k: v for k, v in run.model.items() if k != "vocab"}, MODELS, "model", vocab=args.vocab)
    first = model.cost(args.length[0])
    print(f"{run.name}: {first.parameters:,} parameters, {first.active_parameters:,} active a token")
    print(f"{'length':>12} {'prefill FLOP/token':>20} {'decode FLOP/token':>20} {'state bytes':>16}")
    for n in args.length:
        c = model.cost(n)
        print(f"{n:>12,} {c.prefill_flops:>20,.0f} {c.decode_flops:>20,.0f} {c.state_bytes:>16,}")
    return 0


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], str, Callable[[Parser], None]]] = {
    "report": (report, "measure the field's claims here and write a page", _report_arguments),
    "train": (train, "train a recipe or a run from a file", _train_arguments),
    "generate": (generate, "continue a text, as it comes", _generate_arguments),
    "evaluate": (evaluate, "bits per byte of a model on text", _evaluate_arguments),
    "corpus": (corpus, "turn text into token shards to train on", _corpus_arguments),
    "cost": (cost, "parameters, operations and state bytes of a run's model, by formula", _cost_arguments),
}


if __name__ == "__main__":
    main()
