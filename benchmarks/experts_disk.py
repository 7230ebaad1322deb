"""Experts that stay on disk: a model whose experts are four times larger than the memory for them, against the same in memory.

    python benchmarks/experts_disk.py
    python benchmarks/experts_disk.py --quick
    PYTHONPATH=FOLDER_WITH_ACCELERATE python benchmarks/experts_disk.py

A byte model with OLMoE's router (64 experts, 8 a token, 8 layers) is trained briefly on Python's own library, and its experts are made wide
without a change of where tokens go (benchmarks/experts_disk_model.py). Every way of holding them writes the same text in a process of its
own, in turns: `warm` with the file in the system's page cache, `cold` where the system keeps nothing of it, so that each read goes to the
disk. Peaks are of resident memory (VmHWM), above that of a process which opens the same model and writes as if its experts answered 0; of
the peer above its libraries alone. Hit rates of policies come from the recorded visits of one run. The peer is an OLMoE of transformers of
the same shape, offloaded to disk by accelerate under the same cap, where accelerate is installed; its file is in the page cache.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experts_disk_model import FULL, TINY, Shape, made, rounding_error
from experts_disk_subject import MISSING
from passes import told

from postformer.claims.stamp import closed, stamp
from postformer.claims.stats import ratio_interval
from postformer.config import UserError
from postformer.files import write_durably
from postformer.models.eviction import LRU, Belady, LeastStale, NextUse, Policy, Visit, replay

BASE, MEMORY, PEER = "base", "memory", "accelerate"
WAYS: dict[str, dict[str, Any]] = {
    MEMORY: {},
    "warm": {},
    "warm lru": {"policy": "lru"},
    "warm ahead": {"ahead": True},
    "warm int8": {"dtype": "int8"},
    "warm int4": {"dtype": "int4"},
    "cold": {"drop": True},
    "cold ahead": {"drop": True, "ahead": True},
    "cold int8": {"drop": True, "dtype": "int8"},
    PEER: {},
}
"""What is measured, and its words of an ExpertMemory."""
SHARE = 4
"""Times the cap that all experts take."""
SHARES = (16, 8, 4, 2)
CONSTANT = 16_000_000
"""Bytes that may be taken beside the cap, whatever it is: an expert that is read or rounded, and its products."""
TIMES = 3.0
"""Times as many tokens a second as the peer, at least."""
PROMPT = b"import os\n\n\ndef walk(top, seen):\n    # folders first, in the order of their names\n    for entry in sorted(os.scandir("


def subject(way: str, model: Path, words: Mapping[str, Any]) -> dict[str, Any] | str:
    """What one process found, or why it found nothing. Raises UserError where it failed."""
    name = way.split()[0]
    command = [sys.executable, str(Path(__file__).with_name("experts_disk_subject.py")), way if name == PEER else _kind(way)]
    done = subprocess.run([*command, str(model), json.dumps(words)], capture_output=True, text=True, check=False)
    if done.returncode == MISSING:
        return done.stderr.strip().splitlines()[-1]
    if done.returncode:
        raise UserError(f"{way}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _kind(way: str) -> str:
    return way if way in (MEMORY, BASE) else "streamed"


def measure(args: argparse.Namespace, shape: Shape, model: Path) -> dict[str, Any]:
    """Every way, in turns: {"base": bytes by library, "runs": {way: [what a process found]}, "missing": {way: why}}."""
    words = {
        "threads": args.threads,
        "cap": shape.expert_bytes // SHARE,
        "prompt": list(PROMPT),
        "tokens": args.tokens,
        "warm": args.tokens // 4,
        "temperature": 0.8,
        "peer": peer(shape),
    }
    runs: dict[str, list[dict[str, Any]]] = {}
    missing: dict[str, str] = {}
    bases = {way: subject(way, model, words) for way in (BASE, f"{PEER} base")}
    for i in range(args.rounds):
        for way, memory in WAYS.items():
            if way in missing or (args.quick and way == PEER):
                continue
            trace = way == "warm" and not i
            found = subject(way, model, {**words, "memory": memory, "trace": trace})
            if isinstance(found, str):
                missing[way] = found
                print(f"{way}: {found}", flush=True)
                continue
            runs.setdefault(way, []).append(found)
            print(f"{way}: {rate(found):.1f} tokens/s, peak {found['peak'] / 1e6:.0f} MB", flush=True)
    return {"base": {k: b["peak"] for k, b in bases.items() if isinstance(b, dict)}, "runs": runs, "missing": missing}


def peer(shape: Shape) -> dict[str, Any]:
    """The keywords of an OlmoeConfig of this shape."""
    return {
        "vocab_size": 257,
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden * shape.copies,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": max(shape.dim // 32, 1),
        "num_key_value_heads": max(shape.dim // 32, 1),
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top,
        "max_position_embeddings": 4096,
        "pad_token_id": None,
        "eos_token_id": None,
    }


def rate(found: Mapping[str, Any]) -> float:
    """Tokens a second, by the median token."""
    return 1 / float(np.median(found["seconds"]))


def same(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, bool]:
    """Whether each way wrote the tokens that were written in memory."""
    return {way: all(f["tokens"] == runs[MEMORY][0]["tokens"] for f in found) for way, found in runs.items() if way != PEER}


# ---------------------------------------------------------------- tables


def ways_table(found: Mapping[str, Any]) -> list[str]:
    """Tokens a second, peaks, hit rates and guesses of every way, as Markdown."""
    runs, agrees = found["runs"], same(found["runs"])
    lines = [
        "| experts | tokens/s | time of a token / in memory | peak, MB above no experts | hits | MB read a token | same tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, of in runs.items():
        seconds = [1 / rate(f) for f in of]
        ratio = told(ratio_interval(seconds, [1 / rate(f) for f in runs[MEMORY]][: len(of)]))
        base = found["base"].get(f"{PEER} base" if way == PEER else BASE)
        peak = "-" if base is None else f"{(float(np.median([f['peak'] for f in of])) - base) / 1e6:.0f}"
        store = of[0].get("told")
        hits = read = "-"
        if store:
            hits = f"{store['count']['hits'] / max(store['count']['asked'], 1):.1%}"
            read = f"{store['read_bytes'] / len(of[0]['seconds']) / 1e6:.1f}"
        agree = {True: "yes", False: "no", None: "-"}[agrees.get(way)]
        lines.append(f"| {way} | {1 / float(np.median(seconds)):.1f} | {ratio} | {peak} | {hits} | {read} | {agree} |")
    return lines


def ahead_lines(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """How good the guesses of the next layer's router were."""
    lines = []
    for way, of in runs.items():
        if (store := of[0].get("told")) and store["predicted"]:
            lines.append(
                f"{way}: {store['predicted_right'] / store['predicted']:.1%} of the experts that it named were chosen, and "
                f"{store['guessed_right'] / max(store['guessed'], 1):.1%} of those that it had to read ({store['guessed']:,})"
            )
    return lines


def policies_table(run: Mapping[str, Any], shape: Shape) -> list[str]:
    """Hit rates of the policies on the recorded visits, by the share of the experts that fits, as Markdown."""
    trace = [Visit(layer, np.array(keys), np.array(counts), tokens) for layer, keys, counts, tokens in run["trace"]]
    layers = run["layers"][0]
    lines = ["| experts in memory | " + " | ".join(POLICIES) + " |", "|---|" + "---|" * len(POLICIES)]
    for share in SHARES:
        slots = len(layers) // share
        if slots < shape.top:
            continue
        policies: dict[str, Policy] = {
            "LRU": LRU(layers),
            "Least-Stale": LeastStale(layers),
            "next use": NextUse(layers),
            "Belady": Belady(layers, trace),
        }
        rates = [f"{replay(trace, policy, slots, shape.top).rate:.1%}" for policy in policies.values()]
        lines.append(f"| {slots} of {len(layers)} | " + " | ".join(rates) + " |")
    return lines


POLICIES = ("LRU", "Least-Stale", "next use", "Belady")


def verdicts(found: Mapping[str, Any], cap: int) -> list[str]:
    """What was wanted, and what came."""
    runs, agrees = found["runs"], same(found["runs"])
    exact = [way for way in agrees if "dtype" not in WAYS.get(way, {})]
    lines = [f"  {'met' if all(agrees[w] for w in exact) else 'MISSED':7} the same tokens: {', '.join(exact)}"]
    for way in (w for w in ("warm", "cold") if w in runs):
        above = float(np.median([f["peak"] for f in runs[way]])) - found["base"][BASE]
        met = "met" if above <= cap + CONSTANT else "MISSED"
        allowed = f"cap {cap / 1e6:.0f} MB and {CONSTANT / 1e6:.0f} MB"
        lines.append(f"  {met:7} peak of {way}: {above / 1e6:.0f} MB above a model without experts, {allowed}")
    if PEER in runs:
        ratio = ratio_interval([1 / rate(f) for f in runs[PEER]], [1 / rate(f) for f in runs["warm"]])
        met = "met" if (ratio.low or 0.0) >= TIMES else "MISSED" if (ratio.high or 0.0) < TIMES else "open"
        lines.append(f"  {met:7} tokens a second of warm, against {PEER}: {told(ratio)} of {TIMES:g}")
    return lines


def error_line(error: Mapping[str, Any]) -> str:
    """What rounding does, in words."""
    return (
        f"{error['dtype']}, {error['bytes']:,} held-out bytes: logits differ by {error['largest']:.1e} of the largest at most and "
        f"{error['rms']:.1e} of their size (rms), {error['same_best']:.1%} of the likeliest bytes are the same, "
        f"{error['bits_rounded']:.4f} bits per byte where fp32 has {error['bits']:.4f}"
    )


def main() -> int:
    """Measure, print, and write the file. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=160, help="to write; the first quarter is not timed")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/experts-disk"), help="of the model and the results")
    args = parser.parse_args()
    shape = TINY if args.quick else FULL
    if args.quick:
        args.rounds, args.tokens, args.folder = 1, 8, args.folder / "quick"
    args.folder.mkdir(parents=True, exist_ok=True)
    stamped = stamp(command=["python", *sys.argv], threads=args.threads)
    if os.getloadavg()[0] > 0.5:
        print(f"The machine is busy (load {os.getloadavg()[0]:.1f}): only ratios of one row say anything", flush=True)
    model = made(shape, args.folder, args.threads)
    cap = shape.expert_bytes // SHARE
    print(f"experts {shape.expert_bytes / 1e6:.0f} MB, memory for them {cap / 1e6:.0f} MB", flush=True)
    found = measure(args, shape, model)
    text = ["", *ways_table(found), "", *ahead_lines(found["runs"]), ""]
    errors = [rounding_error(shape, model, cap, dtype) for dtype in ("int8", "int4")]
    text += [*map(error_line, errors), ""]
    text += [*policies_table(found["runs"]["warm"][0], shape), "", "Wanted:", *verdicts(found, cap)]
    print("\n".join(text))
    for of in found["runs"].values():
        for one in of:
            one.pop("layers", None)
    write_durably(
        args.folder / "experts_disk.json",
        json.dumps({"stamp": closed(stamped), **found, "errors": errors, "text": text}) + "\n",
    )
    print(f"wrote {args.folder / 'experts_disk.json'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"experts_disk: {e}", file=sys.stderr)
        sys.exit(2)
