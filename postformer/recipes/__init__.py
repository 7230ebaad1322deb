"""Complete runs by name. No torch: `postformer train --help` lists them at once."""

from collections.abc import Callable

from postformer.config import Run
from postformer.recipes.language import text_attention, text_hybrid, text_mamba
from postformer.recipes.memory import babilong, diaries, needles
from postformer.recipes.tasks import induction, modular_arithmetic, parity, parity_real, selective_copying

RECIPES: dict[str, Callable[[], Run]] = {
    "text-mamba": text_mamba,
    "text-attention": text_attention,
    "text-hybrid": text_hybrid,
    "induction": induction,
    "selective-copying": selective_copying,
    "parity": parity,
    "parity-real": parity_real,
    "modular-arithmetic": modular_arithmetic,
    "needles": needles,
    "babilong": babilong,
    "diaries": diaries,
}
