"""Recordings: what an environment showed, did and knew is in the file, each episode is a function of its number, and a killed recording
goes on."""

import numpy as np
import pytest

from postformer.data.episode_file import About, read_contents
from postformer.data.episodes import Episodes
from postformer.data.sources import DataError
from postformer.embodied.recording import anything, record

h5py = pytest.importorskip("h5py")
gymnasium = pytest.importorskip("gymnasium")


class Line(gymnasium.Env):
    """A bright column in a picture of 8 x 12 that is pushed left and right; an episode ends at the right edge, or after 20 steps."""

    metadata = {"render_modes": [], "render_fps": 5}  # noqa: RUF012

    def __init__(self, show="pixels", state=True, space=None):
        self.show, self.state = show, state
        self.action_space = space or gymnasium.spaces.Box(-2, 2, (1,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"pixels": gymnasium.spaces.Box(0, 255, (8, 12, 3), np.uint8)})
        self.resets = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets.append(seed)
        self.place, self.steps = float(self.np_random.uniform(0, 4)), 0
        return self._seen(), self._info()

    def step(self, action):
        push = float(np.nan_to_num(np.ravel(action)[0]))
        self.place, self.steps = min(max(self.place + push, 0.0), 11.0), self.steps + 1
        return self._seen(), 0.0, self.place == 11, self.steps >= 20, self._info()

    def _info(self):
        return {"state": np.array([self.place, self.steps])} if self.state else {}

    def _seen(self):
        picture = np.zeros((8, 12, 3), np.uint8)
        picture[:, round(self.place)] = (255, 51, self.steps)
        return {
            "pixels": lambda: {"pixels": picture},
            "itself": lambda: picture,
            "first": lambda: picture.transpose(2, 0, 1),
            "floats": lambda: picture.astype(np.float32) / 255,
            "grey": lambda: picture[..., 0],
            "numbers": lambda: np.array([self.place]),
            "text": lambda: {"words": 1},
        }[self.show]()


def read(path):
    with h5py.File(path, locking=False) as file:
        return {name: file[name][:] for name in file}


def test_what_happened_is_in_the_file(tmp_path):
    env = Line()
    about = About(action_names=("push",), state_names=("place", "time"))
    assert record(env, anything(env.action_space), 6, tmp_path / "a.h5", seed=3, about=about) == 6
    contents, found = read_contents(tmp_path / "a.h5"), read(tmp_path / "a.h5")
    told = contents.about
    assert (told.environment, told.frames_per_second, told.seed) == ("Line", 5.0, 3)
    assert (told.action_names, told.state_names) == (("push",), ("place", "time"))
    assert contents.shape == (3, 8, 12)
    assert found["seeds"].tolist() == env.resets
    assert len(set(env.resets)) == 6
    place, time = found["states"].T
    begins = [0, *contents.ends[:-1].tolist()]
    assert time[begins].tolist() == [0] * 6
    assert np.array_equal(found["observations"][:, 0].argmax(2)[:, 0], place.round().astype(int))
    assert np.array_equal(found["observations"][:, 2].max((1, 2)), time)
    for begin, end in zip(begins, contents.ends, strict=True):
        moved = np.clip(place[begin : end - 1] + found["actions"][begin : end - 1, 0], 0, 11)
        assert np.allclose(moved, place[begin + 1 : end], atol=1e-5)
        assert place[end - 1] == 11 or time[end - 1] == 20
    assert Episodes(path=str(tmp_path / "a.h5"), steps=3).batches(4, 0).batch(0)["observations"].shape == (4, 4, 3, 8, 12)


@pytest.mark.parametrize("show", ["itself", "first", "floats"])
def test_pictures_come_in_several_forms(tmp_path, show):
    for name in ("pixels", show):
        env = Line(name, state=False)
        record(env, anything(env.action_space), 2, tmp_path / f"{name}.h5")
    a, b = read(tmp_path / "pixels.h5"), read(tmp_path / f"{show}.h5")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert "states" not in a


def test_grey_pictures_have_one_channel(tmp_path):
    env = Line("grey")
    record(env, anything(env.action_space), 1, tmp_path / "a.h5")
    assert read_contents(tmp_path / "a.h5").shape == (1, 8, 12)


def test_discrete_actions_are_stored_as_one_of_several(tmp_path):
    env = Line(space=gymnasium.spaces.Discrete(3, start=-1))
    record(env, anything(env.action_space), 3, tmp_path / "a.h5")
    found, ends = read(tmp_path / "a.h5"), read_contents(tmp_path / "a.h5").ends
    done, place = np.delete(found["actions"], ends - 1, 0), found["states"][:, 0]
    assert set(map(tuple, done.tolist())) == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    moved = np.clip(np.delete(place, ends - 1) + done.argmax(1) - 1, 0, 11)
    assert np.allclose(moved, np.delete(place, [0, *ends[:-1]]), atol=1e-5)


def test_a_policy_knows_the_state_and_nothing_of_the_episode_before(tmp_path):
    met = []

    def policy(rng):
        seen = []

        def act(observed, info):
            seen.append(info["state"][1])
            return np.array([rng.uniform(0.5, 1)])

        met.append(seen)
        return act

    record(Line(), policy, 2, tmp_path / "a.h5", steps=4)
    assert met == [[0, 1, 2, 3]] * 2
    assert read_contents(tmp_path / "a.h5").lengths.tolist() == [4, 4]


def test_a_recording_that_broke_off_goes_on_and_ends_the_same(tmp_path):
    class Breaks(Line):
        def step(self, action):
            if len(self.resets) == 4 and self.steps == 3:
                raise RuntimeError("the arm is stuck")
            return super().step(action)

    env = Line()
    record(env, anything(env.action_space), 6, tmp_path / "whole.h5", seed=1)
    about = About(environment="Line")
    with pytest.raises(RuntimeError):
        record(Breaks(), anything(env.action_space), 6, tmp_path / "a.h5", seed=1, about=about)
    assert len(read_contents(tmp_path / "a.h5").ends) == 3
    assert record(Line(), anything(env.action_space), 6, tmp_path / "a.h5", seed=1) == 3
    assert record(Line(), anything(env.action_space), 6, tmp_path / "a.h5", seed=1) == 0
    a, b = read(tmp_path / "a.h5"), read(tmp_path / "whole.h5")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    with pytest.raises(DataError, match="holds episodes with seed 1, not 2; choose another file"):
        record(Line(), anything(env.action_space), 6, tmp_path / "a.h5", seed=2)


def test_environments_of_gymnasium_are_named(tmp_path):
    gymnasium.register("postformer-test/Line-v0", Line, max_episode_steps=5)
    try:
        env = gymnasium.make("postformer-test/Line-v0", show="itself", disable_env_checker=True)
        record(env, anything(env.action_space), 1, tmp_path / "a.h5")
    finally:
        del gymnasium.registry["postformer-test/Line-v0"]
    contents = read_contents(tmp_path / "a.h5")
    assert contents.about.environment == "postformer-test/Line-v0"
    assert contents.about.keywords["show"] == "itself"
    assert contents.lengths.tolist() == [5]


@pytest.mark.parametrize("show", ["numbers", "text"])
def test_what_is_no_picture_is_told(tmp_path, show):
    with pytest.raises(DataError, match=r"is no picture.*gymnasium\.wrappers\.AddRenderObservation shows one"):
        record(Line(show), lambda rng: lambda seen, info: np.zeros(1), 1, tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


def test_mistakes_are_told(tmp_path):
    class Forgets(Line):
        def _info(self):
            return super()._info() if self.steps < 2 else {}

    env = Line()
    with pytest.raises(ValueError, match="episodes=0 and steps=1000 must be at least 1"):
        record(env, anything(env.action_space), 0, tmp_path / "a.h5")
    with pytest.raises(ValueError, match="actions have no bounds"):
        anything(gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32))
    with pytest.raises(DataError, match=r"info\['state'\] is missing in 2 of 4 steps of the episode with seed"):
        record(Forgets(), lambda rng: lambda seen, info: np.zeros(1), 1, tmp_path / "a.h5", steps=3)
    with pytest.raises(DataError, match=r"a\.h5: episode 0: actions are not finite"):
        record(env, lambda rng: lambda seen, info: np.full(1, np.nan), 1, tmp_path / "a.h5", steps=1)
