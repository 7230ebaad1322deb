"""Claim: a Transformer over patches sees as well as a convolutional net, measured against the number of images and at other sizes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims import SENTENCES
from postformer.claims import patches_see_page as page
from postformer.claims.ledger import (
    Context,
    Criterion,
    Data,
    Finding,
    Headline,
    NotMeasurable,
    Number,
    Real,
    Result,
    Rule,
    Source,
    Step,
    conclude,
)
from postformer.config import Run

LEARN, SAMPLED = 0.85, 4
"""Training's share of the budget, and the steps of each model that are timed before."""
PARTS = (16, 4, 1)
"""Models learn from all training images, a quarter and a sixteenth of them."""
FACTORS = (0.5, 0.75, 1, 1.25, 1.5, 2)
"""Sizes at which images are asked, of that which was learned."""
FEW, SHORT_S = 300, 60
"""Test images that are asked where the budget is shorter."""
SIDE, PATCH = 32, 4
"""Of a user's pictures, in pixels; and what sides must be a multiple of."""
Evidence = Mapping[str, Any]


def _judged(e: Evidence, t: Mapping[str, Real], gain: Number, both: tuple[Number, Number], where: str) -> Finding:
    numbers = {"ViT": both[0], "convolutional net": both[1], "ViT less convolutional net": gain}
    because = f"{where} the ViT names {both[0].value:.1f}% of the images rightly and the convolutional net {both[1].value:.1f}%"
    few = f"{t['seeds']:g} seeds are needed" if len(e["seeds"]) < t["seeds"] else ""
    if e["taken_share"] < 1 or few:
        return Finding("inconclusive", f"{because}, after {e['taken']}" + (f"; {few}" if few else ""), numbers)
    if gain.low is not None and gain.low > -t["within"]:
        return Finding("supported", because, numbers)
    below = gain.high is not None and gain.high < -t["within"]
    return Finding("contradicted" if below else "inconclusive", because, numbers)


def _with(e: Evidence, t: Mapping[str, Real], count: int) -> Finding:
    both = page.right(e, "vit", count), page.right(e, "convnet", count)
    return _judged(e, t, page.gain(e, count), both, f"after {count:,} images")


def _all(e: Evidence, t: Mapping[str, Real]) -> Finding:
    return _with(e, t, max(e["counts"]))


def _few(e: Evidence, t: Mapping[str, Real]) -> Finding:
    return _with(e, t, min(e["counts"]))


def _sizes(e: Evidence, t: Mapping[str, Real]) -> Finding:
    both = page.right_elsewhere(e, "vit"), page.right_elsewhere(e, "convnet")
    sides = ", ".join(f"{side}" for side in page.elsewhere(e))
    return _judged(e, t, page.gain_elsewhere(e), both, f"over images of {sides} pixels a side")


_SAME = (
    "After all of the recipe's steps, of {seeds:g} seeds at least, supported if the ViT's share of right answers lies at most {within:g} "
    "point below the convolutional net's by the whole interval of the difference, contradicted if further by the whole interval; else "
    "inconclusive."
)
RULE = Rule(
    "A Vision Transformer and a residual convolutional net of equal operations an image learn the same images in the same steps, once from "
    "all that there are for training, once from a quarter and once from a sixteenth, and name test images, of the size they learned and, "
    "resized, of others. The 95% interval is that over images, or Student's over the seeds where that is wider.",
    (
        Criterion("sees as well", "From all images. " + _SAME, _all, {"within": 1, "seeds": 3}),
        Criterion("learns from few", "From a sixteenth of them. " + _SAME, _few, {"within": 1, "seeds": 3}),
        Criterion(
            "sees at other sizes", "From all images, a mean over the other sizes. " + _SAME, _sizes, {"within": 1, "seeds": 3}
        ),
    ),
)


class PatchesSee:
    """See the module's docstring. `images` is what `data.path` of images takes."""

    id = "patches_see"
    title = "What patches see"
    sentence = SENTENCES[id]
    sources = (
        Source(
            "Dosovitskiy et al. 2020, An image is worth 16x16 words: behind convolutional nets on little data, ahead on much",
            "arXiv 2010.11929, section 4.3",
        ),
    )
    rule = RULE
    weight = 1.0

    def __init__(self, images: str = "digits"):
        self.images = images
        self.given = {"images": images}
        """What the results depend on beside the report's settings."""

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """Training, then asking."""
        return (
            Step("train ViTs and convolutional nets", LEARN * budget_s),
            Step("name test images of several sizes", (1 - LEARN) * budget_s),
        )

    def run(self, ctx: Context) -> Result:
        """Measure. Raises NotMeasurable for images that are not there or too few."""
        from postformer.claims import tasks
        from postformer.data.images import NAMED, Images
        from postformer.data.sources import DataError

        size = None if self.images in NAMED else (SIDE, SIDE)
        images = Images(path=self.images, size=size)
        try:
            about = _about(images)
        except DataError as e:
            if self.images not in NAMED:
                raise
            raise NotMeasurable(str(e)) from e
        counts = sorted({max(about["train"] // part, 1) for part in PARTS})
        if about["train"] < max(PARTS) or not about["test"]:
            raise NotMeasurable(
                f"{self.images}: {about['train']} images to learn from and {about['test']} to be asked are too few"
            )
        whole = _recipes(self.images, size, counts, about["sha256"])
        runs = tasks.fitted(ctx, whole, LEARN * ctx.budget_s, SAMPLED)
        step_s = ctx.steps[-1]["result"]
        tasks.learn(ctx, runs.values())
        side, asked = about["size"][0], min(about["test"], FEW) if ctx.budget_s < SHORT_S else about["test"]
        sides = sorted({max(round(side * factor / PATCH), 1) * PATCH for factor in FACTORS if factor != 1} | {side})
        steps = next(iter(runs.values())).train.steps
        all_steps = next(iter(whole.values())).train.steps
        named = {
            name: {
                str(seed): ctx.step(
                    f"{run.name}, seed {seed}, names images",
                    lambda r=run, s=seed: _named(ctx, r, s, images, asked, sides if r.data["most"] == counts[-1] else [side]),
                )
                for seed in ctx.seeds
            }
            for name, run in runs.items()
        }
        evidence = {
            "counts": counts,
            "side": side,
            "sides": sides,
            "named": named,
            "sizes": ctx.step(f"sizes of {about['sha256'][:6]}", lambda: _models(ctx, runs, side, counts[-1])),
            "step_s": {model: step_s[page.key(model, counts[-1])] for model in page.NAMES},
            "seeds": list(ctx.seeds),
            "asked": asked,
            "classes": about["classes"],
            "taken": f"{steps:,} of the recipe's {all_steps:,} steps",
            "taken_share": steps / all_steps,
        }
        return conclude(
            self,
            evidence,
            headline=Headline(
                page.gain(evidence, counts[-1]), f"points more right answers by the ViT, from {counts[-1]:,} images"
            ),
            heats=page.heats(evidence),
            tables=(page.models(evidence),),
            limits=page.limits(evidence),
            consequences=page.consequences(evidence),
            data=Data(
                f"{self.images}: {about['train'] + about['test'] + about['valid']:,} images of {len(about['classes'])} classes",
                self.images not in NAMED,
                about["sha256"],
                about["bytes"],
                "--images",
            ),
        )


def _about(images: Any) -> dict[str, Any]:
    """Raises DataError."""
    found = images.all
    return {
        "sha256": images.identity["sha256"],
        "size": list(found.pixels.shape[2:]),
        "bytes": found.pixels.nbytes,
        "classes": found.classes,
        **{split: len(own) for split, own in images.numbers.items()},
    }


def _recipes(path: str, size: tuple[int, int] | None, counts: Sequence[int], sha256: str) -> dict[str, Run]:
    from postformer.recipes.pictures import see_convnet, see_vit

    found = {}
    for model, run in (("vit", see_vit()), ("convnet", see_convnet())):
        for count in counts:
            data = {**run.data, "path": path, "size": size, "most": count}
            name = f"{run.name}-{count}-{sha256[:6]}"
            found[page.key(model, count)] = dataclasses.replace(run, name=name, data=data)
    return found


def _named(ctx: Context, run: Run, seed: int, images: Any, count: int, sides: Sequence[int]) -> dict[str, str]:
    """Of each size whether the class of each of the first test images is named: a 1 or a 0 each."""
    import torch
    import torch.nn.functional as F

    from postformer.claims import tasks
    from postformer.objectives.drawn import seen
    from postformer.train.process import freed_memory_kept, threads
    from postformer.train.session import open_model

    model, part = open_model(tasks.folder(ctx, run, seed)), images.part("test")
    found = {}
    with torch.inference_mode(), threads(ctx.threads), freed_memory_kept():
        for side in sides:
            asked = part.values(slice(count))
            if side != asked.shape[2]:
                asked = F.interpolate(asked, (side, side), mode="bilinear", antialias=True)
            right = seen(model, asked).named == part.labels[:count]
            found[str(side)] = "".join("01"[int(one)] for one in right)
    return found


def _models(ctx: Context, runs: Mapping[str, Run], side: int, count: int) -> dict[str, dict[str, Real]]:
    from postformer.claims import tasks
    from postformer.train.session import open_model

    found = {}
    for model in page.NAMES:
        opened = open_model(tasks.folder(ctx, runs[page.key(model, count)], ctx.seeds[0]))
        parameters = sum(p.numel() for p in opened.parameters())
        found[model] = {"parameters": parameters, "flops": opened.flops((side, side))}
    return found


CLAIM = PatchesSee()
