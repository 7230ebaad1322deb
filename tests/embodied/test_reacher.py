"""The reacher: gymnasium's interface, physics that are told by one vector, pictures of the arm, and goals that can be reached."""

import warnings

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from postformer.embodied.drawing import SIDE
from postformer.embodied.reacher import APART, DAMPING, ELBOW, HIT, LOWER, POSE, TORQUE, UPPER, VIEW, Reacher
from postformer.embodied.simulator import DT, SUBSTEPS
from postformer.embodied.trials import at_random, following, problems, still, tried

ENV = Reacher()


def actions(seed, *size):
    return np.random.default_rng(seed).uniform(-1, 1, (*size, 2))


def starts(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([ENV.problem(rng)[0] for _ in range(count)])


def test_it_passes_gymnasiums_checks():
    check_env(gymnasium.make("postformer/Reacher-v0").unwrapped)


def test_episodes_are_those_of_mujoco_stepped_by_hand():
    begin, plan = starts(3), actions(0, 3, 20)
    found = ENV.advance(begin, plan)
    data, whole = mujoco.MjData(ENV.model), mujoco.mjtState.mjSTATE_FULLPHYSICS
    for i in range(3):
        mujoco.mj_setState(ENV.model, data, begin[i], whole)
        for t in range(20):
            data.ctrl = plan[i, t] * TORQUE
            mujoco.mj_step(ENV.model, data, SUBSTEPS)
            vector = np.empty(found.shape[-1])
            mujoco.mj_getState(ENV.model, data, vector, whole)
            assert np.array_equal(vector, found[i, t])
        mujoco.mj_forward(ENV.model, data)
        assert np.allclose(ENV.states(found[i, -1])[6:8], data.site("tip").xpos[:2], atol=1e-12)


def test_a_restored_simulator_has_the_same_future_to_the_bit():
    env, plan = Reacher(), actions(1, 15).astype(np.float32)
    env.reset(seed=3)
    for action in plan[:5]:
        env.step(action)
    kept = env.snapshot()
    first = [env.step(action) for action in plan]
    env.restore(kept)
    again = [env.step(action) for action in plan]
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a[0], b[0])
        assert np.array_equal(a[4]["state"], b[4]["state"])
        assert a[1:4] == b[1:4]
    plans = np.stack([plan, plan[::-1]])
    assert np.array_equal(env.rollout(kept, plans)[0], [seen[4]["state"] for seen in first])
    assert np.array_equal(Reacher(threads=2).rollout(kept, plans), env.rollout(kept, plans))


def test_torque_against_damping_gives_its_speed_and_nothing_does_nothing():
    begin = ENV.at_rest(np.array([[0.3, 0.2]]))
    push = np.zeros((1, 8, 2))
    assert np.array_equal(ENV.advance(begin, push)[0, -1, 1:], begin[0, 1:])
    push[..., 1] = -0.25
    elbow = ENV.states(ENV.advance(begin, push))[0, -1, 5]
    assert elbow == pytest.approx(-0.25 * TORQUE / DAMPING[1], rel=0.02)
    stopped = ENV.states(ENV.advance(ENV.advance(begin, push)[:, -1], np.zeros((1, 3, 2))))[0, -1]
    assert abs(stopped[5]) < 0.02 * abs(elbow)


def test_thousands_of_random_steps_stay_finite_and_within_bounds():
    found = ENV.advance(starts(8), actions(2, 8, 600).round())
    assert np.isfinite(found).all()
    assert np.abs(found[..., 2]).max() < ELBOW + 0.1
    speeds = np.abs(found[..., 3:]).max((0, 1))
    assert (speeds < 2.5 * TORQUE / np.array(DAMPING)).all()
    tips = ENV.states(found)[..., 6:8]
    assert np.hypot(tips[..., 0], tips[..., 1]).max() <= UPPER + LOWER + 1e-12


def test_the_tip_is_seen_where_it_is():
    states = ENV.states(starts(40))
    red = ENV.pictures(states)[:, 0].astype(float)
    line = (np.arange(SIDE) + 0.5 - SIDE / 2) * VIEW.pixel
    found = np.stack([(red.sum(1) * line).sum(1), (red.sum(2) * -line).sum(1)], 1) / red.sum((1, 2))[:, None]
    assert np.abs(found - states[:, 6:8]).max() < 0.06 * VIEW.pixel
    assert ENV.pictures(states[:, None]).shape == (40, 1, 3, SIDE, SIDE)


@given(st.integers(0, 10_000))
def test_problems_are_not_solved_and_can_be(seed):
    start, goal = ENV.problem(np.random.default_rng(seed))
    state = ENV.states(start)
    assert ENV.apart(state, goal)[0] >= APART > HIT
    assert not ENV.reached(state, goal).any()
    assert ENV.reached(goal, goal).all()
    assert np.array_equal(goal[4:6], [0, 0])


def test_distances_are_of_the_tip_and_the_joints():
    poses = np.array([[0.5, 1.0], [0.5 + POSE, 1.0 - 2 * POSE], [-np.pi + 0.1, 1.0], [np.pi - 0.1, 1.0]])
    states = ENV.states(ENV.at_rest(poses))
    tips = [UPPER * np.exp(1j * a) + LOWER * np.exp(1j * (a + b)) for a, b in poses]
    assert np.allclose(ENV.apart(states[0], states[1]), [abs(tips[0] - tips[1]), POSE, 2 * POSE])
    assert np.allclose(ENV.apart(states[2], states[3])[1:], [0.2, 0])
    assert ENV.reached(states[2], states[3]).tolist() == [abs(tips[2] - tips[3]) <= HIT, False]


def test_straight_for_the_goal_reaches_it_and_nothing_or_anything_does_not():
    posed = problems(ENV, range(40))
    first = tried(ENV, following(ENV, ENV.straight), posed, 40)
    assert first.at_end.all()
    nothing = tried(ENV, still(ENV), posed, 5)
    assert not nothing.ever.any()
    assert np.array_equal(nothing.begin, nothing.end)
    anything = tried(ENV, at_random(ENV, np.random.default_rng(0), 5), posed, 40)
    assert anything.at_end.mean(0)[0] < 0.2
    assert (anything.at_end <= anything.ever).all()


def test_an_environment_is_told_its_problem_and_ends_in_time():
    env = Reacher(steps=3, render_mode="rgb_array")
    seen, info = env.reset(seed=5)
    start, goal = ENV.problem(np.random.default_rng(5))
    assert np.array_equal(env.snapshot(), start)
    assert np.array_equal(env.goal, goal)
    assert np.array_equal(env.goal_picture, ENV.pictures(goal))
    assert np.array_equal(env.render(), seen.transpose(1, 2, 0))
    assert not info["success"]
    env.reset(options={"start": start, "goal": ENV.states(start)})
    for left in (2, 1, 0):
        _, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        assert reward == -info["distance"] == 0
        assert info["success"]
        assert info["strict"]
        assert (terminated, truncated) == (False, left == 0)
    with pytest.raises(ValueError, match="options: goal; give both start and goal, or none"):
        env.reset(options={"goal": goal})
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        Reacher(steps=0)
    with warnings.catch_warnings():
        env.close()
        env.close()


def test_episodes_are_a_function_of_their_number():
    a, b = ENV.episodes([4, 5, 6], 8, seed=1), ENV.episodes([6], 8, seed=1)
    for name, value in a.items():
        assert np.array_equal(value[2:], b[name])
    assert a["observations"].shape == (3, 9, 3, SIDE, SIDE)
    assert np.array_equal(ENV.pictures(a["states"][:, :1].astype(float)), a["observations"][:, :1])
    strided = ENV.episodes([4, 5, 6], 4, seed=1, stride=2)
    assert np.array_equal(strided["actions"].reshape(3, 8, 2), a["actions"])
    assert np.array_equal(strided["observations"], a["observations"][:, ::2])
    for other in ({"seed": 2}, {"seed": 1, "split": "valid"}):
        assert not np.array_equal(ENV.episodes([6], 8, **other)["actions"], b["actions"])
    with pytest.raises(ValueError, match="unknown 'tset'; choose from"):
        ENV.episodes([0], 1, seed=0, split="tset")


def test_walks_go_everywhere():
    states = ENV.episodes(range(100), 20, seed=0, stride=4)["states"]
    turn = np.arctan2(states[..., 1], states[..., 0])
    elbow = np.arctan2(states[..., 3], states[..., 2])
    assert np.histogram(turn, 8, (-np.pi, np.pi))[0].min() > 0.08 * turn.size
    assert np.histogram(elbow, 8, (-ELBOW, ELBOW))[0].min() > 0.05 * elbow.size
    assert DT * SUBSTEPS == 0.1
