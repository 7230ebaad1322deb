"""The CPU kernels of csrc/, loaded with ctypes where they were built (see `kernels`).

Threads come from libtorch's own pool through its C symbol `torch_parallel_for`. No C++ header of torch is involved, so that one
build serves every version of torch and Python.
"""

import ctypes
import functools
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

LEVELS = {"AVX512": ("v4", "v3", "v2"), "AVX2": ("v3", "v2")}
"""Builds to try, the best first, by what torch says of the processor."""


@functools.cache
def kernels() -> Any:
    """The library of kernels for this processor; None, which is said once, where there is none or POSTFORMER_KERNELS is 0."""
    if os.environ.get("POSTFORMER_KERNELS") == "0":
        return None
    reason = "they were not built at install (it takes g++ 11, clang 12 or newer)"
    for level in (*LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("v2",)), "plain"):
        if path(level).exists():
            try:
                return load(level)
            except (OSError, AttributeError, ImportError) as e:
                reason = f"{path(level).name} is of another version of postformer or machine ({e}); install anew"
                break
    print(f"postformer: no CPU kernels, so Mamba and neural memories run slowly: {reason}", file=sys.stderr)
    return None


def path(level: str) -> Path:
    """Where the build for a level of the instruction set lies, if there is one: beside this file or in the folder that
    POSTFORMER_KERNELS names."""
    return Path(os.environ.get("POSTFORMER_KERNELS") or Path(__file__).parent) / f"_kernels_{level}.so"


@functools.cache
def load(level: str) -> Any:
    """The build for one level. Raises OSError, AttributeError or ImportError when it is not this version's."""
    library: Any = ctypes.CDLL(str(path(level)))
    if (found := library.kernels_version()) != VERSION:
        raise ImportError(f"version {found}, not {VERSION}")
    library.level = level
    for name, (pointers, numbers) in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p] * (1 + pointers) + [ctypes.c_int64] * numbers
        function.restype = ctypes.c_int32
    return library


VERSION = 31
"""Of csrc/version.cpp."""
SIGNATURES = {
    "block_steps": (2, 6),
    "conv_forward": (6, 7),
    "conv_backward": (10, 7),
    "cross_entropy_forward": (5, 2),
    "cross_entropy_backward": (6, 2),
    "experts_forward": (8, 7),
    "gelu_tanh": (3, 2),
    "mamba_steps": (2, 11),
    "matvec": (3, 4),
    "memory_forward": (15, 12),
    "memory_backward": (24, 12),
    "modulate": (5, 7),
    "norm_backward": (7, 10),
    "norm_forward": (4, 9),
    "scan_forward": (12, 7),
    "scan_backward": (20, 8),
    "ssd_forward": (10, 11),
    "ssd_backward": (14, 12),
}
"""How many tensors and how many sizes each kernel takes after the thread pool."""


def _torchs_pool() -> int | None:
    """The address of libtorch's `torch_parallel_for`; without it kernels run on one thread."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu{suffix}"))
    function = getattr(library, "torch_parallel_for", None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value


_pool = [_torchs_pool() if kernels() is not None else None]
if hasattr(os, "register_at_fork"):  # a forked child has none of the pool's threads and would wait for them for ever
    os.register_at_fork(after_in_child=lambda: _pool.__setitem__(0, None))


BUILT = kernels() is not None
LEVEL = kernels().level if BUILT else "none"


def _multiplies_bf16() -> bool:
    """Whether torch's products of bf16 take no longer than fp32's. Without instructions for them they take several times as long, and
    twice as long with Intel's AVX512_BF16 alone (163 GFLOP/s beside 306 on a Xeon)."""
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # not known: as torch does it
    vectors = "avx512_bf16" in about and "GenuineIntel" not in about
    return vectors or any(flag in about for flag in ("amx_bf16", " bf16"))


MULTIPLIES_BF16 = _multiplies_bf16()
LIBRARY = torch.library.Library("postformer", "FRAGMENT")
"""The kernels as operators, `torch.ops.postformer`."""


def transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is at work: kernels have no rule for them, references do."""
    if torch.compiler.is_compiling():
        return False
    interpreters = get_interpreter_stack() or ()
    return forward_ad._current_level >= 0 or any(i.key() in UNKNOWN_TRANSFORMS for i in interpreters)


UNKNOWN_TRANSFORMS = {TransformType.Vmap, TransformType.Jvp, TransformType.Grad}


MOST_ROWS = 8
"""Above this many rows a kernel that multiplies row by row is slower than matrix products."""
HALF_OR_SINGLE = {torch.bfloat16, torch.float32}


def direct(x: Tensor) -> bool:
    """Whether a kernel may take these few rows past torch's dispatcher: under inference, with nothing between, fp32 or bf16 on a CPU."""
    if not torch.is_inference_mode_enabled() or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return not transformed() and type(x) is Tensor and 0 < len(x) <= MOST_ROWS and x.dtype in HALF_OR_SINGLE and x.is_cpu


def lying(tensors: Sequence[Tensor]) -> tuple[list[Any], ...]:
    """How tensors lie in memory: equal as long as a kernel that has their addresses may read them."""
    read = Tensor.data_ptr, Tensor.size, Tensor.is_contiguous
    return [t.dtype for t in tensors], *(list(map(what, tensors)) for what in read)


def serves(*tensors: Tensor) -> bool:
    """Whether a kernel can take these: fp32 on a CPU, where the kernels were built."""
    return BUILT and not transformed() and all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)


def serves_half(*tensors: Tensor) -> bool:
    """Whether a kernel can take these, which are of one dtype: fp32 or bf16 on a CPU, where the kernels were built."""
    one = len({x.dtype for x in tensors}) == 1 and tensors[0].dtype in (torch.float32, torch.bfloat16)
    return BUILT and not transformed() and one and all(x.device.type == "cpu" for x in tensors)


def rows(x: Tensor) -> tuple[Tensor, int]:
    """x [b, t, c] as it is where its rows lie evenly in memory, else a copy; and how many elements they are apart."""
    b, t, c = x.shape
    if (x.stride(2) == 1 or c == 1) and (b == 1 or x.stride(0) == t * x.stride(1)):
        return x, x.stride(1)
    return x.contiguous(), c  # torch's strides of dimensions of size 1 tell nothing


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """What `call` takes; None stays None."""
    return [None if x is None else x.contiguous() for x in tensors]


def call(name: str, *arguments: Tensor | int | None) -> None:
    """Run a kernel on contiguous tensors (None is a null pointer) and sizes. Raises MemoryError."""
    run(name, *(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


def run(name: str, *arguments: int | None) -> None:
    """`call` for addresses."""
    if asked(name, *arguments):
        raise MemoryError(f"the kernel {name} ran out of memory")


def asked(name: str, *arguments: int | None) -> int:
    """The answer of a kernel that has more to say than 1, which is that it ran out of memory."""
    return getattr(kernels(), name)(_pool[0], *arguments)


def bits(x: float) -> int:
    """A double as a kernel takes it among its sizes."""
    return struct.unpack("q", struct.pack("d", x))[0]


def check(operator: str, dtype: torch.dtype = torch.float32, /, **expected: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Refuse tensors of other shapes than expected, or of another dtype; None passes. Raises ValueError."""
    for name, (x, shape) in expected.items():
        if x is not None and (tuple(x.shape) != shape or x.dtype != dtype):
            raise ValueError(f"{operator}: {name} is {x.dtype} {tuple(x.shape)}; expected {dtype} {shape}")


def check_half(operator: str, name: str, x: Tensor) -> None:
    """Refuse a tensor that is neither fp32 nor bf16. Raises ValueError."""
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{operator}: {name} is {x.dtype}; expected torch.float32 or torch.bfloat16")


def first_order_only(ctx: Any, *gradients: Any) -> NoReturn:
    """The gradient of a gradient."""
    raise RuntimeError("the CPU kernels have first-order gradients only")


def no_gradient(ctx: Any, *gradients: Any) -> NoReturn:
    """The gradient of what has none."""
    raise RuntimeError("this CPU kernel has no gradient; its caller should have taken torch's operations")
