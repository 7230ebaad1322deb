"""Every mixer: what its constructor refuses, what it costs, and in which dtype it computes and remembers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from postformer import state as states
from postformer.config import ConfigError, build
from postformer.mixers import MIXERS
from postformer.ops import _cpu

DIM = 16
CASES = {
    "attention": {"kind": "attention", "heads": 2},
    "grouped": {"kind": "attention", "heads": 4, "kv_heads": 2, "qk_norm": True},
    "wide": {"kind": "attention", "heads": 3, "head_dim": 6},
    "persistent": {"kind": "attention", "heads": 2, "persistent": 3},
    "window": {"kind": "attention", "heads": 2, "window": 5},
    "convolved": {"kind": "attention", "heads": 2, "window": 5, "conv": 3},
    "mamba": {"kind": "mamba"},
    "mamba-small": {"kind": "mamba", "state": 3, "conv": 2, "rank": 2, "expand": 1},
    "mamba2": {"kind": "mamba2", "state": 6, "head_dim": 8, "groups": 2},
    "mamba3": {"kind": "mamba3", "state": 8, "head_dim": 8},
    "mamba3-mimo": {"kind": "mamba3", "state": 6, "head_dim": 4, "rank": 2},
    "gated-delta": {"kind": "gated_delta", "heads": 2},
    "mingru": {"kind": "mingru", "expand": 2},
    "lmm": {"kind": "lmm", "heads": 2, "chunk": 4},
    "lmm-persistent": {"kind": "lmm", "heads": 1, "depth": 3, "persistent": 3, "bias": "huber"},
    "lmm-threshold": {"kind": "lmm", "heads": 2, "chunk": 4, "threshold": 0.49},
    "lmm-initial": {"kind": "lmm", "heads": 2, "retention": "initial", "persistent": 3},
    "mac": {"kind": "mac", "memory": {"heads": 2, "chunk": 3}, "attention": {"heads": 2}, "segment": 4, "persistent": 2},
    "mac-conv": {
        "kind": "mac",
        "memory": {"heads": 2, "chunk": 3},
        "attention": {"heads": 2, "conv": 3},
        "segment": 4,
        "residual": True,
    },
    "mag": {"kind": "mag", "memory": {"heads": 2, "chunk": 4}, "attention": {"heads": 2, "window": 5}, "gate": "product"},
    "mal": {"kind": "mal", "memory": {"heads": 2, "chunk": 4}, "attention": {"heads": 2, "window": 5}, "persistent": 2},
}


def make(case: str):
    torch.manual_seed(0)
    return build(CASES[case], MIXERS, case, dim=DIM)


def test_every_mixer_has_a_case():
    assert {c["kind"] for c in CASES.values()} == set(MIXERS)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"kind": "attention", "heads": 0}, "heads=0"),
        ({"kind": "attention", "heads": -2}, "heads=-2"),
        ({"kind": "attention", "heads": 3}, "dim=16 is not divisible by heads=3; give head_dim"),
        ({"kind": "attention", "heads": 4, "kv_heads": 3}, "heads=4 must be a positive multiple of kv_heads=3"),
        ({"kind": "attention", "heads": 4, "kv_heads": -2}, "kv_heads=-2"),
        ({"kind": "attention", "heads": 2, "head_dim": 5}, "the head width must be even for rotary positions; it is 5"),
        ({"kind": "attention", "heads": 2, "head_dim": -4}, "the head width must be even"),
        ({"kind": "attention", "heads": 16}, "the head width must be even for rotary positions; it is 1"),
        ({"kind": "attention", "window": 0}, "window=0 must be 1 to"),
        ({"kind": "attention", "persistent": -1}, "persistent=-1 at least 0"),
        ({"kind": "attention", "conv": -1}, "conv=-1 must be at least 0"),
        ({"kind": "attention", "rope_base": 0.0}, "rope_base=0.0"),
        ({"kind": "attention", "norm_eps": -1.0}, "norm_eps=-1.0 must be at least 0"),
        ({"kind": "attention", "qk_norm": "all"}, "here.qk_norm: 'all' is not a choice; choose from true, false, whole"),
        ({"kind": "mamba", "state": 0}, "state=0"),
        ({"kind": "lmm", "chunk": 0}, "chunk=0"),
        ({"kind": "lmm", "depth": 0}, "depth=0"),
        ({"kind": "lmm", "persistent": -1}, "persistent=-1"),
        ({"kind": "lmm", "rate": 0.0}, "rate=0.0 must be above 0"),
        ({"kind": "lmm", "threshold": 1.0}, "threshold=1.0 must be at least 0 and below 1"),
        ({"kind": "lmm", "damping": -1.0}, "damping=-1.0 must be above 0"),
        ({"kind": "lmm", "gates": "tokens"}, "gates: 'tokens' is not a choice; choose from token, conv"),
        ({"kind": "mac", "segment": 0}, "here: segment=0"),
        ({"kind": "mac", "gate": "or"}, "here.gate: 'or' is not a choice; choose from memory, both, product"),
        ({"kind": "mac", "memory": 3}, "here.memory: expected a table, got 3"),
        ({"kind": "mac", "memory": {"preset": "lact"}}, "here.memory: mac needs a memory that writes tokens"),
        ({"kind": "mac", "memory": {"kind": "mamba"}}, "here.memory: mac needs a memory that can be recalled from; choose lmm"),
        ({"kind": "mac", "attention": {"kind": "mamba"}}, "here.attention: mac needs attention without a window"),
        ({"kind": "mac", "attention": {"window": 4}}, "here.attention: mac needs attention without a window"),
        ({"kind": "mac", "persistent": -1}, "here.attention: window=None must be 1 to 1048576 and persistent=-1"),
        ({"kind": "mag", "memory": {"chunks": 3}}, "here.memory: unknown 'chunks' (did you mean 'chunk'?); lmm takes heads"),
        ({"kind": "mag", "memory": {"chunk": 0}}, "here.memory: chunk=0 must be at least 1"),
        ({"kind": "mag", "memory": {"kind": "lm"}}, "here.memory.kind: unknown 'lm' (did you mean 'lmm'?)"),
        ({"kind": "mag", "attention": {"heads": "2"}}, "here.attention.heads: expected a whole number, got '2'"),
        ({"kind": "mag", "memory": {"kind": "mamba"}, "persistent": 2}, "here.memory: unknown 'persistent'; mamba takes"),
        ({"kind": "mal", "attention": {"kind": "mag", "memory": {"chunk": -1}}}, "here.attention.memory: chunk=-1"),
        ({"kind": "mamba", "expand": 0}, "expand=0"),
        ({"kind": "mamba", "conv": 0}, "conv=0"),
        ({"kind": "mamba", "rank": -1}, "rank=-1"),
        ({"kind": "mamba", "dt_min": 0.0}, "dt_min=0.0 and dt_max=0.1 must satisfy 0 < dt_min <= dt_max"),
        ({"kind": "mamba", "dt_min": 0.2}, "dt_min=0.2 and dt_max=0.1"),
        ({"kind": "mamba2", "head_dim": 5}, "head_dim=5 must divide expand * dim = 32"),
        ({"kind": "mamba2", "head_dim": 8, "groups": 3}, "groups=3 the number of heads that this makes"),
        ({"kind": "mamba2", "head_dim": 8, "state": 0}, "state=0"),
        ({"kind": "mamba2", "head_dim": 8, "dt_min": 0.0}, "dt_min=0.0 and dt_max=0.1 must satisfy"),
        ({"kind": "mamba3", "head_dim": 8, "rank": 0}, "rank=0 must be at least 1"),
        ({"kind": "mamba3", "head_dim": 0}, "head_dim=0"),
        ({"kind": "mamba3", "head_dim": 8, "groups": 3}, "groups=3 the number of heads that this makes"),
        ({"kind": "mamba3", "head_dim": 8, "rotated": 1.5}, "rotated=1.5 must be from 0 to 1"),
        ({"kind": "mamba3", "head_dim": 8, "decay": "exp"}, "softplus, heavy"),
        ({"kind": "gated_delta", "heads": 0}, "heads=0"),
        ({"kind": "gated_delta", "value_expand": 0}, "value_expand=0"),
        ({"kind": "mingru", "expand": 0}, "expand=0"),
        ({"kind": "gated_delta", "head_dim": -1}, "head_dim=-1"),
    ],
    ids=str,
)
def test_what_is_refused(spec, says):
    with pytest.raises(ConfigError) as e:
        build(spec, MIXERS, "here", dim=DIM)
    assert str(e.value).startswith(("here: ", "here."))
    assert says in str(e.value)


# ---------------------------------------------------------------- costs


def counted(m, length: int, past: int) -> int:
    """What torch counts of matrix products and convolutions for `length` new tokens after `past` others."""
    state = m.init_state(1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        if past:
            _, state = m(torch.randn(1, past, DIM), state)
        with FlopCounterMode(display=False) as counter:
            m(torch.randn(1, length, DIM), state)
    return counter.get_total_flops()


@pytest.mark.parametrize("past", [0, 1, 3, 11])
@pytest.mark.parametrize("case", [c for c in CASES if CASES[c]["kind"] == "attention"])
def test_a_step_of_attention_costs_what_torch_counts(case, past):
    """One token reads all slots: those of the future and of the prefix are counted alike."""
    m = make(case)
    unseen = max(0, (m.window or 0) - past - 1)  # slots of the ring that hold nothing yet are computed and not counted
    prefix = 4 * DIM * m.groups * m.width * m.persistent  # keys and values of the persistent tokens, once a call
    extra = 4 * m.heads * m.width * unseen + prefix
    assert counted(m, 1, past) == m.flops(1, past) + extra


@pytest.mark.parametrize("case", ["mamba", "mamba-small"])
@pytest.mark.parametrize("length", [2, 9, 40])
def test_mamba_costs_what_torch_counts_and_the_scan(case, length):
    """Torch counts no elementwise operation. Those of the scan, which the kernel counts, for a channel and a state: dt A, exp,
    decay h, (dt u) B, the sum of these, h C, its sum; for a channel: dt u; and D u, the sum, which it does not."""
    m = make(case)
    scan = 2 * m.channels if _cpu.BUILT else 7 * m.channels * m.n + 3 * m.channels
    assert counted(m, length, 3) == m.flops(length, 3) - scan * length


@pytest.mark.parametrize("case", ["mamba2", "mamba3", "mamba3-mimo", "gated-delta"])
def test_one_token_of_a_recurrence_costs_what_torch_counts_and_the_elementwise_rest(case):
    """Torch counts matrix products: the projections, and the updates and readings of the state. Of rank 1 an update is none."""
    m = make(case)
    if case == "mamba2":
        elementwise = 3 * m.channels * m.n + 3 * m.channels  # the decay, the outer product and its sum; dt x, D x and its sum
    elif case == "gated-delta":
        elementwise = m.heads * m.p * (3 * m.n + 2)  # the decay, the outer product and its sum; the change
    else:
        turning = m.heads * (3 * m.angles + 2 * m.rank * (6 * m.angles + m.n))
        elementwise = 2 * m.channels * m.n + 5 * m.channels * m.rank + turning + (4 * m.channels * m.n if m.rank == 1 else 0)
    if _cpu.BUILT and case != "gated-delta":  # the kernel counts all that it does
        rank, pairs = getattr(m, "rank", 1), m.channels * m.n
        later = 2 * rank if case != "mamba2" else 0
        elementwise -= pairs * (1 + 4 * rank + later) - (2 * pairs if rank == 1 else 4 * pairs * rank)
    assert counted(m, 1, 3) == m.flops(1, 3) - elementwise


@pytest.mark.parametrize("past", [1, 3, 4, 9])
@pytest.mark.parametrize("case", ["mac", "mag", "mal"])
def test_what_joins_memory_and_attention_costs_what_torch_counts(case, past):
    """Keys and values of the persistent tokens are computed once a call."""
    m = make(case)
    parts = [m.memory] if case == "mac" else [m.memory, m.attention]
    prefix = 4 * DIM * m.attention.groups * m.attention.width * m.attention.persistent if case == "mac" else 0
    rest = counted(m, 1, past) - sum(counted(part, 1, past) for part in parts)
    assert rest == m.flops(1, past) - sum(part.flops(1, past) for part in parts) + prefix


@pytest.mark.parametrize("case", CASES)
@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_costs_add_up(case, cuts):
    m, past, total = make(case), 0, 0
    for n in cuts:
        total += m.flops(n, past)
        past += n
    assert total == m.flops(past)


def test_pairs_are_counted_one_by_one():
    for case in ("attention", "window"):
        m = make(case)
        inner, w = m.heads * m.width, m.window or 10**9
        for past in (0, 2, 4, 5, 9):
            pairs = sum(min(at + 1, w) for at in range(past, past + 7))
            assert (
                m.flops(7, past) - make(case).flops(0, past)
                == 7 * 2 * DIM * (2 * inner + 2 * m.groups * m.width) + 4 * inner * pairs
            )


def test_formulas_answer_at_once_at_any_length():
    n = 75_000_000
    assert make("attention").flops(n) == pytest.approx(4 * DIM * n * n / 2, rel=0.01)
    assert make("window").flops(1, n) == make("window").flops(1, 100)
    assert make("mamba").flops(n) == n * make("mamba").flops(1)


# ---------------------------------------------------------------- dtypes


def kept_as(case: str, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """In which dtypes a mixer that computes in `dtype` remembers: what is added up over time in fp32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    memory = {"conv": dtype, "start": wide, "now": wide, "surprise": wide, "seen": torch.int64}
    nested = {f"memory.{name}": kind for name, kind in memory.items()}
    cache = {"k": dtype, "v": dtype, "seen": torch.int64}
    joined = nested | {f"attention.{name}": kind for name, kind in cache.items()}
    convolved = {"conv": dtype} if "conv" in CASES[case] else {}
    both = {"recalled": dtype, "conv": dtype} if case == "mac-conv" else {}
    return {
        "attention": cache | convolved,
        "mamba": {"conv": dtype, "ssm": wide},
        "mamba2": {"conv": dtype, "ssm": wide},
        "mamba3": {"angle": wide, "ssm": wide, "B": wide, "x": wide},
        "gated_delta": {"conv": dtype, "memory": wide},
        "mingru": {"h": wide},
        "lmm": memory,
        "mac": nested | both | {"recall.conv": dtype, "recall.weights": wide, "k": dtype, "v": dtype},
        "mag": joined,
        "mal": joined,
    }[CASES[case]["kind"]]


def kinds_of(state) -> dict[str, torch.dtype]:
    return {name.rstrip(".0123456789"): leaf.dtype for name, leaf in states.leaves(state)}


@pytest.mark.parametrize("case", CASES)
def test_bf16_activations_with_fp32_parameters(case):
    m = make(case)
    x = torch.randn(2, 9, DIM)
    exact, _ = m(x)
    y, state = m(x.bfloat16(), m.init_state(2))
    z, after = m(x.bfloat16()[:, :1], state)
    assert y.dtype == z.dtype == torch.bfloat16
    (y.float().sum() + z.float().sum()).backward()
    assert {p.dtype for p in m.parameters()} == {p.grad.dtype for p in m.parameters()} == {torch.float32}
    assert float((y.float() - exact).detach().abs().max()) < 0.05 * float(exact.detach().abs().max()) + 0.02
    assert kinds_of(after) == kept_as(case, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_model_of_one_dtype(case, dtype):
    """The state keeps its dtypes and its bytes from the first token on; the recurrence stays in fp32 at least."""
    m = make(case).to(dtype)
    with torch.no_grad():
        y, state = m(torch.randn(1, 6, DIM, dtype=dtype), m.init_state(1))
    assert y.dtype == dtype
    assert kinds_of(state) == kept_as(case, dtype)
    assert states.nbytes(state) == m.state_bytes(6, dtype.itemsize)


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_the_future_is_seen(case):
    m = make(case).double()
    x = torch.randn(1, 12, DIM, dtype=torch.double)
    other = torch.cat([x[:, :7], torch.randn(1, 5, DIM, dtype=torch.double)], 1)
    torch.testing.assert_close(m(x)[0][:, :7], m(other)[0][:, :7], rtol=0.0, atol=1e-12)
