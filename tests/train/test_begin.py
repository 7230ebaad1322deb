"""A run that begins with another's weights: what fits is taken, what does not is told, and resuming needs the other no more."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from postformer import cli
from postformer.train.painter import Painter
from postformer.train.session import open_model

SMALL = ["train.batch=2", "train.save_every=2", "optim.warmup=1"]
MODEL = ["model.dim=24", "model.depth=1", 'model.mixers=[{kind="spacetime",heads=2}]']


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("begin")
    rng = np.random.default_rng(0)
    np.savez(path / "a.npz", images=rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), labels=np.arange(60) % 3)
    np.savez(path / "b.npz", images=rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), labels=np.arange(60) % 5)
    train(path, "draw", "train.steps=4")
    return path


def train(path, name, *words, recipe="draw-dit", code=0, data="a"):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", recipe, *SMALL, *MODEL, f"data.path={path / data}.npz", *words, "--out", str(path / name)])
    assert stopped.value.code == code


def test_weights_are_those_that_the_other_draws_with(folder, capsys):
    train(folder, "still", "train.steps=1", "optim.lr=0.0", f"begin={folder / 'draw'}")
    assert "begin" not in capsys.readouterr().err
    drawn = Painter.of(folder / "draw").model.state_dict()
    for model in (open_model(folder / "still"), Painter.of(folder / "still").model):
        for name, value in model.state_dict().items():
            assert torch.equal(value, drawn[name]), name
    assert not torch.equal(drawn["head.weight"], open_model(folder / "draw").head.weight)  # the average, not the last


def test_a_model_of_few_steps_begins_as_the_one_without(folder, capsys):
    words = ("train.steps=1", "optim.lr=0.0", "model.strides=true", "objective.shortcut=0.5", f"begin={folder / 'draw'}")
    train(folder, "student", *words)
    error = capsys.readouterr().err
    assert f"begin: {folder / 'draw'}: " in error
    assert "of the model are taken from there; as drawn: stride.out.bias, stride.out.weight, stride.up" in error
    clips, time = torch.randn(2, 1, 1, 8, 8), torch.rand(2)
    with torch.no_grad():
        expected, _ = Painter.of(folder / "draw").model(clips, time)
        found, _ = open_model(folder / "student")(clips, time, stride=torch.tensor([0.25, 0.0]))
    assert torch.equal(found, expected)


def test_a_student_s_teacher_is_what_it_begins_with(folder, capsys):
    few = ("train.steps=2", "model.strides=true", "objective.shortcut=1.0", "objective.few=4")
    train(folder, "taught", *few, f"begin={folder / 'draw'}")
    saved = load_file(next((folder / "taught" / "checkpoints").iterdir()) / "objective.safetensors")
    for name, value in Painter.of(folder / "draw").model.state_dict().items():
        assert torch.equal(saved[f"teacher.{name}"], value)
    train(folder, "untaught", *few, code=2)
    assert "objective.few: 4 steps are learned from a teacher: name one, begin=RUN" in capsys.readouterr().err


def test_other_classes_begin_as_drawn_and_the_rest_as_learned(folder, capsys):
    train(folder, "other", "train.steps=1", "optim.lr=0.0", f"begin={folder / 'draw'}", data="b")
    assert "as drawn: label.weight" in capsys.readouterr().err
    assert torch.equal(open_model(folder / "other").embed.weight, Painter.of(folder / "draw").model.embed.weight)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["begin=nowhere"], "begin: nowhere: no such folder"),
        (
            ["begin={folder}/draw", "model.dim=48"],
            "of the model have a weight of the same name and shape there; give it",
        ),
    ],
)
def test_what_cannot_be_begun_with_is_told(folder, capsys, words, says):
    train(folder, "wrong", "train.steps=1", *(word.format(folder=folder) for word in words), code=2)
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (folder / "wrong" / "checkpoints").exists()


def test_resuming_goes_on_from_its_own(folder):
    shutil.copytree(folder / "draw", folder / "gone")
    for name, steps in (("straight", ["4"]), ("resumed", ["2", "4"])):
        for count in steps:
            shutil.copytree(folder / "draw", folder / "gone", dirs_exist_ok=True)
            if count == "4" and name == "resumed":
                shutil.rmtree(folder / "gone")
            train(folder, name, f"train.steps={count}", "optim.schedule=constant", f"begin={folder / 'gone'}")
    a, b = (open_model(folder / name).state_dict() for name in ("straight", "resumed"))
    assert all(torch.equal(a[name], b[name]) for name in a)
