"""What cannot be: pairs are the same up to a frame, are a function of their number, and differ in what their kind says."""

import numpy as np
import pytest

from postformer.data.impossible import EASY, JUMP, KINDS, MARGIN, pair
from postformer.data.motion import seen
from postformer.data.physics import Physics
from postformer.data.sources import DataError

CLIPS = Physics(frames=20)
PAIRS = {kind: [pair(CLIPS, kind, i, seed=0) for i in range(12)] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_the_same_up_to_a_frame(kind):
    for made in PAIRS[kind]:
        assert MARGIN <= made.frame <= CLIPS.frames - MARGIN
        assert np.abs(made.possible - made.impossible)[:, : made.frame].max() < 0.1
        assert np.abs(made.possible - made.impossible)[:, made.frame].max() >= 0.1
    again = pair(CLIPS, kind, 3, seed=0)
    assert np.array_equal(again.impossible, PAIRS[kind][3].impossible)
    assert not np.array_equal(pair(CLIPS, kind, 3, seed=1).possible, again.possible)
    assert len({made.frame for made in PAIRS[kind]}) > 2


def red(clip, frames):
    """Where the first disc is, and how large, in some frames."""
    found = seen(clip, 1)
    return found.position[frames, 0], found.radius[frames, 0]


def test_a_disc_that_vanishes_is_gone():
    for made in PAIRS["vanishes"]:
        bright = ((made.impossible + 1) / 2).sum((0, 2, 3)) / ((made.possible + 1) / 2).sum((0, 2, 3))
        assert np.allclose(bright[: made.frame], 1, atol=0.01)
        assert (bright[made.frame :] < 0.95).all()


def test_a_disc_that_jumps_keeps_its_size_and_way():
    for made in PAIRS["jumps"]:
        away = [
            seen(made.impossible, 3).position[made.frame, i] - seen(made.possible, 3).position[made.frame, i] for i in range(3)
        ]
        far = [np.hypot(*a) for a in away if np.isfinite(a).all()]
        assert max(far) > JUMP - 0.2
        assert sum(f > 0.2 for f in far) == 1


def test_a_disc_that_turns_back_has_its_velocity_reversed():
    for made in PAIRS["turns back"]:
        true, _ = red(made.possible, slice(made.frame - 3, made.frame + 3))
        told, _ = red(made.impossible, slice(made.frame - 3, made.frame + 3))
        assert np.allclose(told[4, 0] - told[3, 0], -(true[4, 0] - true[3, 0]), atol=0.06)


def test_a_disc_that_falls_up_is_bent_the_other_way():
    for made in PAIRS["falls up"]:
        told, _ = red(made.impossible, slice(made.frame, None))
        inside = np.isfinite(told[:, 1]) & (told[:, 1] < 8) & (told[:, 1] > 2)
        if inside[:4].all():
            bend = np.diff(told[:4, 1], 2).mean() / CLIPS.dt**2
            assert bend > 1.0


def test_a_disc_that_stands_still_stands():
    for made in PAIRS["stands still"]:
        told, _ = red(made.impossible, slice(made.frame, None))
        assert np.ptp(told, 0).max() < 0.02


def test_what_stays_hidden_is_seen_only_before():
    for made in PAIRS["stays hidden"]:
        colour = np.ptp(made.impossible[:, made.frame :], axis=0)
        assert colour.max() < 0.05  # nothing but black and grey
        assert np.ptp(made.possible[:, made.frame :], axis=0).max() > 0.3


def test_colours_change_and_nothing_else():
    for made in PAIRS["changes colour"]:
        assert np.allclose(np.sort(made.impossible, 0), np.sort(made.possible, 0), atol=1e-6)


def test_through_walls_and_discs_they_fly_straight():
    checked = 0
    for made in PAIRS["through a disc"]:
        found = seen(made.impossible, 2).position[:, :, 0]
        apart, frames = np.abs(found[:, 0] - found[:, 1]) > 3.2, np.arange(CLIPS.frames)
        for way in found.T:
            clear = apart & (way > 1.5) & (way < 8.5)
            before, after = frames[clear & (frames < made.frame)], frames[clear & (frames > made.frame)]
            if len(before) >= 3 and after.size:
                line = np.polyval(np.polyfit(before, way[before], 1), after)
                checked += len(after)
                assert np.abs(line - way[after]).max() < 0.25
    assert checked > 15
    for made in PAIRS["through a wall"]:
        bright = ((made.impossible + 1) / 2).sum((0, 2, 3))
        assert bright[-1] < 0.98 * bright[made.frame - 1]  # it leaves the frame


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="unknown 'flies'; choose from vanishes, jumps"):
        pair(CLIPS, "flies", 0, seed=0)
    with pytest.raises(ValueError, match="split: unknown 'tset'"):
        pair(CLIPS, "jumps", 0, seed=0, split="tset")
    with pytest.raises(DataError, match="no clip of 6 frames has room for 'jumps'; take at least 8"):
        pair(Physics(frames=6), "jumps", 0, seed=0)
    assert set(EASY) < set(KINDS)
