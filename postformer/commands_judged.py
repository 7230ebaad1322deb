"""What `evaluate` says of images and videos: which a classifier knows, how it judges what another model draws, and how a model of videos
goes on. Imports no torch before it runs."""

import argparse
from typing import Any

from postformer.commands import progress_bars
from postformer.config import UserError

JUDGED = 50
"""Steps in which an image that is judged is drawn."""
CLIPS, SAMPLED = 100, 10
"""Clips of a split that are scored, and the steps in which each is drawn."""


def evaluate_images(args: argparse.Namespace) -> int:
    """How many images of a set, or of a part of its own, a classifier recognises."""
    from postformer.config import build, read
    from postformer.data import DATA, DataError
    from postformer.data.images import Images
    from postformer.data.task import SPLITS
    from postformer.models import CLASSIFIERS
    from postformer.objectives.recognised import recognised
    from postformer.train.session import model_folder, open_model

    folder = model_folder(args.checkpoint)
    model = open_model(folder)
    if model.config["kind"] not in CLASSIFIERS:
        raise UserError(
            f"{args.checkpoint}: a model of kind '{model.config['kind']}' names no images; choose a run of {', '.join(CLASSIFIERS)}"
        )
    own = read(folder / "run.json")["data"] if (folder / "run.json").exists() else None
    if args.images in SPLITS:
        if own is None:
            raise UserError(
                f"--images {args.images}: {args.checkpoint} does not say what it learned from; give a file or a folder"
            )
        data = build(own, DATA, "data")
        _ = data.identity  # refuses other images than those that it learned from
        images = data.part(args.images)
    else:
        size = tuple(model.config["size"])
        images = _by_name(Images(path=args.images, size=size).all, own, args)
        if len(images.classes) != model.config["classes"] or images.pixels.shape[1] != model.config["channels"]:
            raise DataError(
                f"--images {args.images}: {len(images.classes)} classes of {images.pixels.shape[1]} channels, and the model knows "
                f"{model.config['classes']} of {model.config['channels']}"
            )
    with progress_bars() as show:
        found = recognised(model, images, lambda done: show("images", done, len(images.labels)))
    print(found.listed())
    return 0


def _by_name(images: Any, own: Any, args: argparse.Namespace) -> Any:
    """The images with the numbers that the model's classes have, where its own images are there to tell their names. Raises DataError for
    a class that it does not know."""
    import dataclasses

    import numpy as np

    from postformer.config import build
    from postformer.data import DATA, DataError

    try:
        data = build(own, DATA, "data") if own is not None else None
        known = data.classes if data is not None and data.identity else None
    except DataError:
        known = None
    if known is None or images.classes == known:
        return images
    if unknown := [name for name in images.classes if name not in known]:
        raise DataError(f"--images {args.images}: the model knows no class {unknown[0]!r}; it knows {', '.join(known)}")
    numbers = np.array([known.index(name) for name in images.classes])
    return dataclasses.replace(images, labels=numbers[images.labels], classes=known)


def evaluate_drawn(args: argparse.Namespace) -> int:
    """How a classifier judges what a model draws, beside real images of its test part."""
    from postformer.data.images import Images
    from postformer.models import CLASSIFIERS
    from postformer.train.painter import Painter
    from postformer.train.session import model_folder, open_model

    painter, classifier = Painter.of(args.checkpoint, seed=args.seed), open_model(model_folder(args.judge))
    kind, images = classifier.config["kind"], painter.data
    if kind not in CLASSIFIERS:
        raise UserError(
            f"--judge {args.judge}: a model of kind '{kind}' names no images; choose a run of {', '.join(CLASSIFIERS)}"
        )
    if not isinstance(images, Images):
        raise UserError(f"--judge: {args.checkpoint} did not learn from images (data.kind images)")
    real = painter.learned_from().part("test")
    sizes = {"channels": real.pixels.shape[1], "classes": len(real.classes), "size": list(real.pixels.shape[2:])}
    if differ := [
        f"{name} {sizes[name]}, not {_listed(classifier.config[name])}"
        for name in sizes
        if sizes[name] != _listed(classifier.config[name])
    ]:
        raise UserError(f"--judge {args.judge}: it was taught other images than {args.checkpoint}: {'; '.join(differ)}")
    with progress_bars() as show:
        found = painter.judged_by(
            classifier,
            painter.sampling(steps=JUDGED),
            seed=args.seed,
            after_batch=lambda done, of: show("drawing", done, of),
        )
    print(found.listed())
    return 0


def evaluate_physics(args: argparse.Namespace) -> int:
    """How far a model's clips are from what physics says, beside what anyone can do."""
    from postformer.data.physics import SPLITS, Physics
    from postformer.objectives.continued import KNOWN, by_model, continued, rivals, table, told_by
    from postformer.train.painter import Painter

    splits = args.physics.split(",")
    if unknown := [split for split in splits if split not in SPLITS]:
        raise UserError(f"--physics {args.physics}: unknown '{unknown[0]}'; choose from {', '.join(SPLITS)}")
    painter = Painter.of(args.checkpoint, seed=args.seed)
    physics = painter.data
    if not isinstance(physics, Physics):
        raise UserError(f"--physics {args.physics}: {args.checkpoint} did not learn from simulated videos (data.kind physics)")
    known = max(KNOWN // painter.part, 1) * painter.part
    if known >= physics.frames:
        raise UserError(f"--physics {args.physics}: of {physics.frames} frames none is left after the {known} that are shown")
    for split in splits:
        told = told_by(physics, seed=args.seed, split=split)
        own = by_model(painter.model, painter.sampling(steps=SAMPLED), known=known, seed=args.seed, told=told)
        ways = {**rivals(physics, seed=args.seed, split=split, known=known), "the model": own}
        found = {}
        with progress_bars() as show:
            for name, way in ways.items():
                found[name] = continued(
                    way,
                    physics,
                    clips=CLIPS,
                    seed=args.seed,
                    split=split,
                    known=known,
                    after_batch=lambda done, what=f"{split}, {name}": show(what, done, CLIPS),
                )
        print(
            f"{split}: {CLIPS} clips of '{physics.scene}', {physics.frames - known} frames after {known}; mean (95% interval)"
        )
        print(table(found))
    return 0


def _listed(value: Any) -> Any:
    """A size as files have it."""
    return list(value) if isinstance(value, tuple | list) else value
