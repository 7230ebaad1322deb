"""Plain data to checked objects.

Closed parts of a run are dataclasses; open parts are tables `{"kind": "mamba", "state": 16}` whose schema is the
signature of the class that the kind names. Every error names the place and the valid choices. No torch is imported here,
so that the command line answers `--help` and refuses a malformed run at once.
"""

import copy
import dataclasses
import difflib
import importlib
import inspect
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
LARGEST_NUMBER = 1e300
MOST_THREADS = 1024
"""Threads that a command may be told to compute with."""
Spec = dict[str, Any]
"""An open part: `{"kind": name, **keywords of the class that the kind names}`."""


class UserError(Exception):
    """A mistake of the user's, told in one line; the command line prints it and exits with code 2."""


class ConfigError(UserError):
    """A run or a part of it that is malformed: the message names the place and the valid choices."""


# ---------------------------------------------------------------- a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule. `muon` takes the hidden matrices and filters (Jordan et al. 2024) and leaves the rest to AdamW."""

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 2e-3
    matrix_lr: float = 1.0
    """The learning rate of Muon's matrices and of routers as a share of `lr`, which embeddings, heads and vectors keep."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    warmup: int = 50
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    decay: float = 0.2
    """Share of the steps in which `wsd` cools down."""
    final: float = 0.1
    """The last learning rate as a share of `lr`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how wide and where."""

    steps: int = 1000
    batch: int = 8
    """Sequences in one forward pass."""
    accumulate: int = 1
    """Forward passes in one optimizer step."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """What activations are computed in; parameters and the optimizer stay fp32."""
    device: str = "cpu"
    threads: int = 0
    """Intra-op threads; 0 leaves the machine's default."""
    save_every: int = 200
    keep: int = 3
    """How many checkpoints stay on disk."""
    eval_every: int = 0
    eval_batches: int = 16
    log_every: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One complete value: with the same machine, thread count and library versions it gives the same bits."""

    name: str
    seed: int = 0
    model: Spec
    objective: Spec = dataclasses.field(default_factory=lambda: {"kind": "next_token"})
    data: Spec
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    begin: str | None = None
    """A run, checkpoint, model folder or hub's owner/name whose weights the model begins with, as far as they fit."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]{0,99}", self.name):
            raise ConfigError(f"name: expected a plain name such as 'text-mamba', which its folder has, got {self.name!r}")


# ---------------------------------------------------------------- plain data -> checked values


def parse(cls: type[T], data: Any, where: str = "") -> T:
    """Check plain data against a type and return the value: strict on unknown keys, missing keys and wrong types.

    `where` is the place that errors name, such as `train.steps`. Raises ConfigError.
    """
    return _parse(cls, data, where)


def _parse(hint: Any, data: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _parse_dataclass(hint, data, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(args, data, where)
    if origin is Literal:
        if any(data == a and type(data) is type(a) for a in args):
            return data
        raise ConfigError(f"{where}: {_show(data)} is not a choice; choose from {', '.join(map(str, args))}")
    if origin is tuple and isinstance(data, (list, tuple)):
        kinds = [args[0]] * len(data) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(kinds) != len(data):
            raise ConfigError(f"{where}: expected {len(kinds)} values, got {len(data)}")
        return tuple(_parse(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, data, strict=True)))
    if origin is list and isinstance(data, (list, tuple)):
        return [_parse(args[0], v, f"{where}[{i}]") for i, v in enumerate(data)]
    if origin in (dict, Mapping) and isinstance(data, Mapping) and all(isinstance(k, str) for k in data):
        return {k: _parse(args[1], v, f"{where}.{k}") for k, v in copy.deepcopy(dict(data)).items()}
    if hint is Any:
        return data
    if hint is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        if not abs(data) <= LARGEST_NUMBER:  # also not-a-number
            raise ConfigError(f"{where}: expected a finite number, got {data}")
        return float(data)
    if hint is int and isinstance(data, int) and not -(1 << 63) <= data < 1 << 63:
        raise ConfigError(f"{where}: expected a whole number of at most 64 bits, got {_show(data)}")
    if isinstance(hint, type) and isinstance(data, hint) and not (hint is int and isinstance(data, bool)):
        return data
    raise ConfigError(f"{where}: expected {_name(hint)}, got {_show(data)}")


def _parse_dataclass(cls: Any, data: Any, where: str) -> Any:
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or cls.__name__}: expected a table, got {_show(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    deeper = [f"{n}.{f.name}" for n in fields if dataclasses.is_dataclass(hints[n]) for f in dataclasses.fields(hints[n])]
    reject_unknown(data, fields, where or f"the {cls.__name__.lower()}", deeper=deeper)
    for name, f in fields.items():
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where or cls.__name__}: '{name}' is missing; it takes {', '.join(fields)}")
    return cls(**{k: _parse(hints[k], v, f"{where}.{k}".lstrip(".")) for k, v in data.items()})


def _parse_union(args: tuple[Any, ...], data: Any, where: str) -> Any:
    for a in args:
        try:
            return _parse(a, data, where)
        except ConfigError:
            continue
    words = [w for a in args if typing.get_origin(a) is Literal for w in typing.get_args(a)]
    if words and isinstance(data, str):
        words = ["true", "false", *words] if bool in args else words
        raise ConfigError(f"{where}: {_show(data)} is not a choice; choose from {', '.join(map(str, words))}")
    if data != data:  # not-a-number
        raise ConfigError(f"{where}: expected a finite number, got {data}")
    raise ConfigError(f"{where}: expected {' or '.join(_name(a) for a in args)}, got {_show(data)}")


def reject_unknown(
    given: Iterable[str], valid: Iterable[str], where: str, owner: str = "it", deeper: Iterable[str] = ()
) -> None:
    """Raise ConfigError when a given key is not valid; the message lists the valid ones and the nearest, also among those `deeper`."""
    valid = list(valid)
    for key in given:
        if key not in valid:
            near = [name for name in deeper if name.endswith(f".{key}")] or difflib.get_close_matches(str(key), valid, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ConfigError(f"{where}: unknown '{key}'{hint}; {owner} takes {', '.join(valid) or 'no keys'}")


def _name(hint: Any) -> str:
    if hint is type(None):
        return "nothing"
    if typing.get_origin(hint) in (dict, Mapping) or hint in (dict, Spec):
        return "a table"
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(
        hint, "a list" if typing.get_origin(hint) in (tuple, list) else str(hint)
    )


def _show(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 80 else text[:77] + "..."


# ---------------------------------------------------------------- open parts


def complete(spec: Mapping[str, Any], table: Mapping[str, Any], where: str, *given: str) -> Spec:
    """The spec with every default written out, checked against the signature of its class.

    `given` names the arguments that the caller supplies itself. A `Spec` in the signature is a part of the same table, to which
    the same is given. Raises ConfigError.
    """
    cls, kind = _resolve(spec, table, where)
    takes = {n: p for n, p in inspect.signature(cls).parameters.items() if n not in given}
    words = {k: v for k, v in spec.items() if k != "kind"}
    reject_unknown(words, takes, where, kind)
    hints = typing.get_type_hints(cls.__init__ if isinstance(cls, type) else cls)
    out: Spec = {"kind": kind}
    for name, p in takes.items():
        if hints.get(name) == Spec and (name in words or p.default is not inspect.Parameter.empty):
            part = _parse(Spec, words.get(name, {}), f"{where}.{name}")
            default = {} if p.default is inspect.Parameter.empty else p.default
            out[name] = complete(amended(part, default), table, f"{where}.{name}", *given)
        elif name in words:
            out[name] = plain(_parse(hints.get(name, Any), words[name], f"{where}.{name}"))
        elif p.default is inspect.Parameter.empty:
            raise ConfigError(f"{where}: '{name}' is missing; {kind} takes {', '.join(takes)}")
        else:
            out[name] = plain(p.default)
    return out


def amended(spec: Spec, default: Spec) -> Spec:
    """A table that names its kind stands by itself; one that does not changes words of the default."""
    return spec if "kind" in spec else {**default, **spec}


def build(spec: Mapping[str, Any], table: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Build the object of an open part: `build({"kind": "mamba", "state": 16}, MIXERS, "model.mixers[0]", dim=512)`.

    A kind may also be an import path, `"their.package:Mixer"`. A part builds its own parts at `".name"`, which is relative to its
    place. Raises ConfigError, also for what the constructor refuses with a ValueError, and for sizes that torch cannot hold (a
    RuntimeError).
    """
    words = complete(spec, table, where, *given)
    cls, _ = _resolve(spec, table, where)
    hints = typing.get_type_hints(cls.__init__ if isinstance(cls, type) else cls)
    values = {k: _parse(hints.get(k, Any), v, f"{where}.{k}") for k, v in words.items() if k != "kind"}
    try:
        return cls(**given, **values)
    except ConfigError as e:
        if not str(e).startswith("."):
            raise
        raise ConfigError(f"{where}{e}") from e
    except ValueError as e:
        raise ConfigError(f"{where}: {str(e).partition(chr(10))[0]}") from e
    except RuntimeError as e:
        reason = str(e).partition("\n")[0]
        large = any(word in reason.lower() for word in ("alloc", "overflow", "memory"))
        raise ConfigError(f"{where}: {'its sizes are too large for this machine' if large else reason}") from e


def _resolve(spec: Any, table: Mapping[str, Any], where: str) -> tuple[Any, str]:
    choices = ", ".join(table)
    if not isinstance(spec, Mapping) or not isinstance(spec.get("kind"), str):
        raise ConfigError(f"{where}: expected a table with 'kind'; choose from {choices}")
    kind = spec["kind"]
    if kind in table:
        return table[kind], kind
    if ":" not in kind:
        near = difflib.get_close_matches(kind, list(table), 1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ConfigError(f"{where}.kind: unknown '{kind}'{hint}; choose from {choices}, or give 'package.module:Name'")
    module, _, name = kind.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
        inspect.signature(cls)
    except (ImportError, AttributeError, ValueError) as e:
        raise ConfigError(f"{where}.kind: cannot import '{kind}' ({e}); choose from {choices}") from e
    except TypeError as e:
        raise ConfigError(f"{where}.kind: '{kind}' is no class; choose from {choices}") from e
    return cls, kind


def foreign_kinds(data: Any, where: str = "") -> list[str]:
    """Places of the kinds that are import paths: what a file from elsewhere must not name unless its reader trusts it."""
    if isinstance(data, Mapping):
        here = [f"{where}.kind".lstrip(".")] if ":" in str(data.get("kind", "")) else []
        return here + [p for k, v in data.items() for p in foreign_kinds(v, f"{where}.{k}".lstrip("."))]
    if isinstance(data, (list, tuple)):
        return [p for i, v in enumerate(data) for p in foreign_kinds(v, f"{where}[{i}]")]
    return []


# ---------------------------------------------------------------- files and overrides


def plain(value: Any) -> Any:
    """The value as JSON-ready data: dataclasses become tables and tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def read(path: str | Path) -> Spec:
    """Read a TOML or JSON file into a table. Raises ConfigError with the file and line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {e}") from e
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a table at the top, got {_show(data)}")
    return data


def override(data: Mapping[str, Any], words: Iterable[str]) -> Spec:
    """A copy of the table with `a.b=value` and `a[0].b=value` words applied; values are TOML, or else text.

    Raises ConfigError when a word has no `=` or when its path runs through something that is not a table.
    """
    out = copy.deepcopy(dict(data))
    for word in words:
        path, eq, text = word.partition("=")
        keys: list[Any] = [int(k) if re.fullmatch(r"[0-9]{1,9}", k) else k for k in re.findall(r"[^.\[\]]+", path)]
        if not eq or not keys:
            raise ConfigError(f"'{word}': expected an override such as model.depth=8")
        try:
            value = tomllib.loads(f"x = {text}")["x"]
        except (ValueError, RecursionError):
            value = text
        at: Any = out
        for i, key in enumerate(keys):
            if not _holds(at, key):
                size = f"a list of {len(at)}" if isinstance(at, list) else "a table" if isinstance(at, dict) else _show(at)
                raise ConfigError(f"'{word}': {'.'.join(map(str, keys[:i])) or 'the run'} is {size}; '{key}' is not in it")
            if i == len(keys) - 1:
                at[key] = value
            elif key in at or isinstance(at, list):
                at = at[key]
            else:
                at = at.setdefault(key, {})
    return out


def _holds(at: Any, key: int | str) -> bool:
    """Whether a table can hold the key, or a list has the index."""
    if isinstance(key, str):
        return isinstance(at, dict)
    return isinstance(at, list) and key < len(at)
