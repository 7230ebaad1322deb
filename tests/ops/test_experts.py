"""The experts' networks: sorted by expert as one after the other, gradients by formula as by autograd."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.ops import _cpu
from postformer.ops import experts as experts_of
from postformer.ops.expert_parts import Part, by_parts
from postformer.ops.experts import (
    KINDS,
    Activation,
    Networks,
    activated,
    gated,
    grouped_product,
    mixed,
    reference,
    through_kernel,
)

ACTIVATIONS: tuple[Activation, ...] = ("swiglu", "gelu", "relu", "gpt-oss")


def case(n, k, e, activation: Activation, bias: bool, d=6, f=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.double, generator=g)  # noqa: E731
    wide = f * (2 if gated(activation) else 1)
    experts = torch.randn(n, e, generator=g).topk(k).indices
    biases = (draw(e, wide), draw(e, d)) if bias else (None, None)
    return draw(n, d), experts, draw(n, k).sigmoid(), draw(e, wide, d), draw(e, d, f), activation, *biases


@given(
    st.integers(0, 20), st.integers(1, 3), st.integers(3, 9), st.sampled_from(ACTIVATIONS), st.booleans(), st.integers(0, 99)
)
def test_mixed_is_the_reference(n, k, e, activation, bias, seed):
    words = case(n, k, e, activation, bias, seed=seed)
    leaves = [w.requires_grad_() if isinstance(w, torch.Tensor) and w.is_floating_point() else w for w in words]
    taught = [w for w in leaves if isinstance(w, torch.Tensor) and w.requires_grad]
    one, other = (of(*leaves[:3], Networks(*leaves[3:])) for of in (mixed, reference))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    seed_of = torch.randn_like(one)
    for a, b in zip(torch.autograd.grad(one, taught, seed_of), torch.autograd.grad(other, taught, seed_of), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@given(
    st.integers(0, 9),
    st.integers(1, 3),
    st.integers(3, 9),
    st.integers(1, 9),
    st.sampled_from(ACTIVATIONS),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.integers(0, 99),
)
def test_parts_are_mixed(n, k, e, size, activation, bias, dtype, seed):
    x, experts, weights, *networks = case(n, k, e, activation, bias, d=16, f=16, seed=seed)
    whole = Networks(*(w.to(dtype) if isinstance(w, torch.Tensor) else w for w in networks))
    asked = []

    def groups():
        for some in torch.randperm(e, generator=torch.Generator().manual_seed(seed)).split(size):
            asked.append(some)
            places = torch.full((e,), -1)
            places[some] = torch.arange(len(some))
            yield Part(Networks(*(w[some] if isinstance(w, torch.Tensor) else w for w in whole)), places)

    words = (x.to(dtype), experts, weights.float())
    with torch.no_grad():
        y, expected = by_parts(*words, groups()), mixed(*words, whole)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected)
    assert sum(map(len, asked)) == e


def test_parts_of_nothing():
    assert by_parts(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2), ()).shape == (0, 4)


def test_gradients_by_differences():
    words = case(5, 2, 4, "swiglu", False)
    inputs = [w.requires_grad_() for w in (words[0], words[2], words[3], words[4])]
    assert torch.autograd.gradcheck(lambda x, w, up, out: mixed(x, words[1], w, Networks(up, out, "swiglu")), inputs)


def test_an_expert_without_tokens_has_a_gradient_of_zeros():
    x, _, weights, up, out, activation, *_ = case(4, 1, 3, "swiglu", False)
    up.requires_grad_()
    mixed(x, torch.zeros(4, 1, dtype=torch.long), weights, Networks(up, out, activation)).sum().backward()
    assert up.grad[1:].abs().max() == 0
    assert up.grad[0].abs().max() > 0


@pytest.mark.parametrize("sizes", [[0, 3, 0, 2], [5, 0, 0, 0], [0, 0, 0, 0]])
def test_groups_may_be_empty(sizes):
    x, w = torch.randn(sum(sizes), 3), torch.randn(4, 2, 3)
    expected = torch.cat([rows @ m.T for rows, m in zip(x.split(sizes), w, strict=True)])
    torch.testing.assert_close(grouped_product(x, w, torch.tensor(sizes)), expected)


def test_bf16_tokens_with_fp32_weights():
    x, experts, weights, up, out, activation, *_ = case(7, 2, 4, "swiglu", False)
    words = (experts, weights.float(), Networks(up.float(), out.float(), activation))
    y = mixed(x.bfloat16(), *words)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), reference(x.float(), *words), rtol=0.05, atol=0.15)


def test_the_clipped_gate_of_gpt_oss():
    gate, up = 9.0, -8.0
    h = torch.tensor([[gate, up]], dtype=torch.double)
    expected = 7 / (1 + torch.exp(torch.tensor(-1.702 * 7, dtype=torch.double))) * (-7 + 1)
    assert activated(h, "gpt-oss").item() == pytest.approx(expected.item())


# ---------------------------------------------------------------- the kernel


@pytest.mark.skipif(not _cpu.BUILT, reason="no CPU kernels here")
@given(
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(3, 7),
    st.sampled_from([a for a in ACTIVATIONS if a in KINDS]),
    st.booleans(),
    st.sampled_from([(6, 5), (16, 32), (40, 33), (64, 100)]),
    st.booleans(),
    st.integers(0, 99),
)
def test_the_kernel_is_the_reference(n, k, e, activation, bias, sizes, half, seed):
    d, f = sizes
    words = [
        w.float() if isinstance(w, torch.Tensor) and w.is_floating_point() else w
        for w in case(n, k, e, activation, bias, d, f, seed)
    ]
    if half:
        words[3:5] = [w.bfloat16() for w in words[3:5]]
    x, experts, weights, up, out, kind, *biases = words
    wide = [None if b is None else b.double() for b in biases]
    expected = reference(x.double(), experts, weights.double(), Networks(up.double(), out.double(), kind, *wide))
    with torch.inference_mode():
        y = through_kernel(x, experts, weights, Networks(up, out, kind, *biases))
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max().clamp(min=1)))


@pytest.mark.skipif(not _cpu.BUILT, reason="no CPU kernels here")
def test_the_kernel_is_taken_for_a_few_tokens_that_teach_nothing(monkeypatch):
    taken = []
    monkeypatch.setattr(experts_of, "through_kernel", lambda *words: taken.append(1) or through_kernel(*words))
    words = [w.float() if isinstance(w, torch.Tensor) and w.is_floating_point() else w for w in case(2, 2, 4, "swiglu", False)]
    with torch.no_grad():
        mixed(*words[:3], Networks(*words[3:]))
    assert taken == [1]
    words[3].requires_grad_()
    mixed(*words[:3], Networks(*words[3:])).sum().backward()
    assert taken == [1]
    many = [w.float() if isinstance(w, torch.Tensor) and w.is_floating_point() else w for w in case(40, 2, 4, "swiglu", False)]
    with torch.no_grad():
        mixed(*many[:3], Networks(*many[3:]))
    assert taken == [1]


@pytest.mark.skipif(not _cpu.BUILT, reason="no CPU kernels here")
@pytest.mark.parametrize("chosen", [[2, 4], [2, -1], [1 << 40, 0]])
def test_experts_that_there_are_not(chosen):
    x, _, weights, *networks = (
        w.float() if isinstance(w, torch.Tensor) and w.is_floating_point() else w for w in case(3, 2, 4, "swiglu", False)
    )
    experts = torch.tensor([[0, 1], chosen, [3, 2]])
    with torch.no_grad(), pytest.raises(ValueError, match=f"{min(0, *chosen)} to {max(3, *chosen)} are chosen of 0 to 3"):
        mixed(x, experts, weights, Networks(*networks))


@pytest.mark.skipif(not _cpu.BUILT, reason="no CPU kernels here")
def test_nan_reaches_the_answer_of_its_token_alone():
    x, experts, weights, up, out, activation, *_ = (
        w.float() if isinstance(w, torch.Tensor) and w.is_floating_point() else w for w in case(3, 2, 4, "gpt-oss", False)
    )
    x[1, 0] = float("nan")
    y = through_kernel(x, experts, weights, Networks(up, out, activation))
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()
