"""What can be done with a memory's file without its model: look at it, copy it, and go back.

Snapshots of `FILE` are byte copies in the folder `FILE.snapshots`, numbered from 1. The name of one that was taken by itself ends in
AUTOMATIC: only such are ever removed.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from postformer.files import write_durably
from postformer.models.memory import MemoryFileError
from postformer.state import Header, header, rewrite

AUTOMATIC = ".auto"


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A copy of a memory as it was."""

    number: int
    path: Path

    @property
    def automatic(self) -> bool:
        """Whether a reading took it, and may remove it again."""
        return self.path.suffix == AUTOMATIC

    @property
    def header(self) -> Header:
        """What it holds. Raises StateError for a damaged one."""
        return header(self.path)


def fork(path: str | Path, *new: str | Path) -> None:
    """Copy a memory to each of the new files, which name it as their parent.

    Raises MemoryFileError for a file that is there already or is named twice, before anything is written, and StateError for a damaged
    memory.
    """
    parent, places = header(path), [Path(target).resolve() for target in new]
    for i, target in enumerate(map(Path, new)):
        if places[i] in places[:i]:
            raise MemoryFileError(f"{target}: is named twice; name a file of its own for each copy")
        if target.exists():
            raise MemoryFileError(f"{target}: is there already; name a new file")
        if not target.parent.is_dir():
            raise MemoryFileError(f"{target}: the folder {target.parent} does not exist")
    for target in new:
        rewrite(path, target, {**parent.note, "parent": parent.sha256})


def snapshot(path: str | Path, keep: int = 0) -> Snapshot:
    """Keep a copy of a memory as it is now. With `keep` it is an automatic one, of which only so many are kept: the oldest go."""
    path = Path(path)
    header(path)
    found = snapshots(path)
    number = found[-1].number + 1 if found else 1
    target = folder(path) / f"{number:04d}{AUTOMATIC if keep else ''}"
    target.parent.mkdir(exist_ok=True)
    write_durably(target, path.read_bytes(), like=path)
    automatic = [old for old in found if old.automatic]
    for old in automatic[: max(0, len(automatic) + 1 - keep)] if keep else ():
        old.path.unlink()
    return Snapshot(number, target)


def snapshots(path: str | Path) -> list[Snapshot]:
    """The snapshots of a memory, the oldest first."""
    files = [f for f in folder(path).glob("*") if re.fullmatch(rf"\d{{4,9}}({re.escape(AUTOMATIC)})?", f.name)]
    return sorted((Snapshot(int(f.stem), f) for f in files), key=lambda found: found.number)


def rollback(path: str | Path, number: int | None = None) -> Snapshot:
    """Make a memory what it was at a snapshot, to the byte (default: the newest); what it is now is lost, the snapshot stays.

    Raises MemoryFileError where there is no such snapshot, and StateError for one that is damaged.
    """
    found = snapshots(path)
    if not found:
        raise MemoryFileError(f"{path}: has no snapshot")
    wanted = found[-1] if number is None else next((s for s in found if s.number == number), None)
    if wanted is None:
        raise MemoryFileError(f"{path}: has no snapshot {number}; choose from {_listed([s.number for s in found])}")
    header(wanted.path)
    write_durably(path, wanted.path.read_bytes())
    return wanted


def folder(path: str | Path) -> Path:
    """Where the snapshots of a memory lie."""
    return Path(path).with_name(f"{Path(path).name}.snapshots")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
