"""Durable files: what is written is on disk and whole, or not there at all."""

import errno
import glob
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hex sha256 of the data."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's content."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sync(path: str | Path) -> None:
    """Flush a file or a directory entry to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def durable_file(path: str | Path, like: str | Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it becomes `path` in one step that survives a power loss.

    On an error the old file stays as it was and the temporary one is removed; the OSError names `path`. A link is followed;
    what is there and no regular file, such as a device, is refused with an OSError. The new file has the mode of the old one,
    or where there is none that of `like`.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "is there and no regular file", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _clear_left(path)
    model = path if path.exists() else like
    try:
        if model is not None:
            temporary.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
        yield temporary
        if model is not None:
            temporary.chmod(stat.S_IMODE(Path(model).stat().st_mode))
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as e:
        raise OSError(e.errno, e.strerror or str(e), str(path)) from e
    finally:
        temporary.unlink(missing_ok=True)


LEFT_S = 3600.0
"""Seconds after which a file that no process here is writing to was left by one that was killed; a younger one may be another machine's."""


def _clear_left(path: Path) -> None:
    """Remove what a killed process was writing to."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = left.name.removesuffix(".tmp").rpartition(".")[2]
        old = left.is_file() and time.time() - left.stat().st_mtime > LEFT_S
        if old and process.isdecimal() and not _runs(int(process)):
            left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_durably(path: str | Path, data: bytes | str, like: str | Path | None = None) -> None:
    """Write a whole file durably (see `durable_file`)."""
    with durable_file(path, like) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def durable_directory(path: str | Path) -> Iterator[Path]:
    """Yield a new temporary directory; on success it becomes `path`, every file flushed first.

    `path` must not exist. On an error nothing of it stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            sync(file)
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
