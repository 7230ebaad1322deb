"""The manifest of a checkpoint: which files make it whole, and their sizes and hashes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from postformer.config import ConfigError, UserError, read
from postformer.files import sha256_bytes, sha256_file

FORMAT = "postformer-checkpoint-1"
MANIFEST = "manifest.json"
REQUIRED = ("run.json", "train.json", "model.safetensors", "optim.safetensors", "rng.safetensors")


class CheckpointError(UserError):
    """A checkpoint that cannot be written, is damaged, or belongs to another run."""


def write_manifest(folder: Path) -> None:
    """Write the manifest of the files that are in the folder."""
    files = {f.name: {"size": f.stat().st_size, "sha256": sha256_file(f)} for f in sorted(folder.iterdir())}
    (folder / MANIFEST).write_bytes(_sealed({"format": FORMAT, "files": files}))


def as_json(data: Any) -> bytes:
    """Plain data as the text of a file."""
    return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"


def read_json(path: Path) -> dict[str, Any]:
    """A table from a JSON file of a checkpoint. Raises CheckpointError."""
    try:
        return read(path)
    except ConfigError as e:
        raise CheckpointError(f"{e}; damaged checkpoint") from e


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's text, in which it names its own sha256."""
    return as_json({**manifest, "sha256": sha256_bytes(as_json(manifest))})


def verify(folder: Path) -> None:
    """Check every file against the manifest. Raises CheckpointError naming the file and what is wrong."""
    for name, entry in _entries(folder).items():
        path = folder / name
        try:
            wrong = _difference(path, entry)
        except OSError as e:
            wrong = e.strerror or str(e)
        if wrong:
            raise CheckpointError(f"{path}: damaged checkpoint: {wrong}")


def _difference(path: Path, entry: Mapping[str, Any]) -> str | None:
    if not path.is_file():
        return "the file is missing"
    size = path.stat().st_size
    if size != entry["size"]:
        return f"{'truncated' if size < entry['size'] else 'too long'}, {size} bytes instead of {entry['size']}"
    return None if sha256_file(path) == entry["sha256"] else "its sha256 differs from the manifest's"


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{path}: damaged checkpoint: the manifest is missing")
    manifest = read_json(path)
    manifest.pop("sha256", None)
    if path.read_bytes() != _sealed(manifest):
        raise CheckpointError(f"{path}: damaged checkpoint: its content does not match its own sha256")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: its format is {manifest.get('format')!r}; this version reads {FORMAT}")
    files = manifest["files"]
    if missing := [name for name in REQUIRED if name not in files]:
        raise CheckpointError(f"{path}: not a training checkpoint: it does not list {', '.join(missing)}")
    if outside := [name for name in files if Path(name).name != name]:
        raise CheckpointError(f"{path}: '{outside[0]}' is not a plain file name")
    return files
