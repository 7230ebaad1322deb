"""What a picture or a video shows, in words: the bytes of a text in UTF-8, as tokens."""

from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from postformer.data.sources import DataError, readable

VOCAB = 256
"""One token a byte; VOCAB itself says nothing and fills what a text leaves free."""
LONGEST = 4096


def encoded(text: str, length: int) -> Int[Tensor, " l"]:
    """`length` tokens. Raises ValueError for a text of more bytes."""
    found = text.encode()
    if len(found) > length:
        raise ValueError(f"a text of {len(found):,} bytes, where the model was taught at most {length:,}: {text[:40]!r}")
    return torch.tensor([*found, *[VOCAB] * (length - len(found))], dtype=torch.long)


def beside(path: Path) -> str:
    """The text of NAME.txt beside NAME.mp4, without the line's end; empty where there is none. Raises DataError for what is no text."""
    file = path.with_suffix(".txt")
    if not file.is_file():
        return ""
    with readable(file):
        if file.stat().st_size > LONGEST:
            raise DataError(f"{file}: {file.stat().st_size:,} bytes are more than the {LONGEST:,} of a caption that are read")
        try:
            return " ".join(file.read_text(encoding="utf-8").split())
        except UnicodeDecodeError as e:
            raise DataError(f"{file}: it is not UTF-8: {e}") from e
