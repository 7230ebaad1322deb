"""Claim: plans that a model searches for in what it imagines lead to what a picture shows, measured in two rooms with a door."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from postformer.claims import SENTENCES
from postformer.claims import plan_in_latent_page as page
from postformer.claims.film import Strip
from postformer.claims.imagining import above, below, decided, enough, rank_charts, ranks, said
from postformer.claims.ledger import (
    Context,
    Criterion,
    Finding,
    Headline,
    NotMeasurable,
    Real,
    Result,
    Rule,
    Source,
    Step,
    conclude,
)
from postformer.config import Run

LEARN, SAMPLED = 0.7, 4
"""Training's share of the budget, and the steps of each model that are timed before."""
ASKED = ((900, 200), (240, 50), (0, 2))
"""From which budget of a seed on how many problems of a task are posed."""
POSED = 1000
"""Problems are those of this seed and more."""
WALKS = 64
"""From which a probe learns to read places, for pictures alone."""
SHOWN = 2
"""Problems whose plans are shown."""
Evidence = Mapping[str, Any]


def _goals(e: Evidence, t: Mapping[str, Real]) -> Finding:
    found = {task: page.reached(e, task, "cem") for task in page.TASKS}
    because = "; ".join(f"{page.TASKS[task]}: {said(number)} of the goals are reached" for task, number in found.items())
    least = t["least"]
    enough_of = all(number.low is not None and number.low >= least for number in found.values())
    fails = any(number.high is not None and number.high < least for number in found.values())
    return decided(because, {page.TASKS[task]: number for task, number in found.items()}, enough_of, fails, enough(e, t))


def _imagining(e: Evidence, t: Mapping[str, Real]) -> Finding:
    gains = {
        f"{page.TASKS[task]}: plans, less {page.WAYS[way]}": page.gain(e, task, "cem", way)
        for task in page.TASKS
        for way in ("untrained", "straight", "random")
    }
    because = "; ".join(f"{name} {said(number)}" for name, number in gains.items())
    return decided(because, gains, all(map(above, gains.values())), any(map(below, gains.values())), enough(e, t))


def _at_most_below(e: Evidence, t: Mapping[str, Real], way: str, other: str) -> Finding:
    gains = {
        f"{page.TASKS[task]}: {page.WAYS[way]}, less {page.WAYS[other]}": page.gain(e, task, way, other) for task in page.TASKS
    }
    because = "; ".join(f"{name} {said(number)}" for name, number in gains.items())
    within = all(number.low is not None and number.low >= -t["within"] for number in gains.values())
    further = any(number.high is not None and number.high < -t["within"] for number in gains.values())
    return decided(because, gains, within, further, enough(e, t))


def _simulator(e: Evidence, t: Mapping[str, Real]) -> Finding:
    return _at_most_below(e, t, "cem", "oracle")


def _at_once(e: Evidence, t: Mapping[str, Real]) -> Finding:
    return _at_most_below(e, t, "reach", "cem")


_IF = "After all of the recipe's steps, of {seeds:g} seeds at least, supported if in both tasks "
RULE = Rule(
    "A model learns embeddings of pictures of a dot that is pushed through two rooms, and what a push makes of them; in one task wall and "
    "door are always where they were, in the other they differ from walk to walk. Then it sees the dot in one room and a picture of it in "
    "the other, searches for 16 actions of five pushes that lead there in what it imagines (the cross-entropy method), does two of them, "
    "looks again, and so on for 200 pushes. A goal is reached where the dot is within 4.5 pixels of it at the end. No problem is solved at "
    "its beginning, and all need the door. The same problems are posed to all. Intervals are 95%: of shares Wilson's, of differences that "
    "over problems, or Student's over the seeds where that is wider.",
    (
        Criterion(
            "reaches the goal",
            _IF
            + "at least {least:g}% of the goals are reached, by the whole interval; contradicted if fewer in one of them, by the whole "
            "interval; else inconclusive.",
            _goals,
            {"least": 90, "seeds": 3},
        ),
        Criterion(
            "by what it learned",
            _IF
            + "it reaches more than the same search with a model that learned nothing, than going straight for the goal and than any "
            "actions, by the whole intervals of the differences; contradicted if fewer than one of them in one task, by the whole "
            "interval; else inconclusive.",
            _imagining,
            {"seeds": 3},
        ),
        Criterion(
            "as well as with the simulator",
            _IF
            + "it reaches at most {within:g} points less than the same search in the true simulator, by the whole interval of the "
            "difference; contradicted if further below in one of them, by the whole interval; else inconclusive.",
            _simulator,
            {"within": 5, "seeds": 3},
        ),
        Criterion(
            "and without a search",
            _IF
            + "what the model tells at once, without a search, reaches at most {within:g} points less than the search, by the whole "
            "interval of the difference; contradicted if further below in one of them, by the whole interval; else inconclusive.",
            _at_once,
            {"within": 5, "seeds": 3},
        ),
    ),
)


class PlanInLatent:
    """See the module's docstring."""

    id = "plan_in_latent"
    title = "Plans in latent space"
    sentence = SENTENCES[id]
    sources = (
        Source("Sobal et al. 2025, PLDM: planning with latent dynamics learned from reward-free data", "arXiv 2502.14819"),
        Source("Terver et al. 2026, EB-JEPA: 97% of the goals with walls anywhere", "arXiv 2602.03604"),
        Source("Maes et al. 2026, LeWorldModel: 87% in two rooms, 96% of Push-T", "arXiv 2603.19312"),
        Source("An inverse model on frozen embeddings matches the cross-entropy method in 7 of 8 settings", "arXiv 2605.08732"),
    )
    rule = RULE
    weight = 1.0

    def plan(self, budget_s: Real, seeds: int) -> Sequence[Step]:
        """Training, then planning."""
        return (
            Step("train models of two rooms", LEARN * budget_s),
            Step("plan to goals", (1 - LEARN) * budget_s),
        )

    def run(self, ctx: Context) -> Result:
        """Measure. Raises NotMeasurable where gymnasium is not installed."""
        from postformer.claims import tasks

        try:
            whole = recipes()
        except ImportError as e:
            raise NotMeasurable(str(e)) from e
        runs = tasks.fitted(ctx, whole, LEARN * ctx.budget_s, SAMPLED)
        tasks.learn(ctx, runs.values())
        asked = next(count for least_s, count in ASKED if ctx.budget_s / len(ctx.seeds) >= least_s)
        own, steps = next(iter(runs.values())), next(iter(whole.values())).train.steps
        evidence = {
            "reached": {
                task: ctx.step(f"plan to goals: {name}", lambda t=task: _reached(ctx, runs[t], t, asked))
                for task, name in page.TASKS.items()
            },
            "seeds": list(ctx.seeds),
            "asked": asked,
            "walks": own.train.steps * own.train.batch,
            "taken": f"{own.train.steps:,} of the recipe's {steps:,} steps",
            "taken_share": own.train.steps / steps,
        }
        return conclude(
            self,
            evidence,
            headline=Headline(page.reached(evidence, "moving", "cem"), "of the goals reached by plans, with walls anywhere"),
            tables=tuple(page.table(evidence, task) for task in page.TASKS),
            charts=rank_charts(ctx.step("effective rank", lambda: ranks(ctx, runs)), page.TASKS),
            films=page.films(ctx.step("pictures", lambda: {task: _strips(ctx, runs[task], task) for task in page.TASKS})),
            limits=page.limits(evidence),
            consequences=page.consequences(evidence),
        )


def recipes() -> dict[str, Run]:
    """What is trained, by task. Raises ImportError where gymnasium is not installed."""
    from postformer.embodied.tasks import TASKS
    from postformer.recipes import RECIPES

    found = {}
    for name in page.TASKS:
        run = RECIPES[TASKS[name].recipe]()
        found[name] = dataclasses.replace(run, name=f"{run.name}-{name}", data={**run.data, **TASKS[name].data})
    return found


def _reached(ctx: Context, run: Run, task: str, asked: int) -> dict[str, dict[str, Any]]:
    """Of each way, and each seed of those that learned, what was reached at the end, by the rule and the stricter one, and ever: a 1 or a 0
    for each problem; and the seconds to a first plan of one problem."""
    from postformer.claims import tasks
    from postformer.embodied.tasks import TASKS
    from postformer.embodied.trials import problems
    from postformer.train.process import freed_memory_kept, threads
    from postformer.train.session import open_model, prepare

    own, found = TASKS[task], {}
    env = own.env()
    posed = problems(env, range(POSED, POSED + asked))
    with threads(ctx.threads), freed_memory_kept():
        for at, way in enumerate(page.WAYS):
            ctx.progress(f"plan to goals: {page.TASKS[task]}: {page.WAYS[way]}", at, len(page.WAYS))
            if way in page.LEARNED:
                models = {str(seed): open_model(tasks.folder(ctx, run, seed)).eval() for seed in ctx.seeds}
            elif way == "untrained":
                models = {str(seed): prepare(dataclasses.replace(run, seed=seed))[1].eval().model for seed in ctx.seeds}
            else:
                models = {"": None}
            found[way] = {seed: _tried(own, env, way, model, posed) for seed, model in models.items()}
    return found


def _tried(task: Any, env: Any, way: str, model: Any, posed: Any) -> dict[str, Any]:
    import time

    from postformer.embodied.tasks import policy
    from postformer.embodied.trials import tried

    method = "cem" if way == "untrained" else way
    found = tried(env, policy(task, env, method, model), posed, task.steps)
    alone, clock = policy(task, env, method, model), time.perf_counter()
    alone(posed.start[:1], posed.goal[:1])
    seconds = time.perf_counter() - clock
    reached = {"reached": found.at_end[:, 0], "nearer": found.at_end[:, 1], "ever": found.ever[:, 0]}
    return {**{name: "".join("01"[int(one)] for one in own) for name, own in reached.items()}, "plan_s": seconds}


def _strips(ctx: Context, run: Run, task: str) -> dict[str, list[Strip]]:
    """With the first seed's model: the first plan of the first problems, as it is imagined and as it would truly go; and what was done
    until the end of the first, by the ways that are shown."""
    import numpy as np
    import torch

    from postformer.claims import tasks
    from postformer.embodied.acting import as_seen
    from postformer.embodied.tasks import TASKS, policy
    from postformer.embodied.trials import Problems, problems, walked
    from postformer.models.probes import probe
    from postformer.train.process import freed_memory_kept, threads
    from postformer.train.session import open_model, prepare

    own = TASKS[task]
    env = own.env()
    posed = problems(env, range(POSED, POSED + SHOWN))
    planned, gone = [], []
    with threads(ctx.threads), freed_memory_kept(), torch.no_grad():
        model: Any = open_model(tasks.folder(ctx, run, ctx.seeds[0])).eval()
        batch = prepare(run)[2].batches(WALKS, POSED).batch(0)
        reads = probe(model.encode(batch["observations"]).flatten(0, 1), batch["states"].flatten(0, 1)[:, :2])
        acting: Any = policy(own, env, "cem", model)
        acting(*posed)
        actions = acting.left.actions.repeat_interleave(own.lasting, 1)
        true = env.states(env.advance(posed.start, actions.double().numpy()))[:, own.lasting - 1 :: own.lasting]
        z = model.encode(as_seen(env.pictures(env.states(posed.start))))
        imagined = reads(model.imagine(z, actions.reshape(SHOWN, -1, model.actions))[0]).numpy()
        goals = env.pictures(posed.goal)
        planned += [page.strip_of(f"plan {i + 1}", env.pictures(true[i]), goals[i], true[i], imagined[i]) for i in range(SHOWN)]
        first = Problems(posed.start[:1], posed.goal[:1])
        for way in page.FILMED:
            states = env.states(walked(env, policy(own, env, way, model), first, own.steps))[0]
            looks = states[:: own.lasting * own.execute]
            gone.append(page.strip_of(page.WAYS[way], env.pictures(looks), goals[0], looks, np.empty((0, 2))))
    return {"planned": planned, "gone": gone}


CLAIM = PlanInLatent()
