"""One mixture of experts: ours against the two paths of transformers, in one run, in turns.

    python benchmarks/experts.py
    python benchmarks/experts.py --quick

The block is Mixtral's (8 experts of 1,792, 2 a token) and OLMoE's (64 of 256, 8 a token), at width 512 with the same weights on both sides.
How it measures: docs/benchmarks.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from passes import PASSES, begun, told, written
from sequence_rows import row, timed
from torch import Tensor, nn

from postformer.claims.stats import Estimate, ratio_interval
from postformer.config import UserError
from postformer.ffn.moe import MoE

OURS, EAGER, GROUPED = "postformer", "transformers eager", "transformers grouped_mm"
DIM = 512
SHAPES = {"E8k2": {"preset": "mixtral", "experts": 8, "top": 2, "hidden": 1792}, "E64k8": {"preset": "olmoe", "hidden": 256}}
TOKENS = (1, 16, 256)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECONDS = {1: 3.0, 16: 6.0, 256: 20.0}
FORWARD, FEW, BOTH = 1.0, 2.0, 1.2
"""Times as fast as their best path, at least: forward, forward of one token, and both passes."""


def layers(shape: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Our block and the peer's, which share their weights. Raises UserError where the peer is not installed."""
    try:
        import transformers
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
        from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
    except ImportError as e:
        raise UserError("transformers is not installed: pip install 'postformer[peers]'") from e
    torch.manual_seed(0)
    ours = MoE(DIM, **SHAPES[shape]).to(dtype)  # type: ignore[arg-type]
    sizes = {"hidden_size": DIM, "intermediate_size": ours.out.weight.shape[2], "num_experts_per_tok": ours.top}
    found: dict[str, nn.Module] = {OURS: ours}
    for name, path in ((EAGER, "eager"), (GROUPED, "grouped_mm")):
        theirs: Any
        if shape == "E8k2":
            theirs = MixtralSparseMoeBlock(transformers.MixtralConfig(**sizes, num_local_experts=len(ours.loads)))
        else:
            theirs = OlmoeSparseMoeBlock(transformers.OlmoeConfig(**sizes, num_experts=len(ours.loads)))
        theirs.experts.config._experts_implementation = path
        with torch.no_grad():
            theirs = theirs.to(dtype)
            theirs.gate.weight.copy_(ours.router.weight)
            theirs.experts.gate_up_proj.copy_(ours.up.weight)
            theirs.experts.down_proj.copy_(ours.out.weight)
        found[name] = theirs
    return found


def speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each pass, shape, dtype and number of tokens."""
    rows = []
    for shape in SHAPES:
        for dtype, of in DTYPES.items():
            made = layers(shape, of)
            for tokens in args.tokens:
                x = torch.randn(1, tokens, DIM, generator=torch.Generator().manual_seed(2)).to(of)
                _agree(made, x)
                for name, run in PASSES.items():
                    calls = {library: run(layer, x) for library, layer in made.items()}
                    taken = timed(calls, 0.3 if args.quick else SECONDS[tokens], repeats=12)
                    rows.append(row(name, f"{shape} {dtype}", tokens, taken)["row"])
                    print(line(rows[-1]), flush=True)
    return rows


def _agree(made: dict[str, nn.Module], x: Tensor) -> None:
    """All three say the same, but for at most a tenth of the tokens in bf16, whose two best experts their router, in bf16, may not tell
    apart. Raises AssertionError."""
    single = x.dtype == torch.float32
    with torch.inference_mode():
        ours, *others = [layer(x).float()[0] for layer in made.values()]
    for theirs in others:
        apart = (theirs - ours).abs().amax(-1) / ours.abs().max()
        wrong = float((apart > (1e-4 if single else 0.1)).float().mean())
        assert wrong <= (0 if single else 0.1), f"{wrong:.0%} of the tokens differ, by up to {float(apart.max()):.1e}"


def best(one: dict[str, Any]) -> Estimate:
    """How many times as long as ours the faster of their paths takes."""
    return min((ratio_interval(one["samples"][name], one["samples"][OURS]) for name in (EAGER, GROUPED)), key=lambda r: r.value)


def line(one: dict[str, Any]) -> str:
    """A row in words."""
    times = {name: sorted(series)[len(series) // 2] * 1e3 for name, series in one["samples"].items()}
    each = ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())
    return f"{one['part']:8} {one['name']:11} {one['tokens']:4} tokens: {each}; their best takes {told(best(one))}"


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What was wanted, and what came: met or missed by the whole interval, else open."""
    lines = []
    for one in rows:
        wanted = BOTH if one["part"] == "both" else FEW if one["tokens"] == 1 else FORWARD
        ratio = best(one)
        low, high = ratio.low or 0.0, ratio.high or 0.0
        met = "met" if low >= wanted else "MISSED" if high < wanted else "open"
        lines.append(f"  {met:7} {one['part']} {one['name']}, {one['tokens']} tokens: {told(ratio)} of {wanted:g}")
    return lines


def main() -> int:
    """Measure, print, and write the file. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=lambda s: [int(n) for n in s.split(",")], default=list(TOKENS), help="by commas")
    parser.add_argument("--quick", action="store_true", help="short rounds, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/experts/experts.json"))
    args = parser.parse_args()
    if odd := [n for n in args.tokens if n not in SECONDS]:
        raise UserError(f"--tokens: unknown {odd[0]}; choose from {', '.join(map(str, SECONDS))}")
    stamped = begun(args.threads)
    rows = speed(args)
    text = [] if args.quick else ["Wanted, against the faster of their paths:", *verdicts(rows)]
    print("\n".join(text))
    written(args.out, stamped, rows=rows, text=text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"experts: {e}", file=sys.stderr)
        sys.exit(2)
