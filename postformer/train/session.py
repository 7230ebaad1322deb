"""A run put together, trained, and opened again."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from postformer.config import ConfigError, Run, build, complete, plain, read
from postformer.data import ASKED, DATA, READINGS
from postformer.data.reading import Reading
from postformer.models import CLASSIFIERS, DENOISERS, EMBEDDERS, FORECASTERS, MODELS, WORLDS
from postformer.models.expert_store import ExpertMemory
from postformer.models.hub import ModelError, fetch, load_model, save_model
from postformer.models.world import World
from postformer.objectives import OBJECTIVES
from postformer.objectives.rates import FILE as RATES
from postformer.train import checkpoint, loop
from postformer.train.begin import averaged, begin_with
from postformer.train.log import Log, Progress
from postformer.train.loop import Summary, to_stderr, train
from postformer.train.optim import make_optimizer

KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "series": (FORECASTERS, ("forecast",)),
    "images": ({**CLASSIFIERS, **DENOISERS, **EMBEDDERS}, ("classify", "denoise", "masked")),
    "physics": ({**DENOISERS, **EMBEDDERS, **WORLDS}, ("denoise", "masked", "latent")),
    "videos": ({**DENOISERS, **EMBEDDERS, **WORLDS}, ("denoise", "masked", "latent")),
    "rooms": (WORLDS, ("latent",)),
    "episodes": (WORLDS, ("latent",)),
}
"""The models and objectives that go with a kind of data; every other kind is text."""
TEXT: tuple[dict[str, Any], tuple[str, ...]] = ({"language": MODELS["language"]}, ("next_token", "answers"))


def check(run: Run) -> None:
    """Refuse a malformed run without memory and before anything is read or written. Raises ConfigError."""
    complete(run.data, DATA, "data")
    _check_kinds(run)
    if run.objective["kind"] == "answers" and run.data["kind"] == "text":
        raise ConfigError(
            f"objective.kind: 'answers' asks for the answers of a task, and data.kind is 'text'; choose from {', '.join(ASKED)}"
        )
    with torch.device("meta"):
        sizes = _sizes_to_try(run)
        model = build({k: v for k, v in run.model.items() if k not in sizes}, MODELS, "model", **sizes)
        objective = build(run.objective, OBJECTIVES, "objective", model=model)
        if run.data["kind"] in ("physics", "videos", "rooms", "episodes"):
            _check_clips(build(run.data, DATA, "data"), model, objective)
    make_optimizer(dict(objective.named_parameters()), run.optim)
    loop.check_settings(run)
    loop.device(run.train.device)


def _check_kinds(run: Run) -> None:
    """Data, model and objective go together."""
    models, objectives = KINDS.get(run.data["kind"], TEXT)
    for part, table, fitting in (("model", MODELS, models), ("objective", OBJECTIVES, objectives)):
        kind = getattr(run, part).get("kind")
        if kind in table and kind not in fitting:
            raise ConfigError(
                f"{part}.kind: '{kind}' does not fit data.kind, which is '{run.data['kind']}'; choose from {', '.join(fitting)}"
            )
    model, objective = run.model.get("kind"), run.objective.get("kind")
    for kinds, wanted in ((CLASSIFIERS, "classify"), (DENOISERS, "denoise"), (EMBEDDERS, "masked"), (WORLDS, "latent")):
        if model in kinds and objective in OBJECTIVES and objective != wanted:
            raise ConfigError(f"objective.kind: '{objective}' does not teach model.kind, which is '{model}'; choose {wanted}")


def _check_clips(data: Any, model: Any, objective: Any) -> None:
    """Clips of the data are of sizes that a model which draws or embeds can have, longer than what they know, and masks leave some of them
    to be seen. Raises ConfigError."""
    mixed = getattr(data, "shape", None) == "own"
    if isinstance(model, World):
        if mixed:
            raise ConfigError(
                "data.shape: 'own' puts clips of several sizes into a batch, which a world does not take; choose crop"
            )
        frames = data.clip_size[0] if hasattr(data, "clip_size") else data.steps + 1
        if objective.known + max(objective.ahead, 1) > frames:
            raise ConfigError(
                f"objective.known: {objective.known} and ahead={objective.ahead} are more than the {frames} pictures that there are"
            )
        return
    if mixed and (not hasattr(model, "packed") or objective.shortcut):
        raise ConfigError("data.shape: 'own' puts clips of several sizes into a batch, which goes with a dit without shortcut")
    if getattr(objective, "known_frames", 0) >= data.clip_size[0]:
        raise ConfigError(
            f"objective.known_frames: {objective.known_frames} must be fewer than the {data.clip_size[0]} frames of a clip"
        )
    try:
        grid = model.grid(data.unit if mixed else data.clip_size)
        if hasattr(objective, "masks"):
            objective.masks(1, grid, torch.Generator(device="cpu"))
    except ValueError as e:
        raise ConfigError(f"data{'.unit' if mixed else ''}: {e}, or change the model") from e


def _sizes_to_try(run: Run) -> dict[str, Any]:
    """What a model will be told of its data, or what stands for it before images are read."""
    if run.data["kind"] in ("series", "physics", "videos", "rooms", "episodes"):
        return _known(run, build(run.data, DATA, "data").sizes)
    if run.data["kind"] == "images":
        side = run.data.get("size") or run.model.get("patch")
        return _known(run, {"channels": 3, "classes": 2, "size": tuple(side) if isinstance(side, (list, tuple)) else (4, 4)})
    return {"vocab": 1}


def _known(run: Run, sizes: dict[str, Any]) -> dict[str, Any]:
    """Those sizes that the model takes; a model that draws may be told of no classes."""
    model = MODELS.get(run.model["kind"])
    if run.model["kind"] in WORLDS:  # in clips nothing is done
        sizes = {"actions": 0, **sizes}
    takes = sizes.keys() if model is None else inspect.signature(model).parameters
    if run.model["kind"] in DENOISERS and "vocab" in sizes and "vocab" not in takes:
        raise ConfigError(f"data.text: a model of kind '{run.model['kind']}' takes no texts; leave it out, or choose dit")
    untold = {"classes"} if run.model["kind"] in DENOISERS and run.model.get("classes") == 0 else set()
    return {name: size for name, size in sizes.items() if name in takes and name not in untold}


def sizes_of(run: Run, data: Any) -> dict[str, Any]:
    """What a model is told of its data: the ids that there are, the windows of a series, the channels and classes of images."""
    return _known(run, data.sizes) if hasattr(data, "sizes") else {"vocab": data.tokens.vocab}


def prepare(run: Run) -> tuple[Run, nn.Module, Any]:
    """Build a run's data and, from its seed, its objective; the returned run has every default of its model written out.

    Raises ConfigError or DataError.
    """
    data = build(run.data, DATA, "data")
    sizes = sizes_of(run, data)
    for name, size in sizes.items():
        if plain(given := run.model.get(name, size)) != plain(size):
            has = f"the data has {size} ids" if name == "vocab" else f"data.{name} is {size}"
            raise ConfigError(f"model.{name}: {given!r}, but {has}; leave it out")
    torch.manual_seed(run.seed)
    model = build({k: v for k, v in run.model.items() if k not in sizes}, MODELS, "model", **sizes)
    model.tokens = data.tokens
    objective = build(run.objective, OBJECTIVES, "objective", model=model)
    if run.data["kind"] in ("physics", "videos", "images") and run.model["kind"] in (*DENOISERS, *EMBEDDERS, *WORLDS):
        _check_clips(data, model, objective)
    return dataclasses.replace(run, model=model.config, data={**run.data, **data.identity}), objective, data


def train_run(
    run: Run,
    out: Path,
    *,
    on_step: Callable[[Progress], None] | None = None,
    resume: bool = True,
    logs: Sequence[Log] = (),
    warn: Callable[[str], None] = to_stderr,
) -> Summary:
    """Train a run in the directory `out`, from its last whole checkpoint on; see `postformer.train.loop.train`."""
    check(run)
    run, objective, data = prepare(run)
    model = objective.model
    _check_teacher(run, objective)
    for line in getattr(data, "remarks", ()):
        warn(line)
    if run.begin is not None and checkpoint.latest(out, lambda line: None) is None:
        for line in begin_with(objective, _weights(run.begin), run.begin):
            warn(line)
    for split in ("train", "valid")[: 2 if run.train.eval_every else 1]:  # refuses a text that is too short
        data.batches(batch=run.train.batch, seed=run.seed, split=split)

    def save(folder: Path) -> None:
        save_model(model, folder)  # type: ignore[arg-type]

    return train(
        run, out, objective=objective, data=data, save_model=save, on_step=on_step, resume=resume, logs=logs, warn=warn
    )


def _check_teacher(run: Run, objective: Any) -> None:
    if getattr(objective, "teacher", None) is not None and run.begin is None:
        raise ConfigError(f"objective.few: {objective.few} steps are learned from a teacher: name one, begin=RUN")


def _weights(path: str) -> dict[str, Tensor]:
    """Of a model that is there: the averaged ones where training kept such. Raises ConfigError and as `open_model` does."""
    try:
        folder = model_folder(path)
        return averaged(folder) or open_model(folder).state_dict()
    except ModelError as e:
        raise ConfigError(f"begin: {e}") from e


def open_model(
    path: str | Path,
    *,
    trust_kinds: bool = False,
    experts: ExpertMemory | None = None,
    warn: Callable[[str], None] = to_stderr,
) -> Any:
    """The model of a run directory (its last whole checkpoint), of a checkpoint, of a model folder, or of a hub (`owner/name`); with
    `experts` its experts stay on disk.

    Raises ModelError, ExpertsError, CheckpointError or ConfigError.
    """
    return load_model(model_folder(path, warn=warn), trust_kinds=trust_kinds, experts=experts)


def model_folder(path: str | Path, *, warn: Callable[[str], None] = to_stderr) -> Path:
    """The folder in which the model lies that `open_model` opens; a checkpoint is whole. Raises as that does."""
    folder = Path(path)
    if (folder / "checkpoints").is_dir():
        last = checkpoint.latest(folder, warn)
        if last is None:
            raise ModelError(f"{folder}: this run has no checkpoint yet")
        return last
    if folder.is_dir():
        if (folder / "train.json").exists():
            checkpoint.verify(folder)
        return folder
    if folder.exists() or str(path).count("/") != 1 or str(path).startswith((".", "/")):
        raise ModelError(f"{path}: no such folder; name a run, a checkpoint, a model folder, or a hub's owner/name")
    if Path(str(path).split("/")[0]).is_dir():
        there = sorted(child.name for child in folder.parent.iterdir() if child.is_dir()) if folder.parent.is_dir() else []
        raise ModelError(f"{path}: no such folder; in {folder.parent} there are {', '.join(there[:8]) or 'none'}")
    return fetch(str(path))


def reading_of(folder: Path) -> Reading | None:
    """The texts with questions that the model of a folder was trained on, as its run.json or rates.json says; else None."""
    for file, key in (("run.json", "data"), (RATES, "data")):
        spec = read(folder / file).get(key) if (folder / file).exists() else None
        if isinstance(spec, dict) and spec.get("kind") in READINGS:
            return build(spec, READINGS, f"{folder / file}: data")
    return None
