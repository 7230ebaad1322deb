"""A mixer of one's own: a gated moving average in 25 lines, checked against the first law of state and used by its import path."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from postformer.models.language import LanguageModel


class AverageState(NamedTuple):
    h: Tensor


class Average(nn.Module):
    """h_t = a h_{t-1} + (1 - a) x_t for each channel, then out(h * SiLU(gate x)); a starts between 0.5 and 0.99."""

    def __init__(self, dim: int, *, slowest: float = 0.99):
        super().__init__()
        self.gate, self.out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.a = nn.Parameter(torch.linspace(0.5, slowest, dim).logit())

    def init_state(self, batch: int) -> AverageState:
        return AverageState(torch.zeros(batch, len(self.a), dtype=self.a.dtype, device=self.a.device))

    def forward(self, x: Tensor, state: AverageState | None = None) -> tuple[Tensor, AverageState | None]:
        h, a, hs = (state or self.init_state(len(x))).h, self.a.sigmoid(), []
        for x_t in x.unbind(1):
            h = a * h + (1 - a) * x_t
            hs.append(h)
        return self.out(torch.stack(hs, 1) * F.silu(self.gate(x))), None if state is None else AverageState(h)

    def flops(self, length: int, past: int = 0) -> int:
        return length * 4 * (len(self.a) ** 2 + len(self.a))

    def state_bytes(self, length: int, itemsize: int = 4) -> int:
        return len(self.a) * itemsize


def main() -> None:
    mixers = ({"kind": "own_mixer:Average", "slowest": 0.999}, {"kind": "attention", "heads": 4, "window": 32})
    model = LanguageModel(257, dim=32, depth=4, mixers=mixers).double().eval()
    ids = torch.randint(257, (2, 100))
    with torch.inference_mode():
        whole, _ = model(ids)
        for split in ((100,), (1, 99), (40, 1, 1, 58), (1,) * 100):
            state, parts = model.init_state(2), []
            for piece in ids.split(split, 1):
                y, state = model(piece, state)
                parts.append(y)
            print(f"in {len(split):>3} pieces: largest difference {(torch.cat(parts, 1) - whole).abs().max():.1e}")
    print(
        f"state after 1,000 tokens: {model.cost(1_000).state_bytes:,} bytes; after 1,000,000: {model.cost(10**6).state_bytes:,}"
    )


if __name__ == "__main__":
    main()
