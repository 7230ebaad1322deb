"""What a result was made with: code, machine, libraries, load, and the command to make it again. Imports no torch."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import postformer
from postformer.files import sha256_bytes

PACKAGE = Path(postformer.__file__).parent
LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "zstandard", "matplotlib")
SIMD = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "amx_tile", "amx_bf16", "asimd", "asimddp", "bf16", "i8mm", "sve")


def stamp(
    *, command: Sequence[str] = (), seeds: Sequence[int] = (), threads: int = 1, hashes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Who, what, where and when, as plain data; `hashes` names the digests of configs and data. Close it with `closed`."""
    return {
        "package": f"postformer {postformer.__version__}",
        "code_sha256": code_sha256(),
        "git": git_state(),
        "command": shlex.join(command),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "ended": None,
        "load_at_start": os.getloadavg()[0],
        "load_at_end": None,
        "seeds": list(seeds),
        "threads": threads,
        "hashes": dict(hashes or {}),
        "machine": machine(),
        "libraries": libraries(),
    }


def closed(opened: Mapping[str, Any]) -> dict[str, Any]:
    """The stamp with the time and the load average of now as its end, and what torch says of itself if it was used."""
    torch = sys.modules.get("torch")
    build = torch and {"config_sha256": sha256_bytes(torch.__config__.show().encode()), "cuda": torch.version.cuda or ""}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {**opened, "ended": now, "load_at_end": os.getloadavg()[0], "torch_build": build, "gpus": gpus}


@functools.cache
def code_sha256() -> str:
    """Digest of the package's own Python files and built kernels: the same inside git and outside of it."""
    total = hashlib.sha256()
    for path in sorted(p for p in PACKAGE.rglob("*") if p.suffix in {".py", ".so"}):
        total.update(f"{path.relative_to(PACKAGE)}\0{sha256_bytes(path.read_bytes())}\n".encode())
    return total.hexdigest()


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that the package lies in and whether it has changes; None outside a checkout."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        sha, changes = (_git(root, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"sha": sha, "dirty": bool(changes)}


def _git(root: Path, *words: str) -> str:
    run = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
    return run.stdout.strip()


@functools.cache
def machine() -> dict[str, Any]:
    """Processor, its vector instructions, cores, memory and system."""
    cpu = _fields(Path("/proc/cpuinfo"))
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    memory = _fields(Path("/proc/meminfo")).get("MemTotal", "0 kB").split()[0]
    system = platform.freedesktop_os_release()["PRETTY_NAME"] if Path("/etc/os-release").exists() else platform.platform()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "flags": sorted(f for f in flags if f in SIMD or f.startswith("avx512")),
        "cores": usable_cores(),
        "memory_bytes": int(memory) * 1024,
        "os": system,
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fields(path: Path) -> dict[str, str]:
    """The first `name: value` of each name in a /proc file."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


@functools.cache
def libraries() -> dict[str, str]:
    """Versions of Python and of what the numbers may depend on."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
