"""Memory in weights: the dual form in chunks against one token after the other with gradients by autograd, in float64: outputs, the
memory afterwards and all gradients, over networks, biases, chunk sizes, phases, documents and padding; and at any split."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postformer.mixers.titans import LMM
from postformer.ops import family, fast_weights, memory, memory_chunks, rules
from postformer.ops.fast_weights import BIASES, MLP, SwiGLU

EXACT = {"rtol": 1e-10, "atol": 1e-10}
B, H, D = 2, 2, 4
NETS = {
    "matrix": MLP(D, 1, 0),
    "mlp-2": MLP(D, 2, 6),
    "mlp-3": MLP(D, 3, 5, "gelu"),
    "residual": MLP(D, 2, 6, "gelu", residual=True),
    "damped": MLP(D, 2, 6, residual=True, damping=0.3),
    "swiglu": SwiGLU(D, 5),
}
SOURCE = torch.Generator()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.double, generator=SOURCE)


def weights(net: fast_weights.Net, scale: float = 0.7) -> memory_chunks.Weights:
    return tuple(scale * draw(B, H, *shape) for shape in net.shapes)


def places(t: int, chunk: int, phases: list[int], starts: list[tuple[int, int]] = [], ends: list[int] | None = None):  # noqa: B006
    """Rows that have read so many tokens of a chunk, documents that start at (row, place), and rows that end early."""
    seen = torch.tensor(phases)[:, None] + torch.arange(t)
    begun = torch.zeros(B, t, dtype=torch.bool)
    for row, at in starts:
        begun[row, at] = True
        seen[row, at:] = torch.arange(t - at)
    real = None if ends is None else torch.arange(t) < torch.tensor(ends)[:, None]
    begins = seen % chunk == 0
    return memory.Places(begins if real is None else begins & real, begun if starts else None, real)


class Case:
    """Inputs that require gradients."""

    def __init__(
        self, net: fast_weights.Net, bias: str, t: int, momentum: bool, seed: int = 0, rule: rules.Rule = rules.LINEAR
    ):
        SOURCE.manual_seed(seed)
        self.net, self.bias, self.t, self.rule = net, BIASES[bias](), t, rule
        self.qkv = [draw(B, t, H, D) for _ in range(3)]
        self.qkv[:2] = [torch.nn.functional.normalize(m, dim=-1) for m in self.qkv[:2]]
        rate = 0.02 * draw(B, t, H).sigmoid()
        keep, carry = (torch.nn.functional.logsigmoid(2 + draw(B, t, H)) for _ in range(2))
        limit = draw(B, t, H).exp() if self.bias.takes_limit else None
        share = draw(B, t, H).sigmoid() if rule.window > 1 else None
        self.gates = memory.Gates(rate, keep, carry if momentum else None, limit, share=share)
        self.memory, self.fresh = (
            memory.Memory(weights(net), weights(net), weights(net, 0.1) if momentum else (), self.recent(read))
            for read in (2, 0)
        )
        self.leaves = [x.requires_grad_() for x in self.tensors()]

    @staticmethod
    def of(learner: family.Learner, t: int) -> "Case":
        """With the gates and the memory that a preset has."""
        case = Case(learner.net, "l2", t, learner.surprise, rule=learner.rule)
        case.bias, gates = learner.bias, case.gates
        limit = draw(B, t, H).exp() if learner.bias.takes_limit else None
        step = 0.02 * draw(B, t, H).sigmoid() if learner.steps else None
        keep = gates.keep if learner.forgetting else torch.zeros_like(gates.keep)
        case.gates = gates._replace(keep=keep, carry=gates.carry if learner.momentum else None, limit=limit, step=step)
        case.leaves = [x.requires_grad_() for x in case.tensors()]
        return case

    def tensors(self) -> list[torch.Tensor]:
        states = [w for m in (self.memory, self.fresh) for part in m for w in part]
        return [x for x in (*self.qkv, *self.gates, *states) if x is not None]

    def recent(self, read: int) -> tuple[torch.Tensor, ...]:
        """Keys, values and shares of the last tokens, of which `read` are there."""
        size = self.rule.window - 1
        share = draw(B, H, size, 1).sigmoid()
        share[:, :, : max(0, size - read)] = 0
        return (draw(B, H, size, D), draw(B, H, size, D), share) if size else ()

    def run(self, form, places: memory.Places):
        return form(self.net, self.bias, *self.qkv, self.gates, self.memory, self.fresh, places, self.rule)

    def all_of(self, form, places: memory.Places):
        """Outputs at real tokens, the memory, and the gradients of a number that depends on all of them."""
        y, after = self.run(form, places)
        out = [y if places.real is None else y[places.real], *(w for part in after for w in part)]
        number = sum((o * torch.linspace(0.5, 1.5, o.numel(), dtype=torch.double).view_as(o).cos()).sum() for o in out)
        gradients = torch.autograd.grad(number, self.leaves, allow_unused=True)
        return out, [torch.zeros_like(x) if g is None else g for x, g in zip(self.leaves, gradients, strict=True)]


def same(got, wanted) -> None:
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def agree(case: Case, where: memory.Places) -> None:
    for got, wanted in zip(case.all_of(memory.memory, where), case.all_of(memory.memory_reference, where), strict=True):
        same(got, wanted)


@pytest.mark.parametrize("momentum", [True, False], ids=["momentum", "plain"])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("net", NETS)
def test_chunks_are_the_token_loop(net: str, bias: str, momentum: bool):
    case = Case(NETS[net], bias, 11, momentum)
    for chunk in (1, 4, 64):
        agree(case, places(11, chunk, [0, 0]))


RULES = {
    "lq": rules.Rule(rules.lq(4.0)),
    "softmax": rules.Rule(rules.softmax),
    "muon": rules.Rule(rules.IDENTITY, rules.newton_schulz),
    "ends": rules.Rule(rules.IDENTITY, rules.newton_schulz, at_ends=True),
    "omega": rules.Rule(rules.IDENTITY, window=3),
    "anchored": rules.Rule(anchored=True),
    "anchored-muon": rules.Rule(rules.IDENTITY, rules.newton_schulz, anchored=True),
    "anchored-omega": rules.Rule(window=3, anchored=True),
    "omega-muon": rules.Rule(rules.IDENTITY, rules.newton_schulz, window=4),
    "omega-wide": rules.Rule(rules.IDENTITY, window=12),
}


@pytest.mark.parametrize("net", ["matrix", "mlp-2", "mlp-3"])
@pytest.mark.parametrize("chunk", [16, 64])
def test_long_chunks_that_follow_each_other(net: str, chunk: int):
    """Row 0 from a chunk's beginning, row 1 from its middle."""
    agree(Case(NETS[net], "l2", 2 * chunk + 3, True), places(2 * chunk + 3, chunk, [0, chunk // 2]))


@pytest.mark.parametrize("chunk", [5, 64])
@pytest.mark.parametrize("preset", family.PRESETS)
def test_presets_over_long_chunks(preset: str, chunk: int):
    """Row 0 from a chunk's beginning, row 1 from its middle; with LaCT's writes at the end of each."""
    words = {"window": 3} if preset == "atlas" else {}
    mixer = LMM(
        D,
        heads=1,
        preset=preset,
        chunk=chunk,
        expand=None if preset == "titans-linear" or preset == "ttt-linear" else 2,
        **words,
    )
    agree(Case.of(mixer.learner, 2 * chunk + 3), places(2 * chunk + 3, chunk, [0, chunk // 2]))


@pytest.mark.parametrize("rule", RULES)
def test_rules_over_long_chunks(rule: str):
    agree(Case(NETS["mlp-2"], "l2", 35, True, rule=RULES[rule]), places(35, 16, [0, 8]))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_rules_in_chunks_are_the_token_loop(rule: str, chunk: int):
    agree(Case(NETS["mlp-2"], "l2", 9, True, rule=RULES[rule]), places(9, chunk, [0, 3], [(1, 5)]))


@pytest.mark.parametrize("rule", [r for r in RULES if r.startswith("omega")])
def test_windows_end_with_documents_and_leave_padding_out(rule: str):
    agree(Case(NETS["mlp-2"], "l2", 9, False, rule=RULES[rule]), places(9, 4, [2, 1], [(0, 3), (1, 2)], [9, 6]))


@settings(max_examples=20)
@given(
    chunk=st.integers(1, 9),
    phases=st.lists(st.integers(0, 20), min_size=2, max_size=2),
    starts=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 15)), max_size=3),
    ends=st.none() | st.lists(st.integers(0, 16), min_size=2, max_size=2),
)
def test_phases_documents_and_padding(chunk, phases, starts, ends):
    ends = None if ends is None else [max(e, *(at + 1 for r, at in starts if r == row), 0) for row, e in enumerate(ends)]
    agree(Case(NETS["mlp-2"], "l2", 16, True), places(16, chunk, phases, starts, ends))


@given(cuts=st.sets(st.integers(1, 19), max_size=4), chunk=st.sampled_from([1, 4, 7, 64]), net=st.sampled_from(sorted(NETS)))
def test_any_split_gives_the_whole(cuts, chunk, net):
    case = Case(NETS[net], "l2", 20, True)
    whole = places(20, chunk, [0, 3])
    with torch.no_grad():
        wanted, after = case.run(memory.memory, whole)
        at, outs = case.memory, []
        for i, j in zip([0, *sorted(cuts)], [*sorted(cuts), 20], strict=True):
            gates = memory.Gates(*(None if g is None else g[:, i:j] for g in case.gates))
            here = memory.Places(whole.begins[:, i:j])
            y, at = memory.memory(case.net, case.bias, *(m[:, i:j] for m in case.qkv), gates, at, case.fresh, here)
            outs.append(y)
    same([torch.cat(outs, 1), *(w for part in at for w in part)], [wanted, *(w for part in after for w in part)])


@pytest.mark.parametrize("name", ["l2", "dot", "huber"])
def test_a_bias_has_the_gradient_of_its_loss(name):
    SOURCE.manual_seed(1)
    y, v, limit = draw(50, 6).requires_grad_(), draw(50, 6), draw(50).exp()
    (wanted,) = torch.autograd.grad(BIASES[name]().loss(y, v, limit).sum(), y)
    same([BIASES[name]().gradient(y, v, limit)], [wanted])


def test_the_lp_bias_is_smooth_and_near_its_loss():
    SOURCE.manual_seed(1)
    bias = BIASES["lp"](3.0)
    y, v = draw(50, 6).requires_grad_(), draw(50, 6)
    (wanted,) = torch.autograd.grad(bias.loss(y, v).sum(), y)
    got = bias.gradient(y, v)
    far = (y - v).abs() > 0.5
    torch.testing.assert_close(got[far], wanted[far], rtol=1e-3, atol=1e-4)
    assert bool((got.abs() <= wanted.abs() + 1e-4).all())
    assert not bias.gradient(v, v).any()


def test_p_below_one_is_refused():
    with pytest.raises(ValueError, match=r"p=0.5 must be at least 1"):
        BIASES["lp"](0.5)


def test_nothing_is_written_at_rate_zero():
    case = Case(NETS["mlp-2"], "l2", 9, False)
    gates = case.gates._replace(rate=torch.zeros_like(case.gates.rate), keep=torch.zeros_like(case.gates.keep))
    where = places(9, 4, [0, 0])
    _, after = memory.memory(case.net, case.bias, *case.qkv, gates, case.memory, case.fresh, where)
    same(after.now, case.memory.now)
