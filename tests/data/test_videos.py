"""Folders of videos and pictures as clips: of one size or of their own, told by class or by caption, whole through every mistake."""

import shutil

import numpy as np
import pytest
import torch

from postformer import cli
from postformer.config import ConfigError, build
from postformer.data import DATA
from postformer.data.captions import VOCAB, encoded
from postformer.data.frames import Frames
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
    assert videos.sizes == {"channels": 3, "size": (16, 16), "classes": 2}
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
    assert videos.sizes == {"channels": 3, "size": (8, 8), "vocab": VOCAB}
    batch = videos.batches(3, 0).batch(0)
    assert "label" not in batch
    for row, text in zip(batch["rows"], batch["text"], strict=True):
        assert torch.equal(text, encoded(f"number {int(row[:2])}", 16))
    with pytest.raises(DataError, match=r"00\.txt: a caption of 8 bytes, and data\.text is 4; make it larger"):
        Videos(path=str(folder), frames=4, size=(8, 8), text=4).batches(12, 0).batch(0)


def test_of_own_shapes_each_clip_keeps_its_own(tmp_path):
    for name, (count, rows, columns) in {"wide": (12, 32, 64), "tall": (12, 90, 30), "short": (5, 64, 64)}.items():
        write_video(tmp_path / f"{name}.mkv", frames(count, rows, columns))
    write_picture(tmp_path / "still.png", frames(1, 64, 64)[0])
    videos = Videos(path=str(tmp_path), frames=4, size=(32, 32), shape="own", unit=(2, 8, 8))
    batch = videos.batches(4, 0, "test").batch
    shapes = {}
    with pytest.raises(DataError, match=r"short.mkv: it has 1 frames for test, where a clip has 4: set data.frames lower"):
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


def test_frames_wait_on_the_disk_whatever_fails(monkeypatch):
    kept, pictures = Frames(), frames(6, 4, 5)
    broken = iter([pictures[0], np.zeros((9, 9, 3), np.uint8)])
    assert kept.count(3, "a", lambda: iter(pictures)) == 6
    with pytest.raises(DataError, match="b: frames of several sizes"):
        kept.count(4, "b", lambda: broken)
    assert kept.count(4, "b", lambda: iter(pictures[2:4])) == 2
    assert np.array_equal(kept.read(3, 1, 4), pictures[1:5])
    assert np.array_equal(kept.read(4, 0, 2), pictures[2:4])
    assert kept.count(3, "a", lambda: iter(())) == 6
    monkeypatch.setattr("postformer.data.frames.MOST_BYTES", 100)
    with pytest.raises(DataError, match="c: more than 100 bytes of frames; give a smaller"):
        kept.count(5, "c", lambda: iter(pictures))


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
    with pytest.raises(DataError, match=r"data\.text: no file has a caption beside it, such as .*a\.txt"):
        Videos(path=str(tmp_path), frames=2, size=(8, 8), text=8).batches(1, 0)
    write_video(tmp_path / "b.mkv", frames(24, 8, 8))
    (tmp_path / "b.txt").write_text("b")
    videos = Videos(path=str(tmp_path), frames=2, size=(8, 8), text=8)
    text = {row[0]: said for row, said in zip(*(videos.batches(2, 0).batch(0)[k] for k in ("rows", "text")), strict=True)}
    assert bool((text["a"] == VOCAB).all())
    assert text["b"].tolist() == [98, *[VOCAB] * 7]
    assert videos.remarks == [f"data.path: {tmp_path}: 1 of 2 files have no caption, such as a.mkv"]


def test_what_may_not_be_meant_is_remarked(folder, tmp_path):
    assert Videos(path=str(folder)).remarks == []
    assert "all files are of one class, in" in Videos(path=str(_copied(folder / "fly", tmp_path / "one" / "in"))).remarks[0]
    _copied(folder / "fly", tmp_path / "two" / "in")
    write_video(tmp_path / "two" / "loose.mkv", frames(4, 8, 8))
    assert "loose.mkv lies in no folder of it" in Videos(path=str(tmp_path / "two")).remarks[0]
    write_video(tmp_path / "c.mkv", frames(1, 8, 8))
    assert Videos(path=str(tmp_path / "c.mkv"), size=(8, 8)).batches(1, 0).batch(0)["clips"].shape[2] == 16


def test_a_file_that_breaks_ends_a_run_with_what_it_learned(tmp_path, capsys):
    """And with the file mended the same command goes on."""
    for i in range(12):
        write_video(tmp_path / "in" / f"{i:02d}.mkv", frames(4, 16, 16))
    words = ["train", "dream-dit", f'data={{kind="videos",path="{tmp_path / "in"}",size=[16,16],frames=4}}', "train.steps=4"]
    words += [
        "train.batch=3",
        "model.dim=24",
        "model.depth=1",
        "objective.known=0.0",
        "optim.warmup=1",
        "--out",
        str(tmp_path / "run"),
    ]
    whole = Videos(path=str(tmp_path / "in"), size=(16, 16), frames=4).batches(3, 0)
    seen = {step: {row.split()[0] for row in whole.batch(step)["rows"]} for step in range(2)}
    broken = tmp_path / "in" / min(seen[1] - seen[0])
    kept = broken.read_bytes()
    broken.write_bytes(b"none")
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{broken.name}: not a video that can be read" in error
    assert "step 1 is saved, and the same command goes on from there" in error
    broken.write_bytes(kept)
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 0
    assert "step 4 of 4" in capsys.readouterr().out


def _copied(source, to):
    shutil.copytree(source, to)
    return to.parent
