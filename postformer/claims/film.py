"""Videos on a page: frames side by side as strips, what moves in them drawn over. Data first, then its SVG; no torch is imported."""

import base64
import dataclasses
import io
import itertools
from collections.abc import Sequence
from html import escape

import numpy as np

from postformer.claims.journal import Real

FRAME, GAP, NAME, HEAD = 46, 2, 118, 18
"""Points: a frame's side, what lies between two, the names' column, and what stands above."""
COLOURS = ("c2", "c1")
"""Of a strip's first track and its second."""


@dataclasses.dataclass(frozen=True)
class Track:
    """Where something is in each frame: (across, down) as shares of a frame's side, or nothing where it is not seen."""

    name: str
    points: tuple[tuple[Real, ...], ...]


@dataclasses.dataclass(frozen=True)
class Strip:
    """A video: a PNG in base64 of all its frames in one picture, the brightest of each pixel, then of each frame, from left to right."""

    name: str
    png: str
    tracks: tuple[Track, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
    """Strips of equally many frames under each other; the first `known` frames were shown."""

    title: str
    columns: tuple[str, ...]
    """What stands above each frame."""
    strips: tuple[Strip, ...]
    known: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        frames = {len(self.columns), *(len(t.points) for s in self.strips for t in s.tracks)}
        if len(frames) > 1 or not self.strips or 0 in frames:
            raise ValueError(f"film '{self.title}': columns and tracks need equally many frames, and there must be a strip")


def strip(name: str, clip: np.ndarray, tracks: Sequence[Track] = ()) -> Strip:
    """A clip [3, f, h, w] from -1 to 1. Needs pillow."""
    from PIL import Image

    values = ((np.asarray(clip).clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    frames = [values.max(1), *np.moveaxis(values, 1, 0)]
    raw = io.BytesIO()
    Image.fromarray(np.concatenate(frames, -1).transpose(1, 2, 0)).save(raw, "PNG", optimize=True)
    return Strip(name, base64.b64encode(raw.getvalue()).decode(), tuple(tracks))


# ---------------------------------------------------------------- the picture


def draw_film(film: Film, name: str) -> str:
    """An `<svg>` element whose ids begin with `name`, which must differ between the pictures of a page."""
    squares = len(film.columns) + 1
    width, height = NAME + squares * FRAME + GAP, HEAD + len(film.strips) * (FRAME + GAP)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-desc" class="plot film" '
        f'style="max-width:{1.4 * width:.0f}px">',
        f'<title id="{name}-title">{escape(film.title)}</title><desc id="{name}-desc">{escape(describe_film(film))}</desc>',
        *(_text(NAME + (i + 0.5) * FRAME, HEAD - 6, word, "middle") for i, word in enumerate(("all", *film.columns))),
    ]
    for row, one in enumerate(film.strips):
        parts += _row(film, one, HEAD + row * (FRAME + GAP), squares)
    if 0 < film.known < len(film.columns):
        x = NAME + (film.known + 1) * FRAME
        parts.append(f'<path d="M{x} {HEAD}V{height}" stroke="var(--ink)" stroke-dasharray="3 3"/>')
    return "".join(parts) + "</svg>"


def _row(film: Film, one: Strip, top: int, squares: int) -> list[str]:
    parts = [
        _text(0, top + FRAME / 2 + 3, one.name, "start"),
        f'<image x="{NAME}" y="{top}" width="{squares * FRAME}" height="{FRAME}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{escape(one.png)}"/>',
    ]
    between = (NAME + i * FRAME for i in range(1, squares))
    parts += [f'<path d="M{x} {top}v{FRAME}" stroke="var(--ground)" stroke-width="{GAP}"/>' for x in between]
    for track, colour in zip(one.tracks, itertools.cycle(COLOURS)):
        at = [(FRAME * p[0], FRAME * p[1]) if p else None for p in track.points]
        for part in _seen_parts(at):
            line = " ".join(f"{NAME + x:.1f},{top + y:.1f}" for x, y in part)
            parts.append(f'<polyline points="{line}" fill="none" stroke="var(--{colour})" stroke-width="1.6"/>')
        for i, place in enumerate(at, 1):
            if place:
                x, y = NAME + i * FRAME + place[0], top + place[1]
                mark = f'r="2.2" fill="none" stroke="var(--{colour})" stroke-width="1.4"'
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" {mark}/>')
    return parts


def _seen_parts(places: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    """Stretches of frames in which it is seen."""
    stretches = [[p for p in own if p] for seen, own in itertools.groupby(places, bool) if seen]
    return [s for s in stretches if len(s) > 1]


def _text(x: Real, y: Real, word: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="9.5" fill="var(--muted)">{escape(word)}</text>'


def describe_film(film: Film) -> str:
    """The film in a sentence per strip, for those who do not see it."""
    known = f", of which the first {film.known} were shown" if film.known else ""
    return f"{len(film.columns)} frames{known}. " + " ".join(f"{one.name}: {_told(one)}." for one in film.strips)


def _told(one: Strip) -> str:
    if len(one.tracks) < 2:
        return "no measured track" if not one.tracks else "one track"
    pairs = list(zip(one.tracks[::2], one.tracks[1::2], strict=False))
    gone = sum(bool(p) and not q for true, found in pairs for p, q in zip(true.points, found.points, strict=True))
    ends = [np.hypot(*np.subtract(a.points[-1], b.points[-1])) for a, b in pairs if a.points[-1] and b.points[-1]]
    last = (
        f"in the last frame {100 * max(ends):.0f}% of its side away at most" if ends else "not to be compared in the last frame"
    )
    return last + (f", missing in {gone} places" if gone else "")
