"""Shapes cover the pixels that they should: areas, middles, and what is seen of a small step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postformer.embodied.drawing import AT_ONCE, SIDE, View, joined, painted

VIEW = View(0.5)
PIXEL = 1 / SIDE


def middle(cover):
    """Of what is covered, x and y in units of the scene."""
    line = ((np.arange(SIDE) + 0.5) / SIDE - 0.5).astype(float)
    all_of_it = cover.sum((1, 2))
    return np.stack([(cover.sum(1) * line).sum(1), (cover.sum(2) * -line).sum(1)], 1) / all_of_it[:, None]


def shapes(rng, count=50):
    """Covers, areas in pixels with the round ends' own, and middles of shapes at random places."""
    place, turn = rng.uniform(-0.2, 0.2, (count, 2)), rng.uniform(0, 2 * np.pi, count)
    ahead = np.stack([np.cos(turn), np.sin(turn)], 1)
    disc = VIEW.disc(place, 5 * PIXEL)
    capsule = VIEW.capsule(place, place + 10 * PIXEL * ahead, 2 * PIXEL)
    box = VIEW.box(place, ahead, (8 * PIXEL, 2.5 * PIXEL))
    return {
        "disc": (disc, np.pi * (25 + 1 / 12), place),
        "capsule": (capsule, 40 + np.pi * (4 + 1 / 12), place + 5 * PIXEL * ahead),
        "box": (box, 80.0, place),
    }


@pytest.mark.parametrize("name", ["disc", "capsule", "box"])
def test_areas_and_middles_are_those_of_the_shape(name):
    cover, area, place = shapes(np.random.default_rng(0))[name]
    assert cover.dtype == np.float32
    assert cover.min() >= 0
    assert cover.max() <= 1
    assert np.allclose(cover.sum((1, 2)), area, rtol=0.015)
    assert np.abs(middle(cover.astype(float)) - place).max() < 0.05 * PIXEL


@given(st.integers(0, 10_000))
def test_a_pixel_is_covered_as_finer_ones_are(seed):
    """Beside the shape asked at 8 x 8 points of each pixel."""
    rng = np.random.default_rng(seed)
    turn, place = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3, 2)
    ahead = np.array([np.cos(turn), np.sin(turn)])
    fine = ((np.arange(8 * SIDE) + 0.5) / (8 * SIDE) - 0.5).astype(float)
    points = np.stack(np.meshgrid(fine, -fine), -1) - place
    along, across = points @ ahead, points @ np.array([-ahead[1], ahead[0]])
    radius = 4 * PIXEL
    inside = {
        "disc": np.hypot(along, across) <= radius,
        "capsule": np.hypot(along - np.clip(along, 0, 0.15), across) <= radius,
        "box": (np.abs(along) <= 0.1) & (np.abs(across) <= radius),
    }
    drawn = {
        "disc": VIEW.disc(place[None], radius),
        "capsule": VIEW.capsule(place[None], (place + 0.15 * ahead)[None], radius),
        "box": VIEW.box(place[None], ahead[None], (0.1, radius)),
    }
    for name, cover in drawn.items():
        exact = inside[name].reshape(SIDE, 8, SIDE, 8).mean((1, 3))
        assert np.abs(cover[0] - exact).max() < (0.25 if name == "box" else 0.13)  # a box's corner is the worst
        assert np.abs(cover[0] - exact).mean() < 0.003


def test_a_small_step_is_seen():
    """The middle follows the place one to one, in steps of a hundredth of a pixel."""
    place = np.array([[0.1, -0.05]]) + np.linspace(0, PIXEL, 101)[:, None] * [1, 0]
    found = middle(VIEW.disc(place, 3 * PIXEL).astype(float))
    assert np.allclose(np.diff(found[:, 0]), PIXEL / 100, atol=0.003 * PIXEL)
    assert np.allclose(np.diff(found[:, 1]), 0, atol=0.002 * PIXEL)


def test_y_is_upward_and_x_to_the_right():
    cover = VIEW.disc(np.array([[0.3, 0.4]]), 2 * PIXEL)[0]
    row, column = np.unravel_index(cover.argmax(), cover.shape)
    assert row < SIDE // 4
    assert column > 3 * SIDE // 4


def test_parts_that_touch_have_no_seam():
    ahead = np.array([[1.0, 0.0]])
    parts = [VIEW.box(np.array([[x, 0.0]]), ahead, (0.1, 0.1)) for x in (-0.1 + PIXEL / 2, 0.1 + PIXEL / 2)]
    whole = VIEW.box(np.array([[PIXEL / 2, 0.0]]), ahead, (0.2, 0.1))
    assert np.abs(joined(*parts) - whole).max() < 1e-4


def test_later_layers_lie_above_and_no_picture_knows_the_others():
    states = np.random.default_rng(0).uniform(-0.3, 0.3, (2, AT_ONCE, 2))

    def layers(some):
        return [(VIEW.disc(some, 0.1), (1.0, 0.5, 0.0)), (VIEW.disc(some, 0.05), (0.0, 0.0, 1.0))]

    ground = np.full((3, SIDE, SIDE), 0.2)
    found = painted(states, layers, ground)
    assert found.shape == (2, AT_ONCE, 3, SIDE, SIDE)
    assert found.dtype == np.uint8
    assert np.array_equal(painted(states[1, 3:5], layers, ground), found[1, 3:5])
    at = ((states[0, 0] + 0.5) * SIDE).astype(int)
    row, column = SIDE - 1 - at[1], at[0]
    assert found[0, 0, :, row, column].tolist() == [0, 0, 255]
    assert found[0, 0, :, row, column + 5].tolist() == [255, 128, 0]
    assert found[0, 0, :, 0, 0].tolist() == [51, 51, 51]
    assert painted(states[:1], layers)[0, 0, :, 0, 0].tolist() == [0, 0, 0]
