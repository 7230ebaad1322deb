"""Two rooms as an environment: gymnasium's rules, problems that need the door, futures that come again, and what is drawn."""

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from postformer.data.rooms import FIXED, LONGEST, Rooms, free
from postformer.embodied.rooms import NEAR, NEARER, TwoRooms

ROOMS = {fixed: TwoRooms(fixed=fixed) for fixed in (True, False)}


@pytest.mark.parametrize("fixed", ROOMS)
def test_gymnasium_s_rules_are_kept(fixed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of pictures from 0 to 1
        check_env(TwoRooms(fixed=fixed, render_mode="rgb_array"), skip_render_check=True)


@pytest.mark.parametrize("fixed", ROOMS)
def test_problems_need_the_door(fixed):
    env = ROOMS[fixed]
    for seed in range(50):
        start, goal = env.problem(np.random.default_rng(seed))
        assert (start[0] < start[2]) != (goal[0] < goal[2])
        assert np.array_equal(start[2:], goal[2:])
        assert env.apart(start, goal)[0] > NEAR
        assert free(np.stack([start[:2], goal[:2]]), np.stack([start[2:], goal[2:]])).all()
        assert not fixed or tuple(start[2:]) == FIXED


def test_reached_is_within_the_rule_and_the_stricter_one():
    env, goal = ROOMS[True], np.array([20.0, 30.0, *FIXED])
    away = np.array([[NEAR - 0.1, 0, 0, 0], [0, NEARER - 0.1, 0, 0], [NEAR + 0.1, 0, 0, 0]])
    at = goal + away
    assert env.reached(at, np.broadcast_to(goal, at.shape)).tolist() == [[True, False], [True, True], [False, False]]


def test_what_is_done_is_what_the_data_s_walks_do():
    batch = Rooms(steps=4, stride=5, fixed=False).batches(6, 0).batch(0)
    env = ROOMS[False]
    for seen, actions, states in zip(
        batch["observations"].numpy(), batch["actions"].numpy(), batch["states"].numpy(), strict=True
    ):
        ends = env.advance(states[:1].astype(float), actions.reshape(1, -1, 2))[0, 4::5]
        assert np.allclose(ends, states[1:], atol=1e-4)
        assert np.allclose(env.pictures(env.states(ends)), seen[1:], atol=1e-4)


def test_a_future_comes_again_and_an_episode_ends_after_its_steps():
    env = TwoRooms(steps=5)
    seen, told = env.reset(seed=3)
    assert np.array_equal(seen, TwoRooms().reset(seed=3)[0])
    kept = env.snapshot()
    rng = np.random.default_rng(0)
    actions = rng.uniform(-3, 3, (5, 2)).astype(np.float32)
    first = [env.step(action) for action in actions]
    assert [row[3] for row in first] == [False] * 4 + [True]
    assert first[-1][1] == -first[-1][4]["distance"]
    env.restore(kept)
    assert np.array_equal(env.step(actions[0])[4]["state"], first[0][4]["state"])
    assert np.array_equal(env.rollout(kept, actions[None])[0, -1], first[-1][4]["state"])
    assert np.abs(first[0][4]["state"][:2] - told["state"][:2]).max() <= LONGEST + 1e-9
    goal = env.goal
    env.reset(options={"start": goal, "goal": goal})
    assert env.step(np.zeros(2, np.float32))[4]["success"]
    picture = env.render()
    x, y = np.round(goal[:2]).astype(int)
    assert picture[y, x, 0] > 200 < picture[y, x, 1]
    with pytest.raises(ValueError, match="options: begin; give both start and goal"):
        env.reset(options={"begin": goal})


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        TwoRooms(steps=0)
