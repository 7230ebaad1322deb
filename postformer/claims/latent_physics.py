"""Claim: a model that predicts embeddings knows where things will be in a second, measured beside one that predicts pixels."""

from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims import SENTENCES, imagining
from postformer.claims import latent_physics_page as page
from postformer.claims.film import Strip
from postformer.claims.imagining import above, below, decided, enough, said
from postformer.claims.ledger import Context, Criterion, Finding, Headline, Real, Result, Rule, Source, Step, conclude
from postformer.config import Run

FILMED = ("collision", "occlusion")
"""Scenes of which the first clip is shown."""
Evidence = Mapping[str, Any]


def _second(e: Evidence, t: Mapping[str, Real]) -> Finding:
    own, floor = page.error(e, "embeddings", "place"), page.error(e, "embeddings", "place", "floor")
    excess = page.excess(e, t["factor"])
    numbers = {"imagined": own, "what truly comes": floor, f"imagined, less {t['factor']:g} times what truly comes": excess}
    because = (
        f"the place is off by {said(own)} where it is imagined, and by {said(floor)} where it is read off what truly comes"
    )
    within = excess.high is not None and excess.high <= 0
    return decided(because, numbers, within, above(excess), enough(e, t))


def _last(e: Evidence, t: Mapping[str, Real]) -> Finding:
    gains = {group: page.before(e, group) for group in ("place", "velocity")}
    numbers = {f"{group}: error of the last frames, less that of what is imagined": gain for group, gain in gains.items()}
    told = (
        f"the {group} is off by {said(page.error(e, 'embeddings', group))}, and by {said(page.error(e, 'embeddings', group, 'last'))} "
        "if all stood still"
        for group in gains
    )
    better, worse = all(map(above, gains.values())), any(map(below, gains.values()))
    return decided("; ".join(told), numbers, better, worse, enough(e, t))


def _pixels(e: Evidence, t: Mapping[str, Real]) -> Finding:
    gain = page.beyond(e, "pixels")
    numbers = {"error of the pixels' model, less that of the embeddings'": gain}
    because = (
        f"the place is off by {said(page.error(e, 'embeddings', 'place'))} in what is imagined as embeddings, and by "
        f"{said(page.error(e, 'pixels', 'place'))} with the model that predicts pixels"
    )
    return decided(because, numbers, above(gain), below(gain), enough(e, t))


_IF = "After all of the recipe's steps, of {seeds:g} seeds at least, supported if "
RULE = Rule(
    "Two models of the same parts, and so of equal operations a frame, learn the same simulated videos of discs: one to predict the "
    "embeddings of what comes next, the other to predict its pixels. Both see the first frames of clips that they never learned from and "
    "imagine the next second, ten frames, without seeing any of it. Places, velocities and the ratio of masses are read off the embeddings "
    "of two frames in turn by a linear probe that learned on other clips. Errors are distances, a mean over four scenes: a disc that flies "
    "level, two that meet, one that falls, one that passes behind a wall. The 95% interval is that over clips, or Student's over the seeds "
    "where that is wider.",
    (
        Criterion(
            "foretells a second",
            _IF
            + "the place imagined a second ahead is off by at most {factor:g} times what the probe misses of the frame that truly "
            "comes, by the whole interval of the difference; contradicted if by more by the whole interval; else inconclusive.",
            _second,
            {"factor": 2, "seeds": 3},
        ),
        Criterion(
            "better than the last frame",
            _IF
            + "place and velocity imagined a second ahead are both less off than those of the last frames that were seen, by the whole "
            "interval of the difference; contradicted if one of them is more by the whole interval; else inconclusive.",
            _last,
            {"seeds": 3},
        ),
        Criterion(
            "better than predicting pixels",
            _IF
            + "the place imagined a second ahead is less off than with the model that predicts pixels, by the whole interval of the "
            "difference; contradicted if it is more by the whole interval; else inconclusive.",
            _pixels,
            {"seeds": 3},
        ),
    ),
)


class LatentPhysics:
    """See the module's docstring."""

    id = "latent_physics"
    title = "What is foreseen in latent space"
    sentence = SENTENCES[id]
    sources = (
        Source(
            "LeCun 2022, A path towards autonomous machine intelligence: predict in representation space, not pixels",
            "OpenReview",
        ),
        Source("Assran et al. 2025, V-JEPA 2: understanding, prediction and planning", "arXiv 2506.09985"),
        Source("Garrido et al. 2025, Intuitive physics emerges from self-supervised pretraining on videos", "arXiv 2502.11831"),
        Source("Maes et al. 2026, LeWorldModel: places and angles probed from its embeddings", "arXiv 2603.19312"),
    )
    rule = RULE
    weight = 1.0

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """Training, then imagining."""
        return (
            Step("train models that predict embeddings and pixels", imagining.LEARN * budget_s),
            Step("imagine a second of four scenes", (1 - imagining.LEARN) * budget_s),
        )

    def run(self, ctx: Context) -> Result:
        """Measure."""
        runs, told = imagining.learned(ctx)
        evidence = {
            **told,
            "dt": imagining.world(runs["embeddings"]).dt,
            "errors": {
                scene: ctx.step(f"imagine a second: {scene}", lambda s=scene: _errors(ctx, runs, s, told["asked"]))
                for scene in imagining.SCENES
            },
        }
        return conclude(
            self,
            evidence,
            headline=Headline(
                page.error(evidence, "embeddings", "place"), "error of a place imagined a second ahead by predicting embeddings"
            ),
            tables=(page.scenes(evidence), page.models(evidence)),
            charts=imagining.rank_charts(ctx.step("effective rank", lambda: imagining.ranks(ctx, runs)), imagining.NAMES),
            films=page.films(evidence, ctx.step("pictures", lambda: _strips(ctx, runs, told["asked"]))),
            limits=(*page.limits(evidence), *imagining.limits(evidence)),
            consequences=page.consequences(evidence),
        )


def _errors(ctx: Context, runs: Mapping[str, Run], scene: str, clips: int) -> dict[str, dict[str, Any]]:
    def ask(model: Any, run: Run, seed: int) -> Any:
        return imagining.errors(model, run, scene, seed, clips)

    return imagining.each(ctx, runs, f"imagine a second: {scene}", ask)


def _strips(ctx: Context, runs: Mapping[str, Run], clips: int) -> dict[str, list[Strip]]:
    """The first clip of two scenes, as it truly goes on and as each trained model of the first seed imagines it."""
    from postformer.train.process import freed_memory_kept, threads

    strips: dict[str, list[Strip]] = {scene: [] for scene in FILMED}
    with threads(ctx.threads), freed_memory_kept():
        for name in runs:
            model, run = imagining.opened(ctx, runs, name, ctx.seeds[0])
            for scene, own in strips.items():
                made = _imagined(model, run, scene, imagining.ASKED_SEED + ctx.seeds[0], clips)
                if not own:
                    own.append(page.strip_of("what truly comes", made["clip"], made["true"], made["floor"], made["size"]))
                own.append(page.strip_of(imagining.NAMES[name], made["drawn"], made["true"], made["imagined"], made["size"]))
    return strips


def _imagined(model: Any, run: Run, scene: str, seed: int, clips: int) -> dict[str, Any]:
    """The first clip of a scene and its true places; how a model draws what it imagines of it, and the places that its probe reads off that
    and off what truly comes."""
    import numpy as np
    import torch

    from postformer.data.bodies import SIZE
    from postformer.objectives.foreseen import foreseen

    physics, known = imagining.world(run, scene=scene), run.objective["known"]
    scenario = physics.scenario(0, seed=seed, split="test")
    clip, true = physics.shown(scenario), scenario.track.position
    found = foreseen(model, physics, known, seed=seed, clips=clips)
    places = [i for i, name in enumerate(found.names) if name.startswith("place")]
    told = {
        way: true[known:] + getattr(found, way)[0][:, places].numpy().reshape(-1, *true.shape[1:])
        for way in ("floor", "imagined")
    }
    with torch.no_grad():
        z = model.encode(torch.from_numpy(clip[:, :known]).transpose(0, 1)[None])
        ahead = model.decode(model.foresee(z, z.new_zeros(1, physics.frames - 1, 0))[0])
    drawn = np.concatenate([clip[:, :known], ahead[0].transpose(0, 1).numpy()], 1)
    return {"clip": clip, "true": true, "drawn": drawn, "size": SIZE, **told}


CLAIM = LatentPhysics()
