"""A model's memory as a value.

A state is a tree of tuples (one NamedTuple for each mixer) whose leaves are batch-first tensors. The laws, each a test
over every mixer (tests/test_laws.py):

1. any split of a sequence into pieces gives the same outputs and the same final state;
2. without a state nothing is kept;
3. every leaf is batch-first: rows leave (`take`) and join (`cat`);
4. all zeros is a fresh state;
5. a state belongs to the call that it is given to: `clone` it to keep it;
6. a state saves to one safetensors file that names its model, and loads nowhere else;
7. a recurrent mixer's state has a fixed size: `nbytes` does not depend on how much was read.

A leaf that grows with the text does so along the dimension that is 0 in a fresh state, which its NamedTuple names: `grows = (("k", 2),)`.
Zeros may follow what is used there.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from postformer.config import UserError
from postformer.files import durable_file, sha256_bytes, sync, write_durably

State = Any
"""A tensor, None, or a tuple (or NamedTuple) of states."""

FORMAT = "postformer-state-1"
LARGEST_HEADER = 16 << 20
MOST_READ = 1 << 48
OTHER_MODELS = "states of different models cannot be joined"


class StateError(UserError):
    """A state file that cannot be read, is damaged, or belongs to another model."""


def map_leaves(f: Callable[..., Tensor], *states: State) -> State:
    """Apply `f` to the corresponding leaves of equally shaped trees and return the tree of results."""
    first = states[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return f(*states)
    parts = [map_leaves(f, *branch) for branch in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def leaves(state: State, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The leaves with their names, such as `("3.ssm", tensor)`, in a fixed order."""
    if isinstance(state, Tensor):
        yield name, state
    elif state is not None:
        names = getattr(state, "_fields", range(len(state)))
        for key, part in zip(names, state, strict=True):
            yield from leaves(part, f"{name}.{key}".lstrip("."))


def take(state: State, rows: Tensor | list[int]) -> State:
    """The state of the given rows, in that order: rows leave a batch, or one row is copied to many."""

    def pick(leaf: Tensor) -> Tensor:
        return leaf[torch.as_tensor(rows, dtype=torch.long, device=leaf.device)]

    return map_leaves(pick, state)


def cat(states: list[State]) -> State:
    """Join the rows of several states of one model; a leaf that grows with the text is padded with zeros at its end.

    Raises StateError when the states differ in anything but rows and the sizes that their `grows` names, and for none.
    """
    if not states:
        raise StateError("no state was given to join")
    first = states[0]
    if any(type(s) is not type(first) for s in states):
        raise StateError(f"{OTHER_MODELS}: {', '.join(type(s).__name__ for s in states)}")
    if first is None:
        return None
    if isinstance(first, Tensor):
        return _join(states)
    grows: dict[Any, int] = dict(getattr(first, "grows", ()))
    names = getattr(first, "_fields", range(len(first)))
    if any(len(s) != len(first) for s in states):
        raise StateError(f"{OTHER_MODELS}: they have different numbers of parts")
    branches = zip(names, zip(*states, strict=True), strict=True)
    parts = [_join(branch, grows[name]) if name in grows else cat(list(branch)) for name, branch in branches]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def _join(leaves: Sequence[Tensor], grows: int | None = None) -> Tensor:
    """The rows of all leaves; those shorter than the longest along the dimension `grows` end in zeros there."""
    if grows is not None:
        longest = max(leaf.shape[grows] for leaf in leaves)
        leaves = [_pad(leaf, grows, longest) for leaf in leaves]
    if len({leaf.shape[1:] for leaf in leaves}) > 1:
        shapes = ", ".join(str(tuple(leaf.shape[1:])) for leaf in leaves)
        raise StateError(f"{OTHER_MODELS}: leaves of {shapes} a row, which no `grows` allows")
    return torch.cat(list(leaves))


def _pad(leaf: Tensor, dim: int, size: int) -> Tensor:
    more = size - leaf.shape[dim]
    shape = [more if i == dim else n for i, n in enumerate(leaf.shape)]
    return torch.cat([leaf, leaf.new_zeros(shape)], dim) if more else leaf


def emptied(state: State, rows: Bool[Tensor, " b"]) -> State:
    """The state with the given rows as they are before anything was read."""

    def empty(leaf: Tensor) -> Tensor:
        return leaf.masked_fill(rows.to(leaf.device).reshape(-1, *[1] * (leaf.ndim - 1)), 0)

    return map_leaves(empty, state)


def clone(state: State) -> State:
    """A copy that shares no memory with the state."""
    return map_leaves(Tensor.clone, state)


def nbytes(state: State) -> int:
    """Bytes that the state's leaves hold, over all rows."""
    return sum(leaf.numel() * leaf.element_size() for _, leaf in leaves(state))


def rows(state: State) -> int | None:
    """The batch size, or None for a state without leaves."""
    return next((leaf.shape[0] for _, leaf in leaves(state)), None)


# ---------------------------------------------------------------- files


def fingerprint(model: nn.Module) -> str:
    """Sha256 over a model's configuration (`model.config`) and all its parameters and buffers. Of those that are not in memory
    `model.elsewhere` gives the bytes, by name and piece by piece."""
    digest = hashlib.sha256(json.dumps(getattr(model, "config", {}), sort_keys=True).encode())
    elsewhere: dict[str, Any] = getattr(model, "elsewhere", {})
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        here = None if name in elsewhere else _bytes(value.detach().cpu().contiguous()).numpy().data
        for piece in elsewhere[name]() if here is None else (here,):
            digest.update(piece)
    return digest.hexdigest()


def save(
    state: State,
    path: str | Path,
    model: nn.Module,
    note: dict[str, Any] | None = None,
    *,
    check: Callable[[], object] = lambda: None,
) -> str:
    """Write the state durably to one safetensors file that names its model. `note` is JSON-ready and comes back from `load`.

    `check` is called last, before the file takes the place of what is there; what it raises leaves that as it is. Returns the content's
    checksum. Raises StateError for a note so long that `load` would refuse the file.
    """
    tensors = {name: leaf.detach().cpu().contiguous() for name, leaf in leaves(state)}
    note_text = json.dumps(note or {})
    meta = {"format": FORMAT, "model": fingerprint(model), "note": note_text, "sha256": _checksum(tensors, note_text)}
    data = _file(tensors, meta, path)
    with durable_file(path) as temporary:
        temporary.write_bytes(data)
        sync(temporary)
        check()
    return meta["sha256"]


def _file(tensors: dict[str, Tensor], meta: dict[str, str], path: str | Path) -> bytes:
    """The bytes of a file that can be read again. Raises StateError where its header would be too long."""
    data = to_bytes(tensors, metadata=meta)
    if (size := int.from_bytes(data[:8], "little")) > LARGEST_HEADER:
        raise StateError(
            f"{path}: not written: its note is too long, and a header of {size:,} bytes is not read again (at most "
            f"{LARGEST_HEADER:,}); what the file held stays"
        )
    return data


def mark(path: str | Path) -> str | None:
    """What tells a state's file from any other, of its header alone: the checksum of its content. None where nothing is, "" for what is no
    state."""
    path = Path(path)
    if not path.exists():
        return None
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as f:
            return (f.metadata() or {}).get("sha256", "")
    except (OSError, SafetensorError, StateError):
        return ""


def is_state_file(path: str | Path) -> bool:
    """Whether a file says that it is a state, of whatever model."""
    try:
        return _read(Path(path))[1].get("format") == FORMAT
    except StateError:
        return False


def load(path: str | Path, model: nn.Module) -> tuple[State, dict[str, Any]]:
    """Read a state and its note for exactly the model that wrote it.

    Raises StateError when the file cannot be read, is damaged, or belongs to another model.
    """
    path = Path(path)
    tensors, meta, note = _checked(path)
    if meta.get("model") != fingerprint(model):
        raise StateError(f"{path}: this state belongs to another model ({meta.get('model', '?')[:12]}); load it with its own")
    template = model.init_state(1)  # type: ignore[operator]
    return _fill(template, tensors, path), note


class Header(NamedTuple):
    """What a state's file says of itself: the model's fingerprint, the note, the bytes and rows of the state, the content's checksum."""

    model: str
    note: dict[str, Any]
    nbytes: int
    rows: int | None
    sha256: str


def header(path: str | Path) -> Header:
    """Of a state's file, without its model. Raises StateError when the file cannot be read or is damaged."""
    tensors, meta, note = _checked(Path(path))
    if "model" not in meta:
        raise StateError(f"{path}: damaged: its header names no model")
    count = next((leaf.shape[0] for leaf in tensors.values() if leaf.ndim), None)
    return Header(meta["model"], note, nbytes(tuple(tensors.values())), count, meta["sha256"])


def rewrite(path: str | Path, new: str | Path, note: dict[str, Any]) -> None:
    """Write the state of a file to another one, under another note. Raises StateError as `header` does."""
    tensors, meta, _ = _checked(Path(path))
    text = json.dumps(note)
    write_durably(new, _file(tensors, {**meta, "note": text, "sha256": _checksum(tensors, text)}, new), like=path)


def _checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """The leaves, the metadata and the note of a file that is a whole state."""
    tensors, meta = _read(path)
    if meta.get("format") != FORMAT:
        raise StateError(f"{path}: not a postformer state ({FORMAT})")
    if meta.get("sha256") != _checksum(tensors, meta.get("note", "")):
        raise StateError(f"{path}: damaged: the content does not match its checksum")
    try:
        note = json.loads(meta.get("note", ""))
    except (ValueError, RecursionError) as e:
        raise StateError(f"{path}: damaged: its note is not JSON") from e
    return tensors, meta, note


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}  # noqa: SIM118 (not a dict)
    except OSError as e:
        raise StateError(f"{path}: {e.strerror or e}") from e
    except SafetensorError as e:
        raise StateError(f"{path}: not a readable safetensors file: {e}") from e


def _check_header(path: Path) -> None:
    with path.open("rb") as f:
        if int.from_bytes(f.read(8), "little") > LARGEST_HEADER:
            raise StateError(f"{path}: not a safetensors file, or damaged: its header is implausibly large")


def _bytes(t: Tensor) -> Tensor:
    """A contiguous tensor as bytes; one of a single element may have any stride."""
    return t.reshape(-1).as_strided((t.numel(),), (1,)).view(torch.uint8)


def _checksum(tensors: dict[str, Tensor], note: str) -> str:
    parts = [note]
    for name, t in sorted(tensors.items()):
        parts.append(f"{name} {t.dtype} {tuple(t.shape)} {sha256_bytes(_bytes(t).numpy().data)}")
    return sha256_bytes("\n".join(parts).encode())


def _growing(state: State, name: str = "") -> dict[str, int]:
    """The leaves that grow with the text, and the dimension along which each does."""
    if state is None or isinstance(state, Tensor):
        return {}
    found = {f"{name}.{leaf}".lstrip("."): dim for leaf, dim in getattr(state, "grows", ())}
    for key, part in zip(getattr(state, "_fields", range(len(state))), state, strict=True):
        found |= _growing(part, f"{name}.{key}".lstrip("."))
    return found


def _check_counts(wanted: dict[str, Tensor], tensors: dict[str, Tensor], growing: dict[str, int], path: Path) -> None:
    """How much was read is not negative, and not more than what a growing leaf beside it holds."""
    for name, leaf in wanted.items():
        if leaf.is_floating_point() or not tensors[name].numel():
            continue
        room = [tensors[n].shape[dim] for n, dim in growing.items() if n.rpartition(".")[0] == name.rpartition(".")[0]]
        least, most = (int(v) for v in tensors[name].aminmax())
        if least < 0 or most > min(room, default=MOST_READ):
            raise StateError(
                f"{path}: '{name}' counts {most if least >= 0 else least} tokens, which this state cannot have read"
            )


def _fill(template: State, tensors: dict[str, Tensor], path: Path) -> State:
    wanted, growing = dict(leaves(template)), _growing(template)
    if wanted.keys() != tensors.keys():
        odd = sorted(wanted.keys() ^ tensors.keys())
        raise StateError(f"{path}: its leaves differ from the model's, first at '{odd[0]}'")
    counts = {t.shape[0] if t.ndim else 0 for t in tensors.values()}
    if len(counts) > 1:
        raise StateError(f"{path}: its leaves disagree about the number of rows: {sorted(counts)}")
    for name, leaf in wanted.items():
        got = tensors[name].shape
        fixed = [i for i in range(1, leaf.ndim) if i != growing.get(name)]
        if len(got) != leaf.ndim or any(got[i] != leaf.shape[i] for i in fixed):
            raise StateError(f"{path}: '{name}' has shape {tuple(got)}, the model's has {tuple(leaf.shape)}")
        if tensors[name].is_floating_point() != leaf.is_floating_point():
            raise StateError(f"{path}: '{name}' is {tensors[name].dtype}, the model's is {leaf.dtype}")
    _check_counts(wanted, tensors, growing, path)
    order = iter(tensors[name] for name, _ in leaves(template))
    # Copies lie where torch aligns them; from a file's own addresses some matrix products give other bits.
    return map_leaves(lambda leaf: next(order).to(leaf.device).clone(), template)
