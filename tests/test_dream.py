"""`postformer dream` from the command line: every verb on a small trained model, and what it says of mistakes."""

import re

import numpy as np
import pytest
import torch

from postformer import cli, commands_pictures
from postformer.commands_pictures import _backwards
from postformer.data.images import read_picture
from postformer.data.video import read_video, video_file, write_picture
from postformer.train.painter import Painter

pytest.importorskip("av")
pytest.importorskip("PIL")
SMALL = ["train.steps=3", "train.batch=2", "train.save_every=3", "optim.warmup=1"]
CLIPS = [
    *SMALL,
    "data.frames=8",
    "data.size=16",
    "model.dim=24",
    "model.depth=1",
    'model.mixers=[{kind="spacetime", heads=2}]',
    "model.patch=[2, 8, 8]",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dream")
    np.savez(
        folder / "a.npz", images=np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8), labels=np.arange(60) % 3
    )
    run("train", "dream-dit", *CLIPS, "--out", str(folder / "worded"))
    run("train", "dream-dit", *CLIPS, "data.scene=uniform", "data.text=false", "--out", str(folder / "clips"))
    causal = [
        'model.mixers=[{kind="spacetime", heads=2, reach="past", window=4}]',
        "model.hints=0",
        "objective.known=0.0",
        "objective.known_frames=0",
        "objective.apart=1.0",
    ]
    run("train", "physics-dit", *CLIPS, *causal, "--out", str(folder / "causal"))
    run("train", "draw-unet", *SMALL, f"data.path={folder / 'a.npz'}", "model.widths=[8, 8]", "--out", str(folder / "pictures"))
    run(
        "train",
        "see-vit",
        *SMALL,
        f"data.path={folder / 'a.npz'}",
        "model.dim=24",
        "model.depth=1",
        "--out",
        str(folder / "see"),
    )
    return folder


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 0


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


VERBS = {
    "draw": (["--count", "4"], 8),
    "animate": (["--from", "test:0"], 8),
    "extend": (["--from", "test:0", "--frames", "20"], 8 + 24),
    "connect": (["--from", "test:0", "--to", "test:1", "--frames", "4"], 8 + 4 + 8),
    "edit": (["--from", "test:0", "--strength", "0.3"], 8),
    "loop": (["--from", "test:0", "--frames", "4"], 12),
}


@pytest.mark.parametrize(("verb", "other"), [("loop", "test:0"), ("connect", "test:1")])
def test_what_is_drawn_leads_from_a_clip_s_end_to_the_next_one_s_beginning(runs, tmp_path, monkeypatch, verb, other):
    """A loop's next one is the clip itself."""
    ends = []

    def spied(model, before, after, between, how, **words):
        ends.extend([before, after])
        return before.new_zeros(*before.shape[:2], between, *before.shape[3:])

    monkeypatch.setattr("postformer.models.dreaming.joined", spied)
    words = ["--from", "test:0", *(["--to", other] if verb == "connect" else []), "--frames", "4", "--context", "2"]
    run("dream", verb, str(runs / "clips"), *words, "--scale", "1", "--out", str(tmp_path / "a.mkv"))
    first, then = (Painter.of(runs / "clips").clip(name, "--from") for name in ("test:0", other))
    assert torch.equal(ends[0], first[:, :, -2:])
    assert torch.equal(ends[1], then[:, :, :2])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_writes_a_video_and_a_sheet(runs, tmp_path, verb, capsys):
    words, frames = VERBS[verb]
    run("dream", verb, str(runs / "clips"), *words, "--steps", "2", "--out", str(tmp_path / "a.mkv"), "--scale", "1")
    assert re.search(rf"a\.mkv: {frames} frames; .*a\.sheet\.png", capsys.readouterr().out)
    found, rate = read_video(tmp_path / "a.mkv")
    assert len(found) == frames
    assert rate == pytest.approx(10)
    assert (tmp_path / "a.sheet.png").is_file()
    if verb in ("extend", "connect", "loop"):  # what was given stays
        given = Painter.of(runs / "clips").data.batches(1, seed=0, split="test").batch(0)["clips"][0].numpy()
        expected = np.rint((given + 1) * 127.5).transpose(1, 2, 3, 0)
        assert np.abs(found[:8].astype(int) - expected).max() <= 1


def test_backward_and_by_state(runs, tmp_path):
    more = ["--from", "test:0", "--frames", "12", "--steps", "2", "--scale", "1"]
    run("dream", "extend", str(runs / "clips"), *more, "--backward", "--out", str(tmp_path / "a.mkv"))
    found, _ = read_video(tmp_path / "a.mkv")
    given = Painter.of(runs / "clips").clip("test:0", "--from").numpy()[0]
    assert np.abs(found[-8:].astype(int) - np.rint((given + 1) * 127.5).transpose(1, 2, 3, 0)).max() <= 1
    assert Painter.of(runs / "causal").causal
    assert not Painter.of(runs / "clips").causal
    run("dream", "extend", str(runs / "causal"), *more, "--out", str(tmp_path / "b.mkv"))
    assert len(read_video(tmp_path / "b.mkv")[0]) == 8 + 12


def test_what_is_shown_is_told_in_words(runs, tmp_path, capsys):
    """From noise, and going on: the text changes what is drawn, and what the data has no words for is said."""
    many = ["--steps", "2", "--scale", "1", "--seed", "3", "--guidance", "50"]
    for words, name in (("a disc thrown to the left falls", "a"), ("three discs in a box", "b"), ("three discs in a box", "c")):
        run(
            "dream",
            "draw",
            str(runs / "worded"),
            "--count",
            "1",
            *many,
            "--text",
            words,
            "--out",
            str(tmp_path / f"{name}.mkv"),
        )
    a, b, c = (read_video(tmp_path / f"{name}.mkv")[0] for name in "abc")
    assert np.array_equal(b, c)
    assert not np.array_equal(a, b)
    capsys.readouterr()
    drawn = ("dream", "draw", "--out", str(tmp_path / "d.mkv"))
    assert "a text of 60 bytes, where the model was taught at most 48" in refused(
        capsys, *drawn, str(runs / "worded"), "--text", 60 * "x"
    )
    assert "the model was taught no texts" in refused(capsys, *drawn, str(runs / "pictures"), "--text", "x")
    assert "the model was taught no classes" in refused(capsys, *drawn, str(runs / "worded"), "--label", "several")
    train = ("train", "physics-unet", *SMALL, "data.text=true", "--out", str(tmp_path / "unet"))
    assert "data.text: a model of kind 'unet' takes no texts" in refused(capsys, *train)


def test_an_image_is_one_frame_of_a_model_whose_patches_have_two(runs, tmp_path):
    run(
        "dream",
        "draw",
        str(runs / "clips"),
        "--count",
        "3",
        "--frames",
        "1",
        "--steps",
        "1",
        "--scale",
        "1",
        "--out",
        str(tmp_path / "a.png"),
    )
    assert read_picture(tmp_path / "a.png").shape[:2] == (16, 3 * 16 + 2 * 2)


def test_a_causal_model_may_read_a_little_less_clean(runs, tmp_path, capsys):
    more = ["--from", "test:0", "--steps", "2", "--scale", "1", "--steady", "0.9", "--out", str(tmp_path / "a.mkv")]
    run("dream", "extend", str(runs / "causal"), *more)
    assert len(read_video(tmp_path / "a.mkv")[0]) == 16
    words = ("dream", "extend", "--from", "test:0", "--out", str(tmp_path / "c.mkv"))
    assert "--steady: goes with a model that is causal" in refused(capsys, *words, str(runs / "clips"), "--steady", "0.9")
    assert "--steady: '2' is not a number above 0 to 1" in refused(capsys, *words, str(runs / "causal"), "--steady", "2")
    assert not (tmp_path / "c.mkv").exists()


def test_a_memory_that_grows_is_said(runs):
    painter = Painter.of(runs / "causal")
    assert painter.doubt("extend") is None
    painter.model.backbone.blocks[0].mixer.window = None
    painter.objective = {**painter.objective, "known": 1.0, "ends": ["first"]}
    assert "has no window" in painter.doubt("extend")
    assert painter.doubt("animate") is None


def test_files_of_several_sizes_teach_and_are_gone_on_from(tmp_path, capsys):
    """A folder of a wide and a tall video and a picture, with captions, all in one batch."""
    for name, shape in (("wide", (30, 16, 48, 3)), ("tall", (40, 48, 16, 3))):
        with video_file(tmp_path / "in" / f"{name}.mkv") as write:
            write(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        (tmp_path / "in" / f"{name}.txt").write_text(name)
    own = [
        "data.kind=videos",
        f"data.path={tmp_path / 'in'}",
        "data.shape=own",
        "data.text=8",
        "data.frames=8",
        "data.size=[24,24]",
    ]
    model = [
        "model.dim=24",
        "model.depth=1",
        "model.patch=[2,8,8]",
        'model.mixers=[{kind="spacetime",heads=2}]',
        "objective.known_frames=0",
    ]
    kept = [word for word in own if "kind" not in word]
    (tmp_path / "run.toml").write_text(WORDED)
    run("train", str(tmp_path / "run.toml"), *kept, *SMALL, *model, "--out", str(tmp_path / "run"))
    out = str(tmp_path / "a.mkv")
    run(
        "dream",
        "draw",
        str(tmp_path / "run"),
        "--size",
        "16x48",
        "--count",
        "1",
        "--text",
        "wide",
        "--steps",
        "1",
        "--scale",
        "1",
        "--out",
        out,
    )
    assert read_video(out)[0].shape == (8, 16, 48, 3)
    run("dream", "extend", str(tmp_path / "run"), "--from", "train:0", "--steps", "1", "--scale", "1", "--out", out)
    assert len(read_video(out)[0]) == 8 + 12  # windows of 8 that know 2, until there are 8 more
    capsys.readouterr()
    unet = ["data.text=0", 'model={kind="unet",widths=[8,8]}']
    assert "'own' puts clips of several sizes into a batch" in refused(
        capsys, "train", str(tmp_path / "run.toml"), *kept, *unet, "--out", str(tmp_path / "b")
    )
    assert "data.unit: 2 frames are not a multiple of the patch's 4" in refused(
        capsys, "train", str(tmp_path / "run.toml"), *kept, *model, "model.patch=[4,8,8]", "--out", str(tmp_path / "b")
    )


WORDED = """
name = "worded"
[model]
kind = "dit"
[objective]
kind = "denoise"
known = 0.5
[data]
kind = "videos"
path = "in"
"""


def test_a_video_goes_on_at_its_own_rate(runs, tmp_path):
    with video_file(tmp_path / "in.mkv", 25.0) as write:
        write(np.zeros((8, 16, 16, 3), np.uint8))
    for words, rate in (([], 25), (["--rate", "5"], 5)):
        out = str(tmp_path / "a.mkv")
        run("dream", "extend", str(runs / "clips"), "--from", str(tmp_path / "in.mkv"), "--steps", "1", *words, "--out", out)
        assert read_video(out)[1] == pytest.approx(rate)


def test_pieces_before_a_clip_are_written_in_their_order():
    pieces = [torch.full((1, 3, 2, 4, 4), float(i)) for i in range(3)]
    assert [float(piece.mean()) for piece in _backwards(iter(pieces))] == [2, 1, 0]


@pytest.mark.parametrize(
    ("objective", "verb", "says"),
    [
        ({}, "connect", None),
        ({"ends": ["first"]}, "extend", None),
        ({"ends": ["first"]}, "loop", "not taught with known frames at both ends"),
        ({"ends": ["first"], "known": 1.0}, "draw", "taught with known frames alone"),
        ({"ends": ["first"], "known_frames": 4}, "animate", "taught with 4 known frames"),
        ({"ends": ["last"]}, "extend", "not taught with known frames at the first end"),
        ({"known": 0.0}, "extend", "not taught with known frames at the first end"),
        ({"known": 0.0}, "edit", None),
    ],
)
def test_what_a_model_was_never_taught_is_said(runs, objective, verb, says):
    painter = Painter.of(runs / "clips")
    painter.objective = {**painter.objective, **objective}
    doubt = painter.doubt(verb)
    assert doubt is None if says is None else says in doubt
    if objective == {"ends": ["first"]}:
        assert "at the last end" in painter.doubt("extend", backward=True)


def test_a_causal_model_that_is_to_join_clips_is_doubted(runs, tmp_path, capsys):
    words = ["--from", "test:0", "--to", "test:1", "--frames", "4", "--steps", "1", "--scale", "1"]
    run("dream", "connect", str(runs / "causal"), *words, "--out", str(tmp_path / "a.mkv"))
    error = capsys.readouterr().err
    assert "causal: it is causal over frames and does not see what comes after, so what it draws may be of no use" in error


def test_a_clip_keeps_the_frames_next_to_what_is_drawn(runs, tmp_path):
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    frames[:] = 10 * np.arange(9)[:, None, None, None]
    with video_file(tmp_path / "a.mkv", 10.0) as write:
        write(frames)
    painter = Painter.of(runs / "clips")
    for before, kept in ((True, range(1, 9)), (False, range(8))):
        found = painter.patched(painter.clip(str(tmp_path / "a.mkv"), "--from"), before=before)
        shown = ((found[0].mean((0, 2, 3)) + 1) * 127.5).tolist()
        assert shown == pytest.approx([10 * i for i in kept], abs=1)


@pytest.mark.parametrize(
    ("verb", "more", "kept"),
    [("extend", ["--frames", "2"], 0), ("extend", ["--frames", "2", "--backward"], 6), ("loop", ["--frames", "2"], 0)],
)
def test_no_known_frame_is_left_out(runs, tmp_path, verb, more, kept):
    """Nine frames of a model that draws two at once: all nine are in what is written, and an edit has nine."""
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    frames[:] = 10 * np.arange(9)[:, None, None, None]
    with video_file(tmp_path / "a.mkv", 10.0) as write:
        write(frames)
    out = ["--from", str(tmp_path / "a.mkv"), "--steps", "1", "--scale", "1", "--out", str(tmp_path / "b.mkv")]
    run("dream", verb, str(runs / "clips"), *more, *out)
    found, _ = read_video(tmp_path / "b.mkv")
    assert np.abs(found[kept : kept + 9].astype(int) - frames).max() <= 1


def test_a_long_clip_is_edited_to_its_end(runs, tmp_path, capsys):
    frames = np.zeros((19, 16, 16, 3), np.uint8)
    frames[:] = 10 * np.arange(19)[:, None, None, None]
    with video_file(tmp_path / "a.mkv", 10.0) as write:
        write(frames)
    out = ["--from", str(tmp_path / "a.mkv"), "--steps", "1", "--scale", "1", "--out", str(tmp_path / "b.mkv")]
    run("dream", "edit", str(runs / "clips"), *out)
    assert len(read_video(tmp_path / "b.mkv")[0]) == 19
    assert "warning: dream edit: its 19 frames are drawn anew 8 at a time" in capsys.readouterr().err


def test_what_is_gone_on_from_is_not_written_over(runs, tmp_path, capsys):
    with video_file(tmp_path / "a.mkv", 10.0) as write:
        write(np.zeros((8, 16, 16, 3), np.uint8))
    (tmp_path / "folder.mkv").mkdir()
    before = (tmp_path / "a.mkv").read_bytes()
    words = ("dream", "extend", str(runs / "clips"), "--from", str(tmp_path / "a.mkv"), "--steps", "1", "--out")
    assert "would be written over --from" in refused(capsys, *words, str(tmp_path / "a.mkv"))
    assert "is a folder; name a file in it" in refused(capsys, *words, str(tmp_path / "folder.mkv"))
    assert "is a file, not a folder" in refused(capsys, *words, str(tmp_path / "a.mkv" / "b.mkv"))
    assert (tmp_path / "a.mkv").read_bytes() == before


def test_data_that_changed_is_not_taken_for_what_was_learned(runs, tmp_path, capsys):
    """A folder of classes in which one more appears: names and numbers would no longer be those of the model."""
    rng = np.random.default_rng(0)
    for name in ("b", "c"):
        for i in range(20):
            write_picture(tmp_path / "in" / name / f"{i}.png", rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    small = [*SMALL, f"data.path={tmp_path / 'in'}", "model.dim=24", "model.depth=1"]
    run("train", "see-vit", *small, "--out", str(tmp_path / "see"))
    run("train", "draw-dit", *small, 'model.mixers=[{kind="spacetime",heads=2}]', "--out", str(tmp_path / "draw"))
    renamed = tmp_path / "other"
    for name in ("c", "b"):
        (renamed / name).mkdir(parents=True)
        for i in range(3):
            write_picture(renamed / name / f"{i}.png", rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    capsys.readouterr()
    run("evaluate", str(tmp_path / "see"), "--images", str(renamed))
    assert "of 6" in capsys.readouterr().out.splitlines()[0]
    (renamed / "c").rename(renamed / "d")
    assert "the model knows no class 'd'; it knows b, c" in refused(
        capsys, "evaluate", str(tmp_path / "see"), "--images", str(renamed)
    )
    write_picture(tmp_path / "in" / "a" / "0.png", np.zeros((8, 8, 3), np.uint8))
    out = ["--steps", "1", "--count", "1", "--out", str(tmp_path / "a.png")]
    for words in (
        ["evaluate", str(tmp_path / "see"), "--images", "test"],
        ["evaluate", str(tmp_path / "draw"), "--judge", str(tmp_path / "see")],
        ["dream", "draw", str(tmp_path / "draw"), "--label", "c", *out],
    ):
        assert "other images than the run names" in refused(capsys, *words)
    run("dream", "draw", str(tmp_path / "draw"), "--label", "1", *out)


def test_files_of_one_s_own_go_on(runs, tmp_path):
    from PIL import Image

    run("dream", "draw", str(runs / "clips"), "--count", "1", "--steps", "2", "--out", str(tmp_path / "a.mp4"), "--scale", "2")
    run(
        "dream",
        "extend",
        str(runs / "clips"),
        "--from",
        str(tmp_path / "a.mp4"),
        "--steps",
        "2",
        "--out",
        str(tmp_path / "b.mp4"),
    )
    Image.new("RGB", (50, 30), (200, 10, 10)).save(tmp_path / "c.png")
    run(
        "dream",
        "animate",
        str(runs / "clips"),
        "--from",
        str(tmp_path / "c.png"),
        "--steps",
        "2",
        "--out",
        str(tmp_path / "d.mp4"),
    )
    assert len(read_video(tmp_path / "d.mp4")[0]) == 8
    # a sheet beside a video never takes the place of a picture that has the video's name
    before = (tmp_path / "c.png").read_bytes()
    run(
        "dream",
        "animate",
        str(runs / "clips"),
        "--from",
        str(tmp_path / "c.png"),
        "--steps",
        "2",
        "--out",
        str(tmp_path / "c.mp4"),
    )
    assert (tmp_path / "c.png").read_bytes() == before


def test_pictures_are_a_sheet(runs, tmp_path, capsys):
    from PIL import Image

    run(
        "dream",
        "draw",
        str(runs / "pictures"),
        "--count",
        "6",
        "--label",
        "1",
        "--guidance",
        "2",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "a.png"),
    )
    assert "6 pictures" in capsys.readouterr().out
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size == (6 * 34 - 2, 32)


def test_the_average_is_what_draws(runs):
    painter = Painter.of(runs / "clips")
    from safetensors.torch import load_file

    folder = sorted((runs / "clips" / "checkpoints").iterdir())[-1]
    own, average = load_file(folder / "model.safetensors"), load_file(folder / "objective.safetensors")
    for name, value in painter.model.state_dict().items():
        assert torch.equal(value, average[f"average.{name}"])
    assert any(not torch.equal(value, own[name]) for name, value in painter.model.state_dict().items())


def test_the_same_seed_draws_the_same(runs, tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        run(
            "dream",
            "draw",
            str(runs / "clips"),
            "--count",
            "1",
            "--steps",
            "2",
            "--seed",
            seed,
            "--out",
            str(tmp_path / f"{name}.mkv"),
        )
    a, b, c = (read_video(tmp_path / f"{name}.mkv")[0] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


MISTAKES = [
    (["draw", "clips", "--out", "a.avi"], "unknown kind of file '.avi'; choose from .mp4, .mkv, .gif, .png"),
    (["draw", "see", "--out", "a.mp4"], "a model of kind 'vit' draws nothing; choose a run of dit, unet"),
    (["draw", "clips", "--out", "a.mp4", "--label", "3"], "--label 3: the model was taught no classes"),
    (["draw", "pictures", "--out", "a.png", "--label", "7"], "--label 7: choose from 0, 1, 2"),
    (["extend", "clips", "--out", "a.mp4", "--from", "tset:0"], "--from tset:0: split: unknown 'tset'; choose from train"),
    (["extend", "clips", "--out", "a.mp4", "--from", "missing.mp4"], "missing.mp4: no such file"),
    (
        ["extend", "clips", "--out", "a.mp4", "--from", "test:0", "--context", "8"],
        "context=8 must be above 0 and below window=8",
    ),
    (
        ["edit", "clips", "--out", "a.mp4", "--from", "test:0", "--strength", "2"],
        "--strength: '2' is not a number above 0 to 1",
    ),
    (["draw", "nothing", "--out", "a.mp4"], "no such folder"),
    (["draw", "clips", "--out", "a.mp4", "--size", "0x16"], "'0x16' is not a size such as 32x48"),
    (
        ["draw", "pictures", "--out", "a.png", "--size", "7x8"],
        "7 rows are no multiple of 2, as 2 widths and a stem of 1 want: crop",
    ),
    (["draw", "clips", "--out", "a.mp4", "--frames", "99999999"], "at most 4,096 are drawn at once, extend draws more"),
    (
        ["draw", "clips", "--out", "a.mp4", "--size", "9984x9984"],
        "--size 9984x9984: at most 64 times as many pixels as the 16x16 that it learned from",
    ),
    (
        ["connect", "clips", "--out", "a.mp4", "--from", "test:0", "--to", "test:1", "--frames", "5000"],
        "--frames: 5,000; at most 4,096",
    ),
    (["draw", "clips", "--out", "a.mp4", "--seed", "99999999999999999999"], "is not a whole number from 0 to"),
    (
        ["draw", "clips", "--out", "a.mp4", "--count", "64", "--size", "32x32", "--frames", "16", "--scale", "64"],
        "--count, --frames, --size, --scale: 4,294,967,296 pixels; at most 268,435,456 are drawn at once",
    ),
    (["draw", "clips", "--out", "a.mp4", "--scale", "1000"], "'1000' is not a whole number from 1 to 64"),
    (["draw", "pictures", "--out", "a.png", "--guidance", "nan"], "--guidance: 'nan' is not a number from 0 to 1000"),
    (["draw", "clips", "--out", "a.mp4", "--rate", "0"], "--rate: '0' is not a number above 0 to 240"),
    (
        ["edit", "clips", "--out", "a.mp4", "--from", "test:0", "--strength", "nan"],
        "--strength: 'nan' is not a number above 0 to 1",
    ),
    (["extend", "pictures", "--out", "a.mp4", "--from", "test:0"], "it learned from single pictures; choose a run of videos"),
    (["sing", "clips", "--out", "a.mp4"], "invalid choice: 'sing'"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line(runs, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    verb, name, *rest = words
    assert says in refused(capsys, "dream", verb, str(runs / name), *rest, *(["--steps", "2"] if verb != "sing" else []))
    assert list(tmp_path.iterdir()) == []


def test_more_steps_than_anyone_takes_are_refused(runs, tmp_path, capsys):
    for steps in ("10001", "1000000000"):
        said = refused(capsys, "dream", "draw", str(runs / "clips"), "--steps", steps, "--out", str(tmp_path / "a.mkv"))
        assert f"--steps: '{steps}' is not a whole number from 1 to 10,000" in said
    more = ["--count", "1", "--frames", "2", "--scale", "1", "--steps", "10000", "--out", str(tmp_path / "missing" / "a.mkv")]
    assert "no such folder" in refused(capsys, "dream", "draw", str(runs / "nothing"), *more)


def test_a_file_that_cannot_be_written_is_one_line(runs, capsys):
    words = ("dream", "extend", str(runs / "clips"), "--from", "test:0", "--steps", "1", "--scale", "1", "--out", "/proc/x.mkv")
    assert refused(capsys, *words).startswith("postformer: /proc/x.mkv: ")


def test_a_video_that_is_too_long_is_not_cut(runs, tmp_path, capsys, monkeypatch):
    with video_file(tmp_path / "in.mp4", 10.0) as write:
        write(np.zeros((9, 16, 16, 3), np.uint8))
    monkeypatch.setattr("postformer.data.video.MOST_FRAMES", 8)
    words = ("dream", "extend", str(runs / "clips"), "--from", str(tmp_path / "in.mp4"), "--out", str(tmp_path / "a.mkv"))
    assert "in.mp4: it has 9 frames, and at most 8 are read; cut it into shorter files first" in refused(capsys, *words)


def test_a_long_piece_is_written_a_few_frames_at_a_time(runs, tmp_path, monkeypatch):
    """So that no more of them are there at their --scale than those."""
    seen = []
    sized = commands_pictures._side_by_side
    monkeypatch.setattr(
        commands_pictures, "_side_by_side", lambda clips, scale: seen.append(clips.shape[2]) or sized(clips, scale)
    )
    with video_file(tmp_path / "in.mkv", 10.0) as write:
        write(np.zeros((70, 16, 16, 3), np.uint8))
    words = ["--from", str(tmp_path / "in.mkv"), "--frames", "2", "--steps", "1", "--scale", "1"]
    run("dream", "extend", str(runs / "clips"), *words, "--out", str(tmp_path / "a.mkv"))
    assert len(read_video(tmp_path / "a.mkv")[0]) == sum(seen) > 70
    assert max(seen) <= 16


def test_frames_that_would_be_too_large_in_the_file_are_refused(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(commands_pictures, "MOST_DRAWN", commands_pictures.SHEET * 32 * 32)
    words = ["dream", "edit", str(runs / "clips"), "--from", "test:0", "--steps", "1", "--out", str(tmp_path / "a.mkv")]
    assert "--scale 3: frames of 48x48 pixels; at most 1,024 pixels are written" in refused(capsys, *words, "--scale", "3")
    run(*words, "--scale", "2")


def test_an_option_without_a_value_is_named(runs, capsys):
    for option, says in (
        ("physics", "--physics : unknown ''"),
        ("series", "is no forecaster"),
        ("judge", "is no run, checkpoint or model folder"),
    ):
        assert says in refused(capsys, "evaluate", str(runs / "clips"), f"--{option}", "")
        assert "tokenizer" not in says


def test_a_classifier_is_evaluated_on_its_own_images_and_on_others(runs, tmp_path, capsys):
    run("evaluate", str(runs / "see"), "--images", "test")
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"all +[0-9.]+% \(95% interval .* of 12\)", lines[0])
    assert sum(int(re.search(r"of (\d+)\)", line)[1]) for line in lines[1:]) == 12
    np.savez(tmp_path / "b.npz", images=np.zeros((9, 20, 20), np.uint8), labels=np.arange(9) % 3)
    run("evaluate", str(runs / "see"), "--images", str(tmp_path / "b.npz"))
    assert re.search(r"all +33.3% .*3 of 9", capsys.readouterr().out)
    np.savez(tmp_path / "c.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4) % 2)
    assert "3 classes of 3 channels, and the model knows 3 of 1" in refused(
        capsys, "evaluate", str(runs / "see"), "--images", str(tmp_path / "c.npz")
    )
    assert "names no images; choose a run of vit" in refused(capsys, "evaluate", str(runs / "clips"), "--images", "test")


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--prompt", "x"],
        ["evaluate", "--text", "."],
        ["ask", "what?", "--memory", "m"],
        ["read", "a.txt", "--memory", "m"],
    ],
)
def test_commands_of_texts_refuse_models_of_pictures(runs, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text")
    for name in ("clips", "see"):
        said = refused(capsys, words[0], str(runs / name), *words[1:])
        assert said.startswith("postformer: ")


RUNS = [
    (["train", "see-vit", "model.patch=5"], "model.patch: expected a list, got 5"),
    (
        ["train", "see-vit", "model.patch=[5, 5]", "data.path=a.npz"],
        "8 rows are not a multiple of the patch's 5: crop to 5 or pad to 10",
    ),
    (["train", "see-vit", "model.classes=5", "data.path=a.npz"], "model.classes: 5, but data.classes is 3; leave it out"),
    (["train", "see-vit", "data.path=missing"], "data.path: missing: no such file or folder"),
    (["train", "draw-dit", "data.path=a.npz", "data.size=[-4,8]"], "data: size=(-4, 8) must be rows and columns of at least 1"),
    (["train", "draw-dit", "data.path=a.npz", "data.size=[0,3]"], "data: size=(0, 3) must be rows and columns of at least 1"),
    (
        ["train", "physics-dit", *CLIPS, "data.scene=several", "data.dt=10000.0", "name=fast"],
        "data: three discs in a box for 8 frames of 10000.0 s: more than 10,000 events",
    ),
    (["train", "draw-dit", "model.patch=[1, 5, 5]", "data.path=a.npz"], "data: 8 rows are not a multiple of the patch's 5"),
    (
        ["train", "physics-dit", "data.frames=15"],
        "data: 15 frames are not a multiple of the patch's 2: crop to 14 or pad to 16",
    ),
    (
        ["train", "physics-unet", "data.size=30"],
        "data: 30 rows are no multiple of 8, as 3 widths and a stem of 2 want: crop to 24 or pad to 32",
    ),
    (
        ["train", "physics-unet", "objective.known_frames=16"],
        "objective.known_frames: 16 must be fewer than the 16 frames of a clip",
    ),
    (
        ["train", "physics-dit", "model.kind=vit"],
        "model.kind: 'vit' does not fit data.kind, which is 'physics'; choose from dit, unet",
    ),
    (
        ["train", "see-vit", "objective.kind=denoise"],
        "objective.kind: 'denoise' does not teach model.kind, which is 'vit'; choose classify",
    ),
    (
        ["train", "physics-dit", "objective.shortcut=0.2"],
        "objective: shortcut=0.2 goes with path='linear', an average, and a model with strides",
    ),
    (["cost", "physics-dit", "--length", "64", "--batch", "8"], "--batch: counts what a step of writing text touches"),
]


@pytest.mark.parametrize(("words", "says"), RUNS, ids=[" ".join(words) for words, _ in RUNS])
def test_a_run_of_pictures_that_does_not_fit_is_one_line(runs, monkeypatch, capsys, words, says):
    monkeypatch.chdir(runs)
    before = sorted(runs.iterdir())
    assert says in refused(capsys, *words)
    assert [path for path in sorted(runs.iterdir()) if path not in before] in ([], [runs / "runs"])


def test_clips_are_judged_by_physics_beside_what_anyone_can_do(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("postformer.commands_judged.CLIPS", 3)
    for name in ("clips", "causal"):
        run("evaluate", str(runs / name), "--physics", "test,fast")
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(":")[0] for line in lines if "clips of 'uniform', 4 frames after 4" in line] == ["test", "fast"]
        assert [line.split("  ")[0] for line in lines[2:6]] == ["true clips", "straight line", "last frame", "the model"]
    assert "unknown 'swift'; choose from train" in refused(capsys, "evaluate", str(runs / "clips"), "--physics", "swift")
    assert "did not learn from simulated videos" in refused(capsys, "evaluate", str(runs / "pictures"), "--physics", "test")
    assert "belongs to --text" in refused(capsys, "evaluate", str(runs / "clips"), "--physics", "test", "--window", "4")


def test_a_classifier_judges_what_is_drawn_beside_real_images(runs, tmp_path, capsys):
    run("evaluate", str(runs / "pictures"), "--judge", str(runs / "see"))
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"drawn images taken for what they should be: [0-9.]+% \(95% interval .*, [0-9]+ of 5\)", lines[0])
    assert re.match(r"Frechet distance to 5 real images: drawn [0-9.e+]+, as many other real ones [0-9.e+]+", lines[2])
    assert "names no images; choose a run of vit" in refused(
        capsys, "evaluate", str(runs / "pictures"), "--judge", str(runs / "clips")
    )
    assert "did not learn from images" in refused(capsys, "evaluate", str(runs / "clips"), "--judge", str(runs / "see"))
    np.savez(tmp_path / "b.npz", images=np.zeros((60, 12, 12), np.uint8), labels=np.arange(60) % 3)
    run(
        "train", "draw-unet", *SMALL, f"data.path={tmp_path / 'b.npz'}", "model.widths=[8, 8]", "--out", str(tmp_path / "other")
    )
    said = refused(capsys, "evaluate", str(tmp_path / "other"), "--judge", str(runs / "see"))
    assert "was taught other images than" in said
    assert "size [12, 12], not [8, 8]" in said
