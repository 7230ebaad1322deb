"""A checkpoint is whole, or it is noticed; it belongs to one run, or it is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_training import ToyData, ToyObjective, saver, tensors_sha256, toy_run, train_toy

from postformer.train import CheckpointError, checkpoint, latest, manifest, train, verify
from postformer.train.optim import make_optimizer

FILES = (
    "config.json",
    "manifest.json",
    "model.safetensors",
    "objective.safetensors",
    "optim.safetensors",
    "rng.safetensors",
    "run.json",
    "train.json",
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A finished run of 6 steps with checkpoints at 2, 4 and 6."""
    out = tmp_path_factory.mktemp("straight")
    train_toy(toy_run(), out)
    return out


@pytest.fixture
def out(straight, tmp_path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(straight, tmp_path / "run")
    return tmp_path / "run"


def step(out: Path, n: int) -> Path:
    return out / "checkpoints" / f"step-{n:08d}"


def seal(folder: Path) -> None:
    """Write a manifest that fits the files as they are now."""
    (folder / "manifest.json").unlink()
    manifest.write_manifest(folder)


def test_a_checkpoint_holds_what_it_should(straight):
    assert sorted(f.name for f in step(straight, 6).iterdir()) == sorted(FILES)
    record = json.loads((step(straight, 6) / "train.json").read_text())
    assert (record["step"], record["tokens"], record["generators"]) == (6, 144, ["cpu"])
    assert record["environment"]["threads"] == 1 and record["environment"]["versions"]["torch"] == torch.__version__
    assert json.loads((step(straight, 6) / "run.json").read_text())["model"] == {"kind": "toy", "sizes": [8, 13]}
    assert [f.name for f in sorted((straight / "checkpoints").iterdir())] == [step(straight, n).name for n in (2, 4, 6)]


# ---------------------------------------------------------------- damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def truncate_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("harm", [truncate, truncate_to_nothing, flip, lengthen, Path.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_told_and_the_checkpoint_before_is_used(straight, out, name, harm):
    harm(step(out, 6) / name)
    told = []
    assert latest(out, told.append) == step(out, 4)
    assert len(told) == 1 and "\n" not in told[0] and str(step(out, 6) / name) in told[0] and "falling back" in told[0]
    told.clear()
    train_toy(toy_run(), out, warn=told.append)
    assert len(told) == 1
    assert tensors_sha256(step(out, 6)) == tensors_sha256(step(straight, 6))
    assert (out / "checkpoints" / "step-00000006.damaged").is_dir()


@pytest.mark.parametrize(("harm", "words"), [(truncate, "truncated, "), (flip, "sha256 differs"), (Path.unlink, "is missing")])
def test_the_message_says_what_is_wrong(out, harm, words):
    harm(step(out, 6) / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        verify(step(out, 6))


def test_a_flipped_bit_anywhere_in_the_manifest_is_noticed(out):
    path = step(out, 6) / "manifest.json"
    good = path.read_bytes()
    for i in range(len(good)):
        bad = bytearray(good)
        bad[i] ^= 1 << i % 8
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            verify(step(out, 6))
    path.write_bytes(good)
    verify(step(out, 6))


def test_a_disk_that_cannot_be_read_is_damage(out, monkeypatch):
    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(manifest, "sha256_file", fail)
    with pytest.raises(CheckpointError, match="damaged checkpoint: Input/output error"):
        verify(step(out, 6))


def test_two_damaged_checkpoints_are_told_one_by_one(out):
    flip(step(out, 6) / "optim.safetensors")
    (step(out, 4) / "manifest.json").unlink()
    told = []
    assert latest(out, told.append) == step(out, 2)
    assert ["optim.safetensors" in told[0], "the manifest is missing" in told[1]] == [True, True]


def test_no_whole_checkpoint_is_an_error_and_nothing_starts_over(out):
    for n in (2, 4, 6):
        flip(step(out, n) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"none of the run's checkpoints \(3\) is whole"):
        train_toy(toy_run(), out)
    assert all(step(out, n).is_dir() for n in (2, 4, 6))


def test_no_checkpoints_is_a_start(tmp_path):
    assert latest(tmp_path, pytest.fail) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format="other-9"), "its format is 'other-9'"),
        (lambda m: m["files"].pop("optim.safetensors"), r"does not list optim\.safetensors"),
        (lambda m: m["files"].update({"../../x": m["files"]["run.json"]}), r"'\.\./\.\./x' is not a plain file name"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(out, change, words):
    path = step(out, 6) / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    content.pop("sha256")
    path.write_bytes(manifest._sealed(content))
    with pytest.raises(CheckpointError, match=words):
        verify(step(out, 6))


# ---------------------------------------------------------------- another run, or a file that does not fit


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"seed": 4}, "seed is 3 there and 4 here"),
        ({"optim": {"lr": 0.5}}, "optim.lr is 0.01 there and 0.5 here"),
        ({"batch": 2}, "train.batch is 4 there and 2 here"),
        ({"accumulate": 2}, "train.accumulate is 1 there and 2 here"),
        ({"dtype": "bf16"}, 'train.dtype is "fp32" there and "bf16" here'),
        ({"model": {"kind": "toy", "sizes": [8, 14]}}, r"model.sizes\[1\] is 13 there and 14 here"),
        ({"data": {"kind": "toy", "path": "x"}}, 'data.path is absent there and "x" here'),
        ({"steps": 4}, "train.steps is 6 there and 4 here; it may grow"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_its_first_difference(out, change, place):
    before = tensors_sha256(step(out, 6))
    with pytest.raises(CheckpointError, match=place):
        train_toy(toy_run(**change), out)
    assert tensors_sha256(step(out, 6)) == before


def test_what_does_not_change_the_bits_may_change_and_steps_may_grow(out):
    told = []
    run = toy_run(steps=8, save_every=3, keep=9, log_every=2, eval_every=4, name="renamed")
    assert train_toy(run, out, warn=told.append).step == 8
    assert told == []


def test_other_threads_and_versions_are_told(out):
    record = json.loads((step(out, 6) / "train.json").read_text())
    record["environment"]["threads"] = 7
    (step(out, 6) / "train.json").write_text(json.dumps(record))
    seal(step(out, 6))
    told = []
    train_toy(toy_run(), out, warn=told.append)
    assert len(told) == 1 and "not with the same bits: threads was 7 and is 1" in told[0]


def change_tensors(name: str, change):
    def harm(folder: Path) -> None:
        tensors = {k: v.clone() for k, v in load_file(folder / name).items()}
        change(tensors)
        save_file(tensors, folder / name)

    return harm


MISFITS = {
    "model.safetensors: its tensors differ .* first 'extra', which is only there": change_tensors(
        "model.safetensors", lambda t: t.update(extra=torch.ones(1))
    ),
    "model.safetensors: .* first 'head.weight', which is only in this run": change_tensors(
        "model.safetensors", lambda t: t.pop("head.weight")
    ),
    r"model.safetensors: 'hidden.bias' has shape \(3,\), this run's has \(8,\)": change_tensors(
        "model.safetensors", lambda t: t.update({"hidden.bias": torch.ones(3)})
    ),
    r"objective.safetensors: 'teacher' has shape \(2,\)": change_tensors(
        "objective.safetensors", lambda t: t.update(teacher=torch.ones(2))
    ),
    "optim.safetensors: 'model.hidden.bias:step' is missing": change_tensors(
        "optim.safetensors", lambda t: t.pop("model.hidden.bias:step")
    ),
    "optim.safetensors: not a readable safetensors file": lambda f: (f / "optim.safetensors").write_bytes(b"\xff" * 64),
    "rng.safetensors: the random generators could not be restored": change_tensors(
        "rng.safetensors", lambda t: t.update(cpu=t["cpu"][:-8].clone())
    ),
    "rng.safetensors: the random .*'cpu'": change_tensors("rng.safetensors", lambda t: t.update(cuda=t.pop("cpu"))),
    "train.json: .*unknown 'stop'": lambda f: (f / "train.json").write_text('{"stop": 1}'),
    "run.json: not valid JSON": lambda f: (f / "run.json").write_text("{"),
    "run.json: Run: 'name' is missing": lambda f: (f / "run.json").write_text("{}"),
}


@pytest.mark.parametrize("words", MISFITS)
def test_a_file_that_fits_its_manifest_but_not_the_run_is_one_line(out, words):
    MISFITS[words](step(out, 6))
    seal(step(out, 6))
    with pytest.raises(CheckpointError, match=words) as e:
        train_toy(toy_run(), out)
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- saving


def test_only_the_newest_are_kept(tmp_path):
    train_toy(toy_run(save_every=1, keep=2), tmp_path)
    assert [f.name for f in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000005", "step-00000006"]


def test_old_checkpoints_go_only_after_the_new_one_is_in_place(tmp_path, monkeypatch):
    train_toy(toy_run(steps=2, save_every=1, keep=1), tmp_path)
    seen = []
    prune = checkpoint._prune
    monkeypatch.setattr(
        checkpoint,
        "_prune",
        lambda p, k: (seen.append(sorted(f.name for f in p.iterdir())), verify(step(tmp_path, 3)), prune(p, k)),
    )
    train_toy(toy_run(steps=3, save_every=1, keep=1), tmp_path)
    assert seen == [["step-00000002", "step-00000003"]]


def test_leftovers_of_a_kill_go_with_the_next_save(out):
    leftover = out / "checkpoints" / ".step-00000008.99.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    train_toy(toy_run(steps=7), out)
    assert not leftover.exists()


def test_a_model_that_cannot_be_written_leaves_nothing_behind(out):
    objective = ToyObjective()

    def save_model(folder: Path) -> None:
        saver(objective)(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="could not be saved: No space left on device; step-00000006 stays"):
        train(toy_run(steps=7), out, objective=objective, data=ToyData(), save_model=save_model)
    assert [f.name for f in sorted((out / "checkpoints").iterdir())] == [step(out, n).name for n in (2, 4, 6)]


def test_no_resume_refuses_to_train_over_checkpoints(out):
    with pytest.raises(CheckpointError, match="has checkpoints"):
        train_toy(toy_run(), out, resume=False)
    assert latest(out, pytest.fail) == step(out, 6)


def test_restored_tensors_do_not_depend_on_the_files(out):
    objective = ToyObjective()
    optimizer = make_optimizer(dict(objective.named_parameters()), toy_run().optim)
    checkpoint.restore(step(out, 6), toy_run(), objective, optimizer, pytest.fail)
    before = {k: v.clone() for k, v in (optimizer.state() | objective.state_dict()).items()}
    for name in ("model", "optim", "objective"):
        path = step(out, 6) / f"{name}.safetensors"
        path.write_bytes(b"\0" * path.stat().st_size)
    assert all(torch.equal(v, before[k]) for k, v in (optimizer.state() | objective.state_dict()).items())
