"""What a model has read, as a value that continues and as a file that names its model.

A memory holds the state, the newest token (which the state has not read yet), and a record of the texts that were read: of each how many
bytes, and their sha256. Reading therefore goes on where it stopped, reads of a text that has grown only what is new, and reads
nothing twice.
"""

import dataclasses
import datetime
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from postformer import state as states
from postformer.config import ConfigError, UserError, parse, plain
from postformer.models.language import LanguageModel
from postformer.tokens.text import Tokens

CHUNK = 1024
"""Tokens that are read at once; a memory is saved between two chunks."""
BLOCK = 1 << 16
"""Bytes that are taken from a file at once."""


class MemoryFileError(UserError):
    """A memory's file, or a text for it, that cannot be used as asked."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A text that was read: its first `size` bytes, whose hash is `sha256`.

    Of the last `back` of them, which are encoded together, only `skip` tokens were read.
    """

    name: str
    size: int
    sha256: str
    back: int = 0
    skip: int = 0


@dataclasses.dataclass(frozen=True)
class Note:
    """What a memory's file says of what was read."""

    tokens: int = 0
    sources: list[Source] = dataclasses.field(default_factory=list)
    parent: str | None = None
    written: str | None = None


def note_of(found: states.Header, path: str | Path) -> Note:
    """Of a file's header. Raises StateError for a state that is saved with another note."""
    names = {field.name for field in dataclasses.fields(Note)}
    try:
        return parse(Note, {name: value for name, value in found.note.items() if name in names})
    except (ConfigError, AttributeError) as e:
        raise states.StateError(f"{path}: holds a state, but its note is not that of a memory") from e


@dataclasses.dataclass
class Memory:
    """All that continues a text: the state, the newest token (which the state has not read; None where nothing was), the tokens that
    occurred, and the random generator's state. `tokens` counts what was read and written, `parent` names the file that its own was
    forked from."""

    state: Any
    last: int | None
    occurred: set[int] = dataclasses.field(default_factory=set)
    generator: bytes | None = None
    tokens: int = 0
    sources: list[Source] = dataclasses.field(default_factory=list)
    parent: str | None = None

    @staticmethod
    def fresh(model: LanguageModel, begin: bool = True) -> "Memory":
        """Nothing read. With `begin` a document begins, as in `generate`: its first token follows the end token."""
        return Memory(model.init_state(1), model.tokens.end if begin and model.tokens else None)

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return states.nbytes(self.state)

    def fork(self) -> "Memory":
        """A copy that goes its own way."""
        return dataclasses.replace(
            self, state=states.clone(self.state), occurred=set(self.occurred), sources=list(self.sources)
        )

    @torch.inference_mode()
    def read(self, model: LanguageModel, ids: Sequence[int]) -> None:
        """Go on with these tokens."""
        whole = torch.tensor([[*([] if self.last is None else [self.last]), *ids]], device=model.embed.weight.device)
        for piece in whole[:, :-1].split(CHUNK, 1):
            if piece.shape[1]:
                _, self.state = model.hidden(piece, self.state)
        if len(ids):
            self.last, self.tokens = int(ids[-1]), self.tokens + len(ids)
            self.occurred |= set(ids)

    def save(self, path: str | Path, model: LanguageModel) -> None:
        """Write one file that names its model, durably: whole or not at all. Raises MemoryFileError for a state that is not finite, and
        leaves the file as it was."""
        if not all(bool(leaf.isfinite().all()) for _, leaf in states.leaves(self.state)):
            raise MemoryFileError(
                f"{path}: not written: after {self.tokens:,} tokens the state is not finite, the model's memory has diverged; "
                "what the file held stays, and its snapshots"
            )
        note = {
            "last": self.last,
            "occurred": sorted(self.occurred),
            "generator": None if self.generator is None else self.generator.hex(),
            "tokens": self.tokens,
            "sources": plain(self.sources),
            "parent": self.parent,
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        states.save(self.state, path, model, note)

    @staticmethod
    def load(path: str | Path, model: LanguageModel) -> "Memory":
        """Read the file. Raises StateError when it is damaged, belongs to another model, or holds no text to continue."""
        state, note = states.load(path, model)
        try:
            ids = [note["last"], *note["occurred"]]
            generator = None if note["generator"] is None else bytes.fromhex(note["generator"])
            torch_generator(0, generator)
            told = parse(Note, {name: note[name] for name in ("tokens", "sources", "parent") if name in note})
        except (KeyError, TypeError, ValueError, RuntimeError, ConfigError):
            ids, generator, told = [], None, Note()
        valid = all(isinstance(i, int) and 0 <= i < model.vocab for i in ids)
        if not ids or not valid or states.rows(state) != 1:
            raise states.StateError(f"{path}: holds a state, but not the one text that `generate` continues")
        return Memory(state, ids[0], set(ids[1:]), generator, told.tokens, told.sources, told.parent)


def torch_generator(seed: int, state: bytes | None) -> torch.Generator:
    """A generator in a saved state, or begun from the seed."""
    generator = torch.Generator().manual_seed(seed)
    return generator if state is None else generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


# ---------------------------------------------------------------- reading files


def read_file(
    model: LanguageModel,
    memory: Memory,
    path: str | Path,
    *,
    again: bool = False,
    after_chunk: Callable[[int], bool] = lambda done: False,
) -> bool:
    """Read what is new in a text file, in memory that does not grow with it. Returns whether its end was reached.

    What a file begins with and the memory has read is passed over, unless `again`. `after_chunk` is called with the bytes that are done
    whenever the memory may be saved; when it returns True, reading stops there and the same call goes on from there later.
    Raises MemoryFileError for a text that has changed where it was read.
    """
    tokens = model.tokens
    if tokens is None:
        raise MemoryFileError("this model was saved without a tokenizer; it cannot read text")
    path = Path(path)
    with path.open("rb") as file:
        number = None if again else _known(memory.sources, file, path)
        source = Source(str(path), 0, "") if number is None else dataclasses.replace(memory.sources[number], name=str(path))
        if number is None or memory.sources[number].name != str(path):  # another file begins with it: both stay known
            number = len(memory.sources)
        digest, size, skip = hashlib.sha256(), source.size, source.skip
        file.seek(0)
        _feed(digest, file, size)
        for raw, ids, fresh in _pieces(tokens, file, source):
            if fresh:
                digest.update(raw)
                size += len(raw)
            for at in range(skip, len(ids), CHUNK):
                memory.read(model, ids[at : at + CHUNK])
                done = min(at + CHUNK, len(ids))
                left = {} if done == len(ids) else {"back": len(raw), "skip": done}
                memory.sources[number:] = [Source(source.name, size, digest.hexdigest(), **left), *memory.sources[number + 1 :]]
                if after_chunk(size - len(raw) * bool(left)):
                    return False
            skip = 0
    return True


def _pieces(tokens: Tokens, file: BinaryIO, source: Source) -> Iterator[tuple[bytes, list[int], bool]]:
    """The bytes and ids of each piece, and whether the record has yet to count it: the one that was left half read comes first."""
    file.seek(source.size - source.back)
    if source.back:
        raw = file.read(source.back)
        yield raw, tokens.encode(raw), False
    yield from ((raw, ids, True) for raw, ids in tokens.stream(iter(partial(file.read, BLOCK), b"")))


def _feed(digest: Any, file: BinaryIO, size: int) -> int:
    """Take the file's next `size` bytes into a digest; returns how many there were."""
    left = size
    while left and (block := file.read(min(BLOCK, left))):
        digest.update(block)
        left -= len(block)
    return size - left


def _known(sources: Sequence[Source], file: BinaryIO, path: Path) -> int | None:
    """The number of the longest text in the record with which the file begins, of several the one of that name."""
    digest, at, found = hashlib.sha256(), 0, None
    for number in sorted(range(len(sources)), key=lambda i: (sources[i].size, sources[i].name == str(path))):
        at += _feed(digest, file, sources[number].size - at)
        if at == sources[number].size and digest.hexdigest() == sources[number].sha256:
            found = number
    known = -1 if found is None else sources[found].size
    if any(source.name == str(path) and source.size > known for source in sources):
        raise MemoryFileError(
            f"{path}: has changed where it was read, and a memory cannot unread; roll back to a snapshot, or --again reads it all"
        )
    return found
