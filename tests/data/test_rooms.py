"""Two rooms: walls hold, doors let through, pictures show where the dot is, and walks are a function of their number."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.data.rooms import (
    AWAY,
    BELL,
    BORDER,
    DOOR,
    FIXED,
    HALF,
    LONGEST,
    SIDE,
    Rooms,
    anywhere,
    dots,
    free,
    layouts,
    moved,
    walls,
)

LAYOUT = np.array([FIXED])


def at(x, y):
    return np.array([[x, y]], float)


@pytest.mark.parametrize(
    ("place", "push", "end"),
    [
        ((20, 40), (2, 1), (22, 41)),  # through the free room
        ((30, 18), (2, 0), (32, 18)),  # into the door
        ((30, 40), (2, 0), (31 - AWAY, 40)),  # against the wall
        ((34, 40), (-2, 0), (33 + AWAY, 40)),  # from the other side
        ((32, 20), (0, 2), (32, 22)),  # the door's end is at 22: it stops before
        ((5, 40), (-2, 0), (BORDER + AWAY, 40)),
        ((59, 59), (2, 2), (60 - AWAY, 60 - AWAY)),
        ((20, 20), (0, 0), (20, 20)),
    ],
)
def test_a_push_ends_where_it_leads_or_before_a_wall(place, push, end):
    end = (end[0], 22 - AWAY) if place == (32, 20) else end
    assert np.allclose(moved(at(*place), at(*push), LAYOUT), at(*end), atol=1e-6)


@given(st.integers(0, 10_000), st.booleans())
def test_no_walk_crosses_a_wall(seed, fixed):
    """However it is pushed: every place on the way, in small steps, is free."""
    rng = np.random.default_rng(seed)
    layout = layouts(rng, 20, fixed=fixed)
    place = anywhere(rng, layout)
    for _ in range(30):
        push = rng.uniform(-LONGEST, LONGEST, place.shape)
        after = moved(place, push, layout)
        for share in np.linspace(0, 1, 9):
            assert free(place + share * (after - place), layout).all()
        assert (np.hypot(*(after - place).T) <= np.hypot(*push.T) + 1e-9).all()
        place = after


def test_a_dot_is_seen_where_it_is():
    place = np.array([[20.3, 41.8], [10.0, 55.5]])
    seen = dots(place)
    line = np.arange(SIDE)
    assert seen.shape == (2, SIDE, SIDE)
    assert np.allclose((seen.sum(1) * line).sum(1) / seen.sum((1, 2)), place[:, 0], atol=0.01)
    assert np.allclose((seen.sum(2) * line).sum(1) / seen.sum((1, 2)), place[:, 1], atol=0.01)
    assert np.allclose(seen.sum((1, 2)), 2 * np.pi * BELL**2, rtol=0.01)


def test_walls_are_drawn_where_they_hold():
    """A dot at the middle of a pixel is free where the pixel is dark, but for the rim of the door and the outer wall."""
    for layout in layouts(np.random.default_rng(0), 5, fixed=False):
        picture = walls(layout[None])[0]
        y, x = np.mgrid[BORDER + 1 : SIDE - 1 - BORDER, BORDER + 1 : SIDE - 1 - BORDER]
        places = np.stack([x.ravel(), y.ravel()], 1).astype(float)
        dark = picture[y, x].ravel() == 0
        rim = (np.abs(places[:, 1] - layout[1]) == DOOR) & (np.abs(places[:, 0] - layout[0]) <= HALF)
        assert (free(places, np.tile(layout, (len(places), 1))) == dark)[~rim].all()
        assert picture[BORDER].sum() == picture[:, BORDER].sum() == SIDE


def test_walks_are_a_function_of_their_number_and_some_pass_the_door():
    rooms = Rooms(steps=16)
    a, b = rooms.batches(4, 0).batch(1), rooms.batches(2, 0).batch(3)
    for name in ("observations", "actions", "states"):
        assert torch.equal(a[name][2:], b[name])
    assert a["observations"].shape == (4, 17, 2, SIDE, SIDE)
    assert a["actions"].shape == (4, 16, 2)
    assert not torch.equal(a["states"], rooms.batches(4, 1).batch(1)["states"])
    for aimed, least, most in ((1.0, 0.5, 0.7), (0.6, 0.3, 0.5), (0.0, 0.05, 0.17)):
        side = Rooms(stride=5, aimed=aimed).batches(1000, 0).batch(0)["states"][:, :, 0] < FIXED[0]
        assert least < float((side != side[:, :1]).any(1).float().mean()) < most


def test_who_meets_a_wall_goes_on_elsewhere_or_is_stubborn():
    batch = Rooms(steps=80, aimed=0.0).batches(300, 0).batch(0)
    blocked = (batch["actions"] - batch["states"][..., :2].diff(dim=1)).norm(dim=-1) > 1e-3
    share = blocked.float().mean(1)
    assert 0.3 < float((share > 0.3).float().mean()) < 0.6  # stubborn
    assert 0.3 < float((share < 0.15).float().mean()) < 0.7


def test_of_aimed_walks_the_door_decides_which_pass():
    """Of actions that would end behind the wall about half do, where walls are anywhere, and each walk tries again."""
    batch = Rooms(stride=5, aimed=1.0, fixed=False).batches(500, 0).batch(0)
    place, wall = batch["states"][..., :2], batch["states"][..., :1, 2]
    wanted = place[:, :-1, 0] + batch["actions"][..., ::2].sum(-1)
    tries, passes = ((end > wall) != (place[:, :-1, 0] > wall) for end in (wanted, place[:, 1:, 0]))
    assert 0.35 < float(passes[tries].float().mean()) < 0.65
    assert float(tries.any(1).float().mean()) > 0.8
    assert float(passes.sum(1).float().mean()) > 0.8


def test_pushes_have_their_lengths():
    rooms = Rooms(steps=16)
    lengths = rooms.batches(1000, 0).batch(0)["actions"].norm(dim=-1)
    assert lengths.min() < 0.01
    assert lengths.max() <= 1.8 + 1e-6


def test_moving_walls_are_whole_pixels_of_their_ranges():
    found = layouts(np.random.default_rng(0), 5000, fixed=False)
    assert found.min(0).tolist() == [20, 10]
    assert found.max(0).tolist() == [44, 54]
    walks = Rooms(fixed=False, steps=2).batches(3, 0).batch(0)
    batch = walks["observations"]
    assert torch.equal(batch[:, 1, 1], torch.from_numpy(walls(walks["states"][:, 1, 2:].numpy())))
    assert not torch.equal(batch[0, 0, 1], batch[1, 0, 1])
    assert torch.equal(batch[0, 0, 1], batch[0, 2, 1])


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"steps=0 and stride=1 must be at least 1 and aimed=0\.6 from 0 to 1"):
        Rooms(steps=0)
    with pytest.raises(ValueError, match="unknown 'tset'; choose from"):
        Rooms().batches(1, 0, "tset")
