"""Recipes: complete, of one size where they are compared, and trainable."""

import dataclasses
import math

import numpy as np
import pytest
import small
import torch
from safetensors.torch import load_file

from postformer.config import Run, build, parse, plain
from postformer.data import ASKED, DATA, READINGS
from postformer.data.episode_writer import EpisodeWriter
from postformer.models import MODELS
from postformer.recipes import RECIPES
from postformer.train.session import check, open_model, sizes_of, train_run

VOCAB = 4096
TEXT = [name for name in RECIPES if RECIPES[name]().data["kind"] == "text"]
TASKS = [name for name in RECIPES if RECIPES[name]().data["kind"] in ASKED]
PICTURES = [name for name in RECIPES if RECIPES[name]().data["kind"] in ("images", "physics")]
SERIES = [name for name in RECIPES if RECIPES[name]().data["kind"] == "series"]


def parameters(name: str) -> int:
    run = RECIPES[name]()
    sizes = {"vocab": VOCAB} if name in TEXT else sizes_of(run, build(run.data, DATA, "data"))
    with torch.device("meta"):
        return build(run.model, MODELS, "model", **sizes).cost(1).parameters


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small.corpus(tmp_path_factory.mktemp("recipes") / "corpus", 600)


def shorter(run: Run, **train) -> Run:
    return dataclasses.replace(
        run, train=dataclasses.replace(run.train, **{"batch": 2, "threads": 1, "eval_every": 0, **train})
    )


def recorded(run: Run, path) -> Run:
    """With a few small walks where it learns from a recording."""
    if run.data["kind"] != "episodes":
        return run
    with EpisodeWriter(path) as writer:
        for number in range(3):
            rng = np.random.default_rng(number)
            seen = rng.integers(256, size=(12, 3, 64, 64), dtype=np.uint8)
            writer.add(seen, rng.normal(size=(11, 4)), seed=number)
    return dataclasses.replace(run, data={**run.data, "path": str(path)})


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_complete_run(name, tmp_path):
    run = recorded(RECIPES[name](), tmp_path / "walks.h5")
    assert run.name == name
    assert parse(Run, plain(run)) == parse(Run, plain(parse(Run, plain(run))))
    assert RECIPES[name].__doc__
    check(run)


@pytest.mark.parametrize("name", TEXT)
def test_a_text_recipe_takes_a_step(name, corpus, tmp_path):
    run = dataclasses.replace(RECIPES[name](), data={"kind": "text", "path": str(corpus), "length": 32})
    summary = train_run(shorter(run, steps=1), tmp_path / name)
    assert summary.step == 1
    assert 4 < summary.loss < 7  # ln 257 = 5.5


@pytest.mark.parametrize("name", [name for name in TASKS if RECIPES[name]().data["kind"] in READINGS])
def test_a_reading_recipe_has_room_in_its_shortest_texts(name):
    """As it stands, in bytes: hundreds of them hold what they must, so that no training ends at an unlucky draw."""
    task = build(RECIPES[name]().data, DATA, "data")
    shortest, _ = task.lengths(0)
    ids, _ = task.draw(np.random.default_rng(0), 300, shortest)
    assert ids.shape == (300, shortest)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_recipe_goes_on_where_it_stopped(name, tmp_path):
    """The weights after three steps are those after two and one more, and a saved task model opens without a tokenizer, unless it reads."""
    run = RECIPES[name]()
    train_run(shorter(run, steps=3), tmp_path / "whole")
    train_run(shorter(run, steps=2), tmp_path / "parts")
    summary = train_run(shorter(run, steps=3, eval_every=3, eval_batches=1), tmp_path / "parts")
    whole, parts = (open_model(tmp_path / part) for part in ("whole", "parts"))
    assert (whole.tokens is None) == (run.data["kind"] not in READINGS)
    assert 0 <= summary.valid["valid_accuracy"] <= 1
    for (place, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), place


@pytest.mark.parametrize("name", SERIES)
def test_a_forecast_goes_on_where_it_stopped(name, tmp_path):
    """The weights after three steps are those after two and one more, dropout included."""
    lines = (f"d,{math.sin(i / 4):.4f},{i % 24}" for i in range(1200))
    (tmp_path / "own.csv").write_text("\n".join(["date,a,b", *lines]))
    run = RECIPES[name]()
    run = dataclasses.replace(run, data={**run.data, "path": str(tmp_path / "own.csv"), "horizon": 10})
    train_run(shorter(run, steps=3), tmp_path / "whole")
    train_run(shorter(run, steps=2), tmp_path / "parts")
    summary = train_run(shorter(run, steps=3, eval_every=3, eval_batches=1), tmp_path / "parts")
    whole, parts = (open_model(tmp_path / part) for part in ("whole", "parts"))
    assert (whole.look_back, whole.horizon) == (96, 10)
    assert {"valid_mse", "valid_mae"} <= summary.valid.keys()
    for (place, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), place


def test_the_recipes_that_are_compared_have_one_size():
    for one, other in (("text-mamba", "text-attention"), ("text-memory", "text-window")):
        assert abs(parameters(one) / parameters(other) - 1) < 0.03
    assert all(9e5 < parameters(name) < 3e6 for name in TEXT)


def test_parity_without_rotation_is_the_same_but_for_the_rotation():
    rotating, real = (plain(RECIPES[name]()) for name in ("parity", "parity-real"))
    assert real["model"]["mixers"][0].pop("rotated") == 0
    assert rotating["model"]["mixers"][0].pop("rotated", 0.5) > 0
    assert {**real, "name": "parity"} == rotating


def test_the_induction_heads_are_no_larger_than_the_papers():
    """Table 11 gives 74K parameters."""
    assert 60_000 < parameters("induction") < 74_500


def test_the_steps_of_time_start_where_the_induction_recipe_says():
    torch.manual_seed(0)
    model = build(RECIPES["induction"]().model, MODELS, "model", vocab=16)
    for block in model.backbone.blocks:
        dt = torch.nn.functional.softplus(block.mixer.dt.bias.detach())
        assert 0.99e-12 < float(dt.min()) < 2e-12
        assert 5e-12 < float(dt.max()) < 1.01e-11


@pytest.mark.parametrize("name", PICTURES)
def test_a_recipe_of_pictures_goes_on_where_it_stopped(name, tmp_path):
    """The weights after three steps, and their average, are those after two and one more."""
    run = RECIPES[name]()
    if run.data["kind"] == "images":
        images = np.random.default_rng(0).integers(0, 256, (40, 12, 12), dtype=np.uint8)
        np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) % 3)
        run = dataclasses.replace(run, data={**run.data, "path": str(tmp_path / "a.npz")})
    train_run(shorter(run, steps=3), tmp_path / "whole")
    train_run(shorter(run, steps=2), tmp_path / "parts")
    summary = train_run(shorter(run, steps=3, eval_every=3, eval_batches=1), tmp_path / "parts")
    assert math.isfinite(summary.valid["valid_loss"])
    ends = [sorted((tmp_path / part / "checkpoints").iterdir())[-1] for part in ("whole", "parts")]
    for file in ("model.safetensors", *(["objective.safetensors"] if run.objective["kind"] == "denoise" else [])):
        whole, parts = (load_file(end / file) for end in ends)
        assert whole.keys() == parts.keys()
        for place, value in whole.items():
            assert torch.equal(value, parts[place]), place


def test_rivals_on_physics_take_equal_operations():
    """A clip, and parameters, within 5%: the transformer over spacetime patches and the U-Net; the factorised one compares fewer pairs."""
    flops, parameters = {}, {}
    for name in ("physics-dit", "physics-frames", "physics-unet"):
        run = RECIPES[name]()
        data = build(run.data, DATA, "data")
        with torch.device("meta"):
            model = build(run.model, MODELS, "model", **sizes_of(run, data))
        flops[name], parameters[name] = model.flops(data.clip_size), sum(p.numel() for p in model.parameters())
    assert flops["physics-unet"] == pytest.approx(flops["physics-dit"], rel=0.05)
    assert parameters["physics-unet"] == pytest.approx(parameters["physics-dit"], rel=0.05)
    assert parameters["physics-frames"] == parameters["physics-dit"] and flops["physics-frames"] < 0.6 * flops["physics-dit"]


def test_rivals_on_images_take_equal_operations():
    """An image, within 5%, and as many images a step."""
    for names, size in ((("see-vit", "see-convnet"), (28, 28)), (("draw-dit", "draw-unet"), (1, 28, 28))):
        flops = []
        for name in names:
            with torch.device("meta"):
                flops.append(build(RECIPES[name]().model, MODELS, "model", **_known_sizes(name)).flops(size))
        assert flops[0] == pytest.approx(flops[1], rel=0.05), names
        assert len({(RECIPES[name]().train.batch, RECIPES[name]().train.steps) for name in names}) == 1


def _known_sizes(name: str) -> dict:
    sizes = {"channels": 1, "classes": 10}
    return {**sizes, "size": (28, 28)} if name == "see-vit" else sizes
