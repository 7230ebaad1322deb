"""LeRobot's folders of format v3: each episode's own frames and numbers arrive, whatever file they lie in, and what is damaged is told."""

import io
import json
import shutil

import numpy as np
import pytest

from postformer.data.episode_file import read_contents
from postformer.data.episodes import Episodes
from postformer.data.lerobot import import_lerobot
from postformer.data.sources import DataError
from postformer.data.video import write_video

h5py = pytest.importorskip("h5py")
pytest.importorskip("av")
arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

RATE, LENGTHS = 10, [7, 4, 1, 9, 6]
FILES = [0, 0, 0, 1, 1]
"""In which file of rows an episode lies; of videos, all but the first lie in the second."""
FRONT, WRIST, STILL = "observation.images.front", "observation.images.wrist", "observation.images.still"
ORDER = {FRONT: [1, 2, 3, 4], WRIST: [4, 2, 3, 1]}
"""Of the episodes in the second video of a camera."""


def frames(number, length, wrist=False):
    """The left half tells the episode, the right half the step; from the wrist they lie one above the other."""
    picture = np.zeros((length, 32, 48, 3), np.uint8)
    picture[:, :, :24] = 20 + 40 * number
    picture[:, :, 24:] = (20 + 20 * np.arange(length))[:, None, None, None]
    return picture[:, :, ::-1] if wrist else picture


def told(pictures):
    """Episodes and steps that pictures uint8 [n, 3, h, w] tell."""
    half = pictures.shape[3] // 2
    left, right = (part.mean((1, 2, 3)) for part in (pictures[..., : half - 2], pictures[..., half + 2 :]))
    return ((left - 20) / 40).round().astype(int), ((right - 20) / 20).round().astype(int)


def png(picture):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return {"bytes": file.getvalue(), "path": "frame.png"}


def features():
    video = {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"], "info": {"video.fps": RATE}}
    number = {"dtype": "int64", "shape": [1], "names": None}
    return {
        "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["pan", "lift"]}},
        "observation.state": {"dtype": "float32", "shape": [3], "names": ["a", "b", "c"]},
        "observation.force": {"dtype": "float32", "shape": [1], "names": None},
        FRONT: video,
        WRIST: video,
        "observation.images.depth": {**video, "info": {"is_depth_map": True}},
        STILL: {**video, "dtype": "image"},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), number),
    }


def rows(number, length):
    steps = np.arange(length)
    return {
        "action": [[float(number), float(t)] for t in steps],
        "observation.state": [[float(number), float(t), 0.5] for t in steps],
        "observation.force": [float(10 * number + t) for t in steps],
        STILL: [png(picture) for picture in frames(number, length)],
        "timestamp": (steps / RATE).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(length, number),
        "index": sum(LENGTHS[:number]) + steps,
        "task_index": np.full(length, number % 2),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Five episodes, in two files of rows with groups of their own and two videos of each camera."""
    root = tmp_path_factory.mktemp("lerobot") / "set"
    listed = []
    for file in (0, 1):
        own = [i for i, f in enumerate(FILES) if f == file]
        place = root / "data" / "chunk-000" / f"file-{file:03d}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        tables = [arrow.table(rows(i, LENGTHS[i])) for i in own]
        with parquet.ParquetWriter(place, tables[0].schema) as writer:
            if file:
                writer.write_table(arrow.concat_tables(tables), row_group_size=5)  # groups that cut episodes
            else:
                for table in tables:
                    writer.write_table(table)
    for camera in (FRONT, WRIST):
        for file, own in enumerate(([0], ORDER[camera])):
            clip = np.concatenate([frames(i, LENGTHS[i], camera == WRIST) for i in own])
            write_video(root / "videos" / camera / "chunk-000" / f"file-{file:03d}.mp4", clip, float(RATE))
    for i, length in enumerate(LENGTHS):
        cameras = {}
        for camera in (FRONT, WRIST):
            part, before = f"videos/{camera}", ORDER[camera][: ORDER[camera].index(i)] if i else []
            begin = sum(LENGTHS[j] for j in before) / RATE - 0.002 * i  # times drift, being sums of floats
            cameras |= {f"{part}/chunk_index": 0, f"{part}/file_index": min(i, 1)}
            cameras |= {f"{part}/from_timestamp": begin, f"{part}/to_timestamp": begin + length / RATE}
        listed.append(
            {
                "episode_index": i,
                "tasks": ["push" if i % 2 else "pull"],
                "length": length,
                "data/chunk_index": 0,
                "data/file_index": FILES[i],
                "dataset_from_index": sum(LENGTHS[:i]),
                "dataset_to_index": sum(LENGTHS[: i + 1]),
                **cameras,
            }
        )
    place = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    place.parent.mkdir(parents=True)
    parquet.write_table(arrow.Table.from_pylist(listed[::-1]), place)
    info = {
        "codebase_version": "v3.0",
        "robot_type": "so101",
        "total_episodes": 5,
        "fps": RATE,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features(),
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return root


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "set")
    return tmp_path / "set"


def read(path):
    with h5py.File(path, locking=False) as file:
        return {name: file[name][:] for name in file}


@pytest.mark.parametrize("camera", [FRONT, STILL])
def test_each_episode_has_its_own_frames_and_numbers(made, tmp_path, camera):
    assert import_lerobot(made, tmp_path / "a.h5", camera=camera) == 4
    found, contents = read(tmp_path / "a.h5"), read_contents(tmp_path / "a.h5")
    number = np.repeat([0, 1, 3, 4], [7, 4, 9, 6])
    step = np.concatenate([np.arange(length) for length in (7, 4, 9, 6)])
    assert contents.lengths.tolist() == [6, 3, 8, 5]
    assert contents.shape == (3, 32, 48)
    seen = told(found["observations"])
    assert np.array_equal(seen[0], number)
    assert np.array_equal(seen[1], step)
    last = np.zeros(len(step), bool)
    last[contents.ends - 1] = True
    assert np.array_equal(found["actions"][~last], np.stack([number, step], 1)[~last])
    assert (found["actions"][last] == 0).all()
    assert np.array_equal(found["states"], np.stack([number, step, np.full(len(step), 0.5)], 1))
    about = contents.about
    assert (about.frames_per_second, about.environment, about.tasks) == (10.0, "so101", ("pull", "push"))
    assert (about.action_names, about.state_names) == (("pan", "lift"), ("a", "b", "c"))
    assert found["tasks"].tolist() == [0, 1, 1, 0]
    assert len(Episodes(path=str(tmp_path / "a.h5"), steps=2).batches(3, 0).batch(0)["rows"]) == 3


def test_camera_size_and_columns_are_chosen(made, tmp_path):
    import_lerobot(made, tmp_path / "a.h5", camera=WRIST, size=(10, 16), action="observation.force", state=None)
    found = read(tmp_path / "a.h5")
    assert found["observations"].shape == (26, 3, 10, 16)
    step, number = told(found["observations"])  # the wrist sees them the other way round
    assert "states" not in found
    assert number[:8].tolist() != step[:8].tolist()
    right, left = (found["observations"][..., part].mean((1, 2, 3)) for part in (slice(10, None), slice(0, 6)))
    assert (((right - 20) / 40).round() == np.repeat([0, 1, 3, 4], [7, 4, 9, 6])).all()
    assert (((left - 20) / 20).round()[:7] == np.arange(7)).all()
    assert found["actions"][:7, 0].tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert read_contents(tmp_path / "a.h5").about.action_names == ()


def test_an_import_that_broke_off_goes_on(folder, tmp_path):
    video = folder / "videos" / FRONT / "chunk-000" / "file-001.mp4"
    whole = tmp_path / "whole.h5"
    import_lerobot(folder, whole, camera=FRONT)
    kept = video.read_bytes()
    clip = np.concatenate([frames(i, LENGTHS[i]) for i in (1, 2)])
    write_video(video, clip, float(RATE))
    with pytest.raises(DataError, match=r"file-001\.mp4: it ends after 5 frames, before the end of episode 3"):
        import_lerobot(folder, tmp_path / "a.h5", camera=FRONT)
    assert len(read_contents(tmp_path / "a.h5").ends) == 2
    video.write_bytes(kept)
    assert import_lerobot(folder, tmp_path / "a.h5", camera=FRONT) == 2
    assert import_lerobot(folder, tmp_path / "a.h5", camera=FRONT) == 0
    a, b = read(tmp_path / "a.h5"), read(whole)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    with pytest.raises(DataError, match=r"holds episodes with keywords .*choose another file"):
        import_lerobot(folder, tmp_path / "a.h5", camera=WRIST)


def info(**changes):
    def change(root):
        file = root / "meta" / "info.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def column(name, values, place="meta/episodes/chunk-000/file-000.parquet"):
    def change(root):
        table = parquet.read_table(root / place)
        table = table.drop_columns([name])
        parquet.write_table(table if values is None else table.append_column(name, [values]), root / place)

    return change


ROWS = "data/chunk-000/file-001.parquet"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda root: shutil.rmtree(root / "meta"), r"no data set of LeRobot's: meta/info\.json is missing"),
        (info(codebase_version="v2.1"), r"its version is v2\.1, and v3 is read; lerobot's convert_dataset_v21_to_v30"),
        (info(fps=0), "fps is 0; expected a number above 0"),
        (info(features=[]), "features must be a table of tables"),
        (info(data_path="data/{file}.parquet"), "data_path is no pattern of file names"),
        (info(data_path="../{file_index}.parquet"), "data_path leads out of the folder"),
        (info(video_path=None), "video_path is no pattern of file names: None"),
        (lambda root: (root / "meta" / "info.json").write_text("{"), r"info\.json: not valid JSON"),
        (lambda root: shutil.rmtree(root / "meta" / "episodes"), "no episode is listed"),
        (column("length", None), "it has no column 'length'; it has episode_index, tasks"),
        (column("episode_index", [4, 3, 2, 1, 1]), "an episode is listed twice"),
        (column("length", [6, 9, 1, 4, 9]), r"file-000\.parquet: episode 0 should have 9 rows in order; it has 7"),
        (column(f"videos/{FRONT}/to_timestamp", [9.0, 9.0, 9.0, 9.0, 0.5]), "episode 0 has 7 rows, and 5 frames"),
        (column("action", ["x"] * 15, ROWS), "column 'action' holds no numbers, or not as many in each row"),
        (column("action", [[1.0], *[[1.0, 2.0]] * 14], ROWS), "column 'action' holds no numbers, or not as many in each row"),
        (column("action", [[np.nan, 1.0]] * 15, ROWS), r"a\.h5: episode 2: actions are not finite"),
        (lambda root: (root / ROWS).write_bytes(b"none"), r"file-001\.parquet: not a Parquet file that can be read"),
        (lambda root: (root / ROWS).unlink(), r"file-001\.parquet: not a Parquet file that can be read"),
        (lambda root: shutil.rmtree(root / "videos" / FRONT), r"file-000\.mp4: no such file"),
    ],
)
def test_what_is_damaged_is_told(folder, tmp_path, change, says):
    change(folder)
    with pytest.raises(Exception, match=says) as error:
        import_lerobot(folder, tmp_path / "a.h5", camera=FRONT)
    assert type(error.value).__name__ in ("DataError", "ConfigError")
    assert "\n" not in str(error.value)


def test_a_picture_that_is_none_is_told(folder, tmp_path):
    column(STILL, [{"bytes": b"none", "path": ""}] * 15, ROWS)(folder)
    with pytest.raises(DataError, match=r"file-001\.parquet: a picture of it cannot be read"):
        import_lerobot(folder, tmp_path / "a.h5", camera=STILL)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({}, f"no camera is named; choose from {FRONT}, {WRIST}, {STILL}"),
        ({"camera": "top"}, f"there is no camera 'top'; choose from {FRONT}, {WRIST}, {STILL}"),
        ({"camera": FRONT, "action": "actions"}, "there are no numbers 'actions'; choose from action, observation.state, obs"),
        ({"camera": FRONT, "state": WRIST}, f"there are no numbers '{WRIST}'; choose from action, "),
        ({"camera": FRONT, "size": (0, 4)}, r"size=\(0, 4\) must be at least 1"),
    ],
)
def test_mistakes_are_told(made, tmp_path, words, says):
    with pytest.raises((DataError, ValueError), match=says):
        import_lerobot(made, tmp_path / "a.h5", **words)
    assert not (tmp_path / "a.h5").exists()


def test_the_extra_that_is_missing_is_named(made, tmp_path, monkeypatch):
    for module, extra in (("h5py", "embodied"), ("pyarrow.parquet", "lerobot")):
        with monkeypatch.context() as without:
            without.setitem(__import__("sys").modules, module, None)
            with pytest.raises(DataError, match=rf"is not installed: pip install 'postformer\[{extra}\]'"):
                import_lerobot(made, tmp_path / "a.h5", camera=FRONT)
