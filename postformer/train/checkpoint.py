"""Checkpoints: one directory for each saved step, whole or not there at all, and never trusted before its hashes hold.

    <run>/checkpoints/step-00000100/
        config.json, model.safetensors, ...   what `save_model` writes: the directory opens as a model
        optim.safetensors                     the optimizer's tensors, named "parameter:key"
        objective.safetensors                 the objective's own tensors, if it has any
        rng.safetensors                       torch's generator states
        run.json, train.json                  the Run, and the Record
        manifest.json                         written last: size and sha256 of every other file

There is no pickle. A directory is written under a temporary name, flushed, and renamed; a kill leaves the temporary one,
which the next save removes.
"""

import dataclasses
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from postformer import __version__
from postformer.config import ConfigError, Run, build, complete, parse, plain
from postformer.data import DATA
from postformer.files import durable_directory, sync
from postformer.models import MODELS
from postformer.train.manifest import CheckpointError, as_json, read_json, verify, write_manifest
from postformer.train.optim import Optimizer, StateMismatch

MAY_DIFFER = ("steps", "device", "threads", "save_every", "keep", "eval_every", "eval_batches", "log_every")
"""Keys of `Run.train` that a resumed run may change; `steps` may only grow."""

T = TypeVar("T")
Warn = Callable[[str], None]
ABSENT = object()


def _versions() -> dict[str, Any]:
    return {"postformer": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """What the bits of a run depend on besides the Run itself."""

    device: str = "cpu"
    threads: int = dataclasses.field(default_factory=torch.get_num_threads)
    versions: dict[str, Any] = dataclasses.field(default_factory=_versions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Where training stands after `step` optimizer steps."""

    step: int = 0
    tokens: int = 0
    """Tokens trained on since step 0."""
    seconds: float = 0.0
    """Wall time since step 0, over all sessions."""
    loss: float = 0.0
    """The last step's loss."""
    valid: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The last evaluation, with its step."""
    generators: tuple[str, ...] = ()
    """Torch's random generators whose states are saved; there is no other source of randomness."""
    environment: Environment = dataclasses.field(default_factory=Environment)


# ---------------------------------------------------------------- save


def save(
    out: Path, run: Run, record: Record, objective: nn.Module, optimizer: Optimizer, save_model: Callable[[Path], None]
) -> Path:
    """Write the checkpoint of `record.step` durably, then remove the oldest beyond `run.train.keep`; return its directory.

    Raises CheckpointError when it cannot be written, for example because the disk is full: what was there before stays.
    """
    target = out / "checkpoints" / f"step-{record.step:08d}"
    try:
        _remove_leftovers(target.parent)
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True)
            sync(out)
        with durable_directory(target) as folder:
            save_model(folder)
            (folder / "run.json").write_bytes(as_json(plain(run)))
            generators = _generators(record.environment.device)
            record = dataclasses.replace(record, generators=tuple(generators))
            (folder / "train.json").write_bytes(as_json(plain(record)))
            save_file(_on_cpu(optimizer.state()), folder / "optim.safetensors")
            if own := _own_state(objective):
                save_file(_on_cpu(own), folder / "objective.safetensors")
            save_file(generators, folder / "rng.safetensors")
            write_manifest(folder)
    except (OSError, SafetensorError) as e:
        earlier = [f for f in _directories(out) if f != target]
        stays = f"{earlier[-1].name} stays the last checkpoint" if earlier else "there is no earlier checkpoint"
        raise CheckpointError(f"{target}: could not be saved: {_reason(e)}; {stays}") from e
    _prune(target.parent, run.train.keep)
    return target


def _reason(e: Exception) -> str:
    return e.strerror if isinstance(e, OSError) and e.strerror else str(e).splitlines()[0]


def set_aside(out: Path, after: int) -> None:
    """Rename every checkpoint later than step `after`, all of them damaged, to `<name>.damaged`, so that its step can be
    saved anew and a person can still look at it."""
    for folder in _directories(out):
        if _step(folder) > after:
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _own_state(objective: nn.Module) -> dict[str, Tensor]:
    """What the objective keeps besides its model, such as an averaged teacher."""
    return {name: t for name, t in objective.state_dict().items() if not name.startswith("model.")}


def _generators(device: str) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.startswith("cuda"):
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _prune(parent: Path, keep: int) -> None:
    for folder in _directories(parent.parent)[:-keep]:
        doomed = parent / f".{folder.name}.{os.getpid()}.tmp"
        try:
            folder.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as e:
            raise CheckpointError(f"{folder}: the old checkpoint could not be removed: {_reason(e)}") from e


def _remove_leftovers(parent: Path) -> None:
    for folder in parent.glob(".step-*.tmp"):
        shutil.rmtree(folder)


def _directories(out: Path) -> list[Path]:
    """All checkpoints, good or bad, the oldest first."""
    found = (out / "checkpoints").glob("step-*")
    return sorted((f for f in found if f.is_dir() and re.fullmatch(r"step-\d+", f.name)), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


# ---------------------------------------------------------------- find


def latest(out: Path, warn: Warn) -> Path | None:
    """The newest checkpoint of a run directory that is whole; None when it has none.

    Each damaged one with another before it is told through `warn` in one line. Raises CheckpointError when there are
    checkpoints and none is whole.
    """
    folders = _directories(out)
    for before, folder in reversed(list(enumerate(folders))):
        try:
            verify(folder)
        except CheckpointError as e:
            if not before:
                raise CheckpointError(
                    f"{e}; none of the run's checkpoints ({len(folders)}) is whole: train in another folder"
                ) from e
            warn(f"{e}; falling back to the checkpoint before it")
        else:
            return folder
    return None


# ---------------------------------------------------------------- restore


def restore(folder: Path, run: Run, objective: nn.Module, optimizer: Optimizer, warn: Warn) -> Record:
    """Put a verified checkpoint back into the objective, the optimizer and torch's generators.

    What makes the continuation differ in its bits (threads, device, versions) is told through `warn`. Raises CheckpointError
    when the checkpoint belongs to another run or does not fit.
    """
    record = _parse_file(Record, folder / "train.json")
    _check_same_run(plain(_parse_file(Run, folder / "run.json")), plain(run), folder)
    model = objective.model
    assert isinstance(model, nn.Module)
    _load_module(model, folder / "model.safetensors", model.state_dict())
    if own := _own_state(objective):
        _load_module(objective, folder / "objective.safetensors", own)
    try:
        optimizer.load_state(_read_tensors(folder / "optim.safetensors"))
    except StateMismatch as e:
        raise CheckpointError(f"{folder / 'optim.safetensors'}: {e}") from e
    _restore_generators(folder / "rng.safetensors", run.train.device)
    here = Environment(device=run.train.device)
    _warn_of_other_bits(plain(record.environment), plain(here), folder, warn)
    return dataclasses.replace(record, environment=here)


def _parse_file(cls: type[T], path: Path) -> T:
    data = read_json(path)
    try:
        return parse(cls, data)
    except ConfigError as e:
        raise CheckpointError(f"{path}: {e}") from e


def _check_same_run(saved: dict[str, Any], ours: dict[str, Any], folder: Path) -> None:
    saved, ours = _with_todays_defaults(saved), _with_todays_defaults(ours)
    before, now = saved["train"]["steps"], ours["train"]["steps"]
    for side in (saved, ours):
        side.pop("name")
        for key in MAY_DIFFER:
            side["train"].pop(key)
    if difference := _first_difference(saved, ours):
        place, there, here = difference
        raise CheckpointError(f"{folder}: belongs to another run: {place} is {there} there and {here} here")
    if now < before:
        raise CheckpointError(f"{folder}: train.steps is {before} there and {now} here; it may grow, not shrink")


def _with_todays_defaults(run: dict[str, Any]) -> dict[str, Any]:
    """A keyword that is younger than the checkpoint had its default there."""
    try:
        with torch.device("meta"):
            model = build(run["model"], MODELS, "model").config
        return {**run, "model": model, "data": complete(run["data"], DATA, "data")}
    except (ConfigError, RuntimeError, NotImplementedError):  # parts that are not here: compared as they stand
        return run


def _first_difference(a: Any, b: Any, place: str = "") -> tuple[str, str, str] | None:
    """The first place where two trees of plain data differ, and what each shows there."""
    if isinstance(a, dict) and isinstance(b, dict):
        pairs = [(f"{place}.{key}".lstrip("."), a.get(key, ABSENT), b.get(key, ABSENT)) for key in {**a, **b}]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(f"{place}[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b else (place, _show(a), _show(b))
    return next((found for key, x, y in pairs if (found := _first_difference(x, y, key))), None)


def _show(value: Any) -> str:
    return "absent" if value is ABSENT else json.dumps(value)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{path}: not a readable safetensors file: {_reason(e)}") from e


def _load_module(module: nn.Module, path: Path, wanted: Mapping[str, Tensor]) -> None:
    tensors = _read_tensors(path)
    if odd := sorted(tensors.keys() ^ wanted.keys()):
        where = "only there" if odd[0] in tensors else "only in this run"
        raise CheckpointError(f"{path}: its tensors differ from this run's, first '{odd[0]}', which is {where}")
    for name, t in wanted.items():
        if tensors[name].shape != t.shape:
            raise CheckpointError(f"{path}: '{name}' has shape {tuple(tensors[name].shape)}, this run's has {tuple(t.shape)}")
    module.load_state_dict(tensors, strict=False)


def _warn_of_other_bits(saved: dict[str, Any], now: dict[str, Any], folder: Path, warn: Warn) -> None:
    if difference := _first_difference(saved, now):
        place, before, after = difference
        warn(f"{folder}: continues, but not with the same bits: {place} was {before} and is {after}")


def _restore_generators(path: Path, device: str) -> None:
    states = _read_tensors(path)
    try:
        torch.set_rng_state(states["cpu"])
        if device.startswith("cuda") and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], device)
    except (KeyError, RuntimeError, TypeError) as e:
        raise CheckpointError(f"{path}: the random generators could not be restored: {_reason(e)}") from e
