"""The recurrence of a minimal gated unit, h_t = (1 - z_t) h_t-1 + z_t c_t, of all tokens at once.

Feng et al. 2024 (arXiv 2410.01201), section 3.1 and appendix A: a scan in log2(t) rounds (Hillis & Steele 1986), exact, since every factor
lies between 0 and 1.

b batch, t time, c channels.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def gated_mean(keep: Float[Tensor, "b t c"], new: Float[Tensor, "b t c"], h: Float[Tensor, "b c"]) -> Float[Tensor, "b t c"]:
    """h_t = keep_t h_t-1 + new_t, where h comes before the first."""
    if keep.shape[1] == 1:
        return keep * h[:, None] + new
    total, kept, step = new, keep, 1
    while step < keep.shape[1]:
        total = torch.cat([total[:, :step], torch.addcmul(total[:, step:], kept[:, step:], total[:, :-step])], 1)
        kept = torch.cat([kept[:, :step], kept[:, step:] * kept[:, :-step]], 1)
        step *= 2
    return torch.addcmul(total, kept, h[:, None])
