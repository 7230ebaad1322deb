"""LeRobot's data sets of format v3, from a folder on the disk into a file of episodes (`postformer.data.episode_file`).

The format (huggingface.co/docs/lerobot/lerobot-dataset-v3; lerobot 0.4 and later, `datasets/dataset_writer.py`): `meta/info.json` has the
frames a second, the features, and the patterns of the files' names; `meta/episodes/chunk-*/file-*.parquet` has for each episode its
length, the number of chunk and file in which its rows lie, and for each camera those of the video with `from_timestamp` and
`to_timestamp`, seconds within that file; `data/chunk-*/file-*.parquet` has a row for each frame with columns such as `action` and
`observation.state`, pictures of the type "image" included; videos hold the frames of many episodes one behind the other. A frame's number
is its time in frames, rounded: times are sums of floats (lerobot issue 3177).

LeRobot has as many actions as frames; what the last one led to was not seen, so it is left out.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from postformer.config import read
from postformer.data.episode_file import About
from postformer.data.episode_writer import EpisodeWriter
from postformer.data.images import MOST_PIXELS
from postformer.data.sources import DataError
from postformer.data.video import decoded


def import_lerobot(
    folder: str | Path,
    path: str | Path,
    *,
    camera: str | None = None,
    size: tuple[int, int] | None = None,
    action: str = "action",
    state: str | None = "observation.state",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes the episodes of a folder to a file, and returns how many were missing there. One that was interrupted goes on where it was.

    `camera` is the key of one with pictures, needed where there are several; frames are brought to `size` (rows, columns) without
    regard to their shape. `action` and `state` are the columns of numbers; without a state there is none. Episodes of one frame are left
    out.

    Raises DataError for keys that are not there, with those that are, and for a folder that is damaged or of another version.
    """
    if size is not None and min(size) < 1:
        raise ValueError(f"size={size} must be at least 1")
    source = _Source.opened(Path(folder))
    camera = source.camera(camera)
    for name in (action, state):
        source.check_numbers(name)
    episodes = [episode for episode in source.episodes(camera) if episode["length"] > 1]
    tasks = list(dict.fromkeys(task for episode in episodes for task in (episode.get("tasks") or ())[:1]))
    about = About(
        frames_per_second=source.rate,
        action_names=source.names(action),
        state_names=source.names(state) if state else (),
        environment=str(source.info.get("robot_type") or "lerobot"),
        keywords={"camera": camera, "size": size, "action": action, "state": state, "episodes": len(episodes)},
        tasks=tuple(tasks),
    )
    pictures = _Film(source, camera, size) if source.features[camera]["dtype"] == "video" else _Stills(source, camera, size)
    with EpisodeWriter(path, about, again=True) as writer:
        begun = writer.episodes
        for episode in episodes[begun:]:
            columns = source.rows(episode, [name for name in (action, state) if name])
            task = tasks.index(episode["tasks"][0]) if episode.get("tasks") else -1
            writer.add(pictures.of(episode), columns[action][:-1], columns[state] if state else None, task=task)
            if progress is not None:
                progress(writer.episodes, len(episodes))
        return writer.episodes - begun


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as e:
        raise DataError("pyarrow is not installed: pip install 'postformer[lerobot]'") from e
    return parquet


def _table(file: Path, columns: Sequence[str], perhaps: Sequence[str] = (), group: int | None = None) -> Any:
    """Columns of a file, or of one group of its rows, and those others that there are. Raises DataError."""
    parquet = _parquet()
    try:
        with parquet.ParquetFile(file) as opened:
            has = opened.schema_arrow.names
            if missing := [name for name in columns if name not in has]:
                raise DataError(f"{file}: it has no column '{missing[0]}'; it has {', '.join(has)}")
            wanted = [*columns, *(name for name in perhaps if name in has)]
            return opened.read(wanted) if group is None else opened.read_row_group(group, wanted)
    except (OSError, ValueError) as e:
        raise DataError(f"{file}: not a Parquet file that can be read: {' '.join(str(e).split())}") from e


@dataclasses.dataclass
class _Source:
    """A data set's folder and its `meta/info.json`."""

    root: Path
    info: dict[str, Any]
    rate: float
    features: dict[str, Any]
    last: tuple[Path, Any] | None = None
    """The numbers of the file of rows that was read last."""

    @classmethod
    def opened(cls, root: Path) -> "_Source":
        file = root / "meta" / "info.json"
        if not file.is_file():
            raise DataError(f"{root}: no data set of LeRobot's: meta/info.json is missing")
        info = read(file)
        version, rate, features = info.get("codebase_version"), info.get("fps"), info.get("features")
        if not str(version).startswith("v3."):
            raise DataError(
                f"{file}: its version is {version}, and v3 is read; lerobot's convert_dataset_v21_to_v30 brings v2.1 to it"
            )
        if not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise DataError(f"{file}: fps is {rate!r}; expected a number above 0")
        if not isinstance(features, dict) or not all(isinstance(f, dict) and "dtype" in f for f in features.values()):
            raise DataError(f"{file}: features must be a table of tables, each with a dtype")
        return cls(root, info, float(rate), features)

    def camera(self, key: str | None) -> str:
        """The key of a camera, the only one if none is named. Raises DataError."""
        keys = [
            name for name, feature in self.features.items() if feature["dtype"] in ("video", "image") and not _depth(feature)
        ]
        if key is None and len(keys) == 1:
            return keys[0]
        if key not in keys:
            said = "no camera is named" if key is None else f"there is no camera '{key}'"
            raise DataError(f"{self.root}: {said}; choose from {', '.join(keys) or 'none: it has no pictures'}")
        return key

    def check_numbers(self, name: str | None) -> None:
        """Raises DataError for a column that there is not, or that holds no numbers."""
        keys = [key for key, f in self.features.items() if str(f["dtype"]).startswith(("float", "int", "uint", "bool"))]
        if name is not None and name not in keys:
            raise DataError(f"{self.root}: there are no numbers '{name}'; choose from {', '.join(keys)}")

    def names(self, key: str) -> tuple[str, ...]:
        """What a column's numbers are called, if there is one name for each."""
        feature = self.features[key]
        names = feature.get("names") or ()
        names = next(iter(names.values()), ()) if isinstance(names, dict) else names
        count = math.prod(feature.get("shape") or (0,))
        return tuple(map(str, names)) if isinstance(names, (list, tuple)) and len(names) == count else ()

    def episodes(self, camera: str) -> list[dict[str, Any]]:
        """What `meta/episodes` says of each, in order. Raises DataError."""
        places = ["chunk_index", "file_index"]
        needed = ["episode_index", "length", *(f"data/{name}" for name in places)]
        if self.features[camera]["dtype"] == "video":
            needed += [f"videos/{camera}/{name}" for name in (*places, "from_timestamp", "to_timestamp")]
        files = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
        found: list[dict[str, Any]] = []
        for file in files:
            found += _table(file, needed, ["tasks"]).to_pylist()
        found.sort(key=lambda episode: episode["episode_index"])
        numbers = [episode["episode_index"] for episode in found]
        if not found or len(set(numbers)) < len(numbers):
            said = "an episode is listed twice" if found else "no episode is listed"
            raise DataError(f"{self.root / 'meta' / 'episodes'}: {said}")
        return found

    def file(self, pattern: str, episode: dict[str, Any], part: str, **names: str) -> Path:
        """The file in which an episode's part lies. Raises DataError for a pattern that is none or leads out of the folder."""
        at = {name: episode[f"{part}/{name}"] for name in ("chunk_index", "file_index")}
        try:
            place = Path(self.info[pattern].format(**at, **names))
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as e:
            raise DataError(
                f"{self.root}/meta/info.json: {pattern} is no pattern of file names: {self.info.get(pattern)!r}"
            ) from e
        if place.is_absolute() or ".." in place.parts:
            raise DataError(f"{self.root}/meta/info.json: {pattern} leads out of the folder: {place}")
        return self.root / place

    def rows(self, episode: dict[str, Any], columns: list[str]) -> dict[str, np.ndarray]:
        """Numbers of an episode by column, float32 [length, k]. Raises DataError where its rows are not all there."""
        file = self.file("data_path", episode, "data")
        if self.last is None or self.last[0] != file:
            self.last = file, _table(file, [*columns, "episode_index", "frame_index"])
        table, number = self.last[1], episode["episode_index"]
        own = np.flatnonzero(table["episode_index"].to_numpy() == number)
        if not np.array_equal(table["frame_index"].to_numpy()[own], np.arange(episode["length"])):
            raise DataError(f"{file}: episode {number} should have {episode['length']} rows in order; it has {len(own)}")
        return {name: _values(table[name].slice(own[0], len(own)), file, name) for name in columns}


def _depth(feature: dict[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))


def _values(column: Any, file: Path, name: str) -> np.ndarray:
    try:
        values = np.array(column.to_pylist(), np.float32)
    except (ValueError, TypeError) as e:
        raise DataError(f"{file}: column '{name}' holds no numbers, or not as many in each row") from e
    return values.reshape(len(values), -1)


class _Film:
    """Frames of videos, each of which is decoded from its beginning to its end as its episodes are asked for."""

    def __init__(self, source: _Source, camera: str, size: tuple[int, int] | None):
        self.source, self.camera = source, camera
        self.to = None if size is None else lambda rows, columns: size
        self.file: Path | None = None
        self.at = 0

    def of(self, episode: dict[str, Any]) -> Iterator[np.ndarray]:
        """An episode's pictures, uint8 [3, h, w] each. Raises DataError where the video has fewer."""
        part, number, length = f"videos/{self.camera}", episode["episode_index"], episode["length"]
        first, behind = (round(episode[f"{part}/{end}_timestamp"] * self.source.rate) for end in ("from", "to"))
        file = self.source.file("video_path", episode, part, video_key=self.camera)
        if behind - first < length:
            raise DataError(f"{file}: episode {number} has {length} rows, and {behind - first} frames: it is damaged")
        if file != self.file or first < self.at:
            self.frames, self.file, self.at = decoded(file, self.to), file, 0
        while self.at < first + length:
            frame = next(self.frames, None)
            if frame is None:
                raise DataError(f"{file}: it ends after {self.at} frames, before the end of episode {number}")
            self.at += 1
            if self.at > first:
                yield np.ascontiguousarray(frame.transpose(2, 0, 1))


class _Stills:
    """Pictures that lie in the rows themselves, of which one group is read at a time."""

    def __init__(self, source: _Source, camera: str, size: tuple[int, int] | None):
        self.source, self.camera, self.size = source, camera, size
        self.file: Path | None = None
        self.numbers: list[np.ndarray] = []
        """The episode of each row, for each group of the file's rows."""
        self.last: Any = -1, None

    def of(self, episode: dict[str, Any]) -> Iterator[np.ndarray]:
        """An episode's pictures, uint8 [3, h, w] each. Raises DataError."""
        file = self.source.file("data_path", episode, "data")
        if file != self.file:
            self.file, self.last, self.numbers = file, (-1, None), _episodes_of_groups(file)
        for group, numbers in enumerate(self.numbers):
            for row in np.flatnonzero(numbers == episode["episode_index"]):
                if self.last[0] != group:
                    self.last = group, _table(file, [self.camera], group=group)[self.camera]
                yield _picture(self.last[1][int(row)].as_py(), file, self.size)


def _episodes_of_groups(file: Path) -> list[np.ndarray]:
    with _parquet().ParquetFile(file) as opened:
        return [_table(file, ["episode_index"], group=i)["episode_index"].to_numpy() for i in range(opened.num_row_groups)]


def _picture(stored: Any, file: Path, size: tuple[int, int] | None) -> np.ndarray:
    """A picture that lies in a table as `{"bytes": a file's, "path": ...}`."""
    try:
        from PIL import Image
    except ImportError as e:
        raise DataError("pillow is not installed: pip install 'postformer[pictures]'") from e
    try:
        with Image.open(io.BytesIO(stored["bytes"])) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise DataError(
                    f"{file}: {picture.width} x {picture.height} pixels are more than the {MOST_PIXELS:,} that are read"
                )
            seen = picture.convert("RGB")
            seen = seen if size is None else seen.resize((size[1], size[0]), Image.Resampling.BOX)
            return np.ascontiguousarray(np.asarray(seen).transpose(2, 0, 1))
    except (OSError, ValueError, SyntaxError, TypeError, KeyError) as e:
        raise DataError(f"{file}: a picture of it cannot be read: {e}") from e
