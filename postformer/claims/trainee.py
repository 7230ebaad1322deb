"""Run as a process of its own: train one run, or time its steps, as `together` asks on standard input, and tell how far it is in lines of
JSON. A stop signal, or the end of the process that asked, lets the run write its checkpoint and end."""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def main() -> None:
    from postformer.claims import sequences
    from postformer.config import Run, UserError, parse
    from postformer.train import process
    from postformer.train.session import train_run

    asked = json.load(sys.stdin)
    run, parent = parse(Run, asked["run"]), os.getppid()

    lines, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no line of ours

    def say(**words: Any) -> None:
        with suppress(BrokenPipeError):
            print(json.dumps(words), file=lines, flush=True)

    def on_step(p: Any) -> None:
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
        say(step=p.step)

    try:
        if asked["at"] is not None:
            with process.threads(run.train.threads), process.freed_memory_kept():
                say(done=list(sequences.training_steps(run, asked["at"])))
            return
        summary = train_run(run, Path(asked["folder"]), on_step=on_step, warn=lambda line: say(warning=line))
        say(**({"stopped": True} if summary.stopped else {"done": sequences.told(summary)}))
    except UserError as e:
        say(mistake=str(e))


if __name__ == "__main__":
    main()
