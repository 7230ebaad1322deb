"""The schedule at its corners, which parameter goes where, and the optimizer's state by name."""

import itertools
import math

import pytest
import torch
from torch import nn

from postformer.config import ConfigError, OptimConfig
from postformer.train.muon import Muon, orthogonalize
from postformer.train.optim import Optimizer, StateMismatch, learning_rate, make_optimizer


def rates(total: int, **config) -> list[float]:
    config = OptimConfig(**{"lr": 1.0, "warmup": 4, "final": 0.1, **config})
    return [learning_rate(step, config, total) for step in range(total)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warm_up_is_linear_and_starts_above_zero(schedule):
    assert rates(20, schedule=schedule)[:4] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("total", [5, 6, 20, 1000])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_last_step_reaches_final_and_the_way_there_never_rises(schedule, total):
    after = rates(total, schedule=schedule)[3:]
    assert after[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(after))


def test_cosine_follows_its_formula():
    assert rates(14)[8] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 5 / 10)) / 2)


def test_wsd_is_flat_until_its_last_share():
    values = rates(100, schedule="wsd", decay=0.2)
    assert values[4:80] == [1.0] * 76
    assert values[80] == pytest.approx(1 - 0.9 / 20)
    assert values[89] == pytest.approx(0.55)


def test_wsd_without_decay_and_constant_stay_at_the_peak():
    assert rates(10, schedule="wsd", decay=0.0)[4:] == rates(10, schedule="constant")[4:] == [1.0] * 6


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_a_run_shorter_than_its_warm_up_ends_within_it(schedule):
    assert rates(2, schedule=schedule) == [0.25, 0.5]
    assert rates(4, schedule=schedule) == [0.25, 0.5, 0.75, 1.0]


def test_no_warm_up_and_a_single_step():
    assert rates(1, warmup=0) == pytest.approx([0.1])
    assert rates(3, warmup=0, schedule="constant") == [1.0] * 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.block = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(4)
        self.conv = nn.Conv1d(4, 4, 3, groups=4)
        self.conv_weight = nn.Parameter(torch.ones(4, 3))
        self.A_log = nn.Parameter(torch.ones(4, 4))
        self.A_log.no_weight_decay = True
        self.head = nn.Linear(4, 5, bias=False)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def groups(kind: str) -> dict[tuple[str, float], set[str]]:
    net = Net()
    names = {p: n for n, p in net.named_parameters()}
    optimizer = make_optimizer(dict(net.named_parameters()), OptimConfig(kind=kind, weight_decay=0.3))
    return {
        (type(part).__name__, group["weight_decay"]): {names[p] for p in group["params"]}
        for part in optimizer.parts
        for group in part.param_groups
    }


PLAIN = {"embed.weight", "block.bias", "norm.weight", "norm.bias", "conv.bias", "A_log", "head.weight"}


def test_adamw_decays_only_matrices_that_are_no_embeddings_heads_or_exempt():
    assert groups("adamw") == {("AdamW", 0.3): {"block.weight", "conv.weight", "conv_weight"}, ("AdamW", 0.0): PLAIN}


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    assert groups("muon") == {
        ("Muon", 0.3): {"block.weight"},
        ("AdamW", 0.3): {"conv.weight", "conv_weight"},
        ("AdamW", 0.0): PLAIN,
    }


def test_one_adamw_step_equals_the_published_update():
    p = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    config = OptimConfig(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    optimizer = make_optimizer({"block.weight": p}, config)
    p.grad = torch.tensor([[0.5, 0.25]])
    optimizer.step(0.01)
    torch.testing.assert_close(p.data, torch.tensor([[1.0, -2.0]]) * (1 - 0.01 * 0.1) - 0.01)


def test_a_muon_step_has_adamws_root_mean_square():
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(64, 256))
    optimizer = make_optimizer({"block.weight": p}, OptimConfig(kind="muon", weight_decay=0.0))
    p.grad = torch.randn(64, 256)
    optimizer.step(0.01)
    assert float(p.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.15)


def test_muon_equals_torchs_own_up_to_its_bf16():
    torch.manual_seed(0)
    for shape in ((48, 32), (32, 48)):
        ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
        a = make_optimizer({"block.weight": ours}, OptimConfig(kind="muon", matrix_lr=1.0, weight_decay=0.1))
        b = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            ours.grad = theirs.grad = torch.randn(shape)
            a.step(0.01)
            b.step()
        moved = (ours.detach() - 1).norm()
        assert (ours.detach() - theirs.detach()).norm() < 0.01 * moved


def test_orthogonalized_singular_values_are_near_one():
    torch.manual_seed(0)
    for x in (torch.randn(24, 40, dtype=torch.float64), torch.randn(40, 24), torch.zeros(3, 5)):
        y = orthogonalize(x)
        assert y.dtype == x.dtype
        values = torch.linalg.svdvals(y.double())
        assert bool(((values > 0.3) & (values < 1.3)).all()) or not x.any()


def trained(kind: str) -> tuple[Net, Optimizer]:
    torch.manual_seed(0)
    net = Net()
    optimizer = make_optimizer(dict(net.named_parameters()), OptimConfig(kind=kind))
    for p in net.parameters():
        if p is not net.A_log:
            p.grad = torch.randn(p.shape)
    optimizer.step(0.01)
    return net, optimizer


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_goes_into_a_fresh_optimizer_and_the_next_steps_are_equal(kind):
    net, optimizer = trained(kind)
    other = Net()
    other.load_state_dict(net.state_dict())
    fresh = make_optimizer(dict(other.named_parameters()), OptimConfig(kind=kind))
    fresh.load_state(optimizer.state())
    assert not any("A_log" in name for name in fresh.state())
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        b.grad = a.grad
    optimizer.step(0.02)
    fresh.step(0.02)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert fresh.state().keys() == optimizer.state().keys()
    assert all(torch.equal(value, fresh.state()[name]) for name, value in optimizer.state().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update({"nobody:step": torch.tensor(1.0)}), "'nobody:step' belongs to no parameter"),
        (lambda s: s.pop("block.weight:exp_avg_sq"), "'block.weight:exp_avg_sq' is missing"),
        (lambda s: s.update({"block.weight:exp_avg": torch.ones(4, 6)}), r"has shape \(4, 6\), this run's has \(6, 4\)"),
        (lambda s: s.update({"block.weight:step": torch.ones(1)}), r"'block.weight:step' has shape \(1,\)"),
    ],
)
def test_state_that_does_not_fit_is_named(change, words):
    _, optimizer = trained("adamw")
    state = optimizer.state()
    change(state)
    with pytest.raises(StateMismatch, match=words):
        make_optimizer(dict(Net().named_parameters()), OptimConfig()).load_state(state)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", -1.0),
        ("betas", (0.9, 1.5)),
        ("eps", -1.0),
        ("weight_decay", -0.1),
        ("warmup", -1),
        ("clip", -1.0),
        ("decay", 1.5),
        ("final", -0.1),
    ],
)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_setting_out_of_range_is_one_line(kind, field, value):
    with pytest.raises(ConfigError, match=r"^optim") as e:
        make_optimizer(dict(Net().named_parameters()), OptimConfig(kind=kind, **{field: value}))
    assert "\n" not in str(e.value)


def test_muon_takes_its_share_of_the_learning_rate():
    torch.manual_seed(0)
    moved = []
    for share in (1.0, 0.25):
        w = nn.Parameter(torch.ones(4, 4))
        optimizer = make_optimizer({"w.weight": w}, OptimConfig(kind="muon", matrix_lr=share, weight_decay=0.0))
        w.grad = torch.eye(4)
        optimizer.step(0.1)
        moved.append((w.detach() - 1).norm())
    torch.testing.assert_close(moved[1], moved[0] * 0.25)


@pytest.mark.parametrize(("kind", "share"), [("muon", 0.25), ("adamw", 1.0)])
def test_a_router_learns_by_adamw_at_the_rate_of_the_matrices(kind, share):
    router = nn.Parameter(torch.ones(4, 4))
    optimizer = make_optimizer(
        {"blocks.0.ffn.router.weight": router}, OptimConfig(kind=kind, matrix_lr=0.25, eps=1e-12, weight_decay=0.5)
    )
    router.grad = torch.randn(4, 4)
    optimizer.step(0.1)
    torch.testing.assert_close(router.detach(), 1 - 0.1 * share * router.grad.sign())


def test_muon_takes_filters_as_rows_of_a_matrix():
    torch.manual_seed(0)
    filters, matrix = nn.Parameter(torch.randn(6, 4, 3, 3, 3)), nn.Parameter(torch.empty(6, 108))
    matrix.data.copy_(filters.detach().flatten(1))
    optimizer = make_optimizer({"conv.weight": filters, "up.weight": matrix}, OptimConfig(kind="muon", weight_decay=0.1))
    for _ in range(3):
        filters.grad = torch.randn_like(filters)
        matrix.grad = filters.grad.flatten(1)
        optimizer.step(0.01)
    torch.testing.assert_close(filters.flatten(1), matrix, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(8, 1, 3, 3), (1, 8, 3, 3), (8, 4, 3), (8, 1, 4)])
def test_filters_of_one_channel_and_short_convolutions_are_no_matrices(shape):
    optimizer = make_optimizer({"conv.weight": nn.Parameter(torch.ones(shape))}, OptimConfig(kind="muon"))
    assert [type(part) for part in optimizer.parts] == [torch.optim.AdamW]


def test_a_single_row_is_no_matrix_to_muon():
    gate, matrix = nn.Parameter(torch.ones(1, 4)), nn.Parameter(torch.ones(4, 4))
    optimizer = make_optimizer({"gate.weight": gate, "up.weight": matrix}, OptimConfig(kind="muon"))
    muon = next(part for part in optimizer.parts if isinstance(part, Muon))
    assert [p is matrix for group in muon.param_groups for p in group["params"]] == [True]
