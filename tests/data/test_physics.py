"""Simulated physics: conserved quantities, exact events, pictures whose discs can be found again, and streams that do not change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postformer.config import ConfigError, build
from postformer.data import DATA
from postformer.data.bodies import SIZE, Bodies, drawn, track
from postformer.data.physics import COUNTS, GRAVITY, OUTSIDE, SPLITS, Physics

seeds = st.integers(0, 10_000)


def energy(track_, gravity=0.0):
    mass = track_.radius**2
    return (mass * ((track_.velocity**2).sum(-1) / 2 + gravity * track_.position[..., 1])).sum(1)


@given(seeds)
def test_in_a_box_energy_stays_and_nothing_overlaps_or_leaves(seed):
    found = Physics(scene="several", frames=60).scenario(0, seed=seed).track
    assert np.allclose(energy(found), energy(found)[0], rtol=1e-9)
    assert len(found.hits) > 0
    low, high = found.position - found.radius[:, None], found.position + found.radius[:, None]
    assert low.min() > -1e-9
    assert high.max() < SIZE + 1e-9
    for i in range(3):
        for j in range(i):
            gap = np.hypot(*(found.position[:, i] - found.position[:, j]).T)
            assert gap.min() > found.radius[i] + found.radius[j] - 1e-9


@given(seeds)
def test_a_collision_keeps_momentum_and_energy_and_turns_the_approach_around(seed):
    found = Physics(scene="collision", frames=16).scenario(0, seed=seed).track
    momentum = (found.radius[:, None] ** 2 * found.velocity).sum(1)
    assert np.allclose(momentum, momentum[0])
    assert np.allclose(energy(found), energy(found)[0])
    assert len(found.hits) == 1
    assert 0.3 * 1.5 <= found.hits[0] <= 0.7 * 1.5
    closing = found.velocity[:, 0, 0] - found.velocity[:, 1, 0]
    assert np.isclose(closing[-1], -closing[0])


@given(seeds)
def test_a_thrown_disc_falls_as_galileo_says(seed):
    found = Physics(scene="parabola", frames=16, dt=0.1).scenario(0, seed=seed).track
    t = np.arange(16) * 0.1
    x, y = found.position[:, 0].T
    assert np.allclose(x, x[0] + found.velocity[0, 0, 0] * t)
    assert np.allclose(y, y[0] - GRAVITY * t**2 / 2)


@given(st.floats(0.5, 4), st.floats(-4, 4), st.floats(0, 5))
def test_a_wall_across_gravity_is_met_on_time(height, speed, gravity):
    """A disc dropped or thrown up in a box, against many small steps."""
    bodies = Bodies(np.array([[5.0, 1 + height]]), np.array([[0.0, speed]]), np.array([1.0]))
    found = track(bodies, 40, 0.05, gravity=gravity, box=True)
    assert found.position[:, 0, 1].min() > 1 - 1e-9
    assert np.allclose(energy(found, gravity), energy(found, gravity)[0], rtol=1e-9, atol=1e-9)
    y, v, dt = 1 + height, speed, 1e-3
    for _ in range(round(found.hits[0] / dt) if found.hits and found.hits[0] < 1.9 else 0):
        y, v = y + v * dt - gravity * dt**2 / 2, v - gravity * dt
    if found.hits and found.hits[0] < 1.9:
        assert min(abs(y - 1), abs(y - 9)) < 0.02


def test_what_cannot_begin_is_refused():
    two = np.array([[5.0, 5.0], [5.5, 5.0]])
    with pytest.raises(ValueError, match="overlap"):
        track(Bodies(two, np.zeros((2, 2)), np.ones(2)), 2, 0.1)
    with pytest.raises(ValueError, match="leaves the box"):
        track(Bodies(two[:1] * 0.1, np.zeros((1, 2)), np.ones(1)), 2, 0.1, box=True)
    with pytest.raises(ConfigError, match=r"data.scene: 'unifrom' is not a choice; choose from uniform, collision"):
        build({"kind": "physics", "scene": "unifrom"}, DATA, "data")
    with pytest.raises(ValueError, match="unknown 'tset'; choose from train"):
        Physics().batches(2, 0, "tset")


@pytest.mark.parametrize("scene", COUNTS)
@pytest.mark.parametrize("split", SPLITS)
def test_a_video_is_a_function_of_its_number(scene, split):
    physics = Physics(scene=scene, frames=8)
    a, b = physics.batches(3, 5, split), physics.batches(2, 5, split)
    assert np.array_equal(a.batch(1)["clips"][0], b.batch(1)["clips"][1])  # number 3 in both
    assert not np.array_equal(a.batch(0)["clips"][0], a.batch(0)["clips"][1])
    assert not np.array_equal(a.batch(0)["clips"], physics.batches(3, 6, split).batch(0)["clips"])
    clips = a.batch(0)["clips"]
    assert clips.shape == (3, 3, 8, 32, 32)
    assert clips.min() >= -1
    assert clips.max() <= 1


def test_all_scenes_come_in_turn_each_a_class():
    physics, names = Physics(scene="all", frames=8), list(COUNTS)
    assert physics.sizes == {"channels": 3, "size": (32, 32), "classes": 5}
    batch = physics.batches(10, 0).batch(0)
    assert batch["label"].tolist() == 2 * [0, 1, 2, 3, 4]
    for i, clip in enumerate(batch["clips"]):
        assert np.array_equal(clip, Physics(scene=names[i % 5], frames=8).clip(i, seed=0))
    assert Physics(scene="parabola").classes == []


def test_captions_say_what_happens():
    physics = Physics(scene="all", text=True)
    assert physics.sizes == {"channels": 3, "size": (32, 32), "vocab": 256}
    batch = physics.batches(100, 0).batch(0)
    said = [bytes(text[text < 256].tolist()).decode() for text in batch["text"]]
    found = [physics.scenario(i, seed=0) for i in range(100)]
    assert said == [scenario.caption for scenario in found]
    assert len(set(said)) == 4 + 2 + 2 + 2
    for caption, scenario in zip(said, found, strict=True):
        moved = scenario.track.position[-1, 0, 0] - scenario.track.position[0, 0, 0]
        if "to the" in caption:
            assert ("right" in caption) == (moved > 0)
        if "fast" in caption or "slowly" in caption:
            assert ("fast" in caption) == (abs(moved) > 2.5 * 1.5)
        assert len(caption) <= 48


@pytest.mark.parametrize("split", [*OUTSIDE, "train"])
@pytest.mark.parametrize("scene", ["uniform", "occlusion", "parabola"])
def test_ranges_of_training_and_of_the_tests_outside(scene, split):
    speeds, radii = [], []
    for i in range(200):
        found = Physics(scene=scene).scenario(i, seed=1, split=split).track
        speeds.append(abs(found.velocity[0, 0, 0]))
        radii.append(found.radius[0])
    speed, radius = OUTSIDE.get(split, ((1.0, 4.0), (0.7, 1.4)))
    if scene == "occlusion":  # half as large, half again as fast
        speed, radius = (1.5 * speed[0], 1.5 * speed[1]), (radius[0] / 2, radius[1] / 2)
    for values, (low, high) in ((speeds, speed), (radii, radius)):
        slowest = 0.6 if (scene, split, values) == ("occlusion", "large", speeds) else 0.1  # who comes out again is not slow
        assert low <= min(values) < low + slowest * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high


@pytest.mark.parametrize("size", [32, 64])
@given(st.floats(2, 8), st.floats(2, 8), st.floats(0.7, 2))
def test_a_drawn_disc_has_its_place_and_its_area(size, x, y, radius):
    picture = drawn(np.array([[[x, y]]]), np.array([radius]), [(1.0, 0.0, 0.0)], size)
    weight = (picture[0, 0].astype(float) + 1) / 2
    assert np.all(picture[1:] == -1)
    centres = (np.arange(size) + 0.5) * SIZE / size
    assert abs((weight.sum(0) * centres).sum() / weight.sum() - x) < 0.02 * 32 / size
    assert abs((weight.sum(1) * centres[::-1]).sum() / weight.sum() - y) < 0.02 * 32 / size
    area = weight.sum() * (SIZE / size) ** 2
    assert abs(area / (np.pi * radius**2) - 1) < 0.03


@pytest.mark.parametrize("frames", [16, 20])
@pytest.mark.parametrize("split", SPLITS)
def test_what_goes_behind_a_wall_is_seen_before_and_comes_out_again(split, frames):
    """But for discs too slow for the clip, which nothing brings out."""
    physics = Physics(scene="occlusion", frames=frames)
    for i in range(40):
        found = physics.scenario(i, seed=1, split=split)
        x, r = found.track.position[:, 0, 0], found.track.radius[0]
        before = x + r <= found.wall[0] if found.track.velocity[0, 0, 0] > 0 else x - r >= found.wall[1]
        after = x - r >= found.wall[1] if found.track.velocity[0, 0, 0] > 0 else x + r <= found.wall[0]
        assert before[: frames // 4].all()
        assert (x[: frames // 4] - r >= -1e-9).all() and (x[: frames // 4] + r <= SIZE + 1e-9).all()
        if split != "slow":
            assert ((x - r >= found.wall[0]) & (x + r <= found.wall[1])).any()
            assert after[-2:].all()


def test_a_wall_hides_what_is_behind_it():
    physics, frames = Physics(scene="occlusion"), 0
    for i in range(20):
        found = physics.scenario(i, seed=0)
        clip = physics.clip(i, seed=0)
        red = ((clip[0] - clip[1]) / 2).clip(0).sum((1, 2)) * (SIZE / 32) ** 2
        left, right = found.wall
        x, r = found.track.position[:, 0, 0], found.track.radius[0]
        hidden = (x - r >= left) & (x + r <= right)
        frames += hidden.sum()
        assert not (red[hidden] > 0.12 * np.pi * r**2).any()  # the wall's own edge is soft
        clear = (x + r < left - SIZE / 32) | (x - r > right + SIZE / 32)
        inside = clear & (x - r >= 0) & (x + r <= SIZE)
        assert np.allclose(red[inside], np.pi * r**2, rtol=0.12)
    assert frames > 10
