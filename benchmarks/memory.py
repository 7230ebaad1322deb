"""One layer of neural memory: ours against titans-pytorch, in one run, in turns.

    python benchmarks/memory.py
    python benchmarks/memory.py --quick

Both have width 384, 6 heads of 64, a memory of two matrices twice as wide inside, and take gradients at the weights with which a chunk
begins (titans-pytorch by its `batch_size`). The peer's module is not the paper's layer: it has no convolution, and its gates are
shared by a chunk.
How it measures: docs/benchmarks.md.
"""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from passes import PASSES, begun, both, told, written
from sequence_memory import mark
from sequence_rows import row, timed
from torch import Tensor, nn

from postformer.claims.peak import resident
from postformer.claims.stats import DRAWS, Estimate, ratio_interval
from postformer.cli import positive
from postformer.config import UserError, build
from postformer.mixers import MIXERS

OURS, THEIRS, GEMM = "postformer", "titans-pytorch", "one large product"
DIM, HEADS = 384, 6
CHUNKS = (16, 64)
LENGTHS = (1024, 4096, 16384)
SECONDS = {1024: 15.0, 4096: 40.0, 16384: 120.0}
WANTED = {("forward", 16): 10, ("both", 16): 10, ("forward", 64): 3, ("both", 64): 3}
"""Times as fast as the peer, at least."""
UNWARMED = 16384
"""Tokens from which on a first call is among those that are timed."""
FLAT = 0.9
"""The share of the rate in the shortest text that the longest should have."""
MEMORY_AT, LESS_MEMORY = 4096, 5
OF_PEAK = 0.5
"""The share of one large product's rate that our forward pass should have in its own."""


def ours(chunk: int) -> nn.Module:
    """Our layer."""
    return build({"kind": "lmm", "heads": HEADS, "expand": 2, "depth": 2, "chunk": chunk}, MIXERS, "lmm", dim=DIM)


def theirs(chunk: int) -> nn.Module:
    """The peer's. Raises UserError where it is not installed."""
    try:
        peer = importlib.import_module("titans_pytorch")
    except ImportError as e:
        raise UserError("titans-pytorch is not installed: pip install 'postformer[peers]'") from e
    inner = peer.MemoryMLP(DIM // HEADS, depth=2, expansion_factor=2.0)
    return peer.NeuralMemory(dim=DIM, chunk_size=chunk, batch_size=chunk, heads=HEADS, dim_head=DIM // HEADS, model=inner)


LAYERS: dict[str, Callable[[int], nn.Module]] = {THEIRS: theirs, OURS: ours}


def inputs(tokens: int) -> Tensor:
    """[1, t, d]"""
    return torch.randn(1, tokens, DIM, generator=torch.Generator().manual_seed(0))


def products(chunk: int) -> float:
    """Floating-point operations of a token's matrix products in the memory and the projections: what the paper's dual form needs."""
    e, hidden = DIM // HEADS, 2 * DIM // HEADS
    weights = 2 * e * hidden
    learned = 2 * weights + 2 * e * hidden  # the answer to the key, and the gradient by what lies between the matrices
    read = 2 * 2 * weights + 2 * 2 * (chunk + 1) / 2 * (e + hidden)  # from M and S; pairs of a token and one before it
    written = 2 * 2 * weights
    projections = 2 * DIM * (4 * DIM + 3 * HEADS + DIM)
    return HEADS * (learned + read + written) + projections


def speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each pass, chunk and length."""
    rows = []
    for chunk in CHUNKS:
        layers = {name: make(chunk) for name, make in LAYERS.items()}
        for tokens in args.lengths:
            for name, run in PASSES.items():
                calls = {library: run(layer, inputs(tokens)) for library, layer in layers.items()}
                seconds = 0.5 if args.quick else SECONDS[tokens]
                taken = timed(calls, seconds, repeats=12, warmup=int(tokens < UNWARMED))
                rows.append(row(name, f"chunk {chunk}", tokens, taken)["row"])
                print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    ratio = ratio_interval(row["samples"][THEIRS], row["samples"][OURS])
    times = {name: sorted(series)[len(series) // 2] * 1e3 for name, series in row["samples"].items()}
    rate = row["tokens"] / times[OURS] * 1e3
    return (
        f"{row['part']:8} {row['name']:9} {row['tokens']:6,} tokens: {THEIRS} {times[THEIRS]:8.1f} ms, {OURS} {times[OURS]:7.1f} ms "
        f"({rate:,.0f} tokens/s); ratio {told(ratio)}"
    )


def peaks(args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Bytes by which a process grows in both passes of MEMORY_AT tokens, each library in a process of its own."""
    found: dict[str, dict[str, int]] = {}
    for chunk in CHUNKS:
        for name in LAYERS:
            command = [sys.executable, __file__, "--peak-of", name, "--chunk", str(chunk), "--threads", str(args.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(
                    f"the memory of {name} was not measured: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}"
                )
            found.setdefault(f"chunk {chunk}", {})[name] = int(done.stdout.split()[-1])
    return found


def peak_of(name: str, chunk: int) -> int:
    """The same of this process."""
    layer = LAYERS[name](chunk)
    both(layer, inputs(2 * chunk))()
    run = both(layer, inputs(MEMORY_AT))
    before = mark()
    run()
    return resident("VmHWM") - before


def shares_of_peak(rows: list[dict[str, Any]], quick: bool) -> dict[str, float]:
    """The rate of the products in each of our forward passes, in that of one large product of the same run, which is printed."""
    n = 256 if quick else 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    taken = timed({GEMM: lambda: a @ b}, 0.2 if quick else 3.0, repeats=12)[0][GEMM]
    rate = 2 * n**3 / sorted(taken)[len(taken) // 2]
    print(f"one product of {n:,} x {n:,} x {n:,}: {rate / 1e9:.0f} GFLOP/s")
    found = {}
    for one in rows:
        if one["part"] == "forward":
            median = sorted(one["samples"][OURS])[len(one["samples"][OURS]) // 2]
            flops = products(int(one["name"].split()[1])) * one["tokens"] / median
            found[f"forward {one['name']}, {one['tokens']:,} tokens"] = flops / rate
            print(
                f"  forward {one['name']}, {one['tokens']:,} tokens: {flops / 1e9:.0f} GFLOP/s in products, {flops / rate:.0%}"
            )
    return found


def flatness(rows: list[dict[str, Any]]) -> dict[str, Estimate]:
    """Our tokens a second in the longest text over those in the shortest that was warmed up, by pass and chunk, where there are two. Rounds
    of two texts were not taken in turns: each is drawn by itself for the interval."""
    found = {}
    for name in dict.fromkeys((one["part"], one["name"]) for one in rows):
        same = sorted((one for one in rows if (one["part"], one["name"]) == name), key=lambda one: one["tokens"])
        short, long = next((one for one in same if one["tokens"] < UNWARMED), same[-1]), same[-1]
        if short is long:
            continue
        rates = [one["tokens"] / np.asarray(one["samples"][OURS]) for one in (long, short)]
        value, least = float(np.median(rates[0]) / np.median(rates[1])), min(map(len, rates))
        rng = np.random.default_rng(0)
        draws = [np.median(rng.choice(rate, (DRAWS, len(rate))), axis=1) for rate in rates]
        low, high = np.quantile(draws[0] / draws[1], [0.025, 0.975]).tolist() if least > 1 else (None, None)
        found[f"{name[0]} {name[1]}, {long['tokens']:,} tokens to {short['tokens']:,}"] = Estimate(value, low, high, least)
    return found


def verdicts(rows: list[dict[str, Any]], memory: dict[str, dict[str, int]], shares: dict[str, float]) -> list[str]:
    """What was wanted, and what came."""
    lines = []
    for one in rows:
        wanted = WANTED[one["part"], int(one["name"].split()[1])]
        ratio = ratio_interval(one["samples"][THEIRS], one["samples"][OURS])
        met = "met" if ratio.value >= wanted else "MISSED"
        lines.append(f"  {met:7} {one['part']} {one['name']}, {one['tokens']:,} tokens: {told(ratio)} of {wanted}")
    for name, rate in flatness(rows).items():
        met = "met" if (rate.value if rate.low is None else rate.low) >= FLAT else "MISSED"
        lines.append(f"  {met:7} tokens/s flat, {name}: {told(rate)} of {FLAT}")
    for name, by in memory.items():
        met = "met" if by[OURS] * LESS_MEMORY <= by[THEIRS] else "MISSED"
        lines.append(
            f"  {met:7} memory {name}, {MEMORY_AT:,} tokens: {by[THEIRS] / 1e6:.0f} MB / {by[OURS] / 1e6:.0f} MB = "
            f"{by[THEIRS] / by[OURS]:.1f} of {LESS_MEMORY}"
        )
    for name, share in shares.items():
        lines.append(
            f"  {'met' if share >= OF_PEAK else 'MISSED':7} share of one product's rate, {name}: {share:.0%} of {OF_PEAK:.0%}"
        )
    return lines


def main() -> int:
    """Measure, print, and write the file. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument(
        "--lengths", type=lambda s: [int(n) for n in s.split(",")], default=list(LENGTHS), help="tokens, by commas"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/memory/memory.json"))
    parser.add_argument("--peak-of", choices=LAYERS, help=argparse.SUPPRESS)
    parser.add_argument("--chunk", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.peak_of:
        print(peak_of(args.peak_of, args.chunk))
        return 0
    if odd := [n for n in args.lengths if n not in SECONDS]:
        raise UserError(f"--lengths: unknown {odd[0]}; choose from {', '.join(map(str, SECONDS))}")
    if args.out.is_dir() or (args.out.parent.exists() and not args.out.parent.is_dir()):
        raise UserError(f"--out {args.out}: name a file in a folder")
    if args.quick:
        args.lengths = [1024]
    stamped = begun(args.threads)
    rows = speed(args)
    memory = {} if args.quick else peaks(args)
    shares = shares_of_peak(rows, args.quick)
    text = [] if args.quick else ["Wanted:", *verdicts(rows, memory, shares)]
    print("\n".join(text))
    written(args.out, stamped, rows=rows, memory=memory, shares=shares, text=text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"memory: {e}", file=sys.stderr)
        sys.exit(2)
