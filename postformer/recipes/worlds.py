"""Models of a world: what is seen as an embedding, and from it and what is done the next one."""

import dataclasses

from postformer.config import OptimConfig, Run, Spec, TrainConfig

SMALL: Spec = {"kind": "mingru"}
"""The least state that there is: a search for plans keeps one for each of its samples."""
PREDICTOR: Spec = {"width": 64, "depth": 2, "mixers": (SMALL,), "ffns": ({"kind": "mlp", "hidden": 128},)}
DISTANCE: Spec = {"error": "distance", "imagined": 0.1}
BLOCK = 5
"""Pushes of an action in the rooms: plans see past the door in 16 of them."""


def _run(name: str, model: Spec, objective: Spec, data: Spec, *, steps: int, batch: int, muon: bool = False) -> Run:
    optim = OptimConfig(lr=2e-3, weight_decay=1e-4, warmup=100, schedule="wsd", decay=0.4, final=0.02)
    return Run(
        name=name,
        model={"kind": "world", **model},
        objective={"kind": "latent", **objective},
        data=data,
        optim=dataclasses.replace(optim, kind="muon", lr=3e-3, matrix_lr=2.0) if muon else optim,
        train=TrainConfig(steps=steps, batch=batch, save_every=500, log_every=50),
    )


def world_rooms() -> Run:
    """Two rooms with a door, kept apart by SIGReg.

    Where walls move, they alone would be easiest to predict: that numbers must move within a walk, and that actions are told from two
    embeddings in turn, keeps the dot in them; that they are told by a linear map leaves the place in two numbers, and room for wall and
    door. `reach` tells plans to begin a search with. Whether a dot passes the door hangs on a hair, so imagined errors are distances."""
    model: Spec = {"dim": 32, "reach": 256, **PREDICTOR}
    words: Spec = {"normal": 0.05, "inverse": 10.0, "inverse_width": 0, "moving": 3.0, "reach": 1.0, **DISTANCE}
    data: Spec = {"kind": "rooms", "steps": 16, "stride": BLOCK}
    return _run("world-rooms", model, words, data, steps=4000, batch=64, muon=True)


def _simulated(name: str, data: Spec, inverse: Spec) -> Run:
    words: Spec = {"normal": 0.05, **inverse, **DISTANCE}
    return _run(name, {"dim": 32, **PREDICTOR}, words, {"kind": "episodes", **data}, steps=3000, batch=64, muon=True)


def world_reacher() -> Run:
    """An arm of two joints. Record it first: postformer episodes record reacher --out runs/reacher.h5"""
    return _simulated("world-reacher", {"path": "runs/reacher.h5", "steps": 10}, {"inverse": 1.0})


def world_pushing() -> Run:
    """A finger that pushes a block. Record it first: postformer episodes record pushing --out runs/pushing.h5"""
    return _simulated("world-pushing", {"path": "runs/pushing.h5", "steps": 8}, {"inverse": 1.0, "inverse_width": 0})


CLIPS: Spec = {"kind": "physics", "scene": "all", "frames": 20, "size": 32}
SEEN = 6
"""Known frames of a clip from which a second is imagined, and more."""


def _physics(name: str, objective: Spec) -> Run:
    model: Spec = {"dim": 96, "width": 192, "depth": 2, "mixers": ({"kind": "gated_delta", "heads": 4},), "look": True}
    return _run(name, model, {"known": SEEN, **objective}, CLIPS, steps=3000, batch=32)


def world_physics() -> Run:
    """Discs in all scenes, predicted as embeddings; what it imagines is drawn for people to look at."""
    return _physics("world-physics", {"normal": 0.1, "look": 1.0})


def world_pixels() -> Run:
    """world-physics's rival of its operations: the same model, taught the pixels of what comes next."""
    return _physics("world-pixels", {"normal": 0.0, "target": "pictures"})
