"""Physics as the judge: true clips score the floor, and each way of being wrong shows in the figure that is for it."""

import dataclasses

import numpy as np
import pytest

from postformer.data.motion import extrapolated, last_frame, score, seen, visible
from postformer.data.physics import COUNTS, Physics

KNOWN = 4


def mean(scores, name):
    values = [getattr(s, name) for s in scores]
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def scored(physics, change=None, n=40, known=KNOWN, split="test"):
    found = []
    for i in range(n):
        scenario, clip = physics.scenario(i, seed=0, split=split), physics.clip(i, seed=0, split=split)
        found.append(score(clip if change is None else change(clip, scenario), scenario, physics, known))
    return found


@pytest.mark.parametrize("scene", COUNTS)
@pytest.mark.parametrize("size", [32, 64])
def test_true_clips_are_measured_to_little(scene, size):
    scores = scored(Physics(scene=scene, size=size))
    assert mean(scores, "place") < 0.02
    assert mean(scores, "radius") < 0.02
    assert mean(scores, "velocity") < {"several": 0.2, "occlusion": 0.03}.get(scene, 0.02)  # frame by frame in the box
    assert mean(scores, "there") == 1
    assert mean(scores, "whole") == 1
    if scene == "collision":
        assert mean(scores, "momentum") < 0.03
        assert mean(scores, "energy") < 0.05
    if scene == "parabola":
        assert mean(scores, "gravity") < 0.05
    if scene == "occlusion":
        assert mean(scores, "returns") < 0.03


def test_a_clip_that_stands_still_is_wrong_by_the_speed():
    physics = Physics()
    scores = scored(physics, lambda clip, _: last_frame(clip, KNOWN))
    speeds = [abs(physics.scenario(i, seed=0, split="test").track.velocity[0, 0, 0]) for i in range(40)]
    assert mean(scores, "velocity") == pytest.approx(np.mean(speeds), rel=0.01)
    assert mean(scores, "radius") < 0.02


def test_a_straight_line_is_right_where_discs_fly_level_and_wrong_where_they_fall_or_meet():
    for scene, low, high in (("uniform", 0, 0.3), ("collision", 0.8, 9), ("parabola", 0.5, 9)):
        physics = Physics(scene=scene)
        scores = scored(physics, lambda clip, scenario, physics=physics: extrapolated(clip, KNOWN, physics, scenario))
        assert low <= mean(scores, "velocity") < high
    assert (
        mean(scored(Physics(scene="parabola"), lambda c, s: extrapolated(c, KNOWN, Physics(scene="parabola"), s)), "gravity")
        > 2
    )


def test_a_disc_that_vanishes_or_falls_apart_is_told():
    physics = Physics()

    def gone(clip, scenario):
        out = clip.copy()
        out[:, 10:] = -1
        return out

    def torn(clip, scenario):
        out = clip.copy()
        out[:, 10:] = np.maximum(clip[:, 10:] * 0.5 - 0.5, np.roll(clip[:, 10:], 16, axis=-1) * 0.5 - 0.5)
        return out

    assert mean(scored(physics, gone), "there") == pytest.approx(0.5, abs=0.1)
    assert mean(scored(physics, torn), "whole") < 0.6
    assert mean(scored(physics), "whole") == 1


def test_losing_what_is_hard_to_draw_gains_nothing():
    """In each scene a clip in which every disc is gone is no better than one that stands still, whatever is told."""
    for scene in COUNTS:
        physics = Physics(scene=scene)
        empty = physics.picture(np.full((1, COUNTS[scene], 2), -50.0), np.ones(COUNTS[scene]), None)[:, 0]
        gone = scored(physics, lambda clip, scenario, empty=empty: np.broadcast_to(empty[:, None], clip.shape).copy())
        true = scored(physics)
        assert mean(gone, "there") == 0
        for name in ("velocity", "place", "radius", "momentum", "energy", "gravity", "returns"):
            told = [(getattr(a, name), getattr(b, name)) for a, b in zip(gone, true, strict=True)]
            assert all(np.isnan(a) == np.isnan(b) for a, b in told), (scene, name)
            assert np.isnan(mean(true, name)) or mean(gone, name) > 0.5, (scene, name)


def test_a_disc_in_few_frames_counts_as_lost():
    physics = Physics()

    def brief(clip, scenario):
        out = clip.copy()
        out[:, 8:] = -1
        return out

    still = scored(physics, lambda clip, scenario: last_frame(clip, KNOWN))
    assert mean(scored(physics, brief), "velocity") == pytest.approx(mean(still, "velocity"), rel=0.02)


def test_what_melts_is_not_there_and_what_is_dim_is_whole():
    physics = Physics()

    def wide(by):
        return lambda clip, scenario: physics.picture(scenario.track.position, by * scenario.track.radius, None)

    puddle = scored(
        physics, lambda clip, scenario: np.where(np.arange(3)[:, None, None, None] == 0, 1.0, -1.0) * np.ones_like(clip)
    )
    assert mean(puddle, "there") == 0
    assert mean(scored(physics, wide(2.0)), "there") == 0
    assert mean(scored(physics, wide(1.38)), "there") == 1 and mean(scored(physics, wide(1.38)), "whole") < 0.2
    dim = scored(physics, lambda clip, scenario: clip * 0.7 - 0.3)
    assert mean(dim, "there") == mean(dim, "whole") == 1
    assert mean(dim, "velocity") < 0.05


def test_a_disc_too_many_is_told():
    physics = Physics(scene="collision")

    def more(clip, scenario):
        out = clip.copy()
        out[2, 12:, 4:12, 4:12] = 1
        return out

    assert mean(scored(physics), "alone") == 1
    assert mean(scored(physics, more), "alone") == pytest.approx(8 / 12)
    assert np.isnan(mean(scored(Physics(scene="several")), "alone"))


def test_a_disc_that_does_not_come_out_from_behind_the_wall_is_a_world_away():
    physics = Physics(scene="occlusion", frames=24)

    def lost(clip, scenario):
        out = clip.copy()
        x = scenario.track.position[:, 0, 0]
        side = scenario.track.velocity[0, 0, 0] > 0
        middle = (scenario.wall[0] + scenario.wall[1]) / 2
        past = x > middle if side else x < middle
        out[:, past] = physics.picture(np.full((past.sum(), 1, 2), -50.0), scenario.track.radius, scenario.wall)
        return out

    known = 2
    scores = scored(physics, lost, known=known)
    assert mean(scores, "returns") > 5
    assert mean(scored(physics, known=known), "returns") < 0.05


def test_momentum_and_energy_show_what_speeds_hide():
    """Discs that pass through each other: each flies on as it did, so that masses matter."""
    physics = Physics(scene="collision")

    def passing(clip, scenario):
        track, frames = scenario.track, np.arange(16)[:, None, None]
        return physics.picture(track.position[0] + track.velocity[0] * frames * physics.dt, track.radius[::-1], None)

    def slowed(clip, scenario):
        track, out = scenario.track, scenario.track.position.copy()
        hit = int(track.hits[0] / physics.dt) + 1
        out[hit:] = out[hit - 1] + (out[hit:] - out[hit - 1]) * 0.5
        return physics.picture(out, track.radius, None)

    assert mean(scored(physics, passing, known=2), "radius") > 0.1
    assert mean(scored(physics, slowed, known=2), "energy") > 0.4
    assert mean(scored(physics, known=2), "energy") < 0.05


def told(scores, name):
    return [value for one in scores if not np.isnan(value := getattr(one, name))]


def test_what_a_clip_has_after_is_told_by_the_truth_and_not_by_what_it_had_before():
    physics = Physics(scene="collision")

    def waits(clip, scenario):
        """It stands until discs meet, and then goes on as the true ones."""
        track = scenario.track
        after = np.arange(16) * physics.dt > track.hits[0]
        places = np.where(after[:, None, None], track.position, track.position[KNOWN - 1])
        return physics.picture(places, track.radius, None)

    def slows(clip, scenario):
        """Half as fast all the while, so that what it has after is what it had before."""
        at, half = scenario.track.position, len(clip[0]) // 2
        return physics.picture(at[half] + (at - at[half]) / 2, scenario.track.radius, None)

    late, slow = scored(physics, waits), scored(physics, slows)
    assert max(told(late, "energy")) < 0.2 and max(told(late, "momentum")) < 0.2
    assert np.mean(told(slow, "energy")) == pytest.approx(0.75, abs=0.02)
    assert np.mean(told(slow, "momentum")) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("split", ["test", "fast", "small", "large"])
def test_what_stands_still_has_lost_all_momentum_and_energy(split):
    """Even where the true momenta cancel."""
    physics = Physics(scene="collision", size=64)
    still = scored(physics, lambda clip, scenario: last_frame(clip, KNOWN), split=split)
    assert len(told(still, "momentum")) == len(told(still, "energy")) > 10
    np.testing.assert_allclose(told(still, "momentum"), 1, atol=1e-9)
    np.testing.assert_allclose(told(still, "energy"), 1, atol=1e-9)


def test_a_disc_that_is_lost_has_no_momentum_and_no_energy():
    physics = Physics(scene="collision")

    def without(disc):
        def change(clip, scenario):
            places = scenario.track.position.copy()
            places[8:, disc] = -50
            return physics.picture(places, scenario.track.radius, None)

        return change

    first, second = (scored(physics, without(disc)) for disc in (0, 1))
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        if np.isnan(a.energy):
            continue
        track = physics.scenario(i, seed=0, split="test").track
        energies = track.radius**2 * (track.velocity[-1] ** 2).sum(-1)
        sizes = track.radius**2 * np.hypot(*track.velocity[-1].T)
        assert [a.energy, b.energy] == pytest.approx(list(energies / energies.sum()), abs=0.05)
        assert [a.momentum, b.momentum] == pytest.approx(list(sizes / sizes.sum()), abs=0.05)


def test_slow_discs_have_no_heavy_tail():
    physics = Physics(scene="collision")
    true = scored(physics, n=60, split="slow")
    still = scored(physics, lambda clip, scenario: last_frame(clip, KNOWN), n=60, split="slow")
    assert max(told(true, "energy")) < 0.2 and max(told(true, "momentum")) < 0.2
    assert max(told(still, "energy")) <= 1 + 1e-6 and max(told(still, "momentum")) <= 1 + 1e-6


def test_frames_that_are_known_or_out_of_sight_do_not_count():
    physics = Physics(scene="occlusion")
    scenario = physics.scenario(3, seed=0)
    clip = physics.clip(3, seed=0)
    other = clip.copy()
    other[:, :KNOWN] = -1
    hidden = ~visible(scenario)[:, 0]
    other[:, hidden] = -1
    assert hidden.any()
    a, b = (dataclasses.astuple(score(x, scenario, physics, KNOWN)) for x in (other, clip))
    np.testing.assert_equal(a, b)


def test_haze_does_not_move_a_disc():
    physics = Physics()
    clip = physics.clip(0, seed=0)
    hazy = np.maximum(clip, -0.93)
    assert np.abs(seen(hazy, 1).position - seen(clip, 1).position).max() < 0.05
    assert np.isnan(seen(np.full((3, 1, 32, 32), -1.0), 1).position).all()
