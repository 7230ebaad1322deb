"""The command `episodes`: what is recorded, goes on and is shown, and mistakes in one line; and goals that a model plans to."""

import dataclasses
import re

import numpy as np
import pytest

from postformer.cli import main
from postformer.config import Run, TrainConfig
from postformer.data.episode_file import read_contents
from postformer.embodied import tasks
from postformer.train.session import train_run

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


def evaluated(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *map(str, words)])
    told = capsys.readouterr()
    return end.value.code, told.out, told.err


def trained(folder, data, **model):
    run = Run(
        name="small",
        model={"kind": "world", "dim": 4, "widths": [4, 4, 8], "width": 8, "mixers": [{"kind": "mingru"}], **model},
        objective={"kind": "latent", "reach": float("reach" in model)},
        data=data,
        train=TrainConfig(steps=1, batch=2, threads=1),
    )
    train_run(run, folder)
    return folder


def small(monkeypatch, name):
    search = dataclasses.replace(tasks.TASKS[name].search, horizon=2, samples=4, elites=2, iterations=1)
    monkeypatch.setitem(tasks.TASKS, name, tasks.TASKS[name]._replace(steps=10, search=search))


def test_goals_of_two_rooms_are_planned_to(tmp_path, capsys, monkeypatch):
    small(monkeypatch, "moving")
    run = trained(tmp_path / "run", {"kind": "rooms", "steps": 2, "stride": 5, "fixed": False}, reach=8)
    code, out, _ = evaluated(capsys, run, "--goals", 3)
    rows = out.splitlines()
    assert code == 0
    assert rows[0].startswith("moving: 3 goals, 10 steps")
    assert [row[:24].strip() for row in rows[1:]] == [
        *("plans in its imagination", "what it tells at once", "plans in the simulator", "straight for the goal", "any actions")
    ]
    assert all(row.count("[") == 3 for row in rows[1:])
    assert evaluated(capsys, run, "--goals", 3) == (0, out, "moving: 3 goals\n")
    assert evaluated(capsys, run, "--goals", 3, "--seed", 1)[0] == 0


def test_goals_of_a_recording_are_its_environment_s(tmp_path, capsys, monkeypatch):
    pytest.importorskip("mujoco")
    small(monkeypatch, "reacher")
    file = tmp_path / "reacher.h5"
    run_record = ("record", "reacher", "--episodes", 4, "--steps", 5)
    run(capsys, *run_record, "--out", file)
    code, out, _ = evaluated(
        capsys, trained(tmp_path / "run", {"kind": "episodes", "path": str(file), "steps": 2}), "--goals", 2
    )
    assert (code, out.splitlines()[0][:16]) == (0, "reacher: 2 goals")
    run(capsys, *run_record, "--stride", 3, "--out", tmp_path / "other.h5")
    other = trained(tmp_path / "other", {"kind": "episodes", "path": str(tmp_path / "other.h5"), "steps": 2})
    code, _, err = evaluated(capsys, other, "--goals", 2)
    assert code == 2
    assert "lasting=2: 4 numbers are no whole actions of the model's 6" in err


def test_walks_are_recorded_as_their_tasks_act():
    """An action of a recorded walk is as long as one of a plan."""
    simulations = pytest.importorskip("postformer.embodied.simulations", exc_type=ImportError).SIMULATIONS
    assert simulations.keys() <= tasks.TASKS.keys()
    assert {name: own.stride for name, own in simulations.items()} == {name: tasks.TASKS[name].lasting for name in simulations}


def test_models_without_goals_are_refused(tmp_path, capsys):
    with_physics = trained(tmp_path / "run", {"kind": "physics", "frames": 4, "size": 32})
    code, _, err = evaluated(capsys, with_physics, "--goals", 2)
    assert (code, "in which nothing is done" in err) == (2, True)
