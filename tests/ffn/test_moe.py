"""The mixture of experts: its formula, its presets, its balance, its costs."""

import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from postformer.config import ConfigError, OptimConfig, build
from postformer.ffn import FFNS
from postformer.ffn.moe import PRESETS
from postformer.models.routing import mixtures, routed
from postformer.ops.experts import reference
from postformer.recipes.tasks import parity as recipe
from postformer.train.session import open_model, train_run

DIM = 24


def make(**words):
    torch.manual_seed(0)
    return build({"kind": "moe", "hidden": 16, **words}, FFNS, "here", dim=DIM)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_formula(preset):
    m, x = make(preset=preset).double(), torch.randn(2, 5, DIM, dtype=torch.double)
    with routed(m) as routing:
        y = m(x)
    (call,) = routing.calls[""]
    tokens = x.flatten(0, 1)
    experts, weights = call.experts.flatten(0, 1), call.weights.flatten(0, 1)
    expected = reference(tokens, experts, weights, m.networks).view_as(x)
    if m.shared is not None:
        expected = expected + m.shared(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(call.scores.sum(-1), torch.ones(2, 5, dtype=torch.double))


@pytest.mark.parametrize("preset", PRESETS)
def test_each_token_is_for_itself(preset):
    m, x = make(preset=preset).double().eval(), torch.randn(2, 6, DIM, dtype=torch.double)
    each = torch.cat([m(x[:, t : t + 1]) for t in range(6)], 1)
    torch.testing.assert_close(m(x), each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_costs_are_counted(preset):
    m = make(preset=preset)
    with FlopCounterMode(display=False) as counter:
        m(torch.randn(1, 7, DIM))
    assert counter.get_total_flops() == m.flops(7)
    idle = sum(p[m.top :].numel() for part in (m.up, m.out) for p in part.parameters())
    assert m.active_parameters() == sum(p.numel() for p in m.parameters()) - idle


def test_the_default_is_as_wide_as_the_dense_network_where_a_token_goes():
    moe, mlp = (build({"kind": kind}, FFNS, "here", dim=96) for kind in ("moe", "mlp"))
    router = moe.router.weight.numel()
    assert moe.active_parameters() - router == pytest.approx(sum(p.numel() for p in mlp.parameters()), rel=0.05)


def test_router_logits_are_fp32_for_bf16_tokens():
    m, x = make(preset="olmoe"), torch.randn(1, 9, DIM)
    with routed(m) as routing:
        y = m(x.bfloat16())
    (call,) = routing.calls[""]
    assert (y.dtype, call.logits.dtype, call.weights.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(call.logits, m.router(x.bfloat16().float()))
    y.float().sum().backward()
    assert {p.grad.dtype for p in m.parameters()} == {torch.float32}


# ---------------------------------------------------------------- balance


def test_losses_of_each_layer_are_added_and_only_in_training():
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([make(preset="olmoe", experts=4, top=1), make(preset="olmoe", experts=4, top=1)])
    x = torch.randn(2, 8, DIM)
    with routed(layers) as routing:
        for layer in layers:
            layer(x)
    outputs = routing.taught({"loss": torch.tensor(1.0)}, training=True)
    losses = [layer.losses(routing.calls[name][0]) for name, layer in mixtures(layers).items()]
    assert outputs["loss"].item() == pytest.approx(1 + sum(v.item() for each in losses for v in each.values()))
    assert outputs["router_balance"].item() == pytest.approx(sum(each["balance"].item() for each in losses))
    assert routing.taught({"loss": torch.tensor(1.0)}, training=False)["loss"].item() == 1.0


def test_collapsed_layers_are_told_as_collapsed():
    """Each of four layers sends all tokens to one expert of its own: pooled over layers, the load would be even."""
    layers = torch.nn.ModuleList([make(experts=4, top=1) for _ in range(4)])
    with torch.no_grad():
        for i, layer in enumerate(layers):
            layer.router.weight.zero_()
            layer.router.weight[i] = 1.0
    x = torch.rand(2, 8, DIM) + 0.5
    with routed(layers) as routing:
        for layer in layers:
            layer(x)
    loads = torch.stack([routing.loads(name) for name in mixtures(layers)])
    assert torch.equal(loads.sum(0), torch.full((4,), 16)), "even, if it is pooled"
    told = routing.taught({"loss": torch.tensor(0.0)}, training=True)
    assert told["max_violation"].item() == 3.0
    assert told["dead_experts"].item() == 12
    assert told["router_balance"].item() > 4 * 0.01 * 2.5, "near four times what even layers cost"


@pytest.mark.parametrize(
    "words", [{"balance": 0.02}, {"router": "sigmoid", "balance": 0.0, "correction": 0.02}], ids=["loss", "correction"]
)
def test_a_biased_router_recovers(words):
    """All tokens begin at two experts of eight; both ways of balancing spread them within a short training."""
    m = make(experts=8, top=2, **words)
    with torch.no_grad():
        m.router.weight[:2] += 0.5
    optimizer = torch.optim.Adam(m.parameters(), 3e-3)
    target = torch.nn.Linear(DIM, DIM)

    def step() -> float:
        x = torch.randn(8, 32, DIM) + 0.5
        with routed(m) as routing:
            y = m(x)
        outputs = routing.taught({"loss": (y - target(x).detach()).square().mean()}, training=True)
        outputs["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        m.after_step()
        return float(outputs["max_violation"])

    before = step()
    after = [step() for _ in range(300)][-20:]
    assert before > 1.5
    assert sum(after) / 20 < 0.5


def test_the_correction_counts_whole_steps_in_training_alone():
    m = make(preset="deepseek-v3", experts=16, top=2)
    x = torch.randn(1, 10, DIM)
    m(x), m(x)
    assert int(m.loads.sum()) == 2 * 10 * 2
    m.eval()(x)
    assert int(m.loads.sum()) == 2 * 10 * 2
    m.after_step()
    assert int(m.loads.sum()) == 0
    assert 0 < float(m.correction.abs().max()) <= 2e-3
    assert "correction" in m.state_dict()
    assert "loads" not in m.state_dict()


def test_capacity_drops_in_training_alone():
    m, x = make(experts=4, top=1, capacity=0.5), torch.randn(1, 16, DIM)
    with routed(m) as routing:
        m(x)
        m.eval()(x)
    training, evaluating = routing.calls[""]
    assert 0 < int((training.weights == 0).sum()) <= 16 - 4
    assert bool((evaluating.weights > 0).all())


@pytest.mark.parametrize("top", [1, 2])
def test_what_was_dropped_answers_with_nothing(top):
    """Not even where its answer would be infinite."""
    m, x = make(experts=4, top=top, capacity=0.5).double(), torch.randn(1, 16, DIM, dtype=torch.double)
    with routed(m) as routing:
        y = m(x)
    (call,) = routing.calls[""]
    words = (call.experts[0], call.weights[0], m.networks)
    torch.testing.assert_close(y[0], reference(x[0], *words), rtol=1e-12, atol=1e-12)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())
    dropped = (call.weights[0] == 0).all(-1).nonzero()[0, 0]
    x[0, dropped] *= 1e300
    with torch.no_grad():
        again = m(x)
    assert again.isfinite().all()
    assert again[0, dropped].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_correction_stays_wide(dtype):
    m = make(preset="deepseek-v3", experts=16, top=2)
    m.correction.normal_()
    m.correction -= m.correction.mean()
    before = m.correction.clone()
    m.to(dtype)
    assert (m.router.weight.dtype, m.correction.dtype) == (dtype, torch.float32)
    assert torch.equal(m.correction, before)
    for _ in range(2):
        m(torch.randn(1, 10, DIM, dtype=dtype))
        m.after_step()
    assert 0 < (m.correction - before).abs().max() < 5e-3
    assert m.double().correction.dtype == torch.double
    narrow = {name: t.to(dtype) for name, t in m.state_dict().items()}
    m.load_state_dict(narrow, assign=True)
    assert m.correction.dtype == torch.float32
    assert make(preset="deepseek-v3", experts=16, top=2).to("meta").to(dtype).correction.dtype == torch.float32


def test_jitter_is_of_training_alone():
    m, x = make(jitter=0.5), torch.randn(1, 16, DIM)
    with routed(m) as routing:
        m(x), m.eval()(x), m(x)
    noisy, still, again = (call.logits for call in routing.calls[""])
    assert not torch.equal(noisy, still)
    assert torch.equal(still, again)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"experts": 0}, "experts=0 must be at least 1"),
        ({"hidden": -1}, "hidden=-1 must be at least 1"),
        ({"top": 9}, "top=9 must be at most the 8 experts"),
        ({"groups": 3}, "groups=3 must divide experts=8"),
        ({"groups": 2, "top_groups": 3}, "top_groups=3 must be at most groups=2"),
        ({"groups": 4, "top_groups": 1, "top": 3}, "top=3 must be at most the 2 experts of top_groups=1"),
        ({"router": "chosen", "groups": 2}, "router='chosen' has no groups"),
        ({"router": "chosen", "correction": 0.1}, "router='chosen' takes no correction"),
        ({"balance": -0.1}, "balance=-0.1 must be at least 0"),
        ({"scale": 0.0}, "scale=0.0 must be above 0"),
        ({"jitter": 1.0}, "jitter=1.0 must be at least 0 and below 1"),
        ({"capacity": -1.0}, "capacity=-1.0 must be at least 0"),
        ({"shared_gate": True}, "shared_gate=True gates a shared network: give shared above 0"),
        ({"preset": "qwen"}, "'qwen' is not a choice; choose from switch, mixtral"),
        ({"expert": 8}, "unknown 'expert' (did you mean 'experts'?)"),
    ],
    ids=str,
)
def test_what_is_refused(words, says):
    with pytest.raises(ConfigError) as e:
        make(**words)
    assert str(e.value).startswith("here")
    assert says in str(e.value)


def test_a_preset_without_its_shared_network_has_no_gate_of_it():
    assert make(preset="qwen2", experts=8, top=2, shared=0).shared is None


# ---------------------------------------------------------------- in a model


def test_a_model_of_experts_trains_saves_and_resumes(tmp_path):
    parity = recipe()
    data = {**parity.data, "length": 16, "start": 8}
    moe = {"kind": "moe", "preset": "deepseek-v3", "experts": 16, "top": 2, "hidden": 16}
    model = {**parity.model, "depth": 2, "ffns": ({"kind": "mlp"}, moe)}
    train = dataclasses.replace(parity.train, steps=6, batch=2, save_every=3, log_every=1, threads=1, eval_every=3)
    run = dataclasses.replace(parity, data=data, model=model, train=train, optim=OptimConfig(kind="muon"))
    whole = train_run(run, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.step == 4:
            raise Stop

    with pytest.raises(Stop):
        train_run(run, tmp_path / "again", on_step=stop)
    assert train_run(run, tmp_path / "again").loss == whole.loss
    model = open_model(tmp_path / "whole")
    (moe,) = mixtures(model).values()
    assert float(moe.correction.abs().max()) > 0
    assert model.cost(8).active_parameters < model.cost(8).parameters
    rows = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert {"max_violation", "dead_experts", "router_sequence_balance"} <= rows[0].keys()
    assert "valid_max_violation" in rows[-1]
