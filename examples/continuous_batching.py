"""Texts that are decoded together: each joins when it arrives and leaves when it ends, and none changes another.

The model is not trained; in float64 each text equals the one that is written alone, character for character.
"""

import torch

from postformer.models.generation import Batch, Row, Sampling, Stream
from postformer.models.language import LanguageModel
from postformer.tokens import Bytes

ARRIVALS = {0: ("first", 9), 2: ("second", 4), 4: ("third", 8), 5: ("fourth", 3)}
"""Step at which a prompt arrives, the prompt, and how many tokens it asks for."""


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mixers = ({"kind": "mamba"}, {"kind": "attention", "heads": 4, "window": 16}, {"kind": "attention", "heads": 4})
    model = LanguageModel(Bytes.vocab, dim=48, depth=3, mixers=mixers).double().eval()
    model.tokens = Bytes()

    batch, names, step = Batch(model), dict[Row, str](), 0
    while batch.rows or step <= max(ARRIVALS):
        if step in ARRIVALS:
            prompt, wanted = ARRIVALS[step]
            row = batch.join(model.tokens.encode(prompt), Sampling(max_tokens=wanted, seed=step))
            names[row] = prompt
        together = ", ".join(names[row] for row in batch.rows)
        ended = ", ".join(names[row] for row, _ in batch.step() if row.ending)
        print(f"step {step:>2}: {together}" + (f"; {ended} ends" if ended else ""))
        step += 1

    for at, (row, prompt) in zip(ARRIVALS, names.items(), strict=True):
        wanted = ARRIVALS[at][1]
        alone = Stream(model, prompt, Sampling(max_tokens=wanted, seed=at))
        list(alone)
        assert alone.row.produced == row.produced
    print("every text is the one that is written alone")


if __name__ == "__main__":
    main()
