"""The command `episodes`: what is recorded, goes on and is shown, and mistakes in one line."""

import re

import numpy as np
import pytest

from postformer.cli import main
from postformer.data.episode_file import read_contents

gymnasium = pytest.importorskip("gymnasium")
h5py = pytest.importorskip("h5py")


class Pole(gymnasium.Env):
    """Says a number and draws it, as gymnasium's classic environments do."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-9, 9, (1,))
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0.0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.place += action - 1
        return np.array([self.place], np.float32), 0.0, abs(self.place) > 2, False, {}

    def render(self):
        picture = np.zeros((12, 20, 3), np.uint8)
        picture[:, int(self.place * 2 + 10)] = 255
        return picture


gymnasium.register("tests/Pole-v0", Pole)


def run(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(["episodes", *map(str, words)])
    told = capsys.readouterr()
    return end.value.code, told.out, told.err


def test_a_simulation_is_recorded_and_goes_on(tmp_path, capsys):
    pytest.importorskip("mujoco")
    file = tmp_path / "pushing.h5"
    for count, new in ((3, 3), (5, 2), (5, 0)):
        code, out, _ = run(capsys, "record", "pushing", "--episodes", count, "--steps", 4, "--stride", 2, "--out", file)
        assert code == 0
        assert f"{new} episodes added" in out
    assert "5 of 4 to 4 actions, 20 in all" in out
    assert "4 numbers" in out
    assert "finger x, finger y, block x" in out
    whole = tmp_path / "whole.h5"
    run(capsys, "record", "pushing", "--episodes", 5, "--steps", 4, "--stride", 2, "--out", whole)
    assert read_contents(file).digest == read_contents(whole).digest


def test_an_environment_of_gymnasium_s_is_drawn(tmp_path, capsys):
    file = tmp_path / "pole.h5"
    code, out, _ = run(capsys, "record", "tests/Pole-v0", "--episodes", 3, "--steps", 5, "--size", "6x10", "--out", file)
    assert code == 0
    assert "6 x 10 in 3 channels" in out
    assert "a state          none" in out
    assert "frames a second  20" in out
    with h5py.File(file, locking=False) as found:
        seen, actions = found["observations"][:], found["actions"][:]
    assert seen[0, 0, 0].sum() == 128  # of a bright column, half as wide
    assert set(actions.sum(1)) == {0.0, 1.0}  # one of three, and none at an episode's end
    assert run(capsys, "show", file) == (0, out.split("\n", 1)[1], "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["record", "nowhere-v7", "--out", "FILE"], "nowhere-v7: .*; take reacher, pushing or an environment"),
        (["record", "tests/Pole-v0", "--stride", "2", "--out", "FILE"], "--stride: is for reacher and pushing"),
        (["record", "pushing", "--size", "8x8", "--out", "FILE"], "--size: pictures of pushing have a size of their own"),
        (["record", "reacher", "--out", "."], "--out .: is a folder"),
        (["record", "reacher", "--episodes", "0", "--out", "FILE"], "'0' is not a whole number above 0"),
        (["import", "/nowhere", "--out", "FILE"], "meta/info.json is missing"),
        (["show", "FILE"], "no such file"),
    ],
)
def test_mistakes_are_one_line(words, says, tmp_path, capsys):
    pytest.importorskip("mujoco")
    code, _, err = run(capsys, *(str(tmp_path / "none.h5") if word == "FILE" else word for word in words))
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert re.search(says, line), line
    assert "Traceback" not in err
    assert not (tmp_path / "none.h5").exists()
