"""Pushing: gymnasium's interface, a block that goes where it is pushed and stays there, pictures, and goals that were reached once."""

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from postformer.embodied.drawing import SIDE
from postformer.embodied.pushing import (
    ANGLE,
    BAR,
    BAR_Y,
    FINGER,
    MARGIN,
    MOVED,
    PLACE,
    RADIUS,
    SPEED,
    STEM,
    STEM_Y,
    TABLE,
    VIEW,
    Pushing,
)
from postformer.embodied.simulator import SUBSTEPS
from postformer.embodied.trials import at_random, following, problems, still, tried

ENV = Pushing()
PLANS = np.random.default_rng(1).uniform(-1, 1, (4, 15, 2)).astype(np.float32)


def touching(turn=0.3):
    """A finger left of the block, close to its bar, and the block in the middle."""
    return ENV.at_rest(np.array([[-BAR[0] - 2 * FINGER, BAR_Y, 0.0, 0.0, turn]]))


def points(states):
    """Corners of both boxes: [n, 8, 2]."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    own = np.concatenate([signs * BAR + [0, BAR_Y], signs * STEM + [0, STEM_Y]])
    cos, sin = states[:, 4, None], states[:, 5, None]
    return states[:, None, 2:4] + np.stack([cos * own[:, 0] - sin * own[:, 1], sin * own[:, 0] + cos * own[:, 1]], -1)


def gaps(states):
    """From the finger's edge to the block's, negative where it is in it."""
    cos, sin = states[:, 4], states[:, 5]
    x, y = (states[:, :2] - states[:, 2:4]).T
    own = np.stack([cos * x + sin * y, cos * y - sin * x], 1)
    out = [np.abs(own - [0, middle]) - half for middle, half in ((BAR_Y, BAR), (STEM_Y, STEM))]
    signed = [np.hypot(*part.clip(0).T) + part.max(1).clip(max=0) for part in out]
    return np.minimum(*signed) - FINGER


def test_it_passes_gymnasiums_checks():
    check_env(gymnasium.make("postformer/Pushing-v0").unwrapped)


def test_episodes_are_those_of_mujoco_stepped_by_hand():
    begin = np.repeat(touching(), 4, 0)
    plans = PLANS.copy()
    plans[:, :5, 0] = 1
    found = ENV.advance(begin, plans)
    assert np.hypot(*(found[:, -1, 3:5] - begin[:, 3:5]).T).min() > 0.01
    data, whole = mujoco.MjData(ENV.model), mujoco.mjtState.mjSTATE_FULLPHYSICS
    for i in range(4):
        mujoco.mj_setState(ENV.model, data, begin[i], whole)
        for t in range(15):
            data.ctrl = plans[i, t].astype(float) * SPEED
            mujoco.mj_step(ENV.model, data, SUBSTEPS)
            vector = np.empty(found.shape[-1])
            mujoco.mj_getState(ENV.model, data, vector, whole)
            assert np.array_equal(vector, found[i, t])


def test_a_restored_simulator_has_the_same_future_to_the_bit():
    """Also from the middle of a push, alone, among others and in threads."""
    env = Pushing()
    env.reset(options={"start": touching()[0], "goal": ENV.states(touching()[0])})
    for _ in range(3):
        env.step(np.array([1, 0], np.float32))
    kept = env.snapshot()
    assert np.abs(ENV.states(kept)[8:10]).max() > 0.05
    first = [env.step(action) for action in PLANS[0]]
    env.restore(kept)
    again = [env.step(action) for action in PLANS[0]]
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a[0], b[0])
        assert np.array_equal(a[4]["state"], b[4]["state"])
    found = env.rollout(kept, PLANS)
    assert np.array_equal(found[0], [seen[4]["state"] for seen in first])
    assert np.array_equal(Pushing(threads=2).rollout(kept, PLANS), found)


def test_a_finger_has_the_speed_that_it_is_told_and_a_block_stays_where_it_is_left():
    far = ENV.at_rest(np.array([[-0.2, 0.2, 0.1, 0.0, 1.0]]))
    plan = np.zeros((1, 6, 2))
    plan[:, :3] = [0.5, -0.25]
    found = ENV.states(ENV.advance(far, plan))[0]
    assert np.allclose(np.diff(found[:3, :2], axis=0), [0.05 * SPEED, -0.025 * SPEED], atol=1e-4)
    assert np.array_equal(found[:, 2:6], np.repeat(ENV.states(far)[:, 2:6], 6, 0))
    assert np.allclose(found[-1, 6:8], 0, atol=1e-9)
    plan[:, :3] = [1, 0]
    pushed = ENV.states(ENV.advance(touching(), plan))[0]
    assert pushed[2, 8] > 0.2
    assert np.abs(pushed[4:, 8:]).max() < 1e-3
    assert pushed[2, 2] - 0.001 < pushed[-1, 2] < pushed[2, 2] + 0.01


def test_all_directions_are_alike():
    """The same push, turned, leads to the same place, turned."""
    begin, plan = touching(), np.repeat([[[0.8, 0.1]]], 8, 1)
    end = ENV.advance(begin, plan)[0, -1]
    assert np.hypot(*end[3:5]) > 0.05
    for turn in (0.7, np.pi / 2, 2.5):
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        other = begin.copy()
        other[:, 1:3], other[:, 5] = begin[:, 1:3] @ rotation.T, begin[:, 5] + turn
        found = ENV.advance(other, plan @ rotation.T)[0, -1]
        assert np.allclose(found[1:3], rotation @ end[1:3], atol=1e-9)
        assert np.allclose(found[3:5], rotation @ end[3:5], atol=1e-9)
        assert found[5] - turn == pytest.approx(end[5], abs=1e-9)


@pytest.mark.parametrize(("y", "way"), [(BAR_Y, -1), (STEM_Y, 1)])
def test_a_push_beside_the_middle_turns_the_block(y, way):
    """From the left: above the middle of mass with the clock, below it against the clock."""
    begin = ENV.at_rest(np.array([[-BAR[0] - 2 * FINGER, y, 0.0, 0.0, 0.0]]))
    end = ENV.advance(begin, np.repeat([[[1.0, 0.0]]], 6, 1))[0, -1]
    assert way * end[5] > 0.2
    assert end[3] > 0.01


def test_thousands_of_steps_stay_finite_and_nothing_goes_through_anything():
    rngs = [np.random.default_rng(i) for i in range(24)]
    physics, _ = ENV.walks(rngs[:16], 150)
    plans = np.stack([rng.uniform(-1, 1, (200, 2)).round() for rng in rngs[16:]])
    states = ENV.states(np.concatenate([physics[:, 1:].reshape(-1, 11), ENV.advance(physics[8:, -1], plans).reshape(-1, 11)]))
    assert len(states) == 4000
    assert np.isfinite(states).all()
    assert np.abs(points(states)).max() < TABLE + 0.004
    assert np.abs(states[:, :2]).max() < TABLE - FINGER + 0.004
    assert gaps(states).min() > -0.005
    assert np.abs(states[:, 6:10]).max() < 1.0


def test_the_block_and_the_finger_are_seen_where_they_are():
    """The middle of what is drawn is that of mass, and the ends of bar and stem are where the turn says."""
    states = ENV.states(np.stack([ENV.problem(np.random.default_rng(i))[0] for i in range(10)]))
    ground = ENV.pictures(np.array([[9.0, 9.0, 9.0, 9.0, 1.0, 0.0, 0, 0, 0, 0, 0]]))[0].astype(float)
    seen = (ENV.pictures(states) - ground).clip(0)
    line = (np.arange(SIDE) + 0.5 - SIDE / 2) * VIEW.pixel
    for channel, place in ((0, states[:, 2:4]), (2, states[:, :2])):
        part = seen[:, channel]
        found = np.stack([(part.sum(1) * line).sum(1), (part.sum(2) * -line).sum(1)], 1) / part.sum((1, 2))[:, None]
        assert np.abs(found - place).max() < 0.06 * VIEW.pixel
    area = 4 * (BAR[0] * BAR[1] + STEM[0] * STEM[1]) / VIEW.pixel**2
    assert np.allclose(seen[:, 0].sum((1, 2)) / 255, area, rtol=0.01)
    inside, outside = (
        np.array([[0.9 * BAR[0], BAR_Y], [-0.9 * BAR[0], BAR_Y], [0, -0.9 * RADIUS]]),
        np.array([[0, 0.9 * RADIUS]]),
    )
    for picture, state in zip(seen[:, 0], states, strict=True):
        for own, value in ((inside, 255), (outside, 0)):
            at = state[2:4] + own @ np.array([[state[4], state[5]], [-state[5], state[4]]])
            column, row = (at / VIEW.pixel * [1, -1] + SIDE / 2).astype(int).T
            assert (np.abs(picture[row, column] - value) < 100).all()
    assert (ground[:, 0, 0] == 102).all()
    assert (ground[:, SIDE // 2, SIDE // 2] == 0).all()


def test_problems_are_not_solved_and_their_goals_lie_on_the_table():
    for seed in range(12):
        start, goal = ENV.problem(np.random.default_rng(seed))
        state = ENV.states(start)
        assert ENV.apart(state, goal)[0] >= MOVED > PLACE
        assert not ENV.reached(state, goal).any()
        assert ENV.reached(goal, goal).all()
        assert np.abs(goal[6:]).max() < 1e-6
        assert np.abs(points(np.stack([state, goal]))).max() < TABLE
        assert np.abs(goal[2:4]).max() <= MARGIN
        assert gaps(state[None]) > 0.004
        assert abs(gaps(goal[None])) < 0.004
        assert np.array_equal(ENV.problem(np.random.default_rng(seed))[1], goal)
    assert np.isclose(RADIUS, np.hypot(*points(ENV.states(touching(0.0)))[0].T).max())


def test_distances_are_of_the_block():
    a = ENV.states(ENV.at_rest(np.array([[0.2, 0.2, 0.0, 0.0, 3.1], [0.1, 0.1, 0.0, 0.0, 3.1]])))
    b = ENV.states(ENV.at_rest(np.array([[0.0, 0.2, 0.02, 0.0, -3.1], [0.1, 0.1, 0.0, -0.02, 3.1 + 1.5 * ANGLE]])))
    assert np.allclose(ENV.apart(a, b), [[0.02, 2 * np.pi - 6.2], [0.02, 1.5 * ANGLE]])
    assert ENV.reached(a, b).tolist() == [[True, True], [True, False]]


def test_who_knows_how_to_push_comes_first_and_who_does_nothing_last():
    posed, steps = problems(ENV, range(24)), 45
    scripted, straight, anything, nothing = (
        tried(ENV, policy, posed, steps)
        for policy in (
            following(ENV, ENV.scripted),
            following(ENV, ENV.straight),
            at_random(ENV, np.random.default_rng(0), 5),
            still(ENV),
        )
    )
    assert scripted.at_end[:, 0].mean() > 0.85
    assert scripted.at_end[:, 1].mean() < 0.6
    assert 0.05 < straight.at_end[:, 0].mean() < 0.5
    assert anything.at_end[:, 0].mean() <= 0.1
    assert not nothing.ever.any()


def test_walks_move_the_block_and_are_a_function_of_their_number():
    states = ENV.episodes(range(40), 30, seed=0)["states"]
    moves = np.hypot(*np.diff(states[..., 2:4], axis=1).transpose(2, 0, 1))
    assert (moves > 1e-3).mean() > 0.35
    assert (moves.sum(1) > 0.03).mean() > 0.9
    assert np.abs(np.diff(np.arctan2(states[..., 5], states[..., 4]), axis=1)).mean() > 0.05
    a, b = ENV.episodes([4, 5, 6], 8, seed=1, stride=2), ENV.episodes([6], 8, seed=1, stride=2)
    for name, value in a.items():
        assert np.array_equal(value[2:], b[name])
    assert a["actions"].shape == (3, 8, 4)
    assert np.abs(a["actions"]).max() <= 1
