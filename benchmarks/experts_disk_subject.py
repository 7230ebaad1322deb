"""Run as a process of its own by benchmarks/experts_disk.py: one way of holding a model's experts, writing one text.

    python benchmarks/experts_disk_subject.py WAY MODEL WORDS

WORDS is JSON: threads, cap, prompt (token ids), tokens, warm, temperature, and the keywords of an ExpertMemory. Prints JSON: seconds of the
prompt and of each token after the first `warm`, the tokens, the peak of resident memory, and what the store did.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from postformer.claims.peak import NOT_TOLD, resident
from postformer.models.expert_store import ExpertMemory, Told
from postformer.models.generation import Batch, Sampling
from postformer.models.routing import mixtures
from postformer.train.session import open_model

MISSING = 4
"""The exit code where a library is not installed."""


def ours(model: Path, words: dict[str, Any], memory: ExpertMemory | None, with_experts: bool) -> dict[str, Any]:
    """Our model; without experts it writes as if their answers were 0."""
    opened = open_model(model, experts=memory)
    if not with_experts:
        for mixture in mixtures(opened).values():
            mixture.elsewhere = lambda x, *_: torch.zeros_like(x)
    sampling = Sampling(temperature=words["temperature"], max_tokens=words["tokens"])
    store = opened.experts if memory else None
    if store and words.get("trace"):
        store.trace = []
    batch, taken = Batch(opened), []
    batch.end = -1  # the text goes on
    began = time.perf_counter()
    row = batch.join(words["prompt"], sampling)
    read = time.perf_counter() - began
    while row.ending is None:
        if store and len(row.produced) == words["warm"]:
            store.told = Told()
        began = time.perf_counter()
        batch.step()
        taken.append(time.perf_counter() - began)
    found = {"prompt_s": read, "seconds": taken[words["warm"] :], "tokens": row.produced}
    if store:
        found |= {
            "told": dataclasses.asdict(store.told),
            "bytes": store.nbytes,
            "slots": [p.cache.slots for p in store.pools.values()],
        }
        found["trace"] = [(v.layer, v.keys.tolist(), v.counts.tolist(), v.tokens) for v in store.trace or ()]
        found["layers"] = [p.cache.policy.layer_of.tolist() for p in store.pools.values()]
    return found


def theirs(model: Path, words: dict[str, Any], with_experts: bool) -> dict[str, Any]:
    """An OLMoE of transformers of the same shape with random weights, which accelerate offloads to disk beyond the cap; without experts
    the libraries alone."""
    try:
        import accelerate  # type: ignore[import-not-found]  # noqa: F401
        import transformers
    except ImportError as e:
        print(f"{e.name} is not installed: pip install accelerate 'postformer[peers]'", file=sys.stderr)
        sys.exit(MISSING)
    if not with_experts:
        return {}
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = model.parent / "peer"
    if not (folder / "config.json").exists():
        transformers.OlmoeForCausalLM(transformers.OlmoeConfig(**words["peer"])).save_pretrained(folder)
        os.execv(sys.executable, [sys.executable, *sys.argv])  # the memory that it took is no part of the peak
    loaded: Any = transformers.OlmoeForCausalLM.from_pretrained(
        folder, device_map="auto", max_memory={"cpu": words["cap"]}, offload_folder=str(model.parent / "offload")
    )
    ids, cache, taken, tokens = torch.tensor([words["prompt"]]), None, [], []
    for _ in range(words["tokens"] // 4):
        began = time.perf_counter()
        out = loaded(ids, past_key_values=cache, use_cache=True)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        tokens.append(int(ids))
        taken.append(time.perf_counter() - began)
    return {"prompt_s": taken[0], "seconds": taken[2:], "tokens": tokens}


def main() -> None:
    way, model, words = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(words["threads"])
    memory = ExpertMemory(cap=words["cap"], **words.get("memory", {}))
    with_experts = not way.endswith("base")
    with torch.inference_mode():
        if way.startswith("accelerate"):
            found = theirs(model, words, with_experts)
        else:
            found = ours(model, words, None if way == "memory" else memory, with_experts)
    print(json.dumps(found | {"peak": resident("VmHWM")}))


if __name__ == "__main__":
    try:
        main()
    except OSError as e:
        print(e, file=sys.stderr)
        sys.exit(NOT_TOLD if "/proc" in str(e) else 1)
