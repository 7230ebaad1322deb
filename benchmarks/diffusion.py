"""One diffusion transformer: ours against diffusers' with the same weights, in one run, in turns.

    python benchmarks/diffusion.py
    python benchmarks/diffusion.py --quick

DiT-S/4 over 32 x 32 x 4 (12 layers of width 384, 6 heads, 64 tokens): a forward pass of a batch, a step of training (both passes and
AdamW), and twenty Euler steps of sampling. What share of the rate of one large product it reaches is printed beside. How it measures:
docs/benchmarks.md.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from passes import begun, told, written
from sequence_rows import row, timed
from torch import Tensor, nn

from postformer.claims.stats import Estimate, ratio_interval
from postformer.config import UserError
from postformer.models.convert_pictures import dit_options, dit_tensors
from postformer.models.diffusion import DiT
from postformer.models.sampling import Sampling, sample

OURS, THEIRS, PRODUCT = "postformer", "diffusers", "one large product"
SHAPE: dict[str, Any] = {
    "num_attention_heads": 6,
    "attention_head_dim": 64,
    "in_channels": 4,
    "num_layers": 12,
    "sample_size": 32,
    "patch_size": 4,
}
TINY: dict[str, Any] = {**SHAPE, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 8}
CLASSES, BATCH, STEPS = 1000, 16, 20
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECONDS = {"forward": 10.0, "teach": 30.0, "sample": 40.0}
WANTED = {"fp32": 1.3, "bf16": 1.6}
"""Times as fast as diffusers, at least."""
OF_PEAK = 0.7
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def models(shape: dict[str, Any], dtype: torch.dtype) -> dict[str, nn.Module]:
    """Ours and theirs, which share their weights. Raises UserError where the peer is not installed."""
    try:
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    except ImportError as e:
        raise UserError("diffusers is not installed: pip install 'postformer[peers]'") from e
    torch.manual_seed(0)
    theirs: Any = DiTTransformer2DModel(**shape, num_embeds_ada_norm=CLASSES, norm_eps=1e-6)
    first = theirs.transformer_blocks[0].norm1.emb
    for block in theirs.transformer_blocks:  # layers are told the same, as in published checkpoints and in DiT's own code
        block.norm1.emb = first
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.02)
    ours = DiT(**dit_options(dict(theirs.config)))
    ours.load_state_dict(dit_tensors(theirs.state_dict(), ours.outputs))
    return {OURS: ours.to(dtype).eval(), THEIRS: theirs.to(dtype).eval()}  # in training theirs drops labels


def inputs(shape: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy pictures, whole steps of a thousand, and classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, shape["in_channels"], shape["sample_size"], shape["sample_size"], generator=generator)
    return (
        x.to(dtype),
        torch.randint(0, 1000, (BATCH,), generator=generator),
        torch.randint(0, CLASSES, (BATCH,), generator=generator),
    )


def says(name: str, model: Any, x: Tensor, step: Tensor, label: Tensor) -> Tensor:
    """What a model says of pictures."""
    if name == OURS:
        return model(x[:, :, None], step.double() / 1000, label=label)[0][:, :, 0]
    return model(x, timestep=step, class_labels=label).sample


def calls(name: str, model: nn.Module, shape: dict[str, Any], dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """What is timed of one library."""
    x, step, label = inputs(shape, dtype)
    goal = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)  # as `postformer train` has it
    how = Sampling(predict="v", steps=STEPS)

    def forward() -> object:
        with torch.inference_mode():
            return says(name, model, x, step, label)

    def teach() -> None:
        optimizer.zero_grad(set_to_none=True)
        (says(name, model, x, step, label) - goal).square().mean().backward()
        optimizer.step()

    def sampled() -> object:
        if name == OURS:
            return sample(model, x[:, :, None], how, label=label)
        z = x
        with torch.no_grad():
            for i in range(STEPS):
                velocity = says(name, model, z, torch.full((BATCH,), i * 1000 // STEPS), label)
                z = z + velocity / STEPS
        return z

    return {"forward": forward, "teach": teach, "sample": sampled}


def speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each pass and dtype."""
    shape, rows = TINY if args.quick else SHAPE, []
    for dtype, of in DTYPES.items():
        made = models(shape, of)
        _agree(made, shape, of)
        each = {name: calls(name, model, shape, of) for name, model in made.items()}
        for part in SECONDS:
            subjects = {name: runs[part] for name, runs in each.items()}
            taken = timed({**subjects, PRODUCT: product(of, args.quick)}, 0.2 if args.quick else SECONDS[part], repeats=12)
            rows.append(row(part, dtype, BATCH, taken)["row"])
            print(line(rows[-1]), flush=True)
    return rows


def product(dtype: torch.dtype, quick: bool) -> Callable[[], object]:
    """One large product of a dtype, whose rate is what the machine gives at best."""
    a, b = (torch.randn(side(quick), side(quick)).to(dtype) for _ in "ab")
    return lambda: a @ b


def side(quick: bool) -> int:
    """Rows and columns of its matrices."""
    return 256 if quick else 2048


def _agree(made: dict[str, nn.Module], shape: dict[str, Any], dtype: torch.dtype) -> None:
    """Both say the same. Raises AssertionError."""
    with torch.inference_mode():
        ours, theirs = (says(name, model, *inputs(shape, dtype)).float() for name, model in made.items())
    apart = float((ours - theirs).abs().max() / theirs.abs().max())
    assert apart <= CLOSE[dtype], f"{dtype}: what they say differs by {apart:.1e}"


def ratio(one: dict[str, Any]) -> Estimate:
    """How many times as long as ours theirs takes."""
    return ratio_interval(one["samples"][THEIRS], one["samples"][OURS])


def line(one: dict[str, Any]) -> str:
    """A row in words."""
    times = {name: statistics.median(series) * 1e3 for name, series in one["samples"].items()}
    return (
        f"{one['part']:8} {one['name']}: "
        + ", ".join(f"{name} {ms:.1f} ms" for name, ms in times.items())
        + f"; {told(ratio(one))}"
    )


def shares_of_peak(rows: Sequence[dict[str, Any]], quick: bool) -> dict[str, float]:
    """Of each pass: its operations a second, by the formula of `cost`, to those of one large product of its dtype, timed in turns."""
    shape = TINY if quick else SHAPE
    with torch.device("meta"):
        model = DiT(**dit_options({**shape, "num_embeds_ada_norm": CLASSES}))
    tokens = (shape["sample_size"] // shape["patch_size"]) ** 2
    forward = model.cost(tokens).prefill_flops * tokens * BATCH
    work = {"forward": forward, "teach": 3 * forward, "sample": STEPS * forward}
    found = {}
    for one in rows:
        seconds_a_flop = statistics.median(one["samples"][PRODUCT]) / (2 * side(quick) ** 3)
        found[f"{one['part']} {one['name']}"] = work[one["part"]] / statistics.median(one["samples"][OURS]) * seconds_a_flop
    return found


def verdicts(rows: Sequence[dict[str, Any]], shares: dict[str, float]) -> list[str]:
    """What was wanted, and what came."""
    lines = []
    for one in rows:
        found, wanted = ratio(one), WANTED[one["name"]]
        met = "met" if found.value >= wanted else "MISSED"
        lines.append(f"  {met:7} {one['part']} {one['name']}: {told(found)} of {wanted:g}")
    for name, share in shares.items():
        lines.append(
            f"  {'met' if share >= OF_PEAK else 'MISSED':7} share of one product's rate, {name}: {share:.0%} of {OF_PEAK:.0%}"
        )
    return lines


def main() -> int:
    """Measure, print, and write the file. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/diffusion/speed.json"))
    args = parser.parse_args()
    stamped = begun(args.threads)
    rows = speed(args)
    shares = shares_of_peak(rows, args.quick)
    text = [] if args.quick else ["Wanted, against diffusers:", *verdicts(rows, shares)]
    print("\n".join(text))
    written(args.out, stamped, rows=rows, shares=shares, text=text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"diffusion: {e}", file=sys.stderr)
        sys.exit(2)
