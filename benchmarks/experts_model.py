"""A whole model of experts with 28M parameters: ours against transformers and a dense model of equal size, in one run, in turns.

    python benchmarks/experts_model.py
    python benchmarks/experts_model.py --quick

transformers makes a Mixtral of random weights once (width 384, 4 layers, 8 experts of 672, 2 a token, 4,096 pieces), and ours reads
its folder, llama.cpp, where it is installed (docs/benchmarks.md), a file made of it; the dense model has our layers and an MLP as
wide as all experts. Written and read in bf16, taught in fp32. The floor of writing a token is the time to read the weights that it
touches, at the rate at which this machine reads a large array.
How it measures: docs/benchmarks.md.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import experts_llama
import torch
import torch.nn.functional as F
from passes import begun, told, written
from sequence_rows import row, timed
from torch import Tensor

import postformer
from postformer.claims.stats import Estimate, ratio_interval
from postformer.config import UserError
from postformer.files import durable_directory
from postformer.models.language import LanguageModel

OURS, DENSE, EAGER, GROUPED, FLOOR = "postformer", "postformer, dense", "transformers eager", "transformers grouped_mm", "floor"
LLAMA = "llama.cpp"
FULL = {"hidden_size": 384, "num_hidden_layers": 4, "intermediate_size": 672, "num_attention_heads": 6, "vocab_size": 4096}
QUICK = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 64}
EXPERTS, TOP = 8, 2
BEFORE, WRITTEN, READ, TAUGHT = 64, 16, 512, (2, 256)
WANTED = {"write": 4.0, "floor": 0.6, "dense": 3.0}
"""Writing: times as fast as transformers' faster path; share of the floor; times as fast as the dense model."""
STD = 0.02
AGREE, LOOSE = 1e-3, 0.05
"""Of the largest logit, in fp32 and where the weights are in bf16."""


def weights(work: Path, sizes: dict[str, Any]) -> Path:
    """The folder of transformers' random model, made if it is not there. Raises UserError where transformers is missing."""
    try:
        import transformers
    except ImportError as e:
        raise UserError("transformers is not installed: pip install 'postformer[peers]'") from e
    folder = work / ("mixtral-" + "-".join(str(n) for n in sizes.values()))
    if not folder.exists():
        torch.manual_seed(0)
        config = transformers.MixtralConfig(
            **sizes,
            num_key_value_heads=sizes["num_attention_heads"],
            num_local_experts=EXPERTS,
            num_experts_per_tok=TOP,
            initializer_range=STD,
            tie_word_embeddings=True,
        )
        with durable_directory(folder) as temporary:
            transformers.MixtralForCausalLM(config).save_pretrained(temporary)
    return folder


def dense(like: LanguageModel, sizes: dict[str, Any]) -> LanguageModel:
    """Our model with MLPs as wide as all experts of `like`."""
    mixer = {"kind": "attention", "heads": sizes["num_attention_heads"]}
    ffn = {"kind": "mlp", "hidden": EXPERTS * sizes["intermediate_size"]}
    words: dict[str, Any] = {
        "dim": sizes["hidden_size"],
        "depth": sizes["num_hidden_layers"],
        "mixers": (mixer,),
        "ffns": (ffn,),
    }
    return LanguageModel(like.vocab, **words)


class Ours:
    def __init__(self, model: LanguageModel):
        self.model = model.eval()

    def logits(self, ids: Tensor) -> Tensor:
        return self.model(ids)[0]

    @torch.inference_mode()
    def begun(self, ids: Tensor) -> Any:
        return self.model.hidden(ids, self.model.init_state(1))[1]

    @torch.inference_mode()
    def write(self, ids: Tensor, state: Any) -> None:
        for i in range(ids.shape[1]):
            _, state = self.model(ids[:, i : i + 1], state)

    @torch.inference_mode()
    def read(self, ids: Tensor) -> None:
        self.model.read(ids, self.model.init_state(1))


class Theirs:
    def __init__(self, folder: Path, path: str, dtype: torch.dtype):
        import transformers

        self.model: Any = transformers.MixtralForCausalLM.from_pretrained(
            folder, dtype=dtype, experts_implementation=path
        ).eval()

    def logits(self, ids: Tensor) -> Tensor:
        return self.model(ids).logits

    @torch.inference_mode()
    def begun(self, ids: Tensor) -> Any:
        return ids

    @torch.inference_mode()
    def write(self, ids: Tensor, state: Any) -> None:
        """Their cache grows in place, so that the text before is read each time; `measure` takes that off."""
        cache = self.model(state, use_cache=True, logits_to_keep=1).cache
        for i in range(ids.shape[1]):
            cache = self.model(ids[:, i : i + 1], cache=cache, use_cache=True).cache

    @torch.inference_mode()
    def read(self, ids: Tensor) -> None:
        self.model(ids, use_cache=True, logits_to_keep=1)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of writing, reading and teaching."""
    sizes = QUICK if args.quick else FULL
    folder = weights(args.work, sizes)
    ours = postformer.load(folder)
    _agree(ours, folder)
    seconds = 0.3 if args.quick else args.seconds
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(ours.vocab, (1, READ), generator=generator)
    begin, more = text[:, :BEFORE], text[:, BEFORE : BEFORE + WRITTEN]
    half = torch.bfloat16
    found: dict[str, Any] = {
        OURS: Ours(postformer.load(folder).to(half)),
        DENSE: Ours(dense(ours, sizes).to(half)),
        EAGER: Theirs(folder, "eager", half),
        GROUPED: Theirs(folder, "grouped_mm", half),
    }
    if experts_llama.there():
        found[LLAMA] = experts_llama.LlamaCpp(experts_llama.file(folder), READ, args.threads)
        _close(found[LLAMA].logits(begin), Ours(ours).logits(begin)[0, -1].detach(), LOOSE)
    touched = 2 * ours.touched_parameters(1)
    large = torch.ones(1 << (20 if args.quick else 27), dtype=torch.float32)
    rows = [_written(found, begin, more, large, touched, seconds)]
    reading = {name: (lambda m=m: m.read(text)) for name, m in found.items()}
    rows.append(row("read", "tokens", READ, timed(reading, seconds, repeats=12), calls=READ)["row"])
    taught: dict[str, Any] = {OURS: Ours(postformer.load(folder)), DENSE: Ours(dense(ours, sizes))}
    taught |= {name: Theirs(folder, path, torch.float32) for name, path in ((EAGER, "eager"), (GROUPED, "grouped_mm"))}
    batch = torch.randint(ours.vocab, (TAUGHT[0], TAUGHT[1] + 1), generator=generator)
    teaching = {name: _teach(m, batch) for name, m in taught.items()}
    rows.append(row("teach", "tokens", TAUGHT[1], timed(teaching, 2 * seconds, repeats=8), calls=TAUGHT[0] * TAUGHT[1])["row"])
    for one in rows:
        print(line(one), flush=True)
    return rows


def _written(
    found: dict[str, Any], begin: Tensor, more: Tensor, large: Tensor, touched: float, seconds: float
) -> dict[str, Any]:
    """Seconds a token. Theirs is timed with the text before, which is timed alone in the same rounds and taken off."""
    states = {name: m.begun(begin) for name, m in found.items()}
    calls: dict[str, Callable[[], object]] = {name: (lambda m=m, n=name: m.write(more, states[n])) for name, m in found.items()}
    theirs = [name for name in found if isinstance(found[name], Theirs)]
    calls |= {f"{name}, before": (lambda m=found[name]: m.write(more[:, :0], begin)) for name in theirs}
    calls["read"] = large.sum
    samples, control = timed(calls, 2 * seconds, repeats=21)
    for name in theirs:
        samples[name] = [all_ - before for all_, before in zip(samples[name], samples.pop(f"{name}, before"), strict=True)]
    bytes_s = [large.nbytes / s for s in samples.pop("read")]
    samples = {name: [s / more.shape[1] for s in series] for name, series in samples.items()}
    samples[FLOOR] = [touched / rate for rate in bytes_s]
    return row("write", "tokens", 1, (samples, [s / more.shape[1] for s in control]))["row"]


def _agree(ours: LanguageModel, folder: Path) -> None:
    """Raises AssertionError where the peer's logits are not ours."""
    ids = torch.arange(16)[None] % ours.vocab
    with torch.inference_mode():
        own, other = Ours(ours).logits(ids), Theirs(folder, "eager", torch.float32).logits(ids)
    _close(own, other, AGREE)


def _close(own: Tensor, other: Tensor, least: float) -> None:
    apart = float((own - other).abs().max() / other.abs().max())
    assert apart < least, f"logits differ by {apart:.1e} of the largest"


def _teach(m: Any, batch: Tensor) -> Callable[[], object]:
    m.model.train()

    def run() -> None:
        m.model.zero_grad(set_to_none=True)
        logits = m.logits(batch[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()

    return run


def ratio(one: dict[str, Any], name: str) -> Estimate:
    """How many times as long as ours it takes."""
    return ratio_interval(one["samples"][name], one["samples"][OURS])


def line(one: dict[str, Any]) -> str:
    """A row in words."""
    rates = {name: 1 / sorted(series)[len(series) // 2] for name, series in one["samples"].items()}
    each = ", ".join(f"{name} {rate:,.0f} tokens/s" for name, rate in rates.items())
    others = ", ".join(f"{name} takes {told(ratio(one, name))}" for name in rates if name != OURS)
    return f"{one['part']:6}: {each}; {others}"


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """What was wanted of writing, and what came."""
    (write,) = (one for one in rows if one["part"] == "write")
    best = min((ratio(write, name) for name in (EAGER, GROUPED)), key=lambda r: r.value)
    lines = []
    for name, found in (("write", best), ("floor", ratio(write, FLOOR)), ("dense", ratio(write, DENSE))):
        lines.append(
            f"  {'met' if (found.low or 0.0) >= WANTED[name] else 'MISSED':7} {name}: {told(found)} of {WANTED[name]:g}"
        )
    return lines


def main() -> int:
    """Measure, print, and write the file. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long a row takes")
    parser.add_argument("--quick", action="store_true", help="a tiny model and short rounds, to see that everything runs")
    parser.add_argument("--work", type=Path, default=Path("runs/experts"), help="where the weights lie")
    parser.add_argument("--out", type=Path, default=Path("runs/experts/model.json"))
    args = parser.parse_args()
    stamped = begun(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    rows = measure(args)
    text = [] if args.quick else ["Wanted of writing:", *verdicts(rows)]
    print("\n".join(text))
    written(args.out, stamped, rows=rows, text=text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        print(f"experts_model: {e}", file=sys.stderr)
        sys.exit(2)
