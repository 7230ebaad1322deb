"""The arguments of the command `dream`, each checked as it is read. Imports no torch."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

VERBS = {
    "draw": "pictures or clips from noise",
    "animate": "a clip that begins with a picture",
    "extend": "more frames after a clip, or before it with --backward, as long as you like in constant memory",
    "connect": "frames between two clips",
    "edit": "a clip drawn anew from its noised self",
    "loop": "frames that lead from a clip's end back to its beginning",
}
MOST_SCALE, MOST_STEPS, LARGEST_SEED = 64, 10_000, (1 << 63) - 1


def dream_arguments(p: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """The arguments of each verb."""
    verbs = p.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs", parser_class=type(p))
    for name, summary in VERBS.items():
        v = verbs.add_parser(name, help=summary, description=summary)
        v.add_argument("checkpoint", help="a run directory or a checkpoint of a model that was taught to denoise")
        v.add_argument(
            "--out",
            type=Path,
            required=True,
            metavar="FILE",
            help=".mp4, .mkv or .gif, beside which a sheet of frames is written (NAME.sheet.png); or .png, pictures or the sheet alone",
        )
        if name != "draw":
            v.add_argument(
                "--from",
                required=True,
                metavar="CLIP",
                help="a video, a picture, or SPLIT:NUMBER of what it learned from, such as test:0"
                + ("; the first frame of a video counts" if name == "animate" else ""),
            )
        if name == "connect":
            v.add_argument("--to", required=True, metavar="CLIP", help="what comes after")
        if name == "draw":
            v.add_argument("--count", type=positive, default=16, metavar="N", help="how many (default: 16)")
            v.add_argument("--size", type=picture_size, metavar="ROWSxCOLUMNS", help="of a frame (default: as it learned)")
        if name != "edit":
            v.add_argument(
                "--frames",
                type=positive,
                metavar="N",
                help="new ones, at least (default: as many as it learned from, or what is left of that)",
            )
        if name == "extend":
            v.add_argument("--backward", action="store_true", help="before the clip")
            v.add_argument(
                "--steady",
                type=_strength,
                metavar="T",
                help="a model that is causal over frames reads what it drew as clean as of this time, above 0 to 1, which keeps small "
                "errors from growing (default: 1)",
            )
        if name in ("extend", "connect", "loop"):
            v.add_argument(
                "--context",
                type=positive,
                metavar="N",
                help="frames of a clip that new ones go on from (default: a quarter of its window)",
            )
        if name == "edit":
            v.add_argument(
                "--strength",
                type=_strength,
                default=0.5,
                metavar="S",
                help="above 0, which keeps all, to 1, which keeps nothing (default: 0.5)",
            )
        _drawing(v)


def _drawing(v: argparse.ArgumentParser) -> None:
    """What all verbs take."""
    v.add_argument("--label", metavar="CLASS", help="of what, by name or number")
    v.add_argument("--text", metavar="WORDS", help="what it shows, of a model that was taught captions (data.text)")
    v.add_argument("--steps", type=_steps, default=50, metavar="N", help="of denoising (default: 50)")
    v.add_argument("--method", choices=("euler", "heun", "multistep", "ancestral"), default="euler")
    v.add_argument(
        "--guidance",
        type=_guidance,
        default=1.0,
        metavar="G",
        help="above 1 follows label and text more closely (default: 1)",
    )
    v.add_argument(
        "--rate", type=_frame_rate, metavar="FPS", help="frames a second of the file (default: as the video has, else 10)"
    )
    v.add_argument("--scale", type=_scale, default=4, metavar="N", help="file pixels along a side of each pixel (default: 4)")
    v.add_argument("--seed", type=_seed, default=0, help="of the noise (default: 0)")


def picture_size(text: str) -> tuple[int, int]:
    """Rows and columns, above 0."""
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if not match or not min(int(match[1]), int(match[2])):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 32x48")
    return int(match[1]), int(match[2])


def _seed(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def _number(text: str, low: float, high: float, *, least: bool) -> float:
    """From `low`, itself only where it is the `least` allowed, to `high`."""
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if not (low <= found if least else low < found) or not found <= high:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number {'from' if least else 'above'} {low:g} to {high:g}")
    return found


def _strength(text: str) -> float:
    return _number(text, 0.0, 1.0, least=False)


def _guidance(text: str) -> float:
    return _number(text, 0.0, 1000.0, least=True)


def _frame_rate(text: str) -> float:
    return _number(text, 0.0, 240.0, least=False)


def _from_one(text: str, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text) or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to {most:,}")
    return int(text)


def _scale(text: str) -> int:
    return _from_one(text, MOST_SCALE)


def _steps(text: str) -> int:
    return _from_one(text, MOST_STEPS)
