"""Files of episodes: windows are a function of their number and lie in one episode, and a file is whole whenever its writer is killed."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.config import ConfigError, build
from postformer.data import DATA
from postformer.data.episode_file import About, read_contents
from postformer.data.episode_writer import EpisodeWriter
from postformer.data.episodes import Episodes
from postformer.data.sources import DataError

h5py = pytest.importorskip("h5py")

SHAPE = (2, 6, 5)
LENGTHS = [12, 3, 20, 9, 7, 1, 15, 30, 8, 11, 6, 10]
"""Actions of each episode."""
ABOUT = About(frames_per_second=10.0, action_names=("x", "y"), state_names=("episode", "step"), environment="counting")


def episode(number, length):
    """Step t of an episode is seen as 10 * number + t, done as (number, t) and true as (number, t)."""
    steps = np.arange(length + 1)
    seen = np.broadcast_to((10 * number + steps)[:, None, None, None], (length + 1, *SHAPE)).astype(np.uint8)
    states = np.stack([np.full(length + 1, number), steps], 1).astype(np.float32)
    return seen, states[:-1], states


def write(path, lengths=LENGTHS, **words):
    with EpisodeWriter(path, ABOUT, **words) as writer:
        for number, length in enumerate(lengths):
            writer.add(*episode(number, length), seed=100 + number)
    return path


def read_all(path):
    with h5py.File(path, "r", locking=False, swmr=True) as file:
        rows = int(file["ends"][-1])
        found = {name: file[name][:rows] for name in ("observations", "actions", "states")}
        count = len(file["ends"])
        return found | {name: file[name][:count] for name in ("ends", "digests", "seeds", "tasks")}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("episodes") / "counting.h5")


def test_a_window_lies_in_one_episode(path):
    batch = Episodes(path=str(path), steps=4).batches(64, seed=0).batch(0)
    assert batch["observations"].shape == (64, 5, *SHAPE)
    assert batch["observations"].dtype == batch["actions"].dtype == batch["states"].dtype == torch.float32
    assert (batch["actions"].shape, batch["states"].shape) == ((64, 4, 2), (64, 5, 2))
    number, step = batch["states"].unbind(-1)
    assert (number == number[:, :1]).all()
    assert (step.diff(dim=1) == 1).all()
    assert torch.equal(batch["actions"], batch["states"][:, :-1])
    assert torch.allclose(batch["observations"] * 255, (10 * number + step)[..., None, None, None].expand(-1, -1, *SHAPE))
    assert batch["rows"][0] == f"counting.h5 train episode {int(number[0, 0])} from step {int(step[0, 0])}"


@pytest.mark.parametrize("stride", [3, 9])
def test_a_stride_joins_actions_to_blocks(tmp_path, stride):
    data = Episodes(path=str(write(tmp_path / "long.h5", [40] * 5)), steps=4, stride=stride)
    assert data.sizes == {"channels": 2, "size": (6, 5), "actions": 2 * stride}
    batch = data.batches(8, seed=0).batch(0)
    step = batch["states"][..., 1]
    assert (step.diff(dim=1) == stride).all()
    assert torch.equal(batch["observations"][..., 0, 0, 0] * 255, (10 * batch["states"][..., 0] + step))
    blocks = batch["actions"].reshape(8, 4, stride, 2)[..., 1]
    assert torch.equal(blocks, step[:, :-1, None] + torch.arange(stride))


@given(st.integers(0, 3), st.integers(1, 6), st.integers(1, 5), st.sampled_from(["train", "valid", "test"]))
def test_windows_are_a_function_of_seed_split_and_number(path, seed, steps, size, split):
    whole = Episodes(path=str(path), steps=steps).batches(2 * size, seed, split).batch(1)
    parts = [Episodes(path=str(path), steps=steps).batches(size, seed, split).batch(i) for i in (2, 3)]
    assert whole["rows"] == parts[0]["rows"] + parts[1]["rows"]
    for name in ("observations", "actions", "states"):
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))


def test_an_epoch_meets_every_window_once_and_splits_share_no_episode(path):
    data = Episodes(path=str(path), steps=5)
    met = {split: set() for split in data.numbers}
    for split, own in data.numbers.items():
        batches = data.batches(1, 0, split)
        windows = {(int(i), start) for i in own for start in range(LENGTHS[i] - 5 + 1)}
        for epoch in range(2):
            drawn = [batches.window(epoch * batches.windows + i) for i in range(batches.windows)]
            assert len(drawn) == len(windows)
            assert set(drawn) == windows
        met[split] = {number for number, _ in windows}
    assert not met["train"] & met["valid"] | met["train"] & met["test"] | met["valid"] & met["test"]
    assert set.union(*met.values()) == {i for i, length in enumerate(LENGTHS) if length >= 5}
    assert {split: len(own) for split, own in data.numbers.items()} == {"train": 9, "valid": 1, "test": 2}
    order = [data.batches(1, seed).window(i) for seed in (0, 1) for i in range(9)]
    assert order[:9] != order[9:]


def test_splits_do_not_depend_on_the_size_of_windows(path):
    a, b = (Episodes(path=str(path), steps=steps).numbers for steps in (1, 12))
    assert all(np.array_equal(a[split], b[split]) for split in a)


def test_a_run_names_its_episodes(path, tmp_path):
    found = Episodes(path=str(path)).identity
    assert Episodes(path=str(path), **found).identity == found
    assert Episodes(path=str(write(tmp_path / "same.h5"))).identity == found
    assert Episodes(path=str(write(tmp_path / "more.h5", [*LENGTHS, 4]))).identity != found
    for name in ("actions", "states", "digests"):
        other = shutil.copy(path, tmp_path / f"{name}.h5")
        with h5py.File(other, "r+") as file:
            file[name][2, 0] += 1
        with pytest.raises(DataError, match=r"other episodes than the run names \(data\.sha256="):
            _ = Episodes(path=str(other), **found).identity


def test_one_pixel_changes_the_identity(tmp_path):
    found = []
    for value in (0, 1):
        with EpisodeWriter(tmp_path / f"{value}.h5") as writer:
            for number in range(3):
                seen, actions, _ = episode(number, 4)
                seen[2, 1, 3, 3] += value
                writer.add(seen, actions)
        found.append(Episodes(path=str(tmp_path / f"{value}.h5")).identity)
    assert found[0] != found[1]


def test_only_the_chunks_of_a_window_are_read(tmp_path):
    """A broken chunk is told by what needs it, and is not seen by what does not."""
    path = write(tmp_path / "broken.h5", [30] * 5)
    with h5py.File(path) as file:
        at = file["observations"].id.get_chunk_info(1)  # pictures 8 to 15, of the first episode
    data = bytearray(path.read_bytes())
    data[at.byte_offset + at.size // 2] ^= 255
    path.write_bytes(data)
    episodes = Episodes(path=str(path), steps=4)
    met = {True: 0, False: 0}
    for split in ("train", "valid", "test"):
        batches = episodes.batches(1, 0, split)
        for place in range(batches.windows):
            number, start = batches.window(place)
            needs = number == 0 and start <= 15 and start + 4 >= 8
            met[needs] += 1
            if needs:
                with pytest.raises(DataError, match=r"broken\.h5: it cannot be read"):
                    batches.batch(place)
            else:
                batches.batch(place)
    assert min(met.values()) > 5


def test_there_need_be_no_states(tmp_path):
    with EpisodeWriter(tmp_path / "a.h5") as writer:
        for number in range(4):
            writer.add(*episode(number, 6)[:2])
    assert "states" not in Episodes(path=str(tmp_path / "a.h5"), steps=2).batches(2, 0).batch(0)
    with (
        pytest.raises(DataError, match=r"episode 4: it has actions of 2 numbers and states of 2 numbers, where the file has a"),
        EpisodeWriter(tmp_path / "a.h5", again=True) as writer,
    ):
        writer.add(*episode(4, 6))


def test_pictures_may_come_one_after_the_other(tmp_path):
    """Long ones too, and texts of many tasks are kept."""
    about = dataclasses.replace(ABOUT, tasks=tuple(f"task {i} {'of many' * 20}" for i in range(1000)), keywords={"size": 3})
    asked = []

    def counted(pictures):
        for i, picture in enumerate(pictures):
            asked.append(i)
            yield picture

    with EpisodeWriter(tmp_path / "a.h5", about) as writer:
        writer.add(counted(episode(0, 50)[0]), *episode(0, 50)[1:], seed=7, task=999)
    assert asked == list(range(51))
    assert read_contents(tmp_path / "a.h5").about == about
    found = read_all(tmp_path / "a.h5")
    assert np.array_equal(found["observations"], episode(0, 50)[0])
    assert (found["seeds"].tolist(), found["tasks"].tolist()) == ([7], [999])
    assert found["actions"][-1].tolist() == [0, 0]


# ---------------------------------------------------------------- killed writers


def test_a_file_is_whole_at_any_time_and_can_be_gone_on_with(tmp_path, path):
    """Copies taken while it is written, also in the middle of an episode, are what a killed writer leaves."""
    now, copies = tmp_path / "now.h5", []

    def watched(pictures, number):
        for i, picture in enumerate(pictures):
            if i in (0, 9, 19) and now.exists():
                copies.append((number, shutil.copy(now, tmp_path / f"{number}-{i}.h5")))
            yield picture

    with EpisodeWriter(now, ABOUT) as writer:
        for number, length in enumerate(LENGTHS):
            seen, actions, states = episode(number, length)
            writer.add(watched(seen, number), actions, states, seed=100 + number)
            copies.append((number + 1, shutil.copy(now, tmp_path / f"{number}.h5")))
    whole = read_all(path)
    assert len(copies) > 25
    for count, copy in copies[::2]:
        found = read_contents(copy)
        assert found.lengths.tolist() == LENGTHS[:count]
        assert not found.closed
        for _ in range(2):  # killed again right after
            with EpisodeWriter(copy, ABOUT, again=True) as writer:
                assert writer.episodes == count
                for number in range(count, len(LENGTHS)):
                    writer.add(*episode(number, LENGTHS[number]), seed=100 + number)
                count = writer.episodes
        again = read_all(copy)
        assert all(np.array_equal(again[name], whole[name]) for name in whole)
        assert read_contents(copy).closed
        assert Episodes(path=str(copy)).identity == Episodes(path=str(path)).identity


def test_a_killed_process_leaves_whole_episodes(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from postformer.data.episode_writer import EpisodeWriter\n"
        "writer, i = EpisodeWriter(sys.argv[1]), 0\n"
        "while True:\n"
        "    pictures = np.random.default_rng(i).integers(0, 255, (40, 2, 20, 20), np.uint8)\n"
        "    writer.add(pictures, np.full((39, 1), i, np.float32))\n"
        "    i += 1\n"
        "    print(i, flush=True)\n"
    )
    file = tmp_path / "killed.h5"
    child = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    with child:
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(30)]
        with pytest.raises(DataError, match="another process is writing to it"):
            EpisodeWriter(file, again=True)
        read_contents(file)
        child.kill()
        child.wait()
    episodes = Episodes(path=str(file), steps=8)
    assert len(episodes.contents.ends) >= told[-1]
    assert "it was not closed by what wrote it" in episodes.remarks[0]
    with h5py.File(file, "r", locking=False, swmr=True) as found:
        for i, end in enumerate(found["ends"][:]):
            pictures = np.random.default_rng(i).integers(0, 255, (40, 2, 20, 20), np.uint8)
            assert np.array_equal(found["observations"][end - 40 : end], pictures)
            assert (found["actions"][end - 40 : end - 1] == i).all()


def test_nothing_stays_of_an_episode_that_is_refused(tmp_path, path):
    seen, actions, states = episode(0, 12)

    def breaks():
        yield from seen[:11]
        raise RuntimeError("the camera is gone")

    with EpisodeWriter(tmp_path / "a.h5", ABOUT) as writer:
        for number, length in enumerate(LENGTHS):
            with pytest.raises(
                DataError, match=f"episode {number}: 12 observations and 12 actions; expected one observation more"
            ):
                writer.add(seen[:-1], actions, states)
            with pytest.raises(RuntimeError):
                writer.add(breaks(), actions, states)
            writer.add(*episode(number, length), seed=100 + number)
    whole, found = read_all(path), read_all(tmp_path / "a.h5")
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    with (
        pytest.raises(DataError, match="episode 0: 14 observations and 12 actions"),
        EpisodeWriter(tmp_path / "b.h5", ABOUT) as writer,
    ):
        writer.add(np.concatenate([seen, seen[:1]]), actions, states)
    assert not (tmp_path / "b.h5").exists()
    with pytest.raises(DataError, match=r"b\.h5: no episode was written"), EpisodeWriter(tmp_path / "b.h5"):
        pass


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda o, a, s: (o, a[:0], s), r"actions are of shape \(0, 2\); expected \[t, k\]"),
        (lambda o, a, s: (o, a * np.nan, s), "actions are not finite"),
        (lambda o, a, s: (o, a, s + np.inf), "states are not finite"),
        (lambda o, a, s: (o, a, s[1:]), r"states are of shape \(4, 2\); expected \[5, s\]"),
        (lambda o, a, s: (o[:0], a, s), "there are no observations"),
        (lambda o, a, s: (o / 255, a, s), r"an observation is float64 of shape \(2, 6, 5\); expected uint8"),
        (lambda o, a, s: (o[:, :, 1:], a, s), r"an observation is uint8 of shape \(2, 5, 5\); expected uint8 of \(2, 6, 5\)"),
        (
            lambda o, a, s: (o, a[:, :1], s),
            "it has actions of 1 numbers and states of 2 numbers, where the file has actions of 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, says):
    with EpisodeWriter(tmp_path / "a.h5", ABOUT) as writer:
        writer.add(*episode(0, 4))
        with pytest.raises(DataError, match=rf"a\.h5: episode 1: {says}"):
            writer.add(*change(*episode(1, 4)))
    assert len(read_contents(tmp_path / "a.h5").ends) == 1


def test_a_file_is_not_written_over(tmp_path, path):
    with pytest.raises(DataError, match="is there already; go on with it, or choose another file"):
        EpisodeWriter(path, ABOUT)
    with pytest.raises(DataError, match="holds episodes with environment counting, not other; choose another file"):
        EpisodeWriter(path, dataclasses.replace(ABOUT, environment="other"), again=True)
    with EpisodeWriter(tmp_path / "a.h5", ABOUT) as writer:
        writer.add(*episode(0, 4))
        with pytest.raises(DataError, match="another process is writing to it"):
            EpisodeWriter(tmp_path / "a.h5", ABOUT, again=True)


# ---------------------------------------------------------------- mistakes


def put(name, values):
    def change(file):
        del file[name]
        if values is not None:
            file[name] = values

    return change


def nan(file):
    file["actions"][14, 1] = np.nan


def attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("actions", None), "it holds no array 'actions'; it has digests, ends, observations"),
        (put("observations", np.zeros((200, *SHAPE), np.float32)), "observations must be uint8 with 4 axes; they are float32"),
        (
            put("observations", np.zeros((200, 6, 5), np.uint8)),
            r"observations must be uint8 with 4 axes; they are uint8 of shape",
        ),
        (put("actions", np.zeros((144, 2))), "actions must be float32 with 2 axes; they are float64"),
        (put("actions", np.zeros((100, 2), np.float32)), "lengths disagree: actions have 100 rows, and the episodes need 144"),
        (put("states", np.zeros((143, 2), np.float32)), "lengths disagree: states have 143 rows, and the episodes need 144"),
        (put("digests", np.zeros((3, 32), np.uint8)), "lengths disagree: digests have 3 rows, and the episodes need 12"),
        (put("ends", np.array([5, 6, 7])), "episode 1 has 1 observations; expected at least 2"),
        (put("ends", np.array([5, 3, 7])), "episode 1 has -2 observations; expected at least 2"),
        (put("ends", np.array([5, 9])), "2 whole episodes are too few to be parted; expected at least 3"),
        (put("ends", np.array([], np.int64)), "0 whole episodes are too few"),
        (nan, "actions of episode 1 are not finite at step 1"),
        (attribute("format", "postformer-episodes-9"), "its format is postformer-episodes-9; expected postformer-episodes-1"),
        (attribute("about", "{"), "its attribute 'about' is damaged"),
        (attribute("about", '{"speed": 1}'), "its attribute 'about' is damaged"),
    ],
)
def test_a_malformed_file_is_told_in_a_line(tmp_path, path, change, says):
    other = shutil.copy(path, tmp_path / "other.h5")
    with h5py.File(other, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=says) as told:
        Episodes(path=str(other), steps=2).batches(1, 0).batch(0)
    assert "other.h5" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"path": "nowhere.h5"}, r"nowhere\.h5: no such file; give one that was recorded or imported"),
        ({"path": "{text}"}, r"text\.h5: not an HDF5 file"),
        ({"path": "{cut}"}, r"cut\.h5: it cannot be read"),
        ({"path": "{other}"}, r"other\.h5: its format is none; expected postformer-episodes-1"),
        ({"path": "{path}", "steps": 0}, "steps=0 and stride=1 must be at least 1"),
        (
            {"path": "{path}", "steps": 31},
            "no episode for train has the 31 actions of a window, the longest 15: set data.steps or",
        ),
        ({"path": "{path}", "steps": 4, "stride": 8}, "no episode for train has the 32 actions of a window"),
        ({"path": "{path}", "step": 4}, "unknown 'step'"),
    ],
)
def test_mistakes_are_told(tmp_path, path, words, says):
    (tmp_path / "text.h5").write_text("no data" * 100)
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:3000])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    places = {name: tmp_path / f"{name}.h5" for name in ("text", "cut", "other")} | {"path": path}
    words = {**words, "path": words["path"].format(**places)}
    with pytest.raises((DataError, ConfigError), match=says):
        build({"kind": "episodes", **words}, DATA, "data").batches(1, 0).batch(0)


def test_what_is_left_out_is_remarked(path):
    assert Episodes(path=str(path), steps=1).remarks == []
    (line,) = Episodes(path=str(path), steps=5).remarks
    assert line.endswith("2 of 12 episodes have fewer than the 5 actions of a window and are left out")
    with pytest.raises(ValueError, match="unknown 'tset'; choose from train, valid, test"):
        Episodes(path=str(path)).batches(1, 0, "tset")
