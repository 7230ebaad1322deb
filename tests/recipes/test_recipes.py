"""Recipes: complete, of one size, and trainable."""

import dataclasses

import pytest
import small
import torch

from postformer.config import Run, build, parse, plain
from postformer.models import MODELS
from postformer.recipes import RECIPES
from postformer.train.session import check, train_run

VOCAB = 4096


def parameters(name: str) -> int:
    with torch.device("meta"):
        return build(RECIPES[name]().model, MODELS, "model", vocab=VOCAB).cost(1).parameters


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small.corpus(tmp_path_factory.mktemp("recipes") / "corpus", 600)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_complete_run(name):
    run = RECIPES[name]()
    assert run.name == name
    assert parse(Run, plain(run)) == parse(Run, plain(parse(Run, plain(run))))
    assert RECIPES[name].__doc__
    check(run)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_a_step(name, corpus, tmp_path):
    run = RECIPES[name]()
    run = dataclasses.replace(
        run,
        data={"kind": "text", "path": str(corpus), "length": 32},
        train=dataclasses.replace(run.train, steps=1, batch=2, threads=1),
    )
    summary = train_run(run, tmp_path / name)
    assert summary.step == 1
    assert 4 < summary.loss < 7  # ln 257 = 5.5


def test_the_recipes_that_are_compared_have_one_size():
    mamba, attention = parameters("text-mamba"), parameters("text-attention")
    assert abs(mamba / attention - 1) < 0.03
    assert all(1e6 < parameters(name) < 3e6 for name in RECIPES)
