"""Folders of videos and pictures as clips: of one size or of their own, told by class or by caption, whole through every mistake."""

import numpy as np
import pytest
import torch

from postformer.config import ConfigError, build
from postformer.data import DATA
from postformer.data.captions import VOCAB, encoded
from postformer.data.prose import data_folder
from postformer.data.sources import DataError
from postformer.data.video import from_pixels, write_picture, write_video
from postformer.data.videos import FEW, Videos

pytest.importorskip("av")
pytest.importorskip("PIL")


def frames(count, rows, columns, seed=0):
    """A soft ground on which the frame's number can be read: its red is 10 times as much."""
    ground = np.random.default_rng(seed).integers(0, 200, (1, 1, 1, 3))
    clip = np.broadcast_to(ground, (count, rows, columns, 3)).astype(np.uint8)
    clip[..., 0] = (10 * np.arange(count))[:, None, None]
    return clip


def red(clip):
    """The numbers of a clip's frames, as `frames` draws them."""
    return ((clip[0].mean((1, 2)) + 1) * 127.5 / 10).round().int().tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve videos in two classes, each with a caption."""
    path = tmp_path_factory.mktemp("videos")
    for i in range(12):
        name = path / ("fly" if i % 2 else "fall") / f"{i:02d}.mkv"
        write_video(name, frames(20, 24, 40, seed=i))
        name.with_suffix(".txt").write_text(f"number {i} \n")
    return path


def test_clips_are_of_one_size_and_told_their_class(folder):
    videos = Videos(path=str(folder), frames=8, size=(16, 16))
    assert videos.sizes == {"channels": 3, "classes": 2}
    assert videos.classes == ["fall", "fly"]
    batch = videos.batches(4, seed=0).batch(0)
    assert batch["clips"].shape == (4, 3, 8, 16, 16)
    assert batch["clips"].dtype == torch.float32
    for clip, label, row in zip(batch["clips"], batch["label"], batch["rows"], strict=True):
        assert np.diff(red(clip)).tolist() == [1] * 7
        assert int(label) == int(row[:2]) % 2
    again = Videos(path=str(folder), frames=8, size=(16, 16)).batches(2, seed=0).batch(1)
    assert torch.equal(again["clips"], batch["clips"][2:])
    other = videos.batches(12, seed=1).batch(0)["rows"]
    assert other != videos.batches(12, seed=0).batch(0)["rows"]


def test_an_epoch_meets_every_file_of_its_split_and_no_other(folder):
    videos = Videos(path=str(folder), frames=4, size=(8, 8))
    seen = {split: {row.split()[0] for row in videos.batches(12, 0, split).batch(0)["rows"]} for split in videos.numbers}
    assert {split: len(names) for split, names in seen.items()} == {"test": 2, "valid": 1, "train": 9}
    assert len(set.union(*seen.values())) == 12
    begins = {red(videos.batches(9, 0).batch(epoch)["clips"][0])[0] for epoch in range(20)}
    assert len(begins) > 5


def test_frames_are_taken_from_the_middle_and_every_how_many_th(folder):
    wide = np.repeat(np.array([0, 90, 180], np.uint8), 10)[None, :, None].repeat(10, 0).repeat(3, 2)
    write_picture(folder.parent / "wide.png", wide)
    clip = Videos(path=str(folder.parent / "wide.png"), frames=4, size=(10, 10)).batches(1, 0).batch(0)["clips"][0]
    assert torch.equal(clip, torch.from_numpy(from_pixels(np.full((4, 10, 10, 3), 90, np.uint8))))
    third = Videos(path=str(folder), frames=6, size=(8, 8), every=3).batches(1, 0).batch(0)["clips"][0]
    assert np.diff(red(third)).tolist() == [3] * 5


def test_captions_are_told_instead_of_classes(folder):
    videos = Videos(path=str(folder), frames=4, size=(8, 8), text=16)
    assert videos.sizes == {"channels": 3, "vocab": VOCAB}
    batch = videos.batches(3, 0).batch(0)
    assert "label" not in batch
    for row, text in zip(batch["rows"], batch["text"], strict=True):
        assert torch.equal(text, encoded(f"number {int(row[:2])}", 16))
    with pytest.raises(DataError, match=r"data\.text: a text of 8 bytes, where the model was taught at most 4: 'number"):
        Videos(path=str(folder), frames=4, size=(8, 8), text=4).batches(12, 0).batch(0)


def test_of_own_shapes_each_clip_keeps_its_own(tmp_path):
    for name, (count, rows, columns) in {"wide": (12, 32, 64), "tall": (12, 90, 30), "short": (5, 64, 64)}.items():
        write_video(tmp_path / f"{name}.mkv", frames(count, rows, columns))
    write_picture(tmp_path / "still.png", frames(1, 64, 64)[0])
    videos = Videos(path=str(tmp_path), frames=4, size=(32, 32), shape="own", unit=(2, 8, 8))
    batch = videos.batches(4, 0, "test").batch
    shapes = {}
    with pytest.raises(DataError, match=r"short.mkv: 1 frames for test, and a clip has 4; take fewer"):
        batch(0)
    (tmp_path / "short.mkv").unlink()
    for name in ("wide", "tall", "still"):
        (clip,) = (
            Videos(path=str(next(tmp_path.glob(f"{name}.*"))), frames=4, size=(32, 32), shape="own")
            .batches(1, 0)
            .batch(0)["clips"]
        )
        shapes[name] = tuple(clip.shape)
    assert shapes == {"wide": (3, 4, 16, 40), "tall": (3, 4, 48, 16), "still": (3, 2, 32, 32)}
    assert all(n[2] * n[3] <= 32 * 32 for n in shapes.values())


def test_few_files_are_parted_by_their_frames(tmp_path):
    write_video(tmp_path / "a.mkv", frames(24, 8, 8))
    videos = Videos(path=str(tmp_path / "a.mkv"), frames=1, size=(8, 8))
    seen = {
        split: {red(videos.batches(1, 0, split).batch(i)["clips"][0])[0] for i in range(200)}
        for split in ("train", "valid", "test")
    }
    assert seen == {"train": set(range(18)), "valid": {18}, "test": set(range(19, 24))}
    assert FEW > 1


def test_a_run_names_its_files(folder):
    found = Videos(path=str(folder)).identity
    assert Videos(path=str(folder), **found).identity == found
    with pytest.raises(DataError, match="other files than the run names"):
        _ = Videos(path=str(folder / "fly"), **found).identity


def test_a_real_video_is_read():
    path = data_folder("video/nasa_13013.mp4")
    if path is None:
        pytest.skip("POSTFORMER_DATA names no folder of data sets")
    videos = Videos(path=str(path), frames=8, size=(32, 32), every=2)
    clip = videos.batches(1, 0).batch(0)["clips"]
    assert clip.shape == (1, 3, 8, 32, 32)
    assert float(clip.std()) > 0.1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"path": "nowhere"}, "data.path: nowhere: no such file or folder"),
        ({"path": "{empty}"}, "holds no file that ends with one of .mp4"),
        ({"path": "{broken}"}, "broken.mp4: not a video that can be read"),
        ({"path": "{broken}", "frames": 0}, "frames=0, every=1"),
        ({"path": "{broken}", "shape": "crop", "text": -1}, "text=-1 must be 0 to"),
        ({"path": "{broken}", "shape": "square"}, "data.shape: 'square' is not a choice; choose from crop, own"),
        ({"path": "{broken}", "shape": "own", "frames": 3}, r"frames=3 must be a multiple of unit=\(2, 8, 8\)"),
    ],
)
def test_mistakes_are_told(tmp_path, words, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"not a video" * 100)
    words = {**words, "path": words["path"].format(empty=tmp_path / "empty", broken=tmp_path / "broken.mp4")}
    with pytest.raises((DataError, ConfigError), match=says):
        build({"kind": "videos", **words}, DATA, "data").batches(1, 0).batch(0)


def test_a_caption_that_is_no_text_is_told(tmp_path):
    write_video(tmp_path / "a.mkv", frames(24, 8, 8))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"a\.txt: it is not UTF-8"):
        Videos(path=str(tmp_path), frames=2, size=(8, 8), text=8).batches(1, 0).batch(0)
    (tmp_path / "a.txt").unlink()
    text = Videos(path=str(tmp_path), frames=2, size=(8, 8), text=8).batches(1, 0).batch(0)["text"]
    assert bool((text == VOCAB).all())
