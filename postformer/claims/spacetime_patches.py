"""Claim: spacetime patches keep the physics of a video continuous where a U-Net lets things melt, on simulated videos whose physics is
known."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims import SENTENCES
from postformer.claims import spacetime_patches_page as page
from postformer.claims.film import Strip
from postformer.claims.imagining import above, below, decided, enough
from postformer.claims.ledger import Context, Criterion, Finding, Headline, Real, Result, Rule, Source, Step, conclude
from postformer.config import Run

LEARN, SAMPLED = 0.8, 4
"""Training's share of the budget, and the steps of each model that are timed before."""
SPLITS = ("test", "slow", "fast", "small", "large")
CLIPS = ((14400, 400), (900, 100), (120, 24), (0, 8))
"""From which budget on how many clips of a split are asked."""
DRAWN, ASKED_SEED = 10, 1000
"""Euler steps in which a clip is drawn, and the seed of the clips that are asked: no run learns from these."""
ALIKE = 0.1
"""Times of a step that differ by less than this share are taken for equal."""
Evidence = Mapping[str, Any]


def _velocity(e: Evidence, t: Mapping[str, Real]) -> Finding:
    own, floor = page.figure(e, "dit", "velocity"), page.figure(e, "true clips", "velocity")
    numbers = {page.NAMES[m]: page.figure(e, m, "velocity") for m in page.measured(e)} | {"the measure itself": floor}
    because = f"the patches' discs are off by {page.said(own)}, and the true ones seem so by {page.said(floor)}"
    within, beyond = (own.high or t["most"] + 1) <= t["most"], (own.low or 0.0) > t["most"]
    return decided(because, numbers, within, beyond, enough(e, t))


def _rivals(e: Evidence, t: Mapping[str, Real]) -> Finding:
    gains = {name: page.more(e, name, "velocity") for name in page.unets(e)}
    numbers = {f"error of the {page.NAMES[name]}, less the patches'": gain for name, gain in gains.items()}
    better = all(map(above, gains.values()))
    worse = any(map(below, gains.values()))
    told = "; ".join(f"the {page.NAMES[name]} is off by {page.said(page.figure(e, name, 'velocity'))}" for name in gains)
    return decided(f"{told}, patches by {page.said(page.figure(e, 'dit', 'velocity'))}", numbers, better, worse, enough(e, t))


def _whole(e: Evidence, t: Mapping[str, Real]) -> Finding:
    kept = {name: page.kept(e, name) for name in ("dit", *page.unets(e))}
    still = {name: page.less(e, name, "last frame", "velocity") for name in kept}
    numbers = {f"{page.NAMES[name]}: there and whole": number for name, number in kept.items()}
    numbers |= {f"error of the last frame, less that of {page.NAMES[name]}": gain for name, gain in still.items()}
    keeps = {name: (n.low or 0.0) >= t["keep"] and above(still[name]) for name, n in kept.items()}
    loses = {name: n.high is not None and n.high < t["keep"] for name, n in kept.items()}
    because = "discs are there, in one piece and alone, in " + ", ".join(
        f"{n.value:.1f}% of the frames ({page.NAMES[name]}{'' if above(still[name]) else ', not shown to move'})"
        for name, n in kept.items()
    )
    melts = all(loses[name] for name in page.unets(e))
    sound = loses["dit"] or all(keeps[name] for name in page.unets(e))
    return decided(because, numbers, keeps["dit"] and melts, sound, enough(e, t))


def _spacetime(e: Evidence, t: Mapping[str, Real]) -> Finding:
    gain = page.more(e, "frames", "velocity")
    numbers = {"error of attention in turns, less that of attention over spacetime": gain}
    because = (
        f"in turns over a frame and over a place in time the discs are off by {page.said(page.figure(e, 'frames', 'velocity'))}, "
        f"over all at once by {page.said(page.figure(e, 'dit', 'velocity'))}"
    )
    return decided(because, numbers, above(gain), below(gain), enough(e, t))


RULE = Rule(
    "Diffusion models learn the same simulated videos of a disc that flies level, with the same objective, and go on from four frames of "
    "clips that they never saw: a transformer over spacetime patches, the same with attention in turns over a frame and over a place in "
    "time (equal parameters and steps, half of the operations), a U-Net of equal operations a clip and parameters, and where a step of "
    "training differs by more than 10% one that learns for as long as the transformer. Velocities are measured from pixels; a disc that is "
    "gone counts as one that stands still. The 95% interval is that over clips, or Student's over the seeds where that is wider.",
    (
        Criterion(
            "physics stays continuous",
            "After all of the recipe's steps, of {seeds:g} seeds at least, supported if the patches' velocity error is at most {most:g} "
            "units/s by the whole interval (discs fly at 1 to 4), contradicted if more by the whole interval; else inconclusive.",
            _velocity,
            {"most": 0.1, "seeds": 3},
        ),
        Criterion(
            "truer than a U-Net",
            "After all of the recipe's steps, of {seeds:g} seeds at least, supported if the patches' velocity error is less than that of "
            "every U-Net by the whole interval of the difference, contradicted if it is more than that of one of them; else inconclusive.",
            _rivals,
            {"seeds": 3},
        ),
        Criterion(
            "a U-Net lets things melt",
            "After all of the recipe's steps, of {seeds:g} seeds at least, supported if with patches the disc is there, in one piece and "
            "alone in {keep:g}% of the frames or more by the whole interval (Wilson's over clips where that is wider, which takes 381 "
            "clips that keep all), and with every U-Net in fewer by the whole interval, and if patches move: their velocity error is less "
            "than that of the last frame for ever by the whole interval of the difference, for a clip that stands still keeps all. "
            "Contradicted if it is in fewer with patches, or in as many with every U-Net, and these move; else inconclusive.",
            _whole,
            {"keep": 99, "seeds": 3},
        ),
        Criterion(
            "spacetime at once",
            "After all of the recipe's steps, of {seeds:g} seeds at least, supported if attention in turns has the larger velocity error "
            "by the whole interval of the difference, contradicted if the smaller; else inconclusive.",
            _spacetime,
            {"seeds": 3},
        ),
    ),
)


class SpacetimePatches:
    """See the module's docstring."""

    id = "spacetime_patches"
    title = "What spacetime patches keep"
    sentence = SENTENCES[id]
    sources = (
        Source("Brooks et al. 2024, Video generation models as world simulators: patches, and object permanence", "OpenAI"),
        Source(
            "Kang et al. 2024, How far is video generation from world model: velocities in and out of range", "arXiv 2411.02385"
        ),
    )
    rule = RULE
    weight = 2.0

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """Training, then going on."""
        return (
            Step("train a diffusion transformer, the same in turns, and U-Nets", LEARN * budget_s),
            Step("go on from four frames", (1 - LEARN) * budget_s),
        )

    def run(self, ctx: Context) -> Result:
        """Measure."""
        from postformer.claims import tasks

        whole = _recipes()
        runs = tasks.fitted(ctx, whole, LEARN * ctx.budget_s, SAMPLED, _as_long)
        step_s = ctx.steps[-1]["result"]
        tasks.learn(ctx, runs.values())
        figures, clips = _asked(ctx, runs)
        run = runs["dit"]
        evidence = {
            "figures": figures,
            "clips": clips,
            "sizes": ctx.step("sizes", lambda: _sizes(ctx, runs)),
            "step_s": step_s,
            "steps": {name: own.train.steps for name, own in runs.items()},
            "seeds": list(ctx.seeds),
            "batch": run.train.batch,
            "taken": f"{run.train.steps:,} of the recipe's {whole['dit'].train.steps:,} steps",
            "taken_share": run.train.steps / whole["dit"].train.steps,
        }
        headline = page.figure(evidence, "dit", "velocity")
        return conclude(
            self,
            evidence,
            headline=Headline(headline, "velocity error of discs that the transformer over spacetime patches goes on with"),
            tables=(page.velocities(evidence), page.figures(evidence)),
            films=page.films(evidence, ctx.step("pictures", lambda: _strips(ctx, runs))),
            limits=page.limits(evidence, run),
            consequences=page.consequences(evidence),
        )


def _recipes() -> dict[str, Run]:
    from postformer.recipes.pictures import physics_dit, physics_frames, physics_unet

    unet = physics_unet()
    timed = dataclasses.replace(unet, name=f"{unet.name}-timed")
    return {"dit": physics_dit(), "frames": physics_frames(), "unet": unet, "timed": timed}


def _as_long(runs: Mapping[str, Run], step_s: Mapping[str, Real]) -> dict[str, Run]:
    """The U-Net of equal time takes as many steps as fit into the transformer's; none where that is the one of equal operations."""
    ratio = step_s["dit"] / step_s["unet"]
    if abs(ratio - 1) <= ALIKE:
        return {name: run for name, run in runs.items() if name != "timed"}
    timed = runs["timed"]
    train = dataclasses.replace(timed.train, steps=max(10, round(ratio * timed.train.steps)))
    return {**runs, "timed": dataclasses.replace(timed, train=train)}


def _asked(ctx: Context, runs: Mapping[str, Run]) -> tuple[dict[str, Any], int]:
    """The figures of every split and way, and how many clips of each: split by split while the next is expected to fit."""
    clips = next(count for least_s, count in CLIPS if ctx.budget_s >= least_s)
    figures: dict[str, Any] = {}
    for split in SPLITS:
        if figures and ctx.steps[-1]["seconds"] > ctx.left_s:
            break
        figures[split] = ctx.step(f"go on in {split}", lambda s=split: _split(ctx, runs, s, clips))
    return figures, clips


def _went_on(ctx: Context, run: Run, seed: int, split: str, clips: int) -> dict[str, Any]:
    from postformer.claims import tasks
    from postformer.objectives.continued import by_model, continued
    from postformer.train.painter import Painter
    from postformer.train.process import freed_memory_kept, threads

    painter = Painter.of(tasks.folder(ctx, run, seed))
    with threads(ctx.threads), freed_memory_kept():
        goes_on = by_model(painter.model, painter.sampling(steps=DRAWN))
        return continued(goes_on, painter.data, clips=clips, seed=ASKED_SEED, split=split).figures


def _split(ctx: Context, runs: Mapping[str, Run], split: str, clips: int) -> dict[str, dict[str, Any]]:
    from postformer.config import build
    from postformer.data import DATA
    from postformer.objectives.continued import continued, rivals

    found: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        found[name] = {}
        for seed in ctx.seeds:
            ctx.progress(f"{page.NAMES[name]}, seed {seed}, goes on in {split}", len(found), len(runs) + 1)
            found[name][str(seed)] = _went_on(ctx, run, seed, split, clips)
    physics: Any = build(runs["dit"].data, DATA, "data")
    for name, way in rivals(physics, seed=ASKED_SEED, split=split).items():
        found[name] = {"": continued(way, physics, clips=clips, seed=ASKED_SEED, split=split).figures}
    return found


def _sizes(ctx: Context, runs: Mapping[str, Run]) -> dict[str, dict[str, Real]]:
    from postformer.claims import tasks
    from postformer.train.painter import Painter

    found = {}
    for name, run in runs.items():
        painter = Painter.of(tasks.folder(ctx, run, ctx.seeds[0]))
        size = sum(p.numel() for p in painter.model.parameters())
        found[name] = {"parameters": size, "flops": painter.model.flops(painter.data.clip_size)}
    return found


def _strips(ctx: Context, runs: Mapping[str, Run]) -> dict[str, list[Strip]]:
    """A clip in range and a faster one, as they truly go on and as each model of the first seed has it."""
    import torch

    from postformer.claims import tasks
    from postformer.objectives.continued import by_model
    from postformer.train.painter import Painter
    from postformer.train.process import freed_memory_kept, threads

    found: dict[str, list[Strip]] = {"test": [], "fast": []}
    with threads(ctx.threads), freed_memory_kept():
        for name, run in runs.items():
            painter = Painter.of(tasks.folder(ctx, run, ctx.seeds[0]))
            goes_on = by_model(painter.model, painter.sampling(steps=DRAWN))
            for split, strips in found.items():
                true = torch.from_numpy(painter.data.clip(0, seed=ASKED_SEED, split=split))[None]
                scenario = painter.data.scenario(0, seed=ASKED_SEED, split=split)
                if not strips:
                    strips.append(page.strip_of("true clip", true[0].numpy(), scenario))
                strips.append(page.strip_of(page.NAMES[name], goes_on(true, 0)[0].numpy(), scenario))
    return found


CLAIM = SpacetimePatches()
