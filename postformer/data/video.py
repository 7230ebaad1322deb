"""Video files in and out, through PyAV, and contact sheets.

A file from elsewhere is decoded frame by frame under a cap on frames and pixels, which is checked before memory is taken for it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from postformer.data.sources import DataError
from postformer.files import durable_file

MOST_FRAMES, MOST_PIXELS, MOST_READ = 4096, 1 << 23, 1 << 30
MOST_RATE = 240
LOSSY = {"crf": "17", "preset": "medium"}
"""Of x264: what remains of an error is a few of 255 steps."""


Size = tuple[int, int] | Callable[[int, int], tuple[int, int]]
"""Rows and columns, or what tells from those of a picture the ones that it is brought to."""


def _av() -> Any:
    try:
        import av
    except ImportError as e:
        raise DataError("PyAV is not installed: pip install 'postformer[pictures]'") from e
    return av


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file and its first stream of pictures. Raises DataError for what is no video, and for pictures larger than MOST_PIXELS."""
    av = _av()
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with av.open(str(path)) as file:
            if not file.streams.video:
                raise DataError(f"{path}: it holds no video")
            stream = file.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if not 0 < width * height <= MOST_PIXELS:
                raise DataError(f"{path}: {width} x {height} pixels are more than the {MOST_PIXELS:,} that are read")
            yield file, stream
    except (av.FFmpegError, ValueError, OSError) as e:
        raise DataError(f"{path}: not a video that can be read: {e}") from e


def decoded(path: str | Path, size: Callable[[int, int], tuple[int, int]] | None = None) -> Iterator[np.ndarray]:
    """The frames of a video, uint8 [h, w, 3] each, one at a time; `size` tells from a frame's rows and columns those that it is brought
    to. Raises DataError for what is no video, and for pictures larger than MOST_PIXELS."""
    none = True
    with _opened(Path(path)) as (file, stream):
        for frame in file.decode(stream):
            if size is not None:
                rows, columns = size(frame.height, frame.width)
                frame = frame.reformat(width=columns, height=rows, interpolation="AREA")
            yield frame.to_ndarray(format="rgb24")
            none = False
    if none:
        raise DataError(f"{path}: not one frame of it can be decoded")


def frame_rate(path: str | Path) -> float:
    """Frames a second; 0 where the file does not say. Raises DataError as `decoded` does."""
    with _opened(Path(path)) as (_, stream):
        return float(stream.average_rate or 0)


def _frames_told(path: str | Path) -> int:
    """How many frames the file says that it has; 0 where it does not say."""
    with _opened(Path(path)) as (_, stream):
        return stream.frames


def read_video(path: str | Path, *, frames: int | None = None, size: Size | None = None) -> tuple[np.ndarray, float]:
    """uint8 [f, h, w, 3] of all frames, or of the first `frames`, at `size` (rows, columns) if it is given or told of them, and frames a
    second.

    Raises DataError as `decoded` does, where all together have more than MOST_READ pixels, and where all are more than MOST_FRAMES.
    """
    if frames is not None and not 1 <= frames <= MOST_FRAMES:
        raise DataError(f"{path}: frames={frames} must be 1 to {MOST_FRAMES:,}")
    found: list[np.ndarray] = []
    for frame in itertools.islice(decoded(path, (lambda rows, columns: size) if isinstance(size, tuple) else size), frames):
        if len(found) == MOST_FRAMES:
            has = f"{count:,} frames" if (count := _frames_told(path)) else f"more than {MOST_FRAMES:,} frames"
            raise DataError(f"{path}: it has {has}, and at most {MOST_FRAMES:,} are read; cut it into shorter files first")
        if (len(found) + 1) * frame.shape[0] * frame.shape[1] > MOST_READ:
            raise DataError(f"{path}: {len(found) + 1} frames have more than the {MOST_READ:,} pixels that are read")
        found.append(frame)
    if len(sizes := {frame.shape for frame in found}) > 1:
        raise DataError(f"{path}: frames of {len(sizes)} sizes; give one size for all")
    return np.stack(found), frame_rate(path)


KINDS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    ".mp4": ("mp4", "libx264", "yuv420p", LOSSY),
    ".mkv": ("matroska", "ffv1", "bgr0", {}),
    ".gif": ("gif", "gif", "rgb8", {}),
}
"""Container, codec, pixels and options by a file's ending."""


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """An error of the encoder that is none of the disk as a DataError that names the file."""
    try:
        yield
    except _av().FFmpegError as e:
        raise DataError(f"{path}: cannot be written: {e.strerror}") from e


@contextmanager
def video_file(path: str | Path, rate: float = 10.0) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that writes more frames, uint8 [f, h, w, 3] of one size, to a file: `.mp4` (x264, played everywhere; sizes are made
    even by a margin), `.mkv` (FFV1, without loss) or `.gif`. On an error nothing of it stays.

    Raises DataError for another kind of file, where no frame was written, and for what the encoder refuses; OSError for a file that
    cannot be written.
    """
    path = Path(path)
    if path.suffix not in KINDS:
        raise DataError(f"{path}: unknown kind of video '{path.suffix}'; choose from {', '.join(KINDS)}")
    if not 0 < rate <= MOST_RATE:
        raise DataError(f"{path}: {rate} frames a second; expected above 0, at most {MOST_RATE}")
    av, (container, codec, pixels, options) = _av(), KINDS[path.suffix]
    part = 2 if codec == "libx264" else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    with _refused(path), durable_file(path) as temporary, av.open(str(temporary), "w", format=container) as file:
        stream = file.add_stream(codec, rate=Fraction(rate).limit_denominator(1000), options=options)
        stream.pix_fmt, begun = pixels, False

        def write(frames: np.ndarray) -> None:
            nonlocal begun
            down, right = (-n % part for n in frames.shape[1:3])
            wide = np.pad(frames, ((0, 0), (0, down), (0, right), (0, 0)), mode="edge")
            if not begun:
                stream.height, stream.width, begun = wide.shape[1], wide.shape[2], True
            for picture in wide:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))

        yield write
        if not begun:
            raise DataError(f"{path}: no frames were written")
        file.mux(stream.encode())


def write_video(path: str | Path, frames: np.ndarray, rate: float = 10.0) -> None:
    """uint8 [f, h, w, 3] to a file. Raises DataError as `video_file` does."""
    with video_file(path, rate) as write:
        write(frames)


def to_pixels(clips: np.ndarray, scale: int = 1) -> np.ndarray:
    """float [c, f, h, w] from -1 to 1 as uint8 [f, h, w, 3], each pixel as a square of `scale`; one channel is grey."""
    values = np.rint((np.asarray(clips, np.float64).clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    frames = values.transpose(1, 2, 3, 0)
    frames = np.repeat(frames, 3, 3) if frames.shape[3] == 1 else frames[..., :3]
    return frames.repeat(scale, 1).repeat(scale, 2)


def from_pixels(frames: np.ndarray, channels: int = 3) -> np.ndarray:
    """uint8 [f, h, w, 3] as float32 [c, f, h, w] from -1 to 1; one channel is the mean of three."""
    values = frames.astype(np.float32) / 127.5 - 1
    values = values.mean(3, keepdims=True) if channels == 1 else values
    return values.transpose(3, 0, 1, 2)


def contact_sheet(clips: Sequence[np.ndarray], most: int = 16, gap: int = 2) -> np.ndarray:
    """uint8 [h, w, 3]: a row of at most `most` frames, evenly apart, for each clip uint8 [f, h, w, 3]."""
    rows = []
    for clip in clips:
        at = np.unique(np.linspace(0, len(clip) - 1, min(most, len(clip))).round().astype(int))
        rows.append([clip[i] for i in at])
    h, w = rows[0][0].shape[:2]
    wide = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (h + gap) - gap, wide * (w + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet[i * (h + gap) : i * (h + gap) + h, j * (w + gap) : j * (w + gap) + w] = picture
    return sheet


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """uint8 [h, w, 3] to a PNG file. Raises DataError where pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as e:
        raise DataError("pillow is not installed: pip install 'postformer[pictures]'") from e
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with durable_file(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def grid_of_images(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 [h, w, 3]: a sheet of pictures uint8 [n, h, w, 3], row by row."""
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    return contact_sheet(rows, most=columns)
