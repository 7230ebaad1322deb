"""Masked latent prediction: by hand, the teacher's walk, a run that goes on to the bit, and collapse without what prevents it."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from postformer.config import ConfigError, OptimConfig, Run, TrainConfig, build
from postformer.data.physics import Physics
from postformer.models.jepa import Jepa
from postformer.objectives import OBJECTIVES
from postformer.objectives.masked import Masked
from postformer.ops.isotropy import correlated, effective_rank, too_narrow
from postformer.tokens.masks import Blocks, Tubes
from postformer.train.begin import averaged
from postformer.train.loop import evaluate
from postformer.train.session import check, open_model, train_run

HEADS = {"kind": "spacetime", "heads": 2, "bias": True}
TINY = {"patch": (2, 4, 4), "dim": 24, "depth": 2, "mixers": (HEADS,), "predictor_dim": 12, "predictor_depth": 1}


def jepa(channels: int = 3, **words) -> Jepa:
    torch.manual_seed(0)
    return Jepa(channels, **{**TINY, "predictor_mixers": (HEADS,), **words})


def clips(batch: int = 3) -> dict:
    return {"clips": torch.randn(batch, 3, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))}


def moved(objective: Masked, by: float = 0.1) -> Masked:
    """A model that is no longer what its teacher is."""
    with torch.no_grad():
        for p in objective.model.parameters():
            p.add_(by * torch.randn_like(p))
    return objective


RECIPES = {
    "v-jepa": ({}, [Tubes(count=8, scale=0.15, least=0.05), Tubes(count=2, scale=0.7, least=0.05)], "l1"),
    "i-jepa": ({"masks": "blocks", "loss": "smooth-l1"}, [Blocks()], "smooth-l1"),
    "one": ({"tubes": ((3, 0.2),), "aspect": (1.0, 1.0)}, [Tubes(count=3, scale=0.2, aspect=(1.0, 1.0), least=0.05)], "l1"),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("teacher", [True, False])
def test_the_loss_by_hand(name, teacher):
    """One set of targets after the other, as published: of the teacher's normalised embeddings of whole clips, or of the model's own."""
    words, recipes, loss = RECIPES[name]
    objective, batch = moved(Masked(jepa(), teacher=teacher, **words).double()), clips()
    torch.manual_seed(7)
    out = objective(batch)
    x, model = batch["clips"], objective.model
    whole = (objective.average if teacher else model).encode(x)
    goal = (
        whole
        if not teacher
        else (whole - whole.mean(-1, keepdim=True)) / (whole.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    )
    torch.manual_seed(7)
    wrong = []
    for which, recipe in enumerate(recipes):
        mask = recipe.draw(3, (2, 4, 4))
        z = model.encode(x, mask.context)
        each = []
        for targets in mask.targets.unbind(1):
            off = model.predict(z, mask.context, targets, (2, 4, 4), which) - torch.stack(
                [g[t] for g, t in zip(goal, targets, strict=True)]
            )
            each.append((off.abs() if loss == "l1" else torch.where(off.abs() < 1, off.square() / 2, off.abs() - 0.5)).mean())
        wrong.append(torch.stack(each).mean())
    expected = torch.stack(wrong).mean()
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-9)
    assert out["predicted"].item() == out["loss"].item() and int(out["tokens"]) == 3 * 32
    assert out["deviation"].item() == pytest.approx(whole.var(0, correction=0).sqrt().mean().item(), rel=1e-5)
    assert out["rank"].item() == pytest.approx(effective_rank((whole - whole.mean(0)).detach().flatten(0, 1)), rel=1e-4)
    mine, by_hand = (torch.autograd.grad(of, model.embed.weight)[0] for of in (out["loss"], expected))
    assert torch.allclose(mine, by_hand, rtol=1e-8, atol=1e-12), "gradients flow through targets only where there is no teacher"


@pytest.mark.parametrize("teacher", [True, False])
def test_what_keeps_embeddings_apart_is_about_each_place(teacher):
    words = {"teacher": teacher, "normal": 2.0, "lines": 16, "wide": 3.0, "apart": 0.5}
    objective = moved(Masked(jepa(), **words).double())
    out, z = objective(clips(8)), objective.model.encode(clips(8)["clips"])
    about = (z - z.mean(0)).flatten(0, 1)
    assert out["wide"].item() == pytest.approx(too_narrow(about).item())
    assert out["apart"].item() == pytest.approx(correlated(about).item())
    total = out["predicted"] + 2 * out["normal"] + 3 * out["wide"] + 0.5 * out["apart"]
    assert out["loss"].item() == pytest.approx(total.item())
    objective.lines = 32
    known, place = torch.randn(512, 4, 8, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    assert objective._normal(known) < 2 < 100 < objective._normal(0 * known + place), "to give the place alone is no cloud"


def test_the_teacher_walks_from_the_first_momentum_to_the_second():
    objective = moved(Masked(jepa(), momentum=(0.5, 1.0), over=4).double())
    model, teacher = (dict(of.named_parameters()) for of in (objective.model, objective.average))
    assert not any(p.requires_grad for p in teacher.values())
    for step, keep in ((0, 0.5), (1, 0.625), (2, 0.75), (4, 1.0), (9, 1.0)):
        expected = {name: keep * p.detach() + (1 - keep) * model[name].detach() for name, p in teacher.items()}
        objective.after_step(step)
        for name, p in teacher.items():
            assert torch.allclose(p, expected[name], rtol=1e-12, atol=1e-14), (step, name)
    constant = moved(Masked(jepa(), momentum=(0.25, 1.0)).double())
    before = constant.average.embed.weight.clone()
    constant.after_step(1000)
    assert torch.allclose(constant.average.embed.weight, before.lerp(constant.model.embed.weight, 0.75))


def test_images_are_clips_of_one_frame():
    objective, x = Masked(jepa(patch=(1, 4, 4))), torch.randn(2, 3, 16, 16)
    torch.manual_seed(0)
    a = objective({"images": x})
    torch.manual_seed(0)
    assert torch.equal(a["loss"], objective({"clips": x[:, :, None]})["loss"])


def test_mixtures_of_experts_are_taught_too():
    moe = {"kind": "moe", "experts": 4, "top": 2, "hidden": 8, "balance": 0.1}
    out = Masked(jepa(ffns=(moe,)))({"clips": torch.randn(2, 3, 4, 16, 16)})
    assert {"router_balance", "max_violation", "dead_experts"} <= out.keys()
    assert out["loss"] > out["predicted"]


def run(**words) -> Run:
    model = {"kind": "jepa", **{k: v for k, v in TINY.items() if k != "patch"}, "depth": 1, "predictor_mixers": [HEADS]}
    return Run(
        name="tiny",
        model=model,
        objective={"kind": "masked", "momentum": [0.9, 1.0], "over": 4, **words},
        data={"kind": "physics", "frames": 4, "size": 16},
        optim=OptimConfig(warmup=1, schedule="constant"),
        train=TrainConfig(steps=4, batch=2, save_every=2, log_every=1, threads=1),
    )


def test_an_interrupted_run_goes_on_to_the_same_bits_its_teacher_too(tmp_path):
    straight = train_run(run(), tmp_path / "straight").checkpoint
    half = dataclasses.replace(run(), train=dataclasses.replace(run().train, steps=2))
    train_run(half, tmp_path / "two")
    resumed = train_run(run(), tmp_path / "two").checkpoint
    for file in ("model.safetensors", "objective.safetensors", "optim.safetensors"):
        a, b = load_file(straight / file), load_file(resumed / file)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a), file
    teacher = averaged(straight)
    model = open_model(straight)
    assert teacher is not None and teacher.keys() == model.state_dict().keys()
    assert not torch.equal(teacher["embed.weight"], model.embed.weight)
    begun = dataclasses.replace(
        run(), begin=str(straight), train=dataclasses.replace(run().train, steps=1), optim=OptimConfig(lr=0.0)
    )
    made = train_run(begun, tmp_path / "begun").checkpoint
    for found in (load_file(made / "model.safetensors"), averaged(made)):
        assert found is not None and torch.equal(found["embed.weight"], teacher["embed.weight"]), (
            "begin takes the teacher's weights"
        )


STEPS = 60
APART = {"teacher": False, "wide": 1.0, "apart": 0.04}
WORDS = {"teacher": {"momentum": (0.98, 1.0), "over": STEPS}, "apart": APART, "neither": {"teacher": False}}


@pytest.fixture(scope="module")
def learned() -> dict[str, tuple[dict, dict]]:
    """What the objective says of held-out clips of a flying disc before and after some steps, with each way to keep embeddings apart."""
    physics = Physics(frames=4, size=16)
    batches, held, said = physics.batches(8, 0), physics.batches(32, 0, "test"), {}
    for name, words in WORDS.items():
        objective = Masked(jepa(depth=1), **words)
        optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], 5e-3)
        before = evaluate(objective, held, 1)
        for i in range(STEPS):
            optimizer.zero_grad()
            objective(batches.batch(i))["loss"].backward()
            optimizer.step()
            objective.after_step(i)
        said[name] = before, evaluate(objective, held, 1)
    return said


def test_it_learns_with_a_teacher(learned):
    before, after = learned["teacher"]
    assert after["loss"] < 0.1 * before["loss"]
    assert after["rank"] > 0.7 * before["rank"]
    assert after["deviation"] > 0.2 * before["deviation"]


def test_it_learns_without_one_where_embeddings_are_kept_apart(learned):
    before, after = learned["apart"]
    assert after["loss"] < 0.7 * before["loss"] and after["predicted"] < 0.4 * before["predicted"]
    assert after["deviation"] > before["deviation"]


def test_embeddings_collapse_with_neither(learned):
    """What is the same in every clip is predicted well. The deviation tells; the rank, which has no scale, does not."""
    before, after = learned["neither"]
    assert after["predicted"] < 0.05 * before["predicted"]
    assert after["deviation"] < 0.1 * before["deviation"]
    assert after["deviation"] < 0.3 * learned["teacher"][1]["deviation"]
    assert after["deviation"] < 0.1 * learned["apart"][1]["deviation"]
    assert after["rank"] > before["rank"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"momentum": [0.9, 1.1]}, r"objective: momentum=\(0.9, 1.1\) must be from 0 to 1"),
        ({"over": -1}, "over=-1 steps at least 0"),
        ({"wide": -1.0}, "normal=0, wide=-1 and apart=0 must be at least 0"),
        ({"lines": 0}, "lines=0 at least 1"),
        ({"tubes": []}, "tubes: name at least one"),
        ({"tubes": [[0, 0.1]]}, "count=0 of tubes"),
        ({"masks": "rows"}, "objective.masks: 'rows' is not a choice; choose from tubes, blocks"),
        ({"masks": "blocks", "scale": [0.0, 0.1]}, "scale=0 to 0.1 must be shares of a frame"),
    ],
)
def test_mistakes_are_told(words, says):
    with pytest.raises(ConfigError, match=says):
        build({"kind": "masked", **words}, OBJECTIVES, "objective", model=jepa())


def test_runs_that_cannot_go_well_are_refused_before_they_begin(tmp_path):
    (tmp_path / "one.mp4").touch()
    check(run())
    for words, says in (
        ({"data": {"kind": "physics", "frames": 3}}, "data: 3 frames are not a multiple of the patch's 2"),
        ({"data": {"kind": "videos", "path": str(tmp_path), "shape": "own"}}, "data.shape: 'own' puts clips of several sizes"),
        ({"objective": {"kind": "denoise"}}, "'denoise' does not teach model.kind, which is 'jepa'; choose masked"),
        ({"objective": {"kind": "masked", "tubes": [[2, 1.0]], "aspect": [1.0, 1.0]}}, "2 tubes of scale 1 leave fewer than 1"),
        ({"model": {"kind": "dit"}}, "objective.kind: 'masked' does not teach model.kind, which is 'dit'; choose denoise"),
    ):
        with pytest.raises(ConfigError, match=says):
            check(dataclasses.replace(run(), **words))
    with pytest.raises(ValueError, match="clips of several sizes in one batch have no mask"):
        Masked(jepa())({"clips": [torch.zeros(3, 2, 8, 8)]})
