"""Peak memory, each subject in a process of its own: what resident memory grows by while it works.

    python benchmarks/sequence_memory.py LAYER SUBJECT TOKENS SETTINGS

A layer: from before its forward and backward pass to the peak in it. A model: from before its weights are loaded to the peak while
it reads the prompt and writes tokens, so that weights count.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from sequence_layers import OURS, Missing, inputs, opened, ours, peer_layer
from sequence_rows import Event, Settings, missing, row

from postformer.claims.peak import NOT_TOLD, resident

WARMUP = 16
"""Tokens of the pass before, which sets up threads and libraries."""
PASSES = 3
"""Passes that are measured in one process; one where a pass takes very long, and for a model."""


def measure(settings: Settings) -> Iterator[Event]:
    """Bytes of every layer's forward and backward pass, and of the model in every library."""
    import sequence_model  # which needs this module's `mark`

    for name, libraries in opened(settings.sizes.dim)[0].items():
        for tokens in settings.sizes.backward:
            slow = name == "mamba" and tokens > min(settings.sizes.backward)
            subjects = [library for library in libraries if not (slow and library == "transformers")]
            yield from _row(settings, name, tokens, subjects)
    yield from _row(settings, "model", settings.sizes.prompt, sequence_model.available(settings))


def _row(settings: Settings, name: str, tokens: int, subjects: list[str]) -> Iterator[Event]:
    samples: dict[str, list[float]] = {}
    for subject in subjects:
        try:
            samples[subject] = _peaks(settings, name, subject, tokens)
        except Missing as e:
            yield missing(subject, f"memory {name} {tokens}", str(e))
    if samples:
        yield row("memory", name, tokens, (samples, []), unit="B")


def _peaks(settings: Settings, name: str, subject: str, tokens: int) -> list[float]:
    """Bytes that a process of its own grows by, for each pass. Raises Missing with what it said."""
    command = [sys.executable, __file__, name, subject, str(tokens), settings.dump()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == NOT_TOLD:
        raise Missing("this system does not tell a process's peak memory")
    if done.returncode:
        raise Missing((done.stderr.strip().splitlines() or ["it failed"])[-1])
    peaks = json.loads(done.stdout.splitlines()[-1])
    if min(peaks) <= 0:
        raise Missing("too small to see in resident memory")
    return peaks


def _layer(settings: Settings, name: str, subject: str, tokens: int) -> list[int]:
    dim = settings.sizes.dim
    layer = ours(name, dim) if subject == OURS else peer_layer(subject, name, dim)
    layer.train(*inputs(dim, WARMUP))
    peaks = []
    for _ in range(1 if (name, subject) == ("mamba", "transformers") else PASSES):
        x, dy = inputs(dim, tokens)
        layer.module.zero_grad(set_to_none=True)
        before = mark()
        layer.train(x, dy)
        peaks.append(resident("VmHWM") - before)
    return peaks


def mark() -> int:
    """Give freed memory back, set the peak to what is resident then, and return that."""
    gc.collect()
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def main() -> None:
    name, subject, tokens, text = sys.argv[1:]
    settings = Settings.load(text)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(settings.threads)
    if name == "model":
        import sequence_model

        peaks = [sequence_model.grown(settings, subject)]
    else:
        peaks = _layer(settings, name, subject, int(tokens))
    print(json.dumps(peaks), file=out)


if __name__ == "__main__":
    try:
        main()
    except Missing as e:
        sys.exit(str(e))
    except OSError as e:
        print(e, file=sys.stderr)
        sys.exit(NOT_TOLD if "/proc" in str(e) else 1)
