"""A text kept as passages: what retrieval searches. Passages can be deleted, and then nothing of them is left.

A passage has at most `size` tokens. With `ends="sentence"` it holds as many whole sentences as fit, with `ends="entry"` what stands up to
an empty line; where there is neither, it is cut at its size.
"""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from postformer.config import UserError
from postformer.files import sha256_bytes, write_durably
from postformer.tokens.text import Tokens

FORMAT = "postformer-passages-1"
Ends = Literal["sentence", "entry"]
SENTENCE = re.compile(rb"[.!?]+[\"')\]]*(?=\s)|(?=\n)")
ENTRY = re.compile(rb"(?=\n[ \t]*\n)")


class PassagesError(UserError):
    """Passages that cannot be read, or that there are not."""


class Passages:
    """The passages of a text under numbers that stay; what is not yet a passage, the text's end, counts as the last one."""

    def __init__(self, tokens: Tokens, size: int = 64, ends: Ends = "sentence"):
        if size < 1:
            raise ValueError(f"size: expected 1 or more tokens, got {size}")
        if ends not in ("sentence", "entry"):
            raise ValueError(f"ends: unknown {ends!r}; choose from sentence, entry")
        self.tokens, self.size, self.ends = tokens, size, ends
        self.dtype = np.uint16 if tokens.vocab <= 1 << 16 else np.uint32
        self.kept: dict[int, np.ndarray] = {}
        self.rest: list[int] = []
        self.next = 0
        self._bytes = [tokens.decode_bytes([i]) for i in range(tokens.vocab)]

    def write(self, ids: Sequence[int] | np.ndarray) -> None:
        """Go on with the text. The passages are the same for any split of it."""
        self.rest += np.asarray(ids, np.int64).tolist()
        at = 0
        while len(self.rest) - at > self.size:
            end = at + self._end(self.rest[at : at + self.size + 1])
            self.kept[self.next] = np.array(self.rest[at:end], self.dtype)
            self.next, at = self.next + 1, end
        del self.rest[:at]

    def _end(self, ids: Sequence[int]) -> int:
        """How many of the tokens make the passage that begins with them; the last one is there to be looked at only."""
        pieces = [self._bytes[i] for i in ids]
        lengths, text = list(itertools.accumulate(map(len, pieces))), b"".join(pieces)
        for pattern, pick in ((ENTRY, min), (SENTENCE, max)) if self.ends == "entry" else ((SENTENCE, max),):
            places = np.searchsorted(lengths, [mark.end() for mark in pattern.finditer(text) if mark.end()]) + 1
            if fitting := [int(place) for place in places if place <= self.size]:
                return pick(fitting)
        return self.size

    def ids(self, number: int) -> list[int]:
        """A passage's tokens."""
        if number == self.next and self.rest:
            return self.rest
        if number not in self.kept:
            raise PassagesError(f"there is no passage {number}, or no more")
        return self.kept[number].tolist()

    def text(self, number: int) -> str:
        """A passage as text."""
        return self.tokens.decode(self.ids(number))

    def numbers(self) -> list[int]:
        """Of all passages, in their order in the text."""
        return [*self.kept, *([self.next] if self.rest else [])]

    def delete(self, numbers: Iterable[int]) -> None:
        """Remove passages for good. Raises PassagesError, and removes none, where there is not each of them."""
        numbers = list(numbers)
        for number in numbers:
            self.ids(number)
        for number in numbers:
            if number == self.next:
                self.rest, self.next = [], self.next + 1
            else:
                self.kept.pop(number, None)

    @property
    def nbytes(self) -> int:
        """Bytes of all tokens that are kept."""
        return sum(ids.nbytes for ids in self.kept.values()) + len(self.rest) * np.dtype(self.dtype).itemsize

    # ---------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write one file, durably, that names the tokenizer."""
        parts = [*self.kept.values(), np.array(self.rest, self.dtype)]
        tensors = {
            "ids": np.concatenate(parts),
            "sizes": np.array([len(part) for part in parts], np.int64),
            "numbers": np.array([*self.kept, self.next], np.int64),
        }
        about = {"format": FORMAT, "tokens": self._digest(), "size": str(self.size), "ends": self.ends}
        write_durably(path, to_bytes(tensors, metadata={**about, "sha256": _checksum(tensors, about)}))

    @staticmethod
    def load(path: str | Path, tokens: Tokens) -> "Passages":
        """What was saved. Raises PassagesError for a file that is damaged or of another tokenizer."""
        tensors, about = _read(Path(path))
        given = about.pop("sha256", "")
        if about.get("format") != FORMAT:
            raise PassagesError(f"{path}: holds no passages ({FORMAT})")
        if given != _checksum(tensors, about):
            raise PassagesError(f"{path}: damaged: the content does not match its checksum")
        made = Passages(tokens, int(about["size"]), about["ends"])  # type: ignore[arg-type]
        if about["tokens"] != made._digest():
            raise PassagesError(f"{path}: these passages are of another tokenizer")
        *kept, rest = np.split(tensors["ids"].astype(made.dtype), np.cumsum(tensors["sizes"])[:-1])
        *numbers, made.next = tensors["numbers"].tolist()
        made.kept, made.rest = dict(zip(numbers, kept, strict=True)), rest.tolist()
        return made

    def _digest(self) -> str:
        return sha256_bytes(json.dumps([piece.hex() for piece in self._bytes]).encode())


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(path, framework="np") as f:
            return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}  # noqa: SIM118 (not a dict)
    except OSError as e:
        raise PassagesError(f"{path}: {e.strerror or ('cannot be read' if path.exists() else 'No such file')}") from e
    except SafetensorError as e:
        raise PassagesError(f"{path}: not a readable safetensors file: {e}") from e


def _checksum(tensors: dict[str, np.ndarray], about: dict[str, str]) -> str:
    parts = [f"{name} {t.dtype} {t.shape} {sha256_bytes(t.tobytes())}" for name, t in sorted(tensors.items())]
    return sha256_bytes(json.dumps([parts, sorted(about.items())]).encode())
