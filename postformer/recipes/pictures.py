"""Images and videos: a Vision Transformer that names digits and tiles, diffusion transformers and U-Nets that draw them, and the same
two on videos of simulated physics.

`data.path` is digits, tiles, or images of your own; `data.scene` one of uniform, collision, parabola, occlusion, several, all.
"""

import dataclasses

from postformer.config import OptimConfig, Run, Spec, TrainConfig

CLIPS: Spec = {"kind": "physics", "scene": "uniform", "frames": 16, "size": 32}
SPACETIME: Spec = {"kind": "spacetime", "heads": 2, "qk_norm": True}
SPACETIME_PATCHES: Spec = {"kind": "dit", "patch": [2, 4, 4], "dim": 64, "depth": 6, "mixers": (SPACETIME,)}


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


def _by_muon(run: Run) -> Run:
    """Matrices and filters at twice the rate of the rest."""
    return dataclasses.replace(run, optim=dataclasses.replace(run.optim, kind="muon", matrix_lr=2.0))


def _draw(name: str, model: Spec) -> Run:
    data: Spec = {"kind": "images", "path": "digits"}
    return _by_muon(_run(name, model, {"kind": "denoise"}, data, lr=3e-3, steps=1500, batch=64))


def draw_dit() -> Run:
    """A diffusion transformer that draws digits by their class."""
    return _draw(
        "draw-dit",
        {"kind": "dit", "patch": [1, 4, 4], "dim": 160, "depth": 6, "mixers": ({**SPACETIME, "heads": 4},)},
    )


def draw_unet() -> Run:
    """A U-Net that does, at draw-dit's operations an image and half of its parameters."""
    return _draw("draw-unet", {"kind": "unet", "widths": [12, 24, 96], "frames": 1})


HINTS = 2
"""Known frames that are shown beside each frame: where something was, and where just before."""
KNOWN = 4
"""First frames from which a clip goes on, as the models are asked to."""


NOISE: Spec = {"loss": "x", "mean": -2.0, "spread": 2.0}
"""Half of it so strong that only known frames tell where a thing goes, and all of it is met: what was never taught is drawn wrong."""
FROM_FIRST: Spec = {"known": 1.0, "ends": ["first"], "known_frames": KNOWN}
"""Going on from a clip's first frames."""


def _physics(name: str, model: Spec, objective: Spec = FROM_FIRST, *, steps: int = 1000) -> Run:
    words: Spec = {"kind": "denoise", "label_dropout": 0.0, **NOISE, **objective}
    return _by_muon(_run(name, {"hints": HINTS, **model}, words, CLIPS, lr=5e-3, steps=steps, batch=16))


def physics_dit() -> Run:
    """A diffusion transformer on spacetime patches: each sees the whole clip."""
    return _physics("physics-dit", SPACETIME_PATCHES)


def physics_frames() -> Run:
    """The same, factorised: a layer sees a frame, the next one place over time."""
    mixers = tuple({**SPACETIME, "reach": reach} for reach in ("frame", "place"))
    return _physics("physics-frames", {**SPACETIME_PATCHES, "mixers": mixers})


def dream_dit() -> Run:
    """physics-dit on all scenes, told in words what happens, for all verbs of `postformer dream`.

    Of its clips 30% have no known frames, and the others the first, the last, both or any."""
    words: Spec = {"known": 0.7, "ends": ["first", "last", "both", "any"], "label_dropout": 0.1}
    run = _physics("dream-dit", SPACETIME_PATCHES, words, steps=3000)
    return dataclasses.replace(run, data={**run.data, "scene": "all", "text": True})


def physics_causal() -> Run:
    """A diffusion transformer that is causal over frames, so that it goes on for ever in constant memory.

    Half of its clips have known first frames, as it goes on from them; in the others each frame has a time of its own."""
    mixer: Spec = {**SPACETIME, "heads": 4, "reach": "past", "window": 8}
    model: Spec = {"kind": "dit", "patch": [1, 8, 8], "dim": 128, "depth": 6, "mixers": (mixer,), "hints": 0}
    words: Spec = {"known": 0.5, "ends": ["first"], "apart": 0.5}
    return _physics("physics-causal", model, words, steps=6000)


def physics_unet() -> Run:
    """A U-Net over the same clips, of physics-dit's operations a clip and parameters."""
    return _physics("physics-unet", {"kind": "unet", "widths": [10, 20, 32], "stem": 2})
