"""How near our layers and our scan come to what the machine can do, both measured in the same rounds.

A layer cannot be faster than the matrix products of its own projections; the scan not faster than its exps in registers or than
moving its bytes, whichever takes longer.
"""

import copy
import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sequence_layers import OURS, Missing, inputs, opened
from sequence_rows import Event, Settings, missing, row, timed
from torch import Tensor, nn

from postformer.ops import _cpu
from postformer.ops.scan import selective_scan

N, EXPAND = 16, 2
BLOCK = 2048
"""Floats whose exps are taken over and over: they fit a core's first-level cache."""
TASKS = 8
"""Shares of the exps, for the threads to divide."""
HALF = " bf16"


def measure(settings: Settings) -> Iterator[Event]:
    """Rows of each layer beside its projections, of the scan beside its floor, and of a plain copy and a plain read."""
    sizes = settings.sizes
    for name, libraries in opened(sizes.dim)[0].items():
        for dtype, tokens in itertools.product((torch.float32, torch.bfloat16), sizes.limits):
            if dtype == torch.float32 or tokens <= sizes.scan:
                functions, work = _layer(libraries[OURS].module, inputs(sizes.dim, tokens)[0].detach(), dtype)
                yield row("limits", name, tokens, timed(functions, sizes.seconds(tokens) / 4, repeats=15), work=work)
    yield from _scan(settings)
    source, to = torch.ones(sizes.copy // 4), torch.zeros(sizes.copy // 4)
    moved = {"copy": (2.0 * sizes.copy, "B/s"), "read": (1.0 * sizes.copy, "B/s")}
    functions = {"copy": lambda: to.copy_(source), "read": source.sum}
    yield row("limits", "copy", 1, timed(functions, sizes.seconds(1), repeats=10), work=moved)


def _layer(mixer: Any, x: Tensor, dtype: torch.dtype) -> tuple[dict[str, Callable[[], object]], dict[str, tuple[float, str]]]:
    """Our layer and its projections alone in a dtype, and the operations of each."""
    suffix = "" if dtype == torch.float32 else HALF
    own = copy.deepcopy(mixer).to(dtype)
    linears = [m for m in own.modules() if isinstance(m, nn.Linear)]
    functions = {
        OURS + suffix: _forward(own, x.to(dtype)),
        "projections" + suffix: _projections(linears, x.shape[1], dtype),
    }
    products = 2.0 * x.shape[1] * sum(m.weight.numel() for m in linears)
    return functions, {OURS + suffix: (float(own.flops(x.shape[1])), "FLOP/s"), "projections" + suffix: (products, "FLOP/s")}


@torch.inference_mode()
def _projections(linears: list[nn.Linear], tokens: int, dtype: torch.dtype) -> Callable[[], None]:
    pairs = [(torch.randn(tokens, m.in_features, dtype=dtype), m.weight.detach()) for m in linears]

    @torch.inference_mode()
    def run() -> None:
        for x, weight in pairs:
            F.linear(x, weight)

    return run


def _forward(mixer: Any, x: Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> object:
        return mixer(x)

    return run


def _scan(settings: Settings) -> Iterator[Event]:
    """The scan alone, its exps alone, a copy that moves its bytes; the floor is the longer of the two in each round."""
    t, c = settings.sizes.scan, EXPAND * settings.sizes.dim
    u, dt = torch.randn(1, t, c), torch.empty(1, t, c).uniform_(1e-3, 0.1)
    A, h = -torch.arange(1.0, N + 1).repeat(c, 1), torch.zeros(1, c, N)
    B, C = torch.randn(1, t, N), torch.randn(1, t, N)
    moved = 4.0 * (3 * t * c + 2 * t * N)
    source, to = torch.ones(int(moved) // 8), torch.zeros(int(moved) // 8)

    @torch.inference_mode()
    def scan() -> object:
        return selective_scan(u, dt, A, B, C, h)

    try:
        exps = exp_kernel(settings.work, t * c * N)
    except Missing as e:
        yield missing("exp kernel", "limits", f"{e}; torch.exp stands for it")
        exps = torch_exp(t * c * N)
    functions = {"scan": scan, "exp": exps, "copy": lambda: to.copy_(source)}
    samples, control = timed(functions, settings.sizes.seconds(t) / 4, repeats=40)
    samples["floor"] = [max(pair) for pair in zip(samples["exp"], samples["copy"], strict=True)]
    work = {"scan": (float(t * c * N), "exp/s"), "exp": (float(t * c * N), "exp/s"), "copy": (moved, "B/s")}
    yield row("limits", "scan", t, (samples, control), work=work)


def exp_kernel(work: Path, count: int) -> Callable[[], object]:
    """`count` exp2 of csrc/functions.h on the threads of torch. Raises Missing without kernels or without a compiler."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if not _cpu.BUILT or compiler is None:
        raise Missing("no kernels were built" if compiler else "no C++ compiler")
    level = [f"-march=x86-64-{_cpu.LEVEL}"] if _cpu.LEVEL.startswith("v") else []
    words = [
        "-O3",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-Wno-psabi",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
    ]
    target = work.resolve() / "exp.so"
    command = [compiler, *words, *level, "-o", str(target), str(Path(__file__).with_name("sequence_exp.cpp"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{compiler} failed: {done.stderr.strip().splitlines()[0]}")
    library = ctypes.CDLL(str(target))
    library.exps.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3
    library.exps.restype = ctypes.c_int32
    x, sums, repeats = -torch.rand(BLOCK), torch.zeros(TASKS), -(-count // (BLOCK * TASKS))
    return lambda: library.exps(_cpu._pool[0], x.data_ptr(), sums.data_ptr(), TASKS, BLOCK, repeats)


def torch_exp(count: int) -> Callable[[], object]:
    """The same by `torch.exp`, in blocks that stay in cache."""
    x = -torch.rand(1 << 16)
    to = torch.empty_like(x)
    return lambda: [torch.exp(x, out=to) for _ in range(-(-count // x.numel()))]
