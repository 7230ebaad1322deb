"""Images with their classes: IDX files, NumPy archives, and folders of pictures, as batches of floats from -1 to 1."""

import dataclasses
import functools
import gzip
import hashlib
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from postformer.data.prose import data_folder
from postformer.data.sources import DataError, readable
from postformer.data.task import SPLITS
from postformer.data.text import shuffled

NAMED = {
    "digits": ("images/mnist-t10k-images-idx3-ubyte.gz", "images/mnist-t10k-labels-idx1-ubyte.gz"),
    "tiles": ("images/crawl_tiles_cc0_32.npz",),
}
"""Files of POSTFORMER_DATA by a name."""
TEST, VALID = 0.2, 0.05
"""Shares of the images, drawn once and for all; what is left is for training."""
LARGEST_FILE, MOST_PIXELS = 1 << 30, 1 << 24
"""Bytes of a file, packed and unpacked, and pixels of a picture, that are read."""
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """uint8 [n, c, h, w], the number of each image's class, and the classes' names."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: list[str]

    def values(self, numbers: Any = slice(None)) -> Float[Tensor, "n c h w"]:
        """These images, or all, from -1 to 1."""
        return torch.tensor(self.pixels[numbers]).float() / 127.5 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """A run's data. `path` is "digits" or "tiles" of POSTFORMER_DATA, an .npz file with `images` [n, h, w] or [n, h, w, c] of bytes and
    `labels`, an IDX file of images beside which its labels lie, or a folder with one folder of pictures for each class.

    `size` is (rows, columns): smaller images get a margin of the darkest value, larger ones are shrunk; without it all must have one size.
    Transparency falls on black. Of all images 20% are for tests and 5% for validation, whatever the seed, images of the same pixels in one
    part; with `most` no more of the rest are for training, the same ones each time.
    """

    path: str
    size: tuple[int, int] | None = None
    most: int | None = None
    sha256: str | None = None
    tokens: None = dataclasses.field(default=None, init=False, repr=False)
    """There is no tokenizer."""

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 1:
            raise ValueError(f"most={self.most} must be at least 1")
        if self.size is not None and (min(self.size) < 1 or self.size[0] * self.size[1] > MOST_PIXELS):
            raise ValueError(
                f"size={self.size} must be rows and columns of at least 1, and at most {MOST_PIXELS:,} pixels together"
            )

    @functools.cached_property
    def all(self) -> Labelled:
        """Raises DataError for what is missing, damaged, or of several sizes."""
        found = _read(self.path, self.size)
        return found if self.size is None else dataclasses.replace(found, pixels=_fitted(found.pixels, self.size))

    @property
    def sizes(self) -> dict[str, Any]:
        """What a model is told of the data."""
        _, channels, rows, columns = self.all.pixels.shape
        return {"channels": channels, "classes": len(self.all.classes), "size": (rows, columns)}

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return self.all.classes

    @property
    def remarks(self) -> list[str]:
        """What may not be as it was meant, in lines."""
        return [f"data.path: {self.path}: all images are of one class"] if len(set(self.all.labels.tolist())) == 1 else []

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of an image: a clip of one frame."""
        return 1, *self.all.pixels.shape[2:]

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What a saved run keeps of the data. Raises DataError for other images than the run names."""
        digest = hashlib.sha256(self.all.pixels.tobytes() + self.all.labels.astype("<i8").tobytes()).hexdigest()
        if self.sha256 not in (None, digest):
            raise DataError(f"data.path: {self.path}: other images than the run names (data.sha256={self.sha256})")
        return {"sha256": digest}

    @functools.cached_property
    def numbers(self) -> dict[str, np.ndarray]:
        """The images of each split, by number; one whose pixels are those of another is where the first of these is."""
        first: dict[bytes, int] = {}
        alike = [first.setdefault(hashlib.sha256(image.tobytes()).digest(), i) for i, image in enumerate(self.all.pixels)]
        n = len(alike)
        order = np.random.default_rng(0).permutation(n)
        test, valid = int(n * TEST), int(n * VALID)
        part = np.empty(n, np.int64)
        part[order] = np.repeat([0, 1, 2], [test, valid, n - test - valid])
        part = part[alike]
        own = [order[part[order] == i] for i in range(3)]
        return {"test": np.sort(own[0]), "valid": np.sort(own[1]), "train": np.sort(own[2][: self.most])}

    def part(self, split: str) -> Labelled:
        """The images of a split. Raises ValueError for another split."""
        if split not in SPLITS:
            raise ValueError(f"split: unknown {split!r}; choose from {', '.join(SPLITS)}")
        own = self.numbers[split]
        return Labelled(self.all.pixels[own], self.all.labels[own], self.all.classes)

    def batches(self, batch: int, seed: int, split: str = "train") -> "ImageBatches":
        """Batches of `batch` images. Raises DataError for a split without images."""
        return ImageBatches(self, batch, seed, split)


class ImageBatches:
    """The training images in a new order in each epoch; those of another split in their own order, and from the first again.

    There is no state to save: `batch(step)` depends on the images, the seed, the split and the step alone.
    """

    def __init__(self, images: Images, size: int, seed: int, split: str):
        self.part, self.size, self.seed, self.split = images.part(split), size, seed, split
        self.path, self.count = images.path, len(self.part.labels)
        if not self.count:
            raise DataError(f"data.path: {images.path}: {len(images.all.labels)} images are too few: none is left for {split}")

    def batch(self, step: int) -> dict[str, Any]:
        """`{"images": float32 [batch, c, h, w], "label": int64 [batch], "rows": names for errors}`."""
        own = [self._number(place) for place in range(step * self.size, (step + 1) * self.size)]
        labels = torch.from_numpy(self.part.labels[own]).long()
        return {
            "images": self.part.values(own),
            "label": labels,
            "rows": [f"{Path(self.path).name} {self.split} {i}" for i in own],
        }

    def _number(self, place: int) -> int:
        epoch, at = divmod(place, self.count)
        return shuffled(at, self.count, self.seed, epoch) if self.split == "train" else at


# ---------------------------------------------------------------- files


def _read(path: str, size: tuple[int, int] | None) -> Labelled:
    if path in NAMED and not Path(path).exists():
        files = [data_folder(name) for name in NAMED[path]]
        if None in files:
            raise DataError(
                f"data.path: {path}: set POSTFORMER_DATA to a folder with {NAMED[path][0]} in it, or give a file or folder"
            )
        found = files[0]
    else:
        found = Path(path)
    assert found is not None
    if found.is_dir():
        return _folder(found, size)
    if not found.is_file():
        raise DataError(
            f"data.path: {path}: no such file or folder; give {', '.join(NAMED)}, an .npz or IDX file, or a folder of classes"
        )
    if found.stat().st_size > LARGEST_FILE:
        raise DataError(f"{found}: {found.stat().st_size:,} bytes are more than the {LARGEST_FILE:,} that are read")
    with readable(found):
        return _archive(found) if found.suffix == ".npz" else _idx_pair(found)


def _check_unpacked(path: Path, size: int) -> None:
    if size > LARGEST_FILE:
        raise DataError(f"{path}: unpacked it has more than the {LARGEST_FILE:,} bytes that are read")


def _archive(path: Path) -> Labelled:
    try:
        with zipfile.ZipFile(path) as file:  # no more of an array is unpacked than the archive says here
            _check_unpacked(path, sum(entry.file_size for entry in file.infolist()))
        with np.load(path, allow_pickle=False) as file:
            names = [name for name in ("images", "labels") if name not in file]
            if names:
                raise DataError(f"{path}: it holds no array '{names[0]}'; it has {', '.join(file)}")
            pixels, labels = file["images"], file["labels"].astype(np.int64)
            classes = [str(name) for name in file["classes"]] if "classes" in file else []
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, MemoryError) as e:
        raise DataError(f"{path}: not a NumPy archive of plain arrays: {e}") from e
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise DataError(f"{path}: images must be bytes [n, h, w] or [n, h, w, c]; they are {pixels.dtype} {pixels.shape}")
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    return _checked(path, opaque(pixels).transpose(0, 3, 1, 2), labels, classes)


def _idx_pair(path: Path) -> Labelled:
    pixels = _idx(path, 3)
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if beside == path or not beside.is_file():
        raise DataError(
            f"{path}: no labels beside it, {beside.name if beside != path else 'named like it with labels for images'}"
        )
    return _checked(path, pixels[:, None], _idx(beside, 1).astype(np.int64), [])


def _idx(path: Path, axes: int) -> np.ndarray:
    """An IDX file of bytes (its format: yann.lecun.com/exdb/mnist), perhaps compressed."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        _check_unpacked(path, len(data))
        zero, kind, found = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    except (struct.error, EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{path}: not an IDX file: {e}; give one, an .npz file, or a folder of classes") from e
    if (zero, kind, found) != (0, 8, axes):
        raise DataError(f"{path}: not an IDX file of bytes with {axes} axes; give one, an .npz file, or a folder of classes")
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    if len(values) != np.prod(shape, dtype=np.int64):
        raise DataError(f"{path}: it is cut short: {len(values):,} bytes, where its head says {shape}")
    return values.reshape(shape)


def _folder(path: Path, size: tuple[int, int] | None) -> Labelled:
    classes = sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    files = [
        (i, file)
        for i, name in enumerate(classes)
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in PICTURES
    ]
    if not files:
        raise DataError(f"{path}: expected one folder for each class with pictures in it ({', '.join(PICTURES)})")
    found: list[np.ndarray] = []
    for _, file in files:
        pixels = opaque(read_picture(file)[None])
        found.append(pixels.transpose(0, 3, 1, 2) if size is None else _fitted(pixels.transpose(0, 3, 1, 2), size))
    if len(shapes := {pixels.shape for pixels in found}) > 1:
        raise DataError(
            f"{path}: pictures of several sizes, such as {sorted(shapes)[0][2:]} and {sorted(shapes)[1][2:]}; give data.size"
        )
    return _checked(path, np.concatenate(found), np.array([i for i, _ in files]), classes)


def read_picture(path: Path) -> np.ndarray:
    """A picture as uint8 [h, w, 4], red, green, blue and opacity. Raises DataError, before decoding for one of more than MOST_PIXELS."""
    try:
        from PIL import Image
    except ImportError as e:
        raise DataError("pillow is not installed: pip install 'postformer[pictures]'") from e
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise DataError(
                    f"{path}: {picture.width} x {picture.height} pixels are more than the {MOST_PIXELS:,} that are read"
                )
            return np.asarray(picture.convert("RGBA"))
    except Image.DecompressionBombError as e:
        raise DataError(f"{path}: it has more than the {MOST_PIXELS:,} pixels that are read") from e
    except (OSError, ValueError, SyntaxError) as e:
        raise DataError(f"{path}: not a picture that can be read: {e}") from e


def opaque(pixels: np.ndarray) -> np.ndarray:
    """[n, h, w, c]: two and four channels on black, one and three as they are."""
    if pixels.shape[3] not in (2, 4):
        return pixels
    alpha = pixels[..., -1:].astype(np.uint16)
    return ((pixels[..., :-1].astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)


def _checked(path: Path, pixels: np.ndarray, labels: np.ndarray, classes: list[str]) -> Labelled:
    if len(pixels) != len(labels) or labels.ndim != 1 or not len(labels):
        raise DataError(f"{path}: {len(pixels):,} images and {labels.size:,} labels; expected as many, and at least one")
    classes = classes or [str(i) for i in range(int(labels.max()) + 1)]
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{path}: a label is {labels.max() if labels.min() >= 0 else labels.min()}, and there are {len(classes)} classes"
        )
    return Labelled(np.ascontiguousarray(pixels), labels, classes)


def _fitted(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[n, c, h, w] at (rows, columns): shrunk by area where larger, and in the middle of a dark margin where smaller."""
    n, c, h, w = pixels.shape
    scale = min(size[0] / h, size[1] / w, 1.0)
    if scale < 1:
        at = (max(round(h * scale), 1), max(round(w * scale), 1))
        wide = torch.from_numpy(np.ascontiguousarray(pixels)).float()
        shrunk = torch.nn.functional.interpolate(wide, at, mode="bilinear", antialias=True)
        pixels = shrunk.round().clamp(0, 255).byte().numpy()
        h, w = at
    out = np.zeros((n, c, *size), np.uint8)
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    out[:, :, top : top + h, left : left + w] = pixels
    return out
