"""Images and videos: a Vision Transformer that names digits and tiles, diffusion transformers and U-Nets that draw them, and the same
two on videos of simulated physics.

`data.path` is digits, tiles, or images of your own; `data.scene` one of uniform, collision, parabola, occlusion, several.
"""

import dataclasses
from typing import Any

from postformer.config import OptimConfig, Run, Spec, TrainConfig

CLIPS: Spec = {"kind": "physics", "scene": "uniform", "frames": 16, "size": 32}
SPACETIME_PATCHES: Spec = {"kind": "dit", "patch": [2, 8, 8], "dim": 128, "depth": 8}
SPACETIME: tuple[Spec, ...] = ({"kind": "spacetime", "heads": 4, "qk_norm": True},)


def _run(name: str, model: Spec, objective: Spec, data: Spec, *, lr: float, steps: int, batch: int) -> Run:
    return Run(
        name=name,
        model=model,
        objective=objective,
        data=data,
        optim=OptimConfig(lr=lr, weight_decay=0.0, warmup=100, schedule="wsd", decay=0.3, final=0.02),
        train=TrainConfig(steps=steps, batch=batch, save_every=500, log_every=50),
    )


def _see(name: str, model: Spec) -> Run:
    objective: Spec = {"kind": "classify", "smoothing": 0.1, "shift": 2}
    return _run(name, model, objective, {"kind": "images", "path": "digits"}, lr=1e-3, steps=3000, batch=64)


def see_vit() -> Run:
    """A ViT on digits."""
    return _see("see-vit", {"kind": "vit", "patch": [4, 4], "dim": 96, "depth": 4})


def see_convnet() -> Run:
    """A residual convolutional net, at see-vit's operations an image."""
    return _see("see-convnet", {"kind": "convnet", "widths": [16, 40, 64]})


def _draw(name: str, model: Spec, *, lr: float, batch: int) -> Run:
    return _run(name, model, {"kind": "denoise"}, {"kind": "images", "path": "digits"}, lr=lr, steps=6000, batch=batch)


def draw_dit() -> Run:
    """A diffusion transformer that draws digits by their class."""
    return _draw(
        "draw-dit", {"kind": "dit", "patch": [1, 4, 4], "dim": 160, "depth": 6, "mixers": SPACETIME}, lr=1e-3, batch=64
    )


def draw_unet() -> Run:
    """A U-Net that does."""
    return _draw("draw-unet", {"kind": "unet", "widths": [24, 48, 96], "frames": 1}, lr=1e-3, batch=32)


HINTS = 2
"""Known frames that are shown beside each frame: where something was, and where just before."""


def _physics(name: str, model: Spec, **objective: Any) -> Run:
    """Going on from the first frames of a clip."""
    words: Spec = {"kind": "denoise", "known": 1.0, "ends": ["first"], "label_dropout": 0.0, **objective}
    return _run(name, {"hints": HINTS, **model}, words, CLIPS, lr=1e-3, steps=6000, batch=16)


def _by_muon(run: Run) -> Run:
    return dataclasses.replace(run, optim=dataclasses.replace(run.optim, kind="muon", lr=5e-3, matrix_lr=0.5))


def physics_dit() -> Run:
    """A diffusion transformer on spacetime patches: each sees the whole clip."""
    return _by_muon(_physics("physics-dit", {**SPACETIME_PATCHES, "mixers": SPACETIME}))


def physics_frames() -> Run:
    """The same, factorised: a layer sees a frame, the next one place over time."""
    mixers = tuple({**SPACETIME[0], "reach": reach} for reach in ("frame", "place"))
    return _by_muon(_physics("physics-frames", {**SPACETIME_PATCHES, "mixers": mixers}))


def dream_dit() -> Run:
    """physics-dit that also learns from clips without known frames, and with the last ones or any: all that `postformer dream` does."""
    run = physics_dit()
    words = {**run.objective, "known": 0.7, "ends": ["first", "last", "both", "any"]}
    return dataclasses.replace(run, name="dream-dit", objective=words)


def physics_causal() -> Run:
    """The same, causal over frames, each with a time of its own, so that it goes on for ever in constant memory."""
    mixers = ({**SPACETIME[0], "reach": "past", "window": 8},)
    model: Spec = {**SPACETIME_PATCHES, "patch": [1, 8, 8], "depth": 6, "mixers": mixers, "hints": 0}
    return _by_muon(_physics("physics-causal", model, known=0.0, apart=1.0))


def physics_unet() -> Run:
    """A U-Net over the same clips, at physics-dit's operations a clip."""
    return _physics("physics-unet", {"kind": "unet", "widths": [8, 16, 32], "stem": 2})


def physics_unet_wide() -> Run:
    """A U-Net of physics-dit's parameters too: most of them at low resolution, where they cost least."""
    return _physics("physics-unet-wide", {"kind": "unet", "widths": [16, 32, 48, 72], "stem": 4})
