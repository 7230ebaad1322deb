"""The loss and the accuracy of answers, and the score of a task read in chunks, against their definitions."""

import math

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postformer.config import ConfigError, build
from postformer.data.tasks import IGNORED, TASKS, ModularArithmetic, Parity, SelectiveCopying
from postformer.models.language import LanguageModel
from postformer.models.writing import frozen, observed
from postformer.objectives import OBJECTIVES
from postformer.objectives.accuracy import accuracy, scaled
from postformer.objectives.answers import Answers

TASK = SelectiveCopying(length=12, copies=3, symbols=5)


def drawn(rows: int = 4):
    return TASK.batches(rows, seed=0).batch(0)


def test_the_loss_is_the_mean_surprise_at_the_answers():
    model, batch = small.model("attention").double(), drawn()
    out = Answers(model)(batch)
    logp = model(batch["ids"])[0].log_softmax(-1)
    places = [(b, t) for b in range(4) for t in range(12, 15)]
    targets = batch["targets"]
    expected = -sum(logp[b, t, targets[b, t]] for b, t in places) / len(places)
    torch.testing.assert_close(out["loss"].double(), expected, rtol=1e-6, atol=0.0)
    right = [int(logp[b, t].argmax()) == int(targets[b, t]) for b, t in places]
    assert float(out["accuracy"]) == pytest.approx(sum(right) / len(right))
    assert int(out["tokens"]) == 4 * 15


def test_the_accuracy_counts_the_answers_that_are_right():
    model, batch = small.model("mamba"), drawn()
    best = model(batch["ids"])[0].argmax(-1)
    for wrong in (0, 5, 12):
        targets = torch.where(batch["targets"] == IGNORED, IGNORED, best)
        at = (targets != IGNORED).nonzero()[:wrong]
        targets[at[:, 0], at[:, 1]] = (targets[at[:, 0], at[:, 1]] + 1) % 257
        assert float(Answers(model)({**batch, "targets": targets})["accuracy"]) == pytest.approx(1 - wrong / 12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothing_is_torchs(smoothing):
    model, batch = small.model("attention").double(), drawn()
    loss = Answers(model, smoothing=smoothing)(batch)["loss"]
    asked = batch["targets"] != IGNORED
    logits = model(batch["ids"])[0][asked]
    expected = torch.nn.functional.cross_entropy(logits, batch["targets"][asked], label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range(smoothing):
    with pytest.raises(ConfigError, match=rf"objective: smoothing={smoothing} must be at least 0 and below 1"):
        build({"kind": "answers", "smoothing": smoothing}, OBJECTIVES, "objective", model=small.model())


def test_writing_has_its_price_where_all_is_right():
    torch.manual_seed(0)
    lmm = {"kind": "lmm", "heads": 2, "chunk": 4, "threshold": 0.1}
    model, batch = LanguageModel(257, dim=16, depth=2, mixers=(lmm,), ffns=({"kind": "none"},)), drawn()
    free = Answers(model)(batch)
    assert "written" not in free
    dear = Answers(model, write_cost=3.0)(batch)
    assert float(dear["accuracy"]) == 0 and torch.equal(dear["loss"], free["loss"])
    targets = torch.where(batch["targets"] == IGNORED, IGNORED, model(batch["ids"])[0].argmax(-1))
    targets[1, -1] = (targets[1, -1] + 1) % 257  # one answer of a row is wrong: the row pays nothing
    right = {**batch, "targets": targets}
    with observed(model) as shares:
        model(batch["ids"])
    (one,), (two,) = shares.values()
    rows = (one.mean((1, 2)) + two.mean((1, 2))) / 2
    paid = Answers(model, write_cost=3.0)(right)
    torch.testing.assert_close(paid["written"], rows.mean().detach())
    free_of_cost = Answers(model)(right)["loss"]
    torch.testing.assert_close(paid["loss"], free_of_cost + 3 * (rows.sum() - rows[1]) / 4)
    length = batch["ids"].shape[1]
    for long, part in ((2 * length, 0.125), (length, 1.0), (length - 1, 1.0)):
        less = Answers(model, write_cost=3.0, write_length=long)(right)
        torch.testing.assert_close(less["loss"], free_of_cost + part * 3 * (rows.sum() - rows[1]) / 4)
        assert torch.equal(less["written"], paid["written"])
    paid["loss"].backward()
    gates = model.backbone.blocks[0].mixer.gates.bias.grad[:2]
    assert float(gates.abs().min()) > 0
    with frozen(model):  # it writes nothing
        assert "written" not in Answers(model, write_cost=3.0)(right)


def test_layers_weigh_alike_whatever_their_heads():
    torch.manual_seed(0)
    lmm = {"kind": "lmm", "chunk": 4, "threshold": 0.1}
    mixers = ({**lmm, "heads": 2}, {**lmm, "heads": 4})
    model, batch = LanguageModel(257, dim=16, depth=2, mixers=mixers, ffns=({"kind": "none"},)), drawn()
    with observed(model) as shares:
        model(batch["ids"])
    (two,), (four,) = shares.values()
    assert (two.shape[2], four.shape[2]) == (2, 4)
    written = Answers(model, write_cost=1.0)(batch)["written"]
    torch.testing.assert_close(written, ((two.mean() + four.mean()) / 2).detach())


def test_what_cannot_write_pays_nothing():
    model, batch = small.model("mamba"), drawn()
    assert Answers(model, write_cost=1.0)(batch).keys() == {"loss", "accuracy", "tokens"}
    with pytest.raises(ConfigError, match=r"objective: write_cost=-1.0 must be at least 0"):
        build({"kind": "answers", "write_cost": -1}, OBJECTIVES, "objective", model=small.model())
    with pytest.raises(ConfigError, match=r"objective: write_length=1024 says when .*: give a write_cost above 0"):
        build({"kind": "answers", "write_length": 1024}, OBJECTIVES, "objective", model=small.model())
    with pytest.raises(ConfigError, match=r"objective: write_length=-1 must be at least 0"):
        build({"kind": "answers", "write_length": -1}, OBJECTIVES, "objective", model=small.model())


@pytest.mark.parametrize("mixer", sorted(small.MIXERS))
def test_every_parameter_learns_from_answers(mixer):
    model = small.model(mixer)
    objective = Answers(model)
    objective(drawn())["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    assert {n.removeprefix("model.") for n, _ in objective.named_parameters()} == dict(model.named_parameters()).keys()
    assert objective.after_step(0) is None


# ---------------------------------------------------------------- scores


def model_of(task, mixer: str = "mamba") -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(task.vocab, dim=8, depth=1, mixers=(small.MIXERS[mixer],), ffns=({"kind": "none"},), tied=False)
    return model.double().eval()


@pytest.mark.parametrize("mixer", sorted(small.MIXERS))
@pytest.mark.parametrize("kind", TASKS)
@settings(max_examples=5)
@given(rows=st.integers(1, 9), batch=st.integers(1, 4), chunk=st.integers(1, 30))
def test_a_score_is_what_one_whole_pass_gives(mixer, kind, rows, batch, chunk):
    task = TASKS[kind](length=21)
    model = model_of(task, mixer)
    got = accuracy(model, task, rows=rows, seed=1, batch=batch, chunk=chunk)
    right = asked = whole = 0
    for step in range(math.ceil(rows / batch)):
        d = task.batches(batch, 1, "test").batch(step)
        for ids, targets in list(zip(d["ids"], d["targets"], strict=True))[: rows - step * batch]:
            hits = (model(ids[None])[0][0].argmax(-1) == targets)[targets != IGNORED]
            right, asked, whole = right + int(hits.sum()), asked + len(hits), whole + bool(hits.all())
    assert got == (right, asked, whole, rows, 1 / task.choices)


class Oracle(LanguageModel):
    """Knows parity: its state is the parity so far."""

    def __init__(self) -> None:
        super().__init__(2, dim=2, depth=1)

    def init_state(self, batch: int):
        return (torch.zeros(batch, 1, dtype=torch.int64),)

    def hidden(self, ids, state=None):
        assert state is not None
        odd = (state[0] + ids.cumsum(1)) % 2
        return torch.nn.functional.one_hot(odd, 2).float(), (odd[:, -1:],)

    def logits(self, hidden):
        return hidden


def test_an_oracle_has_every_answer():
    score = accuracy(Oracle(), Parity(length=50), rows=30, batch=7, chunk=9)
    assert score.share == score.scaled == 1
    assert score.rows_right == score.rows == 30
    assert accuracy(Oracle(), Parity(length=50, shortest=50, answers="last"), rows=30) == (30, 30, 30, 30, 0.5)


def test_an_untrained_model_is_at_chance():
    task = Parity(length=40, shortest=40, answers="last")
    score = accuracy(model_of(task), task, rows=600)
    assert abs(score.scaled) < 0.21  # five standard deviations


def test_scaled():
    assert scaled(0.2, 0.2) == 0
    assert scaled(1.0, 0.2) == 1
    assert scaled(0.6, 0.2) == pytest.approx(0.5)
    assert 1 / ModularArithmetic().choices == 0.2


def test_a_score_that_cannot_be_taken_is_refused():
    task = Parity(length=9)
    with pytest.raises(ValueError, match="accuracy: the model knows 257 ids, and Parity has 2"):
        accuracy(small.model(), task, rows=3)
    for words in ({"rows": 0}, {"rows": 3, "batch": 0}, {"rows": 3, "chunk": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            accuracy(model_of(task), task, **words)
