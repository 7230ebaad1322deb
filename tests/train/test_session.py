"""A run from its configuration to a model that is opened again."""

import dataclasses
import json

import pytest
import small
import torch

from postformer.config import ConfigError, OptimConfig, Run, parse, plain
from postformer.data import DataError
from postformer.models.hub import ModelError
from postformer.train.manifest import CheckpointError, write_manifest
from postformer.train.session import check, open_model, prepare, train_run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small.corpus(tmp_path_factory.mktemp("session") / "corpus")


def test_a_run_gives_its_model_and_the_seed_decides(corpus):
    run = small.run(corpus)
    full, objective, data = prepare(run)
    assert objective.model.vocab == data.tokens.vocab == 257
    assert objective.model.tokens is data.tokens
    assert full.model["mixers"][0]["expand"] == 2
    assert full.model["vocab"] == 257
    again, same, _ = prepare(parse(Run, json.loads(json.dumps(plain(full)))))
    assert again == full
    other = prepare(dataclasses.replace(run, seed=1))[1].model
    weights = [m.embed.weight for m in (objective.model, same.model, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_another_vocabulary_than_the_datas_is_refused(corpus):
    run = small.run(corpus)
    with pytest.raises(ConfigError, match=r"model\.vocab: 5, but the data has 257 ids"):
        prepare(dataclasses.replace(run, model={**run.model, "vocab": 5}))


def test_train_stop_and_go_on(corpus, tmp_path):
    straight = train_run(small.run(corpus, steps=4), tmp_path / "straight")
    train_run(small.run(corpus, steps=2), tmp_path / "parts")
    parts = train_run(small.run(corpus, steps=4), tmp_path / "parts")
    assert (parts.step, parts.loss) == (straight.step, straight.loss) or parts.step == 4
    model = open_model(tmp_path / "straight")
    at = open_model(straight.checkpoint)
    for a, b in zip(model.parameters(), at.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not model.training
    assert model.tokens.kind == "bytes"
    assert model.config["vocab"] == 257


def test_an_evaluated_run_and_bf16(corpus, tmp_path):
    summary = train_run(small.run(corpus, eval_every=1, eval_batches=2, dtype="bf16"), tmp_path / "r")
    assert summary.valid["valid_loss"] > 0
    assert {p.dtype for p in open_model(tmp_path / "r").parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": {"kind": "text"}}, "data: 'path' is missing"),
        ({"model": {"kind": "language", "dim": 0}}, "dim=0"),
        ({"objective": {"kind": "none"}}, "objective.kind: unknown 'none'"),
        ({"model": {"kind": "language", "norm_eps": -1.0}}, "model.norm_eps: -1.0 must be at least 0"),
        ({"optim": OptimConfig(betas=(2.0, 0.9))}, "optim: "),
        ({"optim": OptimConfig(eps=0.0)}, "optim.eps: 0.0 must be above 0"),
        ({"train": {"steps": 0}}, "train.steps: 0 must be at least 1"),
        ({"train": {"device": "abacus"}}, "train.device: 'abacus' cannot be used here"),
    ],
    ids=str,
)
def test_a_malformed_run_is_refused_before_anything_is_read(change, says, tmp_path):
    run = parse(Run, {**plain(small.run("nowhere")), **{k: plain(v) for k, v in change.items()}})
    with pytest.raises(ConfigError, match=says):
        check(run)
    with pytest.raises(ConfigError, match=says):
        train_run(run, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_well_formed_run_takes_no_memory():
    model = {"kind": "language", "dim": 1 << 20, "depth": 2, "mixers": ({"kind": "mamba"},), "ffns": ({"kind": "mlp"},)}
    check(dataclasses.replace(small.run("nowhere"), model=model))


def test_a_text_that_is_too_short_is_refused_before_training(corpus, tmp_path):
    run = small.run(corpus, eval_every=1)
    valid_tokens = prepare(run)[2].corpus.count("valid").tokens
    long = dataclasses.replace(run, data={**run.data, "length": valid_tokens + 1})
    with pytest.raises(DataError, match="valid has"):
        train_run(long, tmp_path / "r")
    assert not (tmp_path / "r").exists()
    never = dataclasses.replace(long, train=dataclasses.replace(long.train, eval_every=0))
    assert train_run(never, tmp_path / "r").step == 2


def test_what_cannot_be_opened(corpus, tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        open_model(tmp_path / "none")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ModelError, match="has no checkpoint yet"):
        open_model(tmp_path / "run")
    summary = train_run(small.run(corpus), tmp_path / "r")
    (summary.checkpoint / "optim.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"optim\.safetensors: damaged"):
        open_model(summary.checkpoint)
    warned = []
    assert open_model(tmp_path / "r", warn=warned.append).vocab == 257
    assert len(warned) == 1
    assert "falling back" in warned[0]


def test_a_checkpoint_older_than_a_keyword_goes_on(corpus, tmp_path):
    """The keyword had its default there; another value than that is another run."""
    mixers = (
        {"kind": "attention", "heads": 2},
        {"kind": "mag", "memory": {"heads": 2}, "attention": {"heads": 2, "window": 8}},
    )
    run = small.run(corpus, steps=2)
    run = dataclasses.replace(run, model={**run.model, "mixers": mixers})
    train_run(run, tmp_path)
    folder = next((tmp_path / "checkpoints").iterdir())
    saved = json.loads((folder / "run.json").read_text())
    for attention in (saved["model"]["mixers"][0], saved["model"]["mixers"][1]["attention"]):
        assert attention.pop("conv") == 0
    (folder / "run.json").write_text(json.dumps(saved))
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    more = dataclasses.replace(run, train=dataclasses.replace(run.train, steps=3))
    assert train_run(more, tmp_path).step == 3
    other = dataclasses.replace(more, model={**run.model, "mixers": ({**mixers[0], "conv": 3}, mixers[1])})
    with pytest.raises(CheckpointError, match=r"belongs to another run: model.mixers\[0\].conv is 0 there and 3 here"):
        train_run(other, tmp_path)
