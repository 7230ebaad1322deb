"""What a model has read, as a value that continues and as a file that names its model.

A memory holds the state, the newest token (which the state has not read yet), and a record of the texts that were read: of each where it
lay, how many bytes, and their sha256. Reading therefore goes on where it stopped, and reads of a text that has grown only what is new.
"""

import dataclasses
import datetime
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from postformer import state as states
from postformer.config import ConfigError, UserError, parse, plain
from postformer.files import sha256_file
from postformer.models.language import LanguageModel
from postformer.tokens.text import FILE, Tokens

CHUNK = 1024
"""Tokens that are read at once; a memory is saved between two chunks."""
BLOCK = 1 << 16
"""Bytes that are taken from a file at once."""


class MemoryFileError(UserError):
    """A memory's file, or a text for it, that cannot be used as asked."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A text that was read: its first `size` bytes, whose hash is `sha256`. It is called `name` and lay at `path`, which older files lack.

    Of the last `back` of them, which are encoded together, only `skip` tokens were read. With `half` its reading stopped before its end.
    """

    name: str
    size: int
    sha256: str
    back: int = 0
    skip: int = 0
    path: str = ""
    half: bool = False

    def of(self, path: str | Path) -> bool:
        """Whether it is the text of that file."""
        place = str(Path(path).resolve())
        return self.path == place if self.path else self.name in (str(path), place)

    @property
    def goes_on(self) -> bool:
        """Whether it is half read."""
        return self.half or self.back > 0


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
    forked from. `held` says what its files held when they were last read or written: `save` writes over nothing else there."""

    state: Any
    last: int | None
    occurred: set[int] = dataclasses.field(default_factory=set)
    generator: bytes | None = None
    tokens: int = 0
    sources: list[Source] = dataclasses.field(default_factory=list)
    parent: str | None = None
    held: dict[str, str | None] = dataclasses.field(default_factory=dict, repr=False, compare=False)

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
            self,
            state=states.clone(self.state),
            occurred=set(self.occurred),
            sources=list(self.sources),
            held=dict(self.held),
        )

    def expect(self, path: str | Path) -> None:
        """From now on `save` writes over nothing there but what is there now, and what it writes itself."""
        self.held[str(Path(path).resolve())] = states.mark(path)

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
        """Write one file that names its model, durably: whole or not at all. Raises MemoryFileError for a state that is not finite, and for
        a file that was loaded and has been changed by others since, and leaves the file as it was."""
        if not all(bool(leaf.isfinite().all()) for _, leaf in states.leaves(self.state)):
            raise MemoryFileError(
                f"{path}: not written: after {self.tokens:,} tokens the state is not finite, the model's memory has diverged; "
                "what the file held stays, and its snapshots"
            )
        note = {
            "last": self.last,
            "occurred": sorted(self.occurred),
            "generator": None if self.generator is None else self.generator.hex(),
            "tokenizer": _tokenizer(model),
            "tokens": self.tokens,
            "sources": plain(self.sources),
            "parent": self.parent,
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        self.held[str(Path(path).resolve())] = states.save(self.state, path, model, note, check=lambda: self._check(path))

    def _check(self, path: str | Path) -> None:
        """Raise MemoryFileError where another has written the file that `save` would write over."""
        place, now = str(Path(path).resolve()), states.mark(path)
        if place in self.held and now not in (None, self.held[place]):
            raise MemoryFileError(
                f"{path}: not written: it was changed by another command meanwhile, and what it holds now stays; "
                "the same command again goes on from that"
            )

    @staticmethod
    def load(path: str | Path, model: LanguageModel) -> "Memory":
        """Read the file. Raises StateError when it is damaged, belongs to another model or tokenizer, or holds no text to continue."""
        before = states.mark(path)
        state, note = states.load(path, model)
        if (made := note.get("tokenizer") if isinstance(note, dict) else None) and made != _tokenizer(model):
            raise states.StateError(
                f"{path}: was read with another tokenizer ({str(made)[:12]}) than this model has; load it with its own"
            )
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
        held = {str(Path(path).resolve()): before}
        return Memory(state, ids[0], set(ids[1:]), generator, told.tokens, told.sources, told.parent, held)


def _tokenizer(model: LanguageModel) -> str | None:
    """Sha256 of the file that the model's tokenizer saves."""
    if model.tokens is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        model.tokens.save(folder)
        return sha256_file(Path(folder) / FILE)


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

    What the memory has read of this file is passed over, and of one that begins with the text which was read last; with `again`, only what
    an interrupted reading of it has read. `after_chunk` is called with the bytes that are done whenever the memory may be saved; when it
    returns True, reading stops there and the same call goes on from there later. Raises MemoryFileError for a text that has changed where
    it was read.
    """
    tokens = model.tokens
    if tokens is None:
        raise MemoryFileError("this model was saved without a tokenizer; it cannot read text")
    path, sources = Path(path), memory.sources
    if again:
        begin_again(memory, [path])
    with path.open("rb") as file:
        number = _known(sources, file, path)
        source = Source(str(path), 0, "") if number is None else sources[number]
        if number is not None and not source.of(path):  # another file begins with it: both stay known
            number = None
        source = dataclasses.replace(source, name=str(path), path=str(path.resolve()))
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
                back, done_of = (0, 0) if done == len(ids) else (len(raw), done)
                half = back > 0 or size < os.fstat(file.fileno()).st_size
                source = Source(source.name, size, digest.hexdigest(), back, done_of, source.path, half)
                number = _record(sources, number, source)
                if after_chunk(size - back):
                    return False
            skip = 0
    if number is not None and sources[number].half:  # it ends here after all
        sources[number : number + 1] = [dataclasses.replace(source, half=False)] if source.size else []
    return True


def begin_again(memory: Memory, paths: Sequence[Path]) -> list[Path]:
    """Have these texts read from their beginning, whatever was read before, or go on with those of them that are half read: returns those
    to read. The record holds what is still to be read, so that an interrupted reading of many goes on."""
    if going := [path for path in paths if half_read(memory, path)]:
        return going
    sources, none = memory.sources, hashlib.sha256().hexdigest()
    for number, source in enumerate(sources):
        if source.goes_on and any(source.of(path) for path in paths):  # it has changed and is never finished
            sources[number] = dataclasses.replace(source, back=0, skip=0, half=False)
    sources += [Source(str(path), 0, none, path=str(Path(path).resolve()), half=True) for path in paths]
    return list(paths)


def half_read(memory: Memory, path: str | Path) -> bool:
    """Whether the file's reading was interrupted and can go on."""
    source = next((source for source in memory.sources if source.goes_on and source.of(path)), None)
    if source is None:
        return False
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        return _feed(digest, file, source.size) == source.size and digest.hexdigest() == source.sha256


def _record(sources: list[Source], number: int | None, source: Source) -> int:
    """Put what was read last at the record's end, in place of the entry of this number; returns its new number."""
    if number is not None:
        del sources[number]
    sources.append(source)
    return len(sources) - 1


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
    """The number of the text in the record with which the file goes on: its own that is half read, else the longest with which it begins of
    its own and the one that was read last."""
    own = [number for number, source in enumerate(sources) if source.of(path)]
    half = [number for number in own if sources[number].goes_on][:1]
    last = [number for number, source in enumerate(sources) if source.size][-1:]
    digest, at, found = hashlib.sha256(), 0, list[int]()
    for number in sorted(half or {*own, *last}, key=lambda i: (sources[i].size, i in own, i)):
        at += _feed(digest, file, sources[number].size - at)
        if at == sources[number].size and digest.hexdigest() == sources[number].sha256:
            found.append(number)
    if own and (half or own)[-1] not in found:
        raise MemoryFileError(
            f"{path}: has changed where it was read, and a memory cannot unread; roll back to a snapshot, or --again reads it all"
        )
    return found[-1] if found else None
