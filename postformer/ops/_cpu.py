"""The CPU kernels of csrc/, loaded with ctypes; None where they were not built (see `kernels`).

Threads come from libtorch's own pool through its C symbol `torch_parallel_for`. No C++ header of torch is involved, so that one
build serves every version of torch and Python.
"""

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LEVELS = {"AVX512": ("v4", "v3", "v2"), "AVX2": ("v3", "v2")}
"""Builds to try, the best first, by what torch says of the processor."""


@functools.cache
def kernels() -> Any:
    """The library of kernels for this processor; None, which is said once, where there is none or POSTFORMER_KERNELS is 0."""
    if os.environ.get("POSTFORMER_KERNELS") == "0":
        return None
    for level in (*LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("v2",)), "plain"):
        if _path(level).exists():
            return load(level)
    print("postformer: installed without its kernels, for want of a C++ compiler: Mamba runs slowly", file=sys.stderr)
    return None


def _path(level: str) -> Path:
    return Path(__file__).with_name(f"_kernels_{level}.so")


@functools.cache
def load(level: str) -> ctypes.CDLL:
    """The build for one level of the instruction set."""
    library = ctypes.CDLL(str(_path(level)))
    for name, (pointers, numbers) in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p] * (1 + pointers) + [ctypes.c_int64] * numbers
        function.restype = None
    return library


SIGNATURES = {
    "conv_forward": (5, 5),
    "conv_backward": (8, 5),
    "scan_forward": (8, 5),
    "scan_backward": (13, 6),
}
"""How many tensors and how many sizes each kernel takes after the thread pool."""


@functools.cache
def _pool() -> int | None:
    """The address of libtorch's `torch_parallel_for`; without it kernels run on one thread."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu{suffix}"))
    function = getattr(library, "torch_parallel_for", None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value


BUILT = kernels() is not None
LIBRARY = torch.library.Library("postformer", "FRAGMENT")
"""The kernels as operators, `torch.ops.postformer`."""


def serves(*tensors: Tensor) -> bool:
    """Whether a kernel can take these: fp32 on a CPU, where the kernels were built."""
    return BUILT and all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)


def rows(x: Tensor) -> tuple[Tensor, int]:
    """x [b, t, c] as it is where its rows lie evenly in memory, else a copy; and how many floats they are apart."""
    b, t, c = x.shape
    even = x.stride(2) == 1 or c == 1
    if not even or (b > 1 and x.stride(0) != t * x.stride(1)):
        x = x.contiguous()
    return x, x.stride(1)


def call(name: str, *arguments: Tensor | int | None) -> None:
    """Run a kernel on contiguous float tensors (None is a null pointer) and sizes."""
    plain = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
    getattr(kernels(), name)(_pool(), *plain)
