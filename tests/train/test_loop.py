"""The loop: what a step is, what stops it, and that an interruption leaves no trace in the bits."""

import json
import math
import os
import signal
import threading

import pytest
import torch
from toy_training import ToyData, ToyModel, ToyObjective, tensors_sha256, toy_run, train_toy

from postformer.config import ConfigError, OptimConfig
from postformer.train import TrainingError, evaluate, latest, learning_rate
from postformer.train.log import TIMING
from postformer.train.process import lock


def rows(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def untimed(out):
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows(out)]


def stop_after(step, number=signal.SIGTERM):
    return lambda p: os.kill(os.getpid(), number) if p.step == step else None


# ---------------------------------------------------------------- a step


def test_training_lowers_the_loss(tmp_path):
    train_toy(toy_run(steps=60, save_every=0), tmp_path)
    losses = [r["loss"] for r in rows(tmp_path)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_accumulation_equals_one_big_batch(tmp_path):
    whole, parts = ToyObjective(0), ToyObjective(0)
    parts.load_state_dict(whole.state_dict())
    train_toy(toy_run(batch=8), tmp_path / "a", objective=whole)
    train_toy(toy_run(batch=2, accumulate=4), tmp_path / "b", objective=parts)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)
    for a, b in zip(rows(tmp_path / "a"), rows(tmp_path / "b"), strict=True):
        assert (a["tokens"], a["lr"]) == (b["tokens"], b["lr"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_micro_batch_j_of_step_s_is_batch_s_times_accumulate_plus_j(tmp_path):
    asked = []

    class Spy(ToyData):
        def batches(self, *, batch, seed, split):
            source = super().batches(batch=batch, seed=seed, split=split)
            batch_of = source.batch
            source.batch = lambda i: (asked.append(i), batch_of(i))[1]
            return source

    train_toy(toy_run(steps=2, accumulate=3), tmp_path, data=Spy())
    assert asked == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("clip", "same"), [(0.0, False), (1e6, False), (0.05, True)])
def test_clipping_bounds_the_gradients_norm(tmp_path, monkeypatch, clip, same):
    norms = []
    step = torch.optim.AdamW.step

    def note(self, *args, **kwargs):
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for g in self.param_groups for p in g["params"])))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    train_toy(toy_run(steps=2, optim={"clip": clip}), tmp_path)
    logged = [r["grad_norm"] for r in rows(tmp_path)]
    assert norms == pytest.approx([0.05, 0.05] if same else logged, rel=1e-4)


def test_the_schedule_and_what_follows_a_step(tmp_path):
    objective = ToyObjective()
    train_toy(toy_run(), tmp_path, objective=objective)
    config = OptimConfig(warmup=2, lr=1e-2)
    assert [r["lr"] for r in rows(tmp_path)] == [learning_rate(s, config, 6) for s in range(6)]
    assert objective.steps_seen == list(range(6))


def test_the_seed_decides_the_bits(tmp_path):
    a, b, c = (train_toy(toy_run(seed=s), tmp_path / n) for s, n in [(3, "a"), (3, "b"), (4, "c")])
    assert tensors_sha256(a.checkpoint) == tensors_sha256(b.checkpoint)
    assert tensors_sha256(a.checkpoint) != tensors_sha256(c.checkpoint)


def test_bf16_is_asked_of_the_model(tmp_path):
    objective = ToyObjective()
    train_toy(toy_run(steps=1, dtype="bf16"), tmp_path, objective=objective)
    assert objective.model.compute_dtype is torch.bfloat16
    assert objective.model.head.weight.dtype is torch.float32


def test_threads_are_set_for_the_run_and_put_back(tmp_path):
    seen = []
    train_toy(toy_run(steps=1, threads=2), tmp_path, on_step=lambda p: seen.append(torch.get_num_threads()))
    assert (seen, torch.get_num_threads()) == ([2], 1)


def test_progress_and_summary(tmp_path):
    seen = []
    summary = train_toy(toy_run(eval_every=6), tmp_path, on_step=seen.append)
    assert [(p.step, p.steps, p.tokens) for p in seen] == [(s, 6, 24 * s) for s in range(1, 7)]
    assert all(p.tokens_per_s > 0 for p in seen) and seen[-1].eta_s == 0 < seen[0].eta_s
    assert (summary.step, summary.tokens, summary.stopped, summary.loss) == (6, 144, False, seen[-1].loss)
    assert summary.valid["step"] == 6 and summary.checkpoint.name == "step-00000006"


def test_rows_go_to_every_log_and_logs_are_closed(tmp_path):
    class Memory:
        def __init__(self):
            self.rows, self.closed = [], False

        def write(self, row):
            self.rows.append(row)

        def sync(self):
            self.rows.append("sync")

        def close(self):
            self.closed = True

    memory = Memory()
    train_toy(toy_run(save_every=0, log_every=4), tmp_path, logs=[memory])
    assert [r["step"] for r in memory.rows[:-1]] == [r["step"] for r in rows(tmp_path)] == [4, 6]
    assert memory.rows[-1] == "sync" and memory.closed


# ---------------------------------------------------------------- evaluation


def test_evaluation_does_not_touch_training(tmp_path):
    a = train_toy(toy_run(), tmp_path / "a")
    b = train_toy(toy_run(eval_every=2), tmp_path / "b")
    assert tensors_sha256(a.checkpoint) == tensors_sha256(b.checkpoint)
    assert [r["step"] for r in rows(tmp_path / "b") if "valid_loss" in r] == [2, 4, 6]


def test_evaluation_is_deterministic_in_eval_mode_without_gradients():
    objective = ToyObjective(0.5)
    modes = []
    objective.model.register_forward_hook(lambda m, i, o: modes.append((m.training, o.requires_grad)))
    batches = ToyData().batches(batch=4, seed=3, split="valid")
    before = torch.get_rng_state()
    first, second = (evaluate(objective, batches, 3) for _ in range(2))
    assert first == second and first["tokens"] == 72
    assert torch.equal(before, torch.get_rng_state()) and objective.training
    assert modes == [(False, False)] * 6


# ---------------------------------------------------------------- what stops it


class Poisoned(ToyObjective):
    """Turns bad at one step: in the loss, or in the gradient alone."""

    def __init__(self, where, at=6):
        super().__init__()
        self.where, self.left = where, at

    def forward(self, batch):
        out = super().forward(batch)
        self.left -= 1
        if self.left == 0 and self.where == "loss":
            out["loss"] = out["loss"] * float("nan")
        elif self.left == 0:
            out["loss"].register_hook(lambda g: g * float("inf"))
        return out


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (
            "loss",
            "step 3: the loss is nan; .* data rows: train.bin:20, train.bin:21, train.bin:22, train.bin:23$",
        ),
        ("gradient", "step 3: the gradient's norm is (nan|inf); .* data rows: train.bin:16, .*, train.bin:23$"),
    ],
)
def test_a_bad_number_stops_before_the_step_and_names_its_rows(tmp_path, where, words):
    objective = Poisoned(where)
    torch.manual_seed(3)
    objective.model = ToyModel(dropout=0.1)
    run = toy_run(accumulate=2)
    kept = []
    with pytest.raises(TrainingError, match=words) as e:
        train_toy(
            run, tmp_path, objective=objective, on_step=lambda p: kept.append([q.clone() for q in objective.parameters()])
        )
    assert "\n" not in str(e.value)
    assert all(torch.equal(a, b) for a, b in zip(kept[-1], objective.parameters(), strict=True))
    assert latest(tmp_path, pytest.fail).name == "step-00000002"
    assert [r["step"] for r in rows(tmp_path)] == [1, 2]
    repaired, straight = train_toy(run, tmp_path), train_toy(run, tmp_path / "straight")
    assert tensors_sha256(repaired.checkpoint) == tensors_sha256(straight.checkpoint)


def test_a_long_list_of_rows_is_cut(tmp_path):
    with pytest.raises(TrainingError, match=r"train\.bin:15 and 4 more$"):
        train_toy(toy_run(batch=20), tmp_path, objective=Poisoned("loss", at=1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step_and_puts_the_handlers_back(tmp_path, number):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    told = []
    summary = train_toy(toy_run(save_every=0), tmp_path, on_step=stop_after(3, number), warn=told.append)
    assert (summary.stopped, summary.step, summary.checkpoint.name) == (True, 3, "step-00000003")
    assert told == [f"stopped by {number.name} after step 3; the same command goes on from there"]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.fixture
def interruptible():
    """Interrupts are python's to handle, also where the tests run in a shell's background, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_ends_it_at_once(tmp_path):
    def twice(p):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_toy(toy_run(), tmp_path, on_step=twice)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_in_the_last_step_is_an_end_like_any_other(tmp_path):
    assert not train_toy(toy_run(), tmp_path, on_step=stop_after(6)).stopped


def test_another_thread_trains_without_handlers(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(train_toy(toy_run(), tmp_path)))
    thread.start()
    thread.join()
    assert done[0].step == 6


def test_a_directory_has_one_trainer(tmp_path):
    with lock(tmp_path), pytest.raises(TrainingError, match=f"process {os.getpid()} is training there"):
        train_toy(toy_run(), tmp_path)
    train_toy(toy_run(), tmp_path)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file: cannot be used: File exists"):
        train_toy(toy_run(), tmp_path / "file")


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 0), ("batch", 0), ("accumulate", 0), ("threads", -1), ("save_every", -1), ("keep", 0), ("log_every", 0)],
)
def test_a_setting_out_of_range_is_named(tmp_path, key, value):
    with pytest.raises(ConfigError, match=f"train.{key}: {value} must be at least"):
        train_toy(toy_run(**{key: value}), tmp_path)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(tmp_path, device):
    with pytest.raises(ConfigError, match=f"train.device: '{device}' cannot be used here") as e:
        train_toy(toy_run(device=device), tmp_path)
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("step", range(1, 6))
def test_an_interrupted_run_ends_with_the_straight_runs_bits_and_log(tmp_path, kind, step):
    run = toy_run(optim={"kind": kind}, eval_every=2, accumulate=2)
    straight = train_toy(run, tmp_path / "straight")
    assert train_toy(run, tmp_path / "run", on_step=stop_after(step)).step == step
    resumed = train_toy(run, tmp_path / "run", warn=pytest.fail)
    assert tensors_sha256(resumed.checkpoint) == tensors_sha256(straight.checkpoint)
    assert untimed(tmp_path / "run") == untimed(tmp_path / "straight")
    assert (resumed.loss, resumed.tokens, resumed.valid) == (straight.loss, straight.tokens, straight.valid)


def test_rows_after_the_checkpoint_are_rolled_back(tmp_path):
    def crash(p):
        if p.step == 4:
            raise RuntimeError("crash")

    run = toy_run(save_every=3)
    with pytest.raises(RuntimeError):
        train_toy(run, tmp_path / "run", on_step=crash)
    assert [r["step"] for r in rows(tmp_path / "run")] == [1, 2, 3, 4]
    with (tmp_path / "run" / "log.jsonl").open("a") as f:
        f.write('{"step": 5, "lo')
    train_toy(run, tmp_path / "run")
    train_toy(run, tmp_path / "straight")
    assert untimed(tmp_path / "run") == untimed(tmp_path / "straight")


def test_a_finished_run_is_left_as_it_is(tmp_path):
    first = train_toy(toy_run(), tmp_path)
    log = (tmp_path / "log.jsonl").read_bytes()
    again = train_toy(toy_run(), tmp_path, on_step=pytest.fail)
    assert (again.step, again.loss, again.checkpoint, again.stopped) == (6, first.loss, first.checkpoint, False)
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_wall_time_adds_up_over_sessions(tmp_path):
    first = train_toy(toy_run(), tmp_path, on_step=stop_after(3))
    assert train_toy(toy_run(), tmp_path).seconds > first.seconds > 0
