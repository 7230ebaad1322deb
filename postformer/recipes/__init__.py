"""Complete runs by name. No torch: `postformer train --help` lists them at once."""

from collections.abc import Callable

from postformer.config import Run
from postformer.recipes.forecast import forecast_dlinear, forecast_lmm, forecast_lmm_returning, forecast_mamba2
from postformer.recipes.language import (
    text_attention,
    text_experts,
    text_hybrid,
    text_mamba,
    text_memory,
    text_wide,
    text_window,
)
from postformer.recipes.memory import babilong, diaries, needles
from postformer.recipes.pictures import (
    draw_dit,
    draw_unet,
    dream_dit,
    physics_causal,
    physics_dit,
    physics_frames,
    physics_unet,
    see_convnet,
    see_vit,
)
from postformer.recipes.tasks import induction, modular_arithmetic, parity, parity_real, selective_copying
from postformer.recipes.worlds import world_physics, world_pixels, world_pushing, world_reacher, world_rooms

RECIPES: dict[str, Callable[[], Run]] = {
    "text-mamba": text_mamba,
    "text-attention": text_attention,
    "text-experts": text_experts,
    "text-wide": text_wide,
    "text-hybrid": text_hybrid,
    "text-memory": text_memory,
    "text-window": text_window,
    "induction": induction,
    "selective-copying": selective_copying,
    "parity": parity,
    "parity-real": parity_real,
    "modular-arithmetic": modular_arithmetic,
    "needles": needles,
    "babilong": babilong,
    "diaries": diaries,
    "forecast-lmm": forecast_lmm,
    "forecast-lmm-returning": forecast_lmm_returning,
    "forecast-mamba2": forecast_mamba2,
    "forecast-dlinear": forecast_dlinear,
    "see-vit": see_vit,
    "see-convnet": see_convnet,
    "draw-dit": draw_dit,
    "draw-unet": draw_unet,
    "physics-dit": physics_dit,
    "physics-frames": physics_frames,
    "physics-causal": physics_causal,
    "dream-dit": dream_dit,
    "physics-unet": physics_unet,
    "world-rooms": world_rooms,
    "world-reacher": world_reacher,
    "world-pushing": world_pushing,
    "world-physics": world_physics,
    "world-pixels": world_pixels,
}
