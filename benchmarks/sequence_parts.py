"""The process that measures one part of benchmarks/sequence.py: it prints one line of JSON for each row as it is measured.

python benchmarks/sequence_parts.py PART SETTINGS
"""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sequence_limits
import sequence_memory
import sequence_model
import torch
from sequence_layers import OURS, Layer, inputs, opened
from sequence_rows import Event, Settings, missing, row, timed

from postformer.ops._cpu import LEVEL

CALLS = 50
"""One-token steps in a sample."""
SLOW = "its backward pass is quadratic in length: minutes a call"


def forward(settings: Settings) -> Iterator[Event]:
    """A layer's parallel pass without gradients, all libraries in turns."""
    for name, found in opened(settings.sizes.dim)[0].items():
        for tokens in settings.sizes.forward:
            x = inputs(settings.sizes.dim, tokens)[0].detach()
            functions = {library: _call(layer.infer, x) for library, layer in found.items()}
            warmup = int(tokens < max(settings.sizes.forward))  # the longest have been through all of it at other lengths
            yield row("forward", name, tokens, timed(functions, settings.sizes.seconds(tokens), repeats=12, warmup=warmup))


def backward(settings: Settings) -> Iterator[Event]:
    """A layer's forward and backward pass to the input and every parameter."""
    for name, found in opened(settings.sizes.dim)[0].items():
        for tokens in settings.sizes.backward:
            yield from _backward(settings, name, found, tokens)


def _backward(settings: Settings, name: str, found: Mapping[str, Layer], tokens: int) -> Iterator[Event]:
    """transformers' Mamba-1 is timed apart, at the shortest length and without a warm-up: see SLOW."""
    x, dy = inputs(settings.sizes.dim, tokens)
    functions = {library: _call(layer.train, x, dy) for library, layer in found.items()}
    slow = functions.pop("transformers", None) if name == "mamba" else None
    yield row("backward", name, tokens, timed(functions, settings.sizes.seconds(tokens), repeats=12))
    if slow is not None and tokens == min(settings.sizes.backward):
        both = {OURS: functions[OURS], "transformers": slow}
        yield row("backward", name, tokens, timed(both, settings.sizes.slow_s, repeats=3, warmup=0))
    elif slow is not None:
        yield missing("transformers", f"backward {name} {tokens}", SLOW)


def step(settings: Settings) -> Iterator[Event]:
    """One token after others, in samples of many steps."""
    x = inputs(settings.sizes.dim, 1)[0].detach()
    for name, found in opened(settings.sizes.dim)[0].items():
        functions = {library: _steps(layer, x) for library, layer in found.items()}
        yield row("step", name, 1, timed(functions, settings.sizes.seconds(1), repeats=20), calls=CALLS)


def _call(f: Callable[..., object], *arguments: Any) -> Callable[[], object]:
    return lambda: f(*arguments)


def _steps(layer: Layer, x: torch.Tensor) -> Callable[[], None]:
    one = layer.stepper()

    @torch.inference_mode()
    def run() -> None:
        for _ in range(CALLS):
            one(x)

    return run


PARTS: Mapping[str, Callable[[Settings], Iterator[Event]]] = {
    "forward": forward,
    "backward": backward,
    "step": step,
    "memory": sequence_memory.measure,
    "limits": sequence_limits.measure,
    "model": sequence_model.measure,
}


def main() -> None:
    part, text = sys.argv[1:]
    settings = Settings.load(text)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    torch.set_num_threads(settings.threads)
    about = {"kernels": LEVEL, "torch": torch.__version__, "threads": torch.get_num_threads()}
    gaps = (missing(*gap) for gap in opened(settings.sizes.dim)[1]) if part != "model" else ()
    for event in itertools.chain([{"about": about}], gaps, PARTS[part](settings)):
        print(json.dumps(event), file=out, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
        sys.exit()
    sys.exit(130)
