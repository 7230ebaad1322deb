"""Three Mamba layers for each layer of sliding-window attention, and what the stack costs at several lengths of text.

The costs are formulas; that the state has the bytes which the formula says is checked by reading a text.
"""

import torch

from postformer import state
from postformer.config import Spec
from postformer.models.language import LanguageModel

MAMBA: Spec = {"kind": "mamba", "state": 16}
FULL: Spec = {"kind": "attention", "heads": 4, "kv_heads": 2}
WINDOW: Spec = {**FULL, "window": 128, "qk_norm": True}
PATTERNS = {
    "attention": (FULL,),
    "3 Mamba + 1 attention": (MAMBA, MAMBA, MAMBA, FULL),
    "3 Mamba + 1 window": (MAMBA, MAMBA, MAMBA, WINDOW),
    "Mamba": (MAMBA,),
}


def build(mixers: tuple[Spec, ...]) -> LanguageModel:
    return LanguageModel(257, dim=128, depth=4, mixers=mixers, ffns=({"kind": "mlp", "hidden": 256},))


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'pattern':<22} {'tokens':>9} {'prefill FLOP/token':>19} {'decode FLOP/token':>18} {'state bytes':>12}")
    for name, mixers in PATTERNS.items():
        with torch.device("meta"):  # shapes only: no memory is taken
            model = build(mixers)
        for n in (1_000, 32_000, 1_000_000):
            c = model.cost(n)
            print(f"{name:<22} {n:>9,} {c.prefill_flops:>19,.0f} {c.decode_flops:>18,.0f} {c.state_bytes:>12,}")

    model = build(PATTERNS["3 Mamba + 1 window"]).eval()
    ids = torch.randint(257, (1, 1_000))
    with torch.inference_mode():
        _, memory = model.read(ids, model.init_state(1))
    assert state.nbytes(memory) == model.cost(1_000).state_bytes
    print(f"\nafter reading 1,000 tokens the hybrid's state holds {state.nbytes(memory):,} bytes, as the formula says")
    for leaf, tensor in state.leaves(memory):
        print(f"  {leaf:<7} {tuple(tensor.shape)}")


if __name__ == "__main__":
    main()
