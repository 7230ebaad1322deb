"""Video files: what goes in comes out, on every kind of file, under caps, whole or not at all."""

import resource

import numpy as np
import pytest

from postformer.data import video
from postformer.data.sources import DataError
from postformer.data.video import (
    contact_sheet,
    from_pixels,
    grid_of_images,
    read_video,
    to_pixels,
    video_file,
    write_picture,
    write_video,
)

av = pytest.importorskip("av")


def moving(frames=6, size=(24, 40)):
    """A bright square that moves over a soft ground."""
    y, x = np.mgrid[: size[0], : size[1]]
    ground = np.stack([x * 3, y * 4, x + y], -1).clip(0, 255)
    clip = np.repeat(ground[None], frames, 0).astype(np.uint8)
    for f in range(frames):
        clip[f, 6:14, 4 * f : 4 * f + 10] = (250, 60, 30)
    return clip


@pytest.mark.parametrize(("kind", "worst", "mean"), [(".mkv", 0, 0.0), (".mp4", 130, 6.0), (".gif", 110, 25.0)])
def test_a_video_is_read_as_it_was_written(tmp_path, kind, worst, mean):
    """Without loss by FFV1; x264 halves the colour's resolution, and gif has 256 colours."""
    clip = moving()
    write_video(tmp_path / f"a{kind}", clip, rate=12.5)
    found, rate = read_video(tmp_path / f"a{kind}")
    assert found.shape == clip.shape
    assert rate == pytest.approx(12.5, rel=0.01)
    wrong = np.abs(found.astype(int) - clip)
    assert wrong.max() <= worst
    assert wrong.mean() <= mean
    assert list(tmp_path.iterdir()) == [tmp_path / f"a{kind}"]


def test_odd_sizes_are_made_even_for_players(tmp_path):
    clip = moving(size=(23, 41))
    write_video(tmp_path / "a.mp4", clip)
    found, _ = read_video(tmp_path / "a.mp4")
    assert found.shape[1:3] == (24, 42)
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert file.streams.video[0].codec_context.name == "h264"


def test_pieces_of_a_video_are_one_video(tmp_path):
    clip = moving(7)
    with video_file(tmp_path / "a.mkv") as write:
        for piece in (clip[:2], clip[2:3], clip[3:]):
            write(piece)
    assert np.array_equal(read_video(tmp_path / "a.mkv")[0], clip)
    assert len(read_video(tmp_path / "a.mkv", frames=3)[0]) == 3
    assert read_video(tmp_path / "a.mkv", size=(12, 20))[0].shape == (7, 12, 20, 3)


def test_an_error_leaves_no_file(tmp_path):
    def fail():
        with video_file(tmp_path / "a.mp4") as write:
            write(moving())
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    with pytest.raises(DataError, match="no frames were written"), video_file(tmp_path / "b.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_real_clip_is_read(data_folder):
    found, rate = read_video(data_folder / "video" / "nasa_13013.mp4", frames=10, size=(90, 160))
    assert found.shape == (10, 90, 160, 3)
    assert 20 < rate < 70
    assert found.std() > 5


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.mp4", b"not a video", "not a video that can be read"),
        ("a.mp4", b"", "not a video that can be read"),
        (None, None, "no such file"),
    ],
)
def test_what_is_no_video_is_told(tmp_path, name, data, says):
    path = tmp_path / (name or "missing.mp4")
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=says):
        read_video(path)


def test_large_pictures_and_unknown_files_are_refused(tmp_path):
    write_video(tmp_path / "a.mkv", np.zeros((1, 2900, 2900, 3), np.uint8))
    with pytest.raises(DataError, match="2900 x 2900 pixels are more than"):
        read_video(tmp_path / "a.mkv")
    with pytest.raises(DataError, match=r"unknown kind of video .\.avi.; choose from \.mp4"):
        write_video(tmp_path / "a.avi", moving())
    with pytest.raises(DataError, match="frames a second"):
        write_video(tmp_path / "a.mp4", moving(), rate=0.0)


def test_a_long_video_of_large_pictures_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mkv", np.zeros((5, 20, 30, 3), np.uint8))
    monkeypatch.setattr(video, "MOST_READ", 4 * 600)
    with pytest.raises(DataError, match="5 frames have more than the 2,400 pixels that are read"):
        read_video(tmp_path / "a.mkv")
    assert len(read_video(tmp_path / "a.mkv", frames=4)[0]) == 4
    assert len(read_video(tmp_path / "a.mkv", size=(10, 15))[0]) == 5


def test_a_video_is_read_whole_or_not_at_all(tmp_path, monkeypatch):
    """Unless some of it is asked for; an mp4 tells how many frames it has, an mkv of PyAV does not."""
    monkeypatch.setattr(video, "MOST_FRAMES", 4)
    for name, says in (("a.mkv", "more than 4 frames"), ("a.mp4", "6 frames")):
        write_video(tmp_path / name, moving())
        with pytest.raises(DataError, match=rf"{name}: it has {says}, and at most 4 are read; cut it into shorter files first"):
            read_video(tmp_path / name)
        assert len(read_video(tmp_path / name, frames=4)[0]) == 4
        write_video(tmp_path / name, moving(4))
        assert len(read_video(tmp_path / name)[0]) == 4


def test_a_disk_that_is_full_and_an_encoder_that_refuses_name_the_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"a\.mkv") as e:
            write_video(tmp_path / "a.mkv", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert e.value.filename == str(tmp_path / "a.mkv")
    with pytest.raises(DataError, match=r"b\.mp4: cannot be written: "):
        write_video(tmp_path / "b.mp4", np.zeros((1, 2, 40_000, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_floats_and_pixels_are_each_other_s():
    clip = moving().astype(np.uint8)
    assert np.array_equal(to_pixels(from_pixels(clip)), clip)
    grey = to_pixels(np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 1, 4, 4), scale=2)
    assert grey.shape == (1, 8, 8, 3)
    assert grey[0, 0, 0].tolist() == [0, 0, 0]
    assert grey[0, -1, -1].tolist() == [255, 255, 255]
    assert from_pixels(clip, channels=1).shape == (1, 6, 24, 40)


def test_sheets_show_frames_evenly_apart(tmp_path):
    clip = np.stack([np.full((4, 5, 3), i, np.uint8) for i in range(9)])
    sheet = contact_sheet([clip, clip[:2]], most=3, gap=1)
    assert sheet.shape == (9, 17, 3)
    assert [sheet[0, 6 * i, 0] for i in range(3)] == [0, 4, 8]
    assert [sheet[5, 6 * i, 0] for i in range(3)] == [0, 1, 255]
    assert grid_of_images(clip, columns=4).shape == (3 * 6 - 2, 4 * 7 - 2, 3)
    image = pytest.importorskip("PIL.Image")
    write_picture(tmp_path / "a.png", sheet)
    assert np.array_equal(np.asarray(image.open(tmp_path / "a.png")), sheet)
