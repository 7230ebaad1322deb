"""Texts to vectors: a small encoder that is trained here, in seconds, on pairs of a question and a text that answers it."""

import re
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

WORD = re.compile(r"\w+")
GRAM = 3
"""Letters of a word that stand together, with a mark at its beginning and its end."""


class TextEncoder(nn.Module):
    """The sum of a vector for each word and each run of three letters, at length 1: words that were never seen have their letters'."""

    def __init__(self, dim: int = 64, *, buckets: int = 1 << 15):
        super().__init__()
        if dim < 1 or buckets < 1:
            raise ValueError(f"encoder: dim={dim} and buckets={buckets} must be at least 1")
        self.buckets = buckets
        self.bag = nn.EmbeddingBag(buckets, dim, mode="sum")
        nn.init.normal_(self.bag.weight, std=dim**-0.5)

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        parts = [features(text, self.buckets) for text in texts]
        starts = torch.tensor([0, *np.cumsum([len(part) for part in parts])[:-1].tolist()])
        found = self.bag(torch.tensor([i for part in parts for i in part], dtype=torch.long), starts)
        return nn.functional.normalize(found, dim=-1)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors as float32, which `retrieval.Dense` takes."""
        return self(texts).float().numpy()


def features(text: str, buckets: int) -> list[int]:
    """A number for each word and each run of letters, the same on every machine."""
    found = []
    for word in WORD.findall(text.lower()):
        marked = f"<{word}>"
        found += [marked, *(marked[i : i + GRAM] for i in range(len(marked) - GRAM + 1))]
    return [zlib.crc32(part.encode()) % buckets for part in found]
