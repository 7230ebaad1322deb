"""Read a text once, keep what the model remembers in a file, and go on from the file later.

The model is not trained: what it writes means nothing, but from the file it is the same text as after reading everything again.
"""

import tempfile
import time
from pathlib import Path

import torch

from postformer.config import UserError
from postformer.models.generation import Memory, Sampling, Stream
from postformer.models.language import LanguageModel
from postformer.tokens import Bytes


def small_model(seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    model = LanguageModel(Bytes.vocab, dim=64, depth=2, mixers=({"kind": "mamba"},), ffns=({"kind": "none"},))
    model.tokens = Bytes()
    return model.eval()


def main() -> None:
    torch.set_num_threads(1)
    model, question = small_model(0), "And then?"
    text = "The sea was calm, and the boat went on. " * 500
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "the-sea.state"
        began = time.perf_counter()
        Stream(model, text, Sampling(max_tokens=0, seed=7)).remember().save(file, model)
        read = time.perf_counter() - began
        print(f"read {len(text):,} bytes in {read:.2f} s; the memory is a file of {file.stat().st_size:,} bytes")

        began = time.perf_counter()
        memory = Memory.load(file, model)
        from_file = "".join(Stream(model, question, Sampling(max_tokens=20), memory))  # the random generator is in the file too
        print(f"went on from the file in {time.perf_counter() - began:.3f} s")

        again = "".join(Stream(model, text + question, Sampling(max_tokens=20, seed=7)))
        assert from_file == again
        print("the text that follows is the same as after reading everything again")

        try:
            Memory.load(file, small_model(1))
        except UserError as e:
            print(f"another model refuses the file: {str(e).removeprefix(folder + '/')}")


if __name__ == "__main__":
    main()
