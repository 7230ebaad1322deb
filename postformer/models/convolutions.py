"""What nets of convolutions share: how channels are grouped in a norm, and operations counted by a dry run."""

import copy
import math
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

GROUP = 8
"""Channels that are normalised together, at least."""


def groups(channels: int) -> int:
    """Of a group norm: at most 32, each of at least GROUP channels, or one."""
    return math.gcd(32, max(channels // GROUP, 1)) if channels % GROUP == 0 else 1


def dry_flops(model: nn.Module, *shapes: tuple[int, ...], **words: Any) -> int:
    """Floating-point operations of `model` over inputs of these shapes, on no memory."""
    dry = copy.deepcopy(model).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        dry(*(torch.zeros(shape, device="meta") for shape in shapes), **words)
    return counter.get_total_flops()
