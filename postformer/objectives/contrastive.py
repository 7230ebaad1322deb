"""Which of these texts answers the question? The loss by which an encoder of texts learns to retrieve (van den Oord et al. 2018, InfoNCE;
Karpukhin et al. 2020, with the other texts of a batch as the wrong ones)."""

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from postformer.data.reading import Reading
from postformer.models.encoder import TextEncoder

TEMPERATURE = 0.05


def contrastive(encoder: TextEncoder, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """The mean cross-entropy of each question's own text among all texts, and how many are ranked first."""
    scores = encoder([asked for asked, _ in pairs]) @ encoder([text for _, text in pairs]).T / TEMPERATURE
    target = torch.arange(len(pairs))
    right = (scores.detach().argmax(1) == target).float().mean()
    return {"loss": torch.nn.functional.cross_entropy(scores, target), "accuracy": right}


def fit_encoder(
    pairs: Iterator[tuple[str, str]], *, dim: int = 64, steps: int = 200, batch: int = 64, lr: float = 0.01, seed: int = 0
) -> TextEncoder:
    """An encoder trained on `steps` batches of pairs of a question and a text."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        encoder = TextEncoder(dim)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=lr)
    for _ in range(steps):
        contrastive(encoder, [next(pairs) for _ in range(batch)])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return encoder.eval()


def asked_pairs(task: Reading, *, length: int | None = None, seed: int = 0, split: str = "train") -> Iterator[tuple[str, str]]:
    """Questions of a task, each with a statement of its text that the answer needs (diaries and BABILong). Without end."""
    rng, index = random.Random(seed), 0
    while True:
        passage = task.passage(index, seed=seed, length=length, split=split)
        index += 1
        about = passage.about
        told = [text for _, text in about["told"]] if "told" in about else [about["facts"][i] for i in about["support"]]
        if told:
            yield passage.question, told[int(rng.random() * len(told))]


def cloze_pairs(texts: Sequence[str], *, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Parts of texts, each with its text (Lee et al. 2019, the inverse cloze task): for texts without questions. Without end."""
    rng = random.Random(seed)
    while True:
        text = texts[int(rng.random() * len(texts))]
        words = text.split()
        length = max(1, len(words) // 2)
        start = int(rng.random() * (len(words) - length + 1))
        yield " ".join(words[start : start + length]), text
