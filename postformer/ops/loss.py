"""Cross-entropy of logits against one target each: torch's own, and the kernel of csrc/cross_entropy.cpp for fp32 on a CPU.

    loss = log sum_j exp(x_j) - x_target        d loss / d x = softmax(x) - onehot(target)

n rows, v classes. The kernel keeps two numbers a row for its backward pass, and no log-probabilities.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from postformer.ops import _cpu

NO_CLASS = -(1 << 62)
"""torch leaves out the targets of one number, -100 unless told otherwise; here every target counts."""


def cross_entropy(logits: Float[Tensor, "n v"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Nats of each target, in fp32 or wider. Gradients are first-order only on a CPU in fp32.

    Raises IndexError for a target that is no class.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if _cpu.serves(logits):
        return torch.ops.postformer.cross_entropy(logits, target)[0]
    return F.cross_entropy(logits, target, reduction="none", ignore_index=NO_CLASS)


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

_cpu.LIBRARY.define("cross_entropy(Tensor logits, Tensor target) -> (Tensor, Tensor, Tensor)")
_cpu.LIBRARY.define(
    "cross_entropy_backward(Tensor logits, Tensor target, Tensor largest, Tensor log_sum, Tensor dloss) -> Tensor"
)


def _check(logits: Tensor, target: Tensor) -> None:
    n, v = logits.shape
    _cpu.check("cross_entropy", logits=(logits, (n, v)))
    if target.shape != (n,) or target.dtype != torch.int64:
        raise ValueError(f"cross_entropy: target is {target.dtype} {tuple(target.shape)}; expected torch.int64 {(n,)}")
    if n and not 0 <= int(target.min()) <= int(target.max()) < v:
        raise IndexError(f"cross_entropy: targets {int(target.min())} to {int(target.max())} must lie in 0 to {v - 1}")


@torch.library.impl(_cpu.LIBRARY, "cross_entropy", "CPU")
def _loss_cpu(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _check(logits, target)
    out = _loss_fake(logits, target)
    _cpu.call("cross_entropy_forward", logits.contiguous(), target.contiguous(), *out, *logits.shape)
    return out


@torch.library.register_fake("postformer::cross_entropy", lib=_cpu.LIBRARY)
def _loss_fake(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, and what the backward pass needs: each row's largest logit m, and log sum exp(x - m)."""
    n = logits.shape[0]
    return logits.new_empty(n), logits.new_empty(n), logits.new_empty(n)


@torch.library.impl(_cpu.LIBRARY, "cross_entropy_backward", "CPU")
def _loss_backward_cpu(logits: Tensor, target: Tensor, largest: Tensor, log_sum: Tensor, dloss: Tensor) -> Tensor:
    _check(logits, target)
    rows = (logits.shape[0],)
    _cpu.check("cross_entropy_backward", largest=(largest, rows), log_sum=(log_sum, rows), dloss=(dloss, rows))
    out = _loss_backward_fake(logits, target, largest, log_sum, dloss)
    inputs = (x.contiguous() for x in (logits, target, largest, log_sum, dloss))
    _cpu.call("cross_entropy_backward", *inputs, out, *logits.shape)
    return out


@torch.library.register_fake("postformer::cross_entropy_backward", lib=_cpu.LIBRARY)
def _loss_backward_fake(logits: Tensor, target: Tensor, largest: Tensor, log_sum: Tensor, dloss: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, dloss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.postformer.cross_entropy_backward(*ctx.saved_tensors, dloss), None


torch.library.register_autograd("postformer::cross_entropy", _gradients, setup_context=_save, lib=_cpu.LIBRARY)
torch.library.register_autograd("postformer::cross_entropy_backward", _cpu.first_order_only, lib=_cpu.LIBRARY)
