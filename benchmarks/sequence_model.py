"""A whole Mamba language model of 130M parameters in every library, from the same random weights.

transformers makes the weights once, as a folder; ours reads that folder, and llama.cpp a conversion of it by its own script.
A library whose logits are not ours is not timed.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sequence_memory
import torch
from sequence_layers import AGREE, OURS, Missing, relative, require
from sequence_rows import Event, Settings, missing, row, timed
from torch import Tensor

import postformer
from postformer.files import durable_directory, durable_file
from postformer.models.language import LanguageModel

VOCAB = 50280
"""Of the 130M model, and what llama.cpp's bundled vocabulary fits."""
TYPES = ("f32", "bf16", "f16")
LLAMA = "llama.cpp "
LOOSE = 0.1
"""Like `AGREE`, where weights are in 16 bits."""
STD = 0.02
"""Of the random weights: with transformers' own 0.1, and branches that are not scaled by depth, such a deep model makes of 16-bit
rounding a difference as large as the logits, so that nothing could be compared."""
ROOM = 8
"""Slots of llama.cpp's context beyond the prompt and what is decoded."""
SCRIPT = "convert_hf_to_gguf.py"


class Model(Protocol):
    """A library's model; both return the logits [vocab] after the last token of ids [1, t]."""

    def prefill(self, ids: Tensor) -> Tensor:
        """Read all tokens at once, from an empty memory."""
        ...

    def decode(self, ids: Tensor) -> Tensor:
        """Read them one at a time, as when writing, from an empty memory."""
        ...


class Ours:
    def __init__(self, folder: Path, dtype: torch.dtype):
        self.model = postformer.load(folder).to(dtype)

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> Tensor:
        return self.model.read(ids, self.model.init_state(1))[0][0]

    @torch.inference_mode()
    def decode(self, ids: Tensor) -> Tensor:
        state, logits = self.model.init_state(1), torch.empty(0)
        for i in range(ids.shape[1]):
            logits, state = self.model(ids[:, i : i + 1], state)
        return logits[0, -1]


class Transformers:
    def __init__(self, folder: Path):
        from transformers import MambaForCausalLM

        self.model: Any = MambaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> Tensor:
        return self.model(ids, use_cache=True, logits_to_keep=1).logits[0, -1]

    @torch.inference_mode()
    def decode(self, ids: Tensor) -> Tensor:
        cache, logits = None, torch.empty(0)
        for i in range(ids.shape[1]):
            out = self.model(ids[:, i : i + 1], use_cache=True, cache=cache)
            cache, logits = out.cache, out.logits
        return logits[0, -1]


class LlamaCpp:
    def __init__(self, path: Path, settings: Settings):
        self.api: Any = importlib.import_module("llama_cpp")
        prompt, room = settings.sizes.prompt, settings.sizes.decode + ROOM
        words = {"n_ctx": prompt + room, "n_batch": prompt, "n_ubatch": prompt, "n_threads": settings.threads}
        self.model: Any = self.api.Llama(str(path), **words, n_threads_batch=settings.threads, verbose=False)

    def _logits(self) -> Tensor:
        pointer = self.api.llama_get_logits(self.model.ctx)
        return torch.from_numpy(np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab(),)).copy())

    def prefill(self, ids: Tensor) -> Tensor:
        self.model.reset()
        self.model.eval(ids[0].tolist())
        return self._logits()

    def decode(self, ids: Tensor) -> Tensor:
        self.model.reset()
        for token in ids[0].tolist():
            self.model.eval([token])
        return self._logits()


def measure(settings: Settings) -> Iterator[Event]:
    """Rows of reading the prompt and of writing tokens."""
    yield {"doing": "making the weights, and llama.cpp's files of them, where they are not there yet"}
    builders, absent = models(settings)
    for peer, why in absent.items():
        yield missing(peer, "model", why)
    read, write = prompts(settings)
    found: dict[str, Model] = {}
    agree: dict[str, float] = {}
    own: tuple[Tensor, Tensor] | None = None
    for subject, make in builders.items():
        yield {"doing": f"opening {subject} and comparing its logits"}
        model = make()
        seen = model.prefill(read).float(), model.decode(write).float()
        own = own or seen
        agree[subject] = max(map(relative, seen, own))
        if agree[subject] > (AGREE if subject in {OURS, "transformers", LLAMA + "f32"} else LOOSE):
            yield missing(subject, "model", f"its logits differ from ours by {agree[subject]:.1e} of the largest")
        else:
            found[subject] = model
    yield from _rows(settings, found, agree)


def _rows(settings: Settings, found: Mapping[str, Model], agree: Mapping[str, float]) -> Iterator[Event]:
    """Reading is timed in three rows, since in one dtype or library a call may take as long as many of another."""
    read, write = prompts(settings)
    prompt, tokens, budget = read.shape[1], write.shape[1], settings.sizes.seconds(2 * read.shape[1])
    work = dict.fromkeys(found, (float(prompt), "tokens/s"))
    for subjects in ({LLAMA + "f32"}, {OURS + " bf16", LLAMA + "bf16", LLAMA + "f16"}, {"transformers"}):
        if subjects := subjects & found.keys():
            functions = {s: _bind(m.prefill, read) for s, m in found.items() if s in {OURS, *subjects}}
            taken = timed(functions, 0.8 * budget, repeats=10, warmup=0)
            yield row("model", "prefill", prompt, taken, work=work, agree=agree)
    writing = {subject: _bind(m.decode, write) for subject, m in found.items()}
    work = dict.fromkeys(found, (1.0, "tokens/s"))
    yield row("model", "decode", 1, timed(writing, budget, repeats=15), calls=tokens, work=work, agree=agree)


def _bind(f: Callable[[Tensor], Tensor], ids: Tensor) -> Callable[[], object]:
    return lambda: f(ids)


def prompts(settings: Settings) -> tuple[Tensor, Tensor]:
    """Random tokens to read [1, prompt] and to write [1, decode]."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCAB, (1, settings.sizes.prompt + settings.sizes.decode), generator=generator)
    return ids[:, : settings.sizes.prompt], ids[:, settings.sizes.prompt :]


def models(settings: Settings) -> tuple[dict[str, Callable[[], Model]], dict[str, str]]:
    """How each model is opened, ours first, and why others are missing."""
    try:
        require("transformers")
        folder = weights(settings)
    except Missing as e:
        return {}, {OURS: "transformers, which makes the weights, is missing", "transformers": str(e)}
    builders: dict[str, Callable[[], Model]] = {
        OURS: lambda: Ours(folder, torch.float32),
        OURS + " bf16": lambda: Ours(folder, torch.bfloat16),
        "transformers": lambda: Transformers(folder),
    }
    try:
        require("llama.cpp")
        for kind in TYPES:
            builders[LLAMA + kind] = _llama(gguf(folder, kind, settings), settings)
    except Missing as e:
        return builders, {"llama.cpp": str(e)}
    return builders, {}


def _llama(path: Path, settings: Settings) -> Callable[[], Model]:
    importlib.import_module("llama_cpp")  # before memory is measured
    return lambda: LlamaCpp(path, settings)


def weights(settings: Settings) -> Path:
    """The folder of transformers' random model, made if it is not there."""
    import transformers

    sizes = settings.sizes
    folder = settings.work / f"mamba-{sizes.dim}x{sizes.depth}-std{STD}"
    if not folder.exists():
        torch.manual_seed(0)
        shape: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": sizes.dim, "num_hidden_layers": sizes.depth}
        config = transformers.MambaConfig(**shape, initializer_range=STD, rescale_prenorm_residual=True)
        model = transformers.MambaForCausalLM(config)
        model.config.rescale_prenorm_residual = False  # else from_pretrained scales the loaded weights once more
        with durable_directory(folder) as temporary:
            model.save_pretrained(temporary)
    return folder


def gguf(folder: Path, kind: str, settings: Settings) -> Path:
    """llama.cpp's file of the model, converted by its own script if it is not there. Raises Missing."""
    path = folder.with_name(f"{folder.name}-{kind}.gguf")
    if path.exists():
        return path
    if settings.llama_source is None:
        raise Missing(f"no {path.name}: give --llama-source, the folder that holds llama.cpp's {SCRIPT}")
    script = Path(settings.llama_source) / SCRIPT
    with durable_file(path) as temporary:
        command = [sys.executable, str(script), str(folder), "--outfile", str(temporary), "--outtype", kind]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        if done.returncode or not temporary.exists():
            raise Missing(f"{SCRIPT} failed: {(done.stderr.strip().splitlines() or ['it wrote no file'])[-1]}")
    return path


def available(settings: Settings) -> list[str]:
    """The subjects that can be opened."""
    return list(models(settings)[0])


def grown(settings: Settings, subject: str) -> int:
    """Bytes that this process grows by from before the weights are loaded to its peak while it reads and writes."""
    code = "transformers.models.mamba.modeling_mamba" if subject == "transformers" else "postformer.train.session"
    importlib.import_module(code)  # code is not the model's memory, nor is what torch imports to build on its meta device
    with torch.device("meta"):
        LanguageModel(1, dim=1, depth=1)
    builders, _ = models(settings)
    before = sequence_memory.mark()
    model = builders[subject]()
    model.prefill(prompts(settings)[0])
    model.decode(prompts(settings)[1])
    return sequence_memory.resident("VmHWM") - before
