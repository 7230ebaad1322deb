"""Claim: a model that predicts embeddings is surprised by what cannot be, measured on pairs of clips beside one that predicts pixels."""

from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims import SENTENCES, imagining
from postformer.claims import intuitive_physics_page as page
from postformer.claims.film import Strip, strip
from postformer.claims.imagining import above, below, decided, enough, said
from postformer.claims.ledger import Context, Criterion, Finding, Headline, Real, Result, Rule, Source, Step, conclude
from postformer.config import Run

PLAIN = ("vanishes", "jumps")
"""What any frame beside the one before tells."""
SHOWN = "turns back"
"""The kind whose first pair is shown, chosen before anything was measured."""
Evidence = Mapping[str, Any]


def _plain(e: Evidence, t: Mapping[str, Real]) -> Finding:
    shares = {kind: page.share(e, kind) for kind in PLAIN}
    because = "told apart: " + "; ".join(f"{kind} {said(share)}" for kind, share in shares.items())
    all_told = all((share.low or 0.0) >= t["share"] for share in shares.values())
    one_not = any(share.high is not None and share.high < t["share"] for share in shares.values())
    return decided(because, shares, all_told, one_not, enough(e, t))


def _hard(e: Evidence, t: Mapping[str, Real]) -> Finding:
    shares = {kind: page.share(e, kind) for kind in e["hard"]}
    told = sum((share.low or 0.0) >= t["share"] for share in shares.values())
    could = sum(share.high is None or share.high >= t["share"] for share in shares.values())
    because = (
        f"told apart in {t['share']:g}% or more by the whole interval: {told} of {len(shares)} kinds, and {could} could be"
    )
    return decided(because, shares, told >= t["kinds"], could < t["kinds"], enough(e, t))


def _more(e: Evidence, t: Mapping[str, Real], rival: str) -> Finding:
    gain, both = page.gain(e, rival), {name: page.harder(e, name) for name in ("embeddings", rival)}
    numbers = {imagining.NAMES[name]: share for name, share in both.items()} | {"difference, pair by pair": gain}
    because = "over the harder kinds, told apart: " + "; ".join(
        f"{said(share)} by the model that {imagining.NAMES[name]}" for name, share in both.items()
    )
    return decided(because, numbers, above(gain), below(gain), enough(e, t))


def _pixels(e: Evidence, t: Mapping[str, Real]) -> Finding:
    return _more(e, t, "pixels")


def _untrained(e: Evidence, t: Mapping[str, Real]) -> Finding:
    return _more(e, t, "untrained")


_IF = "After all of the recipe's steps, of {seeds:g} seeds at least, supported if "
_MORE = (
    "over the harder kinds it tells more pairs apart than the model that %s, by the whole interval of the difference, pair by pair; "
    "contradicted if fewer by the whole interval; else inconclusive."
)
RULE = Rule(
    "A model that learned to predict embeddings of simulated videos of discs sees pairs of clips that are the same up to a frame; then one "
    "goes on as physics does, and in the other a disc vanishes, jumps or changes its colour (easy), turns back, falls up, stands still, "
    "flies through a wall or another disc, or stays behind a wall (harder). Surprise is the error of the prediction of each next frame, a "
    "mean over the clip, and a pair is told apart where the impossible clip surprises more. Beside it stand the same model taught to "
    "predict pixels, whose error is that of pixels, and one that learned nothing. The 95% interval is that over pairs (Wilson's of a "
    "share), or Student's over the seeds where that is wider.",
    (
        Criterion(
            "what any frame tells",
            _IF
            + "pairs are told apart in at least {share:g}% by the whole interval where a disc vanishes and where it jumps; contradicted "
            "if in fewer by the whole interval in one of both; else inconclusive.",
            _plain,
            {"share": 95, "seeds": 3},
        ),
        Criterion(
            "what only physics tells",
            _IF
            + "pairs of at least {kinds:g} of the harder kinds are told apart in at least {share:g}% by the whole interval; contradicted "
            "if the interval of fewer kinds than that reaches it; else inconclusive.",
            _hard,
            {"share": 85, "kinds": 4, "seeds": 3},
        ),
        Criterion("more than pixels", _IF + _MORE % "predicts pixels", _pixels, {"seeds": 3}),
        Criterion("more than nothing learned", _IF + _MORE % "learned nothing", _untrained, {"seeds": 3}),
    ),
)


class IntuitivePhysics:
    """See the module's docstring."""

    id = "intuitive_physics"
    title = "What surprises in latent space"
    sentence = SENTENCES[id]
    sources = (
        Source("Garrido et al. 2025, Intuitive physics emerges from self-supervised pretraining on videos", "arXiv 2502.11831"),
        Source("Riochet et al. 2018, IntPhys: a framework and benchmark for visual intuitive physics", "arXiv 1803.07616"),
        Source("Bordes et al. 2025, IntPhys 2: most models are near chance", "arXiv 2506.09849"),
    )
    rule = RULE
    weight = 1.0

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """Training, then asking."""
        return (
            Step("train models that predict embeddings and pixels", imagining.LEARN * budget_s),
            Step("see what cannot be", (1 - imagining.LEARN) * budget_s),
        )

    def run(self, ctx: Context) -> Result:
        """Measure."""
        from postformer.data.impossible import EASY, KINDS

        runs, about = imagining.learned(ctx)
        evidence = {
            **about,
            "easy": list(EASY),
            "hard": [kind for kind in KINDS if kind not in EASY],
            "told": {
                kind: ctx.step(f"see what cannot be: {kind}", lambda k=kind: _told(ctx, runs, k, about["asked"]))
                for kind in KINDS
            },
            "pair": ctx.step("surprise along a pair", lambda: _along(ctx, runs)),
        }
        return conclude(
            self,
            evidence,
            headline=Headline(page.harder(evidence), "pairs of the harder kinds told apart by surprise over embeddings"),
            tables=(page.kinds(evidence),),
            charts=(page.chart(evidence),),
            films=(page.film(evidence, ctx.step("pictures", lambda: _strips(runs, ctx.seeds[0]))),),
            limits=(*page.limits(), *imagining.limits(evidence)),
            consequences=page.consequences(evidence),
        )


def _told(ctx: Context, runs: Mapping[str, Run], kind: str, pairs: int) -> dict[str, dict[str, Any]]:
    """Of each pair 1 where the impossible clip surprises more, 0 where less and a half where as much."""
    import torch

    from postformer.objectives.surprise import told_apart

    def ask(model: Any, run: Run, seed: int) -> dict[str, Any]:
        found = imagining.surprises(model, run, kind, seed, pairs)
        possible, impossible = (torch.tensor(found[name], dtype=torch.float64) for name in page.CLIPS)
        return {
            "apart": ((impossible - possible).sign() / 2 + 0.5).tolist(),
            "auroc": told_apart(possible, impossible).auroc,
        }

    return imagining.each(ctx, runs, f"see what cannot be: {kind}", ask)


def _along(ctx: Context, runs: Mapping[str, Run]) -> dict[str, Any]:
    """The surprise of each frame of the pair that is shown, of the first seed's model."""
    import torch

    from postformer.objectives.surprise import surprise

    pair = _pair(runs, ctx.seeds[0])
    model, _ = imagining.opened(ctx, runs, "embeddings", ctx.seeds[0])
    clips = {name: torch.from_numpy(getattr(pair, name))[None] for name in page.CLIPS}
    return {
        "kind": SHOWN,
        "frame": pair.frame,
        **{name: surprise(model, {"clips": clip})[0].tolist() for name, clip in clips.items()},
    }


def _strips(runs: Mapping[str, Run], seed: int) -> list[Strip]:
    pair = _pair(runs, seed)
    return [strip(name, getattr(pair, name)) for name in page.CLIPS]


def _pair(runs: Mapping[str, Run], seed: int) -> Any:
    from postformer.data.impossible import pair

    return pair(imagining.world(runs["embeddings"]), SHOWN, 0, seed=imagining.ASKED_SEED + seed)


CLAIM = IntuitivePhysics()
