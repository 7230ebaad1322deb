"""What the benchmarks of one layer or model share: the passes that are timed, how a ratio of times is told, and a run's stamp and file."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from postformer.claims.stamp import closed, stamp
from postformer.claims.stats import Estimate
from postformer.claims.words import interval, value
from postformer.files import write_durably


def forward(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """A call of the layer without gradients."""

    def run() -> object:
        with torch.inference_mode():
            return layer(x)

    return run


def both(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """A call of the layer and its gradients, to the input and every parameter; of several outputs the first is taught."""
    x = x.clone().requires_grad_()
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)

    def run() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        y = layer(x)
        (y[0] if isinstance(y, tuple) else y).backward(dy)

    return run


PASSES = {"forward": forward, "both": both}


def told(ratio: Estimate) -> str:
    """A ratio with its interval."""
    number = ratio.number()
    return f"{value(number)} ({interval(number)}; {ratio.n} rounds)"


def begun(threads: int) -> dict[str, Any]:
    """Compute with so many threads, say if the machine is busy, and return the run's stamp."""
    torch.set_num_threads(threads)
    if os.getloadavg()[0] > 0.5:
        print(f"The machine is busy (load {os.getloadavg()[0]:.1f}): only ratios of one row say anything", flush=True)
    return stamp(command=["python", *sys.argv], threads=threads)


def written(out: Path, stamped: dict[str, Any], **found: Any) -> None:
    """Close the stamp and write it with what was found."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_durably(out, json.dumps({"stamp": closed(stamped), **found}, indent=1) + "\n")
    print(f"wrote {out}")
