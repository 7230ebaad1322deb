"""The command line. Each command imports what it needs when it runs, torch above all, so that `--help` answers at once."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from postformer import (
    __version__,
    arguments_pictures,
    arguments_worlds,
    commands,
    commands_cost,
    commands_experts,
    commands_memory,
    commands_pictures,
    commands_worlds,
)
from postformer.config import MOST_THREADS, UserError


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 when it did what was asked, 2 for a mistake of the user's, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser(argv)
    args, rest = parser.parse_known_args(argv)
    if len(rest) == 1 and getattr(args, "question", "") is None and not rest[0].startswith("-"):
        args.question = rest.pop()  # it stands after an option
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
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    for name, (run, summary, add_arguments) in COMMANDS.items():
        form = argparse.RawDescriptionHelpFormatter
        p = subparsers.add_parser(name, help=summary, description=summary, formatter_class=form)
        p.set_defaults(command=run)
        if name in argv[:1]:
            add_arguments(p)
    return parser


MODEL = "a run directory, a checkpoint, a model folder or a hub's owner/name"
MEMORY_ACTIONS = {
    "show": "what a memory has read, its model and its size",
    "fork": "copy a memory to one or more files that go their own way",
    "snapshot": "keep a copy of a memory as it is now",
    "snapshots": "list the copies",
    "rollback": "make a memory what it was at a snapshot",
}


def _report_arguments(p: Parser) -> None:
    from postformer.claims import SENTENCES

    listed = "\n".join(f"  {name:<20}{sentence}" for name, sentence in SENTENCES.items())
    p.epilog = f"claims:\n{listed}"
    p.add_argument("--claims", type=_names, metavar="A,B", help="which claims (default: all)")
    p.add_argument(
        "--budget", type=_seconds, default="28m", metavar="TIME", help="about how long, such as 5m or 2h (default: 28m)"
    )
    p.add_argument("--text", type=Path, metavar="PATH", help="your text: a file, a folder or a .jsonl (default: Python's own)")
    p.add_argument("--seeds", type=seed_list, default=(0,), metavar="0,1", help="seeds to train with (default: 0)")
    p.add_argument("--threads", type=_threads, help="threads to compute with (default: all cores)")
    p.add_argument(
        "--diary-words",
        type=positive,
        metavar="N",
        help="let neural_memory read a diary of so many words too, such as 50000000",
    )
    p.add_argument(
        "--images",
        metavar="PATH",
        help="your pictures for patches_see: a folder of classes, an .npz or IDX file (default: digits)",
    )
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
    p.add_argument("checkpoint", help=MODEL)
    p.add_argument("--prompt", default="", help="the text to continue; - reads it from standard input")
    p.add_argument("--max-tokens", type=_whole, default=256, metavar="N")
    p.add_argument("--temperature", type=float, default=0.8, help="0 takes the most probable token (default: 0.8)")
    p.add_argument("--top-k", type=int, default=0, metavar="K", help="keep the K most probable tokens")
    p.add_argument("--top-p", type=float, default=1.0, metavar="P", help="keep the fewest tokens that hold probability P")
    p.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="keep tokens at least P times as probable as the first"
    )
    p.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1 makes repetition rarer")
    p.add_argument(
        "--stop", action="append", type=_stop, default=[], metavar="TEXT", help="end before this text; may be given often"
    )
    p.add_argument("--seed", type=int, help="of the sampling (default: 0, or where a loaded state left off)")
    p.add_argument("--save-state", type=Path, metavar="FILE", help="write what continues the text later")
    p.add_argument(
        "--load-state", type=Path, metavar="FILE", help="continue the text of --save-state, without reading it again"
    )
    p.add_argument(
        "--expert-memory",
        type=_size,
        metavar="SIZE",
        help="leave a mixture's experts on disk and keep at most so much of them, such as 200MB, 1.5GB or 300MiB",
    )
    p.add_argument(
        "--expert-dtype",
        choices=("own", "int8", "int4"),
        default="own",
        help="of experts in that memory (default: own, the file's; int8 and int4 round them, so that more fit)",
    )
    p.add_argument("--read-ahead", action="store_true", help="read experts that the next layer is likely to choose meanwhile")


def _evaluate_arguments(p: Parser) -> None:
    p.add_argument("checkpoint", help=MODEL)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", type=Path, metavar="PATH", help="a file, a folder or a .jsonl")
    what.add_argument(
        "--questions",
        type=positive,
        metavar="N",
        help="instead ask so many questions of the task that it learned, and keep the rates beside the model, for `ask`",
    )
    what.add_argument("--series", metavar="PATH", help="a .csv or such as ETTh1: a forecaster's errors on its test part")
    what.add_argument(
        "--images", metavar="SPLIT|PATH", help="how many images a classifier knows: of its own test part, or of others"
    )
    what.add_argument(
        "--judge",
        metavar="CLASSIFIER",
        help="how a classifier's run judges what a model draws, beside real images of its test part",
    )
    what.add_argument(
        "--physics",
        metavar="SPLITS",
        help="how a model of simulated videos goes on from their first frames: test, slow, fast, small, large, or several with commas",
    )
    what.add_argument(
        "--goals",
        type=positive,
        metavar="N",
        help="how many of so many goals a model of a world plans to, beside who knows the true state and who does anything",
    )
    p.add_argument("--window", type=positive, metavar="N", help="tokens a prediction may see (default: all of the document)")
    p.add_argument(
        "--length", type=_lengths, default=(), metavar="A,B", help="lengths of the texts in tokens (default: the task's)"
    )
    p.add_argument(
        "--seed", type=_whole, default=0, help="of texts with questions, of videos, of goals, or of what is drawn (default: 0)"
    )


def _experts_arguments(p: Parser) -> None:
    p.add_argument("checkpoint", help=MODEL)
    p.add_argument(
        "--text", nargs="+", required=True, metavar="DOMAIN=PATH", help="texts of each domain: code=DIR prose=FILE.jsonl ..."
    )
    p.add_argument("--tokens", type=positive, default=65_536, metavar="N", help="of each domain, at most (default: 65536)")
    p.add_argument("--seed", type=_whole, default=0, help="of the untrained routers beside them (default: 0)")
    p.add_argument(
        "--out", type=Path, metavar="FILE.html", help="also write a page: heat maps, and every token's expert by colour"
    )


def _upcycle_arguments(p: Parser) -> None:
    p.add_argument("models", nargs="+", metavar="MODEL", help=f"{MODEL}; of several of one shape each becomes an expert")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new model's folder")
    p.add_argument("--experts", type=positive, metavar="N", help="copies (default: 8 of one model, of several one each)")
    p.add_argument("--top", type=positive, default=2, metavar="K", help="of them that a token goes to (default: 2)")
    p.add_argument("--split", type=positive, default=1, metavar="S", help="cut each into so many smaller experts (default: 1)")
    p.add_argument(
        "--text", nargs="+", type=Path, default=[], metavar="FILE", help="a text for each model, which its expert takes first"
    )
    p.add_argument("--seed", type=_whole, default=0, help="of the routers' rows (default: 0)")


def _read_arguments(p: Parser) -> None:
    p.add_argument("model", help=MODEL)
    p.add_argument("texts", nargs="+", type=Path, metavar="FILE", help="texts of any length, in their order")
    p.add_argument(
        "--memory",
        type=Path,
        required=True,
        metavar="MEMORY",
        help="the memory's file; one that is there goes on, a text that grew too",
    )
    p.add_argument("--from", type=Path, metavar="OTHER", help="begin as a copy of this memory")
    p.add_argument("--every", type=_seconds, default="30s", metavar="TIME", help="save so often meanwhile (default: 30s)")
    p.add_argument(
        "--again",
        action="store_true",
        help="read the files from their beginning, whatever was read before; an interrupted one goes on",
    )
    p.add_argument(
        "--keep",
        type=_whole,
        default=8,
        metavar="N",
        help="snapshots to keep, one from before each reading (default: 8; 0 takes none)",
    )


def _memory_arguments(p: Parser) -> None:
    actions = p.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions", parser_class=Parser)
    for name, summary in MEMORY_ACTIONS.items():
        a = actions.add_parser(name, help=summary, description=summary)
        a.add_argument("file", type=Path, metavar="FILE", help="a memory")
        if name == "fork":
            a.add_argument("new", nargs="+", type=Path, metavar="NEW", help="files for the copies")
        if name == "rollback":
            a.add_argument("number", nargs="?", type=positive, metavar="NUMBER", help="of the snapshot (default: the newest)")


def _ask_arguments(p: Parser) -> None:
    p.add_argument("model", help=f"{MODEL}, trained on texts with questions")
    p.add_argument("question", nargs="?", metavar="QUESTION", help="in the words of the task")
    p.add_argument("--memory", type=Path, required=True, metavar="MEMORY", help="the memory's file, which does not change")
    p.add_argument(
        "--questions", type=Path, metavar="FILE", help="many questions, one a line; answers come as a table with tabs"
    )


def _dream_arguments(p: Parser) -> None:
    arguments_pictures.dream_arguments(p, positive)


def _episodes_arguments(p: Parser) -> None:
    arguments_worlds.episodes_arguments(p, positive, _whole, arguments_pictures.picture_size)


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
    p.add_argument("--hub-rows", type=positive, metavar="N", help="how many of its rows (default: all)")


def _cost_arguments(p: Parser) -> None:
    from postformer.devices import DEVICES
    from postformer.published import PUBLISHED

    p.epilog = "published models:\n  " + "\n  ".join(PUBLISHED)
    p.add_argument(
        "recipe", help="a recipe's name, a .toml or .json file of a run, a run directory or model folder, or a published model"
    )
    p.add_argument("overrides", nargs="*", metavar="a.b=value", help="such as model.depth=8 (of a recipe or a file)")
    p.add_argument(
        "--batch", type=_lengths, default=(), metavar="A,B", help="rows of a step of decoding: the weights that it touches"
    )
    p.add_argument("--device", metavar="NAME", help=f"the least time of such a step: {', '.join(DEVICES)}, or GB/s:TFLOP/s:GB")
    p.add_argument("--length", type=_lengths, default=(1024, 16384, 131072), metavar="A,B", help="text lengths in tokens")
    p.add_argument("--vocab", type=positive, metavar="N", help="tokens in a recipe's vocabulary (default: 4096)")


# ---------------------------------------------------------------- values


def positive(text: str) -> int:
    """A whole number above 0."""
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)


def _threads(text: str) -> int:
    if (count := positive(text)) > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{count} must be at most {MOST_THREADS}")
    return count


def _stop(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("an empty text stops nothing; give the text to end before")
    return text


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(positive(t) for t in text.split(","))


def seed_list(text: str) -> tuple[int, ...]:
    """Different whole numbers with commas between them."""
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


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?([kMGT]i?)?B", text)
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a size such as 200MB or 300MiB (B, kB, MB, GB, TB, kiB, MiB, GiB, TiB)"
        )
    prefix = match[2] or ""
    return int(float(match[1]) * (1024 if prefix.endswith("i") else 1000) ** " kMGT".index(prefix[:1] or " "))


def _vocab(text: str) -> Any:
    from postformer.tokens.text import END, LARGEST_VOCAB

    if text == "bytes":
        return text
    if not re.fullmatch(r"[0-9]{1,9}", text) or not END < int(text) <= LARGEST_VOCAB:
        raise argparse.ArgumentTypeError(f"'{text}' is neither 'bytes' nor a whole number from {END + 1} to {LARGEST_VOCAB}")
    return int(text)


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], str, Callable[[Parser], None]]] = {
    "report": (commands.report, "measure the field's claims here and write a page", _report_arguments),
    "train": (commands.train, "train a recipe or a run from a file", _train_arguments),
    "generate": (commands.generate, "continue a text, as it comes", _generate_arguments),
    "evaluate": (
        commands_memory.evaluate,
        "bits per byte on text, right answers, a forecast's errors, images that it knows, physics, goals, or what it draws",
        _evaluate_arguments,
    ),
    "read": (commands_memory.read, "read texts into a memory, a file that goes on another day", _read_arguments),
    "ask": (
        commands_memory.ask,
        "answer a question from a memory, with the rate at which such answers are right",
        _ask_arguments,
    ),
    "memory": (commands_memory.memory, "show, fork, snapshot or roll back a memory's file", _memory_arguments),
    "experts": (commands_experts.experts, "which of a model's experts fires on which text", _experts_arguments),
    "upcycle": (
        commands_experts.upcycle,
        "make a mixture of experts of dense models that answers as before",
        _upcycle_arguments,
    ),
    "dream": (commands_pictures.dream, "draw, extend, join, loop or change pictures and videos", _dream_arguments),
    "episodes": (
        commands_worlds.episodes,
        "record an environment, or import episodes, to learn a world from",
        _episodes_arguments,
    ),
    "corpus": (commands.corpus, "turn text into token shards to train on", _corpus_arguments),
    "cost": (commands_cost.cost, "parameters, operations and state bytes of a run's model, by formula", _cost_arguments),
}


if __name__ == "__main__":
    main()
