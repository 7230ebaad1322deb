"""Videos and pictures of files as clips of floats from -1 to 1: of one size, or each of its own shape and length.

Files are decoded when they are first asked for, at the size of the clips, into a file without a name that lies on the disk, so that
memory does not grow with them.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from postformer.data.captions import LONGEST, VOCAB, beside, encoded
from postformer.data.frames import Frames
from postformer.data.images import PICTURES, opaque, read_picture
from postformer.data.sources import DataError
from postformer.data.task import SPLITS
from postformer.data.text import shuffled
from postformer.data.video import decoded, from_pixels

FILES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif", ".m4v")
TEST, VALID = 0.2, 0.05
"""Shares of the files, drawn once and for all, or of each file's frames where there are fewer files than FEW."""
FEW = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Videos:
    """A run's data. `path` is a video, a picture, or a folder of them, which is searched through; where all lie in folders of it those are
    classes. `frames` of a clip, of which `every` how many-th of a video's is one.

    `shape` "crop" gives all clips the `size` (rows, columns), from the middle of each frame; a picture stands still. "own" keeps each
    file's shape, at about as many pixels as `size` has and no more, and what is shorter stays so: clips of one batch are of several
    sizes, each a multiple of `unit` = (frames, rows, columns), and a picture is a clip of one unit.

    A picture or a video of one frame stands still. With `text` above 0 a model is told the caption of each, NAME.txt beside NAME.mp4, of
    at most so many bytes, and no class. Of at least FEW files 20% are for tests and 5%, or one, for validation, whatever the seed; of
    fewer the last 20% of each one's frames, and the 5% before those; a picture is in all three then.
    """

    path: str
    frames: int = 16
    size: tuple[int, int] = (32, 32)
    every: int = 1
    shape: Literal["crop", "own"] = "crop"
    unit: tuple[int, int, int] = (2, 8, 8)
    text: int = 0
    sha256: str | None = None
    tokens: None = dataclasses.field(default=None, init=False, repr=False)
    """There is no tokenizer."""

    def __post_init__(self) -> None:
        if min(self.frames, self.every, *self.size, *self.unit) < 1:
            raise ValueError(
                f"frames={self.frames}, every={self.every}, size={self.size} and unit={self.unit} must be at least 1"
            )
        if self.shape not in ("crop", "own"):
            raise ValueError(f"shape={self.shape!r} is not a choice; choose from crop, own")
        if not 0 <= self.text <= LONGEST:
            raise ValueError(f"text={self.text} must be 0 to {LONGEST:,}")
        if self.shape == "own" and (self.frames % self.unit[0] or math.prod(self.size) < math.prod(self.unit[1:])):
            raise ValueError(f"frames={self.frames} must be a multiple of unit={self.unit}, and size={self.size} hold one")

    @functools.cached_property
    def files(self) -> list[Path]:
        """In the order of their names. Raises DataError where there are none."""
        root = Path(self.path)
        if not root.exists():
            raise DataError(f"data.path: {self.path}: no such file or folder; give a video, a picture, or a folder of them")
        found = [root] if root.is_file() else sorted(root.rglob("*"))
        found = [file for file in found if file.suffix.lower() in (*FILES, *PICTURES) and file.is_file()]
        if not found:
            raise DataError(
                f"data.path: {self.path}: holds no file that ends with one of {', '.join(dict.fromkeys((*FILES, *PICTURES)))}"
            )
        return found

    @functools.cached_property
    def classes(self) -> list[str]:
        """The names of the classes; empty where a model is told none."""
        root = Path(self.path)
        if self.text or root.is_file() or any(file.parent == root for file in self.files):
            return []
        return sorted({file.relative_to(root).parts[0] for file in self.files})

    @property
    def caption_bytes(self) -> int:
        """How long a caption may be; 0 where a model is told none."""
        return self.text

    @property
    def sizes(self) -> dict[str, Any]:
        """What a model is told of the data."""
        told = {"vocab": VOCAB} if self.text else {"classes": len(self.classes)} if self.classes else {}
        return {"channels": 3, "size": self.size, **told}

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a clip, of "own" shapes those of the largest square or oblong."""
        return self.frames, *self.size

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What a saved run keeps of the data: the digest of its files' names. Raises DataError for others than the run names."""
        root = Path(self.path)
        listed = "\n".join("" if file == root else str(file.relative_to(root)) for file in self.files)
        digest = hashlib.sha256(listed.encode()).hexdigest()
        if self.sha256 not in (None, digest):
            raise DataError(f"data.path: {self.path}: other files than the run names (data.sha256={self.sha256})")
        return {"sha256": digest}

    @functools.cached_property
    def numbers(self) -> dict[str, list[int]]:
        """The files of each split, by number: all of them in each where they are few."""
        n = len(self.files)
        if n < FEW:
            return {key: list(range(n)) for key in SPLITS}
        order, test, valid = np.random.default_rng(0).permutation(n), int(n * TEST), max(int(n * VALID), 1)
        parts = np.split(order, [test, test + valid])
        return {split: sorted(part.tolist()) for split, part in zip(("test", "valid", "train"), parts, strict=True)}

    def batches(self, batch: int, seed: int, split: str = "train") -> "VideoBatches":
        """Batches of `batch` clips. Raises ValueError for another split."""
        if split not in SPLITS:
            raise ValueError(f"split: unknown {split!r}; choose from {', '.join(SPLITS)}")
        self._check_captions()
        return VideoBatches(self, batch, seed, split)

    @functools.cached_property
    def _captions(self) -> list[str]:
        return [beside(file) for file in self.files]

    def _check_captions(self) -> None:
        """Before anything is learned. Raises DataError for one that is too long, and where there are none."""
        if not self.text:
            return
        if not any(self._captions):
            raise DataError(f"data.text: no file has a caption beside it, such as {self.files[0].with_suffix('.txt')}")
        for file, caption in zip(self.files, self._captions, strict=True):
            if (size := len(caption.encode())) > self.text:
                raise DataError(
                    f"{file.with_suffix('.txt')}: a caption of {size} bytes, and data.text is {self.text}; make it larger"
                )

    @property
    def remarks(self) -> list[str]:
        """What may not be as it was meant, in lines."""
        root, name = Path(self.path), f"data.path: {self.path}"
        inside = [file for file in self.files if file.parent != root] if root.is_dir() else []
        lines = []
        if self.text and (without := [file.name for file in self.files if not beside(file)]):
            lines.append(f"{name}: {len(without)} of {len(self.files)} files have no caption, such as {without[0]}")
        if not self.text and inside and len(inside) < len(self.files):
            loose = next(file.name for file in self.files if file.parent == root)
            lines.append(f"{name}: {loose} lies in no folder of it, so folders are not told as classes")
        if len(self.classes) == 1:
            lines.append(f"{name}: all files are of one class, {self.classes[0]}")
        return lines

    @functools.cached_property
    def _kept(self) -> Frames:
        return Frames()

    def clip(self, number: int, split: str, draw: float) -> Tensor:
        """float32 [3, f, h, w] of a file's part that is of a split; `draw`, from 0 to 1, says where it begins. Raises DataError."""
        kept, file = self._kept, self.files[number]
        count = kept.count(number, file, lambda: _decoded(file, self))
        if count == 1:
            still = kept.read(number, 0, 1).repeat(self.unit[0] if self.shape == "own" else self.frames, 0)
            return torch.from_numpy(from_pixels(still))
        begin, end = 0, count
        if len(self.files) < FEW:
            ends = [0, *(round(count * share) for share in (1 - TEST - VALID, 1 - TEST)), count]
            part = ("train", "valid", "test").index(split)
            begin, end = ends[part : part + 2]
        frames = self.frames
        if self.shape == "own":
            frames = min(frames, (end - begin) // self.unit[0] * self.unit[0])
        if not 0 < frames <= end - begin:
            raise DataError(
                f"{file}: it has {end - begin} frames for {split}, where a clip has {self.frames}: set data.frames lower, data.every to 1, "
                "or move it away"
            )
        first = begin + min(int(draw * (end - begin - frames + 1)), end - begin - frames)
        return torch.from_numpy(from_pixels(kept.read(number, first, frames)))

    def told(self, numbers: list[int]) -> dict[str, Tensor]:
        """The captions or classes of files."""
        if self.text:
            return {"text": torch.stack([encoded(self._captions[i], self.text) for i in numbers])}
        if self.classes:
            root = Path(self.path)
            return {"label": torch.tensor([self.classes.index(self.files[i].relative_to(root).parts[0]) for i in numbers])}
        return {}


@dataclasses.dataclass(frozen=True)
class VideoBatches:
    """Each file once in an epoch, of training in a new order and from a place of its own; of another split in their own order.

    There is no state to save: `batch(step)` depends on the files, the seed, the split and the step alone.
    """

    videos: Videos
    size: int
    seed: int
    split: str

    def batch(self, step: int) -> dict[str, Any]:
        """`{"clips": float32 [batch, 3, frames, rows, columns], "rows": names for errors}`, of own shapes a list of clips; with it "label"
        int64 [batch] or "text" int64 [batch, text]. Raises DataError."""
        own = [self._drawn(place) for place in range(step * self.size, (step + 1) * self.size)]
        clips: Any = [self.videos.clip(number, self.split, draw) for number, draw in own]
        numbers = [number for number, _ in own]
        rows = [f"{self.videos.files[number].name} {self.split}" for number in numbers]
        clips = torch.stack(clips) if self.videos.shape == "crop" else clips
        return {"clips": clips, "rows": rows, **self.videos.told(numbers)}

    def _drawn(self, place: int) -> tuple[int, float]:
        """The number of a file, and where its clip begins."""
        files = self.videos.numbers[self.split]
        epoch, at = divmod(place, len(files))
        if self.split != "train":
            return files[at], epoch * 0.618 % 1.0
        at = shuffled(at, len(files), self.seed, epoch)
        return files[at], float(np.random.default_rng([self.seed, epoch, at]).uniform())


def _decoded(file: Path, videos: Videos) -> Iterator[np.ndarray]:
    """Frames at the size of the clips. Raises DataError."""
    if file.suffix.lower() in PICTURES:
        yield _fitted(opaque(read_picture(file)[None])[0], videos)
        return
    for i, frame in enumerate(decoded(file, lambda rows, columns: scaled((rows, columns), videos))):
        if i % videos.every == 0:
            yield _cropped(frame, videos)


def scaled(found: tuple[int, int], videos: Videos) -> tuple[int, int]:
    """The rows and columns to which a frame is brought: those that cover a clip's, or of its own shape the unit's nearest multiples."""
    if videos.shape == "crop":
        by = max(want / has for want, has in zip(videos.size, found, strict=True))
        return max(round(found[0] * by), videos.size[0]), max(round(found[1] * by), videos.size[1])
    most, (_, *unit) = math.prod(videos.size), videos.unit
    by = min(math.sqrt(most / math.prod(found)), 1.0)
    rows, columns = (max(int(has * by) // of, 1) * of for has, of in zip(found, unit, strict=True))
    return min(rows, most // columns // unit[0] * unit[0] or unit[0]), columns


def _cropped(frame: np.ndarray, videos: Videos) -> np.ndarray:
    if videos.shape == "own":
        return frame
    top, left = ((has - want) // 2 for has, want in zip(frame.shape[:2], videos.size, strict=True))
    return frame[top : top + videos.size[0], left : left + videos.size[1]]


def _fitted(picture: np.ndarray, videos: Videos) -> np.ndarray:
    from PIL import Image

    rows, columns = scaled((picture.shape[0], picture.shape[1]), videos)
    return _cropped(np.asarray(Image.fromarray(picture).resize((columns, rows), Image.Resampling.BOX)), videos)
