"""State-space layers and a 130M model: ours against transformers, mambapy and llama.cpp, in one run, in turns.

    python benchmarks/sequence.py --llama-source LLAMA_CPP_FOLDER
    python benchmarks/sequence.py --quick
    python benchmarks/sequence.py --render runs/sequence/sequence.json

Each part is measured in a process of its own. Ctrl-C keeps what was measured. How it measures: docs/benchmarks.md.
"""

import argparse
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sequence_rows import Settings
from sequence_tables import TITLES, judge, render, summary, table

from postformer.claims.stamp import closed, stamp
from postformer.config import UserError
from postformer.files import write_durably

FORMAT = "postformer-sequence-1"
LIBRARIES = ("transformers", "mambapy", "llama_cpp_python")
LOADED = 0.5
"""Load average at the start from which a run warns."""
HERE = Path(__file__).parent


def main() -> int:
    """Measure the parts asked for, or print a saved result. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(TITLES), help="which tables, of %(default)s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/sequence/sequence.json"))
    parser.add_argument("--llama-source", type=Path, help="llama.cpp's folder, for its converter; needed once for each model")
    parser.add_argument("--render", type=Path, metavar="FILE", help="print the tables of a saved result, and measure nothing")
    args = parser.parse_args()
    if args.render:
        print(render(load(args.render)))
        return 0
    parts = args.parts.split(",")
    if unknown := [p for p in parts if p not in TITLES]:
        raise UserError(f"--parts: unknown '{unknown[0]}'; choose from {', '.join(TITLES)}")
    if args.threads < 1:
        raise UserError(f"--threads: {args.threads} must be at least 1")
    if args.llama_source and not args.llama_source.is_dir():
        raise UserError(f"--llama-source: no such folder: {args.llama_source}")
    return Run(args, parts).all()


def load(path: Path) -> dict[str, Any]:
    """A saved result. Raises UserError."""
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read: {e}") from e
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise UserError(f"{path}: is no {FORMAT}")
    return result


class Run:
    """One result, written again after every row."""

    def __init__(self, args: argparse.Namespace, parts: Sequence[str]):
        self.parts, self.out, self.began = parts, args.out, time.monotonic()
        work = self.out.parent.absolute()
        try:
            work.mkdir(parents=True, exist_ok=True)
            self.out.touch()
        except OSError as e:
            raise UserError(f"--out: {self.out} cannot be written: {e.strerror}") from e
        source = args.llama_source and str(args.llama_source.absolute())
        self.settings = Settings(threads=args.threads, quick=args.quick, work=work, llama_source=source)
        self.result: dict[str, Any] = {
            "format": FORMAT,
            "quick": args.quick,
            "complete": False,
            "stamp": stamp(command=["python", *sys.argv], threads=args.threads),
            "peers": {name: version for name in LIBRARIES if (version := _version(name))},
            "settings": {"threads": args.threads, "parts": list(parts)},
            "about": {},
            "rows": [],
            "missing": [],
            "failed": {},
            "targets": [],
        }

    def all(self) -> int:
        """Every part, then the whole text. Returns the exit code."""
        load_now = os.getloadavg()[0]
        if load_now > LOADED:
            print(f"The machine is busy (load {load_now:.1f}): only ratios of one row say anything", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            for i, part in enumerate(self.parts):
                self.say(f"[{i + 1}/{len(self.parts)}] {part}: {TITLES[part]}")
                self.part(part)
                if text := table(part, self.result["rows"]):
                    print(f"\n{text}\n", flush=True)
            self.result["complete"] = True
        except KeyboardInterrupt:
            self.say(f"stopped; {self.out} holds what was measured")
        self.save()
        print("\n" + render(self.result))
        self.say(f"wrote {self.out}")
        return 1 if self.result["failed"] else 0 if self.result["complete"] else 130

    def part(self, part: str) -> None:
        """Measure one table in its own process; a failure is kept with the last line that it said."""
        threads = {"OMP_NUM_THREADS": str(self.settings.threads), "HF_HUB_OFFLINE": "1"}
        log = self.settings.work / f"{part}.log"
        command = [sys.executable, str(HERE / "sequence_parts.py"), part, self.settings.dump()]
        with (
            log.open("w") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | threads) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    self.take(json.loads(line))
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)  # it ends what it started
                raise
        if process.returncode:
            said = log.read_text().strip().splitlines()
            self.result["failed"][part] = f"{said[-1] if said else f'exit code {process.returncode}'} (see {log})"
            self.say(f"{part} failed: {self.result['failed'][part]}")
            self.save()

    def take(self, event: dict[str, Any]) -> None:
        """Keep what a process told."""
        if "doing" in event:
            self.say(event["doing"])
            return
        if "about" in event:
            self.result["about"] = event["about"]
        elif "row" in event:
            self.result["rows"].append(event["row"])
            self.say(summary(event["row"]))
        elif event["missing"] not in self.result["missing"]:
            self.result["missing"].append(event["missing"])
            self.say("not measured: {peer}, {where}: {why}".format(**event["missing"]))
        self.save()

    def save(self) -> None:
        """Write the file, with the targets as they stand."""
        self.result["stamp"] = closed(self.result["stamp"])
        self.result["targets"] = judge(self.result["rows"], self.result["quick"])
        write_durably(self.out, json.dumps(self.result, indent=1) + "\n")

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", flush=True)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"sequence: {e}", file=sys.stderr)
        sys.exit(2)
