"""The command `dream`: what a model of images or videos draws, goes on from, joins, closes and changes. Imports no torch before it runs."""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from postformer.commands import progress_bars
from postformer.config import UserError

MOST = 4096
"""Frames, of all pictures or clips, that are drawn at once."""
MOST_DRAWN = 1 << 28
"""Pixels of a file that are, at its --scale."""
RATE = 10.0
"""Frames a second of simulated physics."""
MOST_LARGER = 64
"""Times as many pixels as those of what a model learned from: attention compares all patches with all."""
SHEET = 64
"""Frames of a video that are kept for its sheet."""
AT_ONCE = 16
"""Frames that are brought to the file's scale at once."""


def dream(args: argparse.Namespace) -> int:
    from postformer.data.video import KINDS, contact_sheet, grid_of_images, to_pixels, video_file, write_picture
    from postformer.train.painter import Painter

    suffix = args.out.suffix
    if suffix not in KINDS and suffix != ".png":
        raise UserError(f"--out {args.out}: unknown kind of file '{suffix}'; choose from {', '.join(KINDS)}, .png")
    _check_out(args)
    painter = Painter.of(args.checkpoint, seed=args.seed)
    with progress_bars() as show:
        pieces = _pieces(args, painter, show)
        if suffix == ".png" and args.verb == "draw" and (args.frames or painter.frames) == 1:
            pictures = [to_pixels(clip, args.scale)[0] for clip in next(pieces).numpy()]
            write_picture(args.out, grid_of_images(_stacked(pictures), columns=8))
            print(f"{args.out}: {len(pictures)} pictures")
            return 0
        sheet = Sheet()
        with contextlib.nullcontext() if suffix == ".png" else video_file(args.out, _rate(args)) as write:
            for piece in (part for whole in pieces for part in whole.split(AT_ONCE, 2)):
                frames = _side_by_side(piece, args.scale)
                sheet.add(frames)
                if write is not None:
                    write(frames)
    beside = args.out if suffix == ".png" else args.out.with_suffix(".sheet.png")
    write_picture(beside, contact_sheet([_stacked(sheet.frames)]))
    print(
        f"{beside}: a sheet of frames" if beside == args.out else f"{args.out}: {sheet.seen} frames; {beside}: a sheet of them"
    )
    return 0


def _check_out(args: argparse.Namespace) -> None:
    """Before anything is drawn. Raises UserError for a file that cannot be written, or that is what is gone on from."""
    if args.out.is_dir():
        raise UserError(f"--out {args.out}: is a folder; name a file in it")
    if above := next((folder for folder in args.out.parents if folder.exists() and not folder.is_dir()), None):
        raise UserError(f"--out {args.out}: {above} is a file, not a folder")
    written = {args.out.resolve(), args.out.with_suffix(".sheet.png").resolve()}
    for option in ("from", "to"):
        if Path(name := getattr(args, option, "")).resolve() in written:
            raise UserError(f"--out {args.out}: would be written over --{option} {name}; name another file")


def _rate(args: argparse.Namespace) -> float:
    """Frames a second: those asked for, or of the video that is gone on from."""
    from postformer.data.video import MOST_RATE, frame_rate
    from postformer.data.videos import FILES

    source = Path(getattr(args, "from", ""))
    own = frame_rate(source) if args.rate is None and source.suffix.lower() in FILES and source.is_file() else 0.0
    return args.rate if args.rate is not None else own if 0 < own <= MOST_RATE else RATE


def _pieces(args: argparse.Namespace, painter: Any, show: Callable[[str, int, int], object]) -> Iterator[Any]:
    """Clips [b, c, f, h, w] in the order of their frames, as they are drawn."""
    try:
        how = painter.sampling(steps=args.steps, method=args.method, guidance=args.guidance)
        told = painter.told(args.label, args.text, args.count if args.verb == "draw" else 1)
        words = {"after_step": lambda done: show(args.verb, done, args.steps), **told}
        if args.verb == "draw":
            if (asked := args.count * (args.frames or painter.frames)) > MOST:
                raise UserError(f"--count, --frames: {asked:,} frames; at most {MOST:,} are drawn at once, extend draws more")
            rows, columns = args.size or painter.size
            if rows * columns > MOST_LARGER * painter.size[0] * painter.size[1]:
                most = f"{MOST_LARGER} times as many pixels as the {painter.size[0]}x{painter.size[1]} that it learned from"
                raise UserError(f"--size {rows}x{columns}: at most {most} are drawn")
            if (pixels := asked * rows * columns * args.scale**2) > MOST_DRAWN:
                raise UserError(
                    f"--count, --frames, --size, --scale: {pixels:,} pixels; at most {MOST_DRAWN:,} are drawn at once"
                )
            _say_doubt(args, painter)
            yield painter.draw(args.count, how, frames=args.frames, size=args.size, **words)
        else:
            if args.verb in ("connect", "loop") and (args.frames or 0) > MOST:
                raise UserError(f"--frames: {args.frames:,}; at most {MOST:,} are drawn at once")
            if painter.frames == 1 and args.verb != "edit":
                raise UserError(
                    f"dream {args.verb}: {args.checkpoint}: it learned from single pictures; choose a run of videos"
                )
            clip = painter.clip(getattr(args, "from"), "--from")
            rows, columns = (args.scale * pixels for pixels in clip.shape[3:])
            if rows * columns > (most := MOST_DRAWN // SHEET):
                raise UserError(f"--scale {args.scale}: frames of {rows}x{columns} pixels; at most {most:,} pixels are written")
            _say_doubt(args, painter)
            yield from _from_clip(args, painter, clip, how, {"generator": painter.generator, **words})
    except ValueError as e:
        raise UserError(f"dream {args.verb}: {e}") from e


def _say_doubt(args: argparse.Namespace, painter: Any) -> None:
    if doubt := painter.doubt(args.verb, backward=getattr(args, "backward", False)):
        _warn(f"dream {args.verb}: {args.checkpoint}: {doubt}")


def _from_clip(args: argparse.Namespace, painter: Any, clip: Any, how: Any, words: dict[str, Any]) -> Iterator[Any]:
    """What a verb makes of a clip, which is among it, in the order of frames."""
    from postformer.models.dreaming import joined

    context = painter.context(getattr(args, "context", None))
    if args.verb == "edit":
        yield from _edited(args, painter, clip, how, words)
    elif args.verb in ("connect", "loop"):
        other = painter.clip(args.to, "--to") if args.verb == "connect" else clip
        before, after = (
            painter.patched(clip, before=True)[:, :, -context:],
            painter.patched(other, before=False)[:, :, :context],
        )
        new = painter.new_frames(args.frames, before.shape[2] + after.shape[2])
        yield clip
        yield joined(painter.model, before, after, new, how, **words)
        if args.verb == "connect":
            yield other
    elif args.verb == "animate":
        still = clip[:, :, :1].expand(-1, -1, painter.part, -1, -1)
        yield still
        yield from painter.go_on(still, painter.new_frames(args.frames, painter.part), how, painter.part, **words)
    else:
        known = painter.patched(clip, before=not args.backward)
        made = painter.go_on(
            known, args.frames or painter.frames, how, context, backward=args.backward, steady=args.steady, **words
        )
        if args.backward:
            yield from _backwards(made)
        yield clip
        if not args.backward:
            yield from made


def _edited(args: argparse.Namespace, painter: Any, clip: Any, how: Any, words: dict[str, Any]) -> Iterator[Any]:
    """All frames of a clip drawn anew, a window of them at a time; the last one ends with the clip."""
    from postformer.models.dreaming import edited

    count, window = clip.shape[2], painter.frames
    if count > window:
        _warn(f"dream edit: its {count} frames are drawn anew {window} at a time, each window for itself")
    for begin in range(0, count, window):
        first = max(min(begin, count - window), 0)
        piece = painter.padded(clip[:, :, first : begin + window])
        made = edited(painter.model, piece, args.strength, how, **words)
        yield made[:, :, begin - first : min(window, count - first)]


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def _backwards(pieces: Iterator[Any]) -> Iterator[Any]:
    """The last piece first; all wait in a file for it."""
    import numpy as np
    import torch

    with tempfile.TemporaryFile() as file:
        begins = []
        for piece in pieces:
            begins.append(file.tell())
            np.save(file, piece.numpy())
        for begin in reversed(begins):
            file.seek(begin)
            yield torch.from_numpy(np.load(file, allow_pickle=False))


def _stacked(frames: list[Any]) -> Any:
    import numpy as np

    return np.stack(frames)


def _side_by_side(clips: Any, scale: int) -> Any:
    """uint8 [f, h, w, 3] of clips [b, c, f, h, w], several in a square of them."""
    import numpy as np

    from postformer.data.video import grid_of_images, to_pixels

    each = [to_pixels(clip, scale) for clip in clips.numpy()]
    if len(each) == 1:
        return each[0]
    columns = int(np.ceil(len(each) ** 0.5))
    return np.stack([grid_of_images(np.stack([clip[f] for clip in each]), columns) for f in range(len(each[0]))])


class Sheet:
    """At most SHEET frames, evenly apart, of a video of any length."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.seen, self._apart = 0, 1

    def add(self, frames: Any) -> None:
        """The next frames of the video."""
        for frame in frames:
            if self.seen % self._apart == 0:
                self.frames.append(frame)
            self.seen += 1
            if len(self.frames) > SHEET:
                self.frames, self._apart = self.frames[::2], 2 * self._apart
