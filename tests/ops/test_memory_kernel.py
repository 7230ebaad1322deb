"""The kernel of the memory in weights against one token after the other in float64: answers, the memory afterwards and all gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postformer.ops import _cpu, memory, memory_kernel, rules
from postformer.ops.fast_weights import BIASES, MLP
from postformer.ops.memory import Memory, Places

pytestmark = pytest.mark.skipif(not _cpu.BUILT, reason="the kernels are not built")
CLOSE = {"rtol": 2e-4, "atol": 2e-5}
IN_TORCH = memory.memory_in_torch
NETS = {"matrix": (5, 1, 0), "two": (16, 2, 32), "two odd": (6, 2, 9), "three": (4, 3, 17), "four": (3, 4, 2)}
RESIDUAL = {"matrix residual": (7, 1, 0), "two residual": (16, 2, 8), "two damped": (16, 2, 8), "three residual": (5, 3, 6)}


class Case:
    """Inputs in float64, of rows that have read `phases` tokens of a chunk and in which documents start and padding lies as told."""

    def __init__(
        self,
        net: str,
        bias: str,
        t: int,
        chunk: int,
        phases=(0, 0),
        starts=(),
        ends=None,
        momentum=True,
        seed=0,
        rule=rules.LINEAR,
    ):
        source = torch.Generator().manual_seed(seed)
        self.rule = rule
        d, depth, hidden = (NETS | RESIDUAL)[net]
        self.net, self.bias, (b, h) = MLP(d, depth, hidden, residual=net in RESIDUAL), BIASES[bias](), (len(phases), 2)
        self.net.damping = 0.3 if "damped" in net else 1e-5

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, dtype=torch.double, generator=source)

        def held() -> Memory:
            now = [[0.7 * draw(b, h, *s) for s in self.net.shapes] for _ in range(2)]
            return Memory(
                tuple(now[0]), tuple(now[1]), tuple(0.1 * draw(b, h, *s) for s in self.net.shapes) if momentum else ()
            )

        q, k = (torch.nn.functional.normalize(draw(b, t, h, d), dim=-1) for _ in "qk")
        keep, carry = (torch.nn.functional.logsigmoid(2 + draw(b, t, h)) for _ in "kc")
        limit = draw(b, t, h).exp() if self.bias.takes_limit else None
        gates = rules.Gates(0.02 * draw(b, t, h).sigmoid(), keep, carry if momentum else None, limit)
        self.inputs = (q, k, draw(b, t, h, d)), gates, held(), held()
        self.places = self._places(t, chunk, phases, starts, ends)

    @staticmethod
    def _places(t, chunk, phases, starts, ends) -> Places:
        seen, begun = torch.tensor(phases)[:, None] + torch.arange(t), torch.zeros(len(phases), t, dtype=torch.bool)
        for row, at, read in starts:
            if ends is None or at < ends[row]:
                begun[row, at], seen[row, at:] = True, read + torch.arange(t - at)
        real = None if ends is None else torch.arange(t) < torch.tensor(ends)[:, None]
        begins = seen % chunk == 0
        return Places(begins if real is None else begins & real, begun if starts else None, real)

    def all_of(self, form, dtype: torch.dtype):
        def cast(x):
            return None if x is None else x.to(dtype).requires_grad_()

        vectors, gates, *memories = self.inputs
        vectors, gates = [cast(x) for x in vectors], rules.Gates(*map(cast, gates))
        memories = [Memory(*(tuple(map(cast, part)) for part in m)) for m in memories]
        y, after = form(self.net, self.bias, *vectors, gates, *memories, self.places, self.rule)
        real = self.places.real
        out = [y if real is None else y[real], *(w for part in after for w in part)]
        number = sum((o * torch.linspace(0.5, 1.5, o.numel()).to(dtype).view_as(o).cos()).sum() for o in out)
        leaves = [x for x in (*vectors, *gates, *(w for m in memories for part in m for w in part)) if x is not None]
        found = torch.autograd.grad(number, leaves, allow_unused=True)
        return [x.detach() for x in out], [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]

    def check(self, form=memory.memory_reference) -> None:
        wanted, got = self.all_of(form, torch.double), self.all_of(memory.memory, torch.float32)
        for a, b in zip([*got[0], *got[1]], [*wanted[0], *wanted[1]], strict=True):
            scale = float(b.abs().amax()) + 1e-3 if b.numel() else 1.0
            torch.testing.assert_close(a.double() / scale, b / scale, **CLOSE)


@pytest.fixture(autouse=True)
def the_kernel_is_used(monkeypatch):
    def never(*arguments):
        raise AssertionError("torch's form was taken for float32")

    monkeypatch.setattr(memory, "memory_in_torch", never)


@pytest.mark.parametrize("momentum", [True, False], ids=["momentum", "none"])
@pytest.mark.parametrize("bias", ["l2", "dot", "huber"])
@pytest.mark.parametrize("net", [*NETS, *RESIDUAL])
def test_equals_the_token_loop(net, bias, momentum):
    Case(net, bias, 21, 4, momentum=momentum).check()


ANCHORED = rules.Rule(anchored=True)


@pytest.mark.parametrize("momentum", [True, False], ids=["momentum", "none"])
@pytest.mark.parametrize("net", ["two odd", "three residual"])
def test_weights_return_to_their_first(net, momentum):
    Case(net, "l2", 21, 4, momentum=momentum, rule=ANCHORED).check()
    Case("two", "l2", 12 * 16 + 5, 16, (0,), [(0, 7 * 16 + 2, 0)], momentum=momentum, rule=ANCHORED).check(IN_TORCH)


@settings(max_examples=30)
@given(
    net=st.sampled_from(["two odd", "three"]),
    t=st.integers(1, 40),
    chunk=st.integers(1, 40),
    phases=st.lists(st.integers(0, 7), min_size=1, max_size=3),
    data=st.data(),
)
def test_phases_documents_and_padding(net, t, chunk, phases, data):
    rows, at = st.integers(0, len(phases) - 1), st.integers(0, t - 1)
    starts = data.draw(st.lists(st.tuples(rows, at, st.integers(0, 3)), max_size=3, unique_by=lambda s: s[:2]))
    ends = data.draw(st.none() | st.lists(st.integers(0, t), min_size=len(phases), max_size=len(phases)))
    Case(
        net,
        "l2",
        t,
        chunk,
        phases,
        sorted(starts),
        ends,
        data.draw(st.booleans()),
        rule=data.draw(st.sampled_from([rules.LINEAR, ANCHORED])),
    ).check()


@pytest.mark.parametrize("chunk", [1, 3, 16, 33, 64])
def test_long_texts_are_read_again_in_runs(chunk):
    """Several runs of pieces, which backward goes through from memories that forward kept; beside torch's form, itself tested elsewhere."""
    Case("two", "l2", 12 * chunk + 5, chunk, (0,), [(0, 7 * chunk + 2, 0)]).check(IN_TORCH)


def test_padding_is_not_answered():
    case = Case("two odd", "l2", 9, 4, ends=[9, 4])
    vectors, gates, *memories = case.inputs
    single = [x.float() for x in vectors]
    small = [Memory(*(tuple(w.float() for w in part) for part in m)) for m in memories]
    y, _ = memory.memory(
        case.net, case.bias, *single, rules.Gates(*(None if g is None else g.float() for g in gates)), *small, case.places
    )
    assert not y[1, 4:].any() and y[0].all()


def test_a_chunk_too_long_for_the_kernel_goes_to_torch():
    begins = torch.zeros(1, memory_kernel.LONGEST_CHUNK + 1, dtype=torch.bool)
    begins[0, 0] = True
    gates = rules.Gates(torch.ones(1), torch.ones(1))
    arguments = MLP(4, 2, 4), BIASES["l2"](), rules.LINEAR, gates
    assert not memory_kernel.serves(*arguments, begins, torch.ones(1))
    begins[0, 7] = True
    assert memory_kernel.serves(*arguments, begins, torch.ones(1))


def operands(b=2, t=23, h=3, d=9, hidden=17, grad=True, anchored=1):
    """Inputs of the operator, with documents and padding."""
    source = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source).requires_grad_(grad)

    rate, keep, carry = (draw(b, t, h).detach().mul(0.1).sub(3).exp().requires_grad_(grad) for _ in range(3))
    memories = [draw(b, h, 3, 2 * d * hidden).detach().mul(0.3).requires_grad_(grad) for _ in range(2)]
    begins = (torch.arange(t) % 5 == 0).expand(b, t).clone()
    starts = torch.zeros(b, t, dtype=torch.bool)
    starts[0, 7], starts[1, 10] = True, True
    real = torch.arange(t) < torch.tensor([t, t - 6])[:b, None]
    vectors = [draw(b, t, h, d) for _ in range(3)]
    keep, carry = (-m.detach() for m in (keep, carry))
    return [
        *vectors,
        rate,
        keep.requires_grad_(grad),
        carry.requires_grad_(grad),
        None,
        *memories,
        begins,
        starts,
        real,
        [hidden, 2, 0, 1, _cpu.bits(1e-5), anchored, 3, 2],
    ]


def everything(inputs):
    y, after, _ = torch.ops.postformer.memory(*inputs, True)
    leaves = [x for x in inputs[:9] if x is not None]
    return y, after, *torch.autograd.grad((y.square().sum() + after.square().sum()), leaves)


def test_each_build_of_the_kernel(turn_to_build):
    inputs = operands()
    expected = everything(inputs)
    turn_to_build()
    for mine, other in zip(everything(inputs), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=5e-4)


def test_any_number_of_threads_gives_the_same_bits():
    threads, inputs = torch.get_num_threads(), operands()
    try:
        torch.set_num_threads(1)
        one = everything(inputs)
        torch.set_num_threads(4)
        assert all(torch.equal(a, b) for a, b in zip(everything(inputs), one, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("sizes", [(0, 5), (2, 0), (1, 1)], ids=str)
def test_no_rows_and_no_time(sizes):
    b, t = sizes
    inputs = [x[:b].detach() if isinstance(x, torch.Tensor) else x for x in operands()]
    inputs = [x[:, :t] if isinstance(x, torch.Tensor) and i not in (7, 8) else x for i, x in enumerate(inputs)]
    inputs[10] = None
    y, after, _ = torch.ops.postformer.memory(*inputs, False)
    assert y.shape == inputs[0].shape
    if not t:
        assert torch.equal(after, inputs[7])


@pytest.mark.parametrize("keep", [True, False], ids=["gradients", "inference"])
def test_the_operator_keeps_torchs_rules(keep):
    torch.library.opcheck(torch.ops.postformer.memory.default, (*operands(grad=keep), keep))


def test_the_operator_refuses_what_it_cannot_read():
    inputs = operands(grad=False)
    for i, spoiled in ((0, inputs[0][:1]), (1, inputs[1].double()), (3, inputs[3][:, :2]), (7, inputs[7][..., 1:]), (8, None)):
        with pytest.raises(ValueError, match="memory: "):
            torch.ops.postformer.memory(*inputs[:i], spoiled, *inputs[i + 1 :], False)
    with pytest.raises(ValueError, match="memory: begins is"):
        torch.ops.postformer.memory(*inputs[:9], inputs[9].float(), *inputs[10:], False)


def test_what_fades_comes_to_nothing():
    """Numbers below the normal ones, which cost a processor many times as much, are never left in a memory."""
    q, k, v, rate, keep, *rest = operands(grad=False, anchored=0)
    keep = torch.full_like(keep, -9.0)
    for held in rest[2:4]:
        held[:, :, 2] = 0.0
    y, after, _ = torch.ops.postformer.memory(q, k, v, torch.zeros_like(rate), keep, *rest, False)
    least = torch.finfo(torch.float32).tiny
    assert not bool(((after != 0) & (after.abs() < least)).any()) and bool((after == 0).any())
    assert bool(y.isfinite().all())
    assert float(torch.tensor(1e-39)) > 0  # outside of the kernel they are as they were
