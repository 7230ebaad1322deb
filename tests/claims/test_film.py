"""Films: what they take, what their SVG shows, and that a page with one is whole."""

import base64
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from postformer.claims.film import FRAME, NAME, Film, Strip, Track, describe_film, draw_film, strip
from postformer.config import parse, plain


def clip(frames: int = 3, side: int = 8) -> np.ndarray:
    """A bright pixel that goes down one row a frame, in the red channel."""
    found = np.full((3, frames, side, side), -1.0, np.float32)
    for f in range(frames):
        found[0, f, f, 2] = 1.0
    return found


def film(**words) -> Film:
    true = Track("true", ((0.1, 0.1), (0.2, 0.1), (0.3, 0.1)))
    own = Track("measured", ((0.1, 0.1), (), (0.3, 0.4)))
    strips = (strip("true <clip>", clip()), strip("model", clip(), (true, own)))
    return Film(**{"title": "A & B", "columns": ("0", "1", "2"), "strips": strips, "known": 1, **words})


def test_a_strip_holds_all_frames_and_each():
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip("x", clip()).png))))
    assert pixels.shape == (8, 4 * 8, 3)
    expected = clip().max(1).transpose(1, 2, 0)
    assert np.array_equal(pixels[:, :8], ((expected + 1) * 127.5).round().astype(np.uint8))
    for f in range(3):
        own = np.argwhere(pixels[:, 8 * (f + 1) : 8 * (f + 2), 0])
        assert own.tolist() == [[f, 2]]


def test_the_svg_is_well_formed_and_shows_tracks():
    svg = draw_film(film(), "film-1")
    root = ET.fromstring(svg)
    assert root.attrib["aria-labelledby"] == "film-1-title film-1-desc"
    assert root.find("title").text == "A & B"
    assert len(root.findall("image")) == 2
    assert all(e.attrib["href"].startswith("data:image/png;base64,") for e in root.findall("image"))
    lines = [e.attrib["points"].split() for e in root.findall("polyline")]
    assert [len(line) for line in lines] == [3]  # the measured one is never seen in two frames in a row
    circles = root.findall("circle")
    assert len(circles) == 3 + 2
    assert float(circles[0].attrib["cx"]) == pytest.approx(NAME + FRAME * 1.1, abs=0.05)
    assert draw_film(film(), "film-1") == svg


def test_it_is_told_in_words():
    told = describe_film(film())
    assert "3 frames, of which the first 1 were shown" in told
    assert "model: in the last frame 30% of its side away at most, missing in 1 places." in told


def test_plain_data_and_back():
    assert parse(Film, plain(film()), "film") == film()


@pytest.mark.parametrize(
    "words",
    [{"columns": ("0", "1")}, {"columns": (), "strips": (strip("x", clip()),)}, {"strips": ()}],
)
def test_unequal_frames_are_refused(words):
    with pytest.raises(ValueError, match="equally many frames"):
        film(**words)


def test_hostile_names_stay_text():
    name = '"><script>alert(1)</script>'
    svg = draw_film(Film(title=name, columns=("a",), strips=(Strip(name, name),)), "f")
    assert "<script>" not in svg
    ET.fromstring(svg)
