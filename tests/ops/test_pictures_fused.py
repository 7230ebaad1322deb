"""What layers of pictures do in one pass on a CPU: GELU, an affine map with its GELU, a norm that a condition changes, attention of a few
tokens in bf16. Against torch's operations in float64."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from postformer.ffn.mlp import MLP
from postformer.ops import _cpu, affine, attention, gelu, modulate
from postformer.ops.layers import Linear, norm_of

kernel = pytest.mark.skipif(not _cpu.BUILT, reason="the CPU kernels are not built")
multiplies = pytest.mark.skipif(not _cpu.MULTIPLIES_BF16, reason="bf16 is not multiplied as such here")
HALF = torch.bfloat16
DTYPES = [torch.float32, HALF]


def close(got: torch.Tensor, exact: torch.Tensor, single: float = 3e-6, half: float = 2**-7) -> None:
    """Within so much of the largest number."""
    size = float(exact.detach().abs().max()) + 1 if exact.numel() else 1.0
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=size * (half if got.dtype == HALF else single))


# ---------------------------------------------------------------- GELU


@kernel
@pytest.mark.parametrize("dtype", DTYPES)
@given(n=st.sampled_from([0, 1, 15, 16, 17, 100, 8192, 8193]), seed=st.integers(0, 9))
def test_gelu_equals_torchs_with_gradients(dtype, n, seed):
    generator = torch.Generator().manual_seed(seed)
    x, dy = ((3 * torch.randn(n, generator=generator)).to(dtype) for _ in "xy")
    exact, mine = x.double().requires_grad_(), x.clone().requires_grad_()
    wanted, got = F.gelu(exact, approximate="tanh"), torch.ops.postformer.gelu_tanh(mine)
    close(got, wanted)
    close(*(torch.autograd.grad(y, m, dy.to(y.dtype))[0] for y, m in ((got, mine), (wanted, exact))))


@kernel
def test_gelu_far_from_zero():
    x = torch.tensor([-1e30, -60.0, 60.0, 1e30, float("nan"), float("inf")], requires_grad=True)
    y = torch.ops.postformer.gelu_tanh(x)
    assert y[:4].tolist() == pytest.approx([0.0, 0.0, 60.0, 1e30], rel=1e-6, abs=1e-6)
    assert y[4].isnan() and y[5].isinf()
    slopes = torch.autograd.grad(y.sum(), x)[0]
    assert slopes[[0, 1, 2, 3, 5]].tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0, 1.0], abs=1e-6) and slopes[4].isnan()


@kernel
def test_the_operator_keeps_torchs_rules_and_compiles_whole(monkeypatch):
    x = torch.randn(3, 50)[:, 7:].requires_grad_()
    monkeypatch.setattr(gelu, "FEW", 0)
    torch.library.opcheck(torch.ops.postformer.gelu_tanh.default, (x,))
    compiled = torch.compile(inspect.unwrap(gelu.gelu_tanh), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), gelu.gelu_tanh(x))
    for spoiled in (x.double(), x.half()):
        with pytest.raises(ValueError, match=r"gelu_tanh: x is"):
            torch.ops.postformer.gelu_tanh(spoiled)
    with pytest.raises(ValueError, match=r"dy is"):
        torch.ops.postformer.gelu_tanh_backward(x, x[:, 1:])


@kernel
def test_the_same_bits_for_any_number_of_threads():
    x = torch.randn(70, 901)
    norm, told = norm_of("layer", 901, 1e-6, affine=False), torch.randn(2, 1, 1, 901).split(1)
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append((torch.ops.postformer.gelu_tanh(x), modulate._in_one_pass(norm, x[None], *told)))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


@kernel
def test_each_build(turn_to_build):
    x, norm, told = torch.randn(7, 66), norm_of("layer", 66, 1e-6, affine=False), torch.randn(2, 1, 1, 66).split(1)

    def said() -> tuple[torch.Tensor, ...]:
        numbers = torch.ops.postformer
        return numbers.gelu_tanh(x), numbers.gelu_tanh_backward(x, x), modulate._in_one_pass(norm, x[None], *told)

    expected = said()
    turn_to_build()
    for mine, other in zip(said(), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- affine maps


def views(rows: int, wide: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The same shape as it may lie in memory."""
    return {
        "whole": torch.randn(rows, wide).to(dtype),
        "columns": torch.randn(rows, 2 * wide).to(dtype)[:, wide:],
        "every other column": torch.randn(rows, 2 * wide).to(dtype)[:, ::2],
        "every other row": torch.randn(2 * rows, wide).to(dtype)[::2],
        "transposed": torch.randn(wide, rows).to(dtype).T,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", ["none", "whole", "every other"])
@torch.no_grad()
def test_affine_maps_equal_torchs_however_they_lie_in_memory(dtype, bias):
    b = {"none": None, "whole": torch.randn(40).to(dtype), "every other": torch.randn(80).to(dtype)[::2]}[bias]
    for x in views(80, 24, dtype).values():
        for w in views(40, 24, dtype).values():
            exact = F.linear(x.double(), w.double(), None if b is None else b.double())
            close(affine.affine(x, w, b), exact)
            close(affine.affine(x.unflatten(0, (2, 40)), w, b).flatten(0, 1), exact)
            for by_tanh in (False, True):
                if (y := affine.gelu_affine(x, w, b, by_tanh=by_tanh)) is not None:
                    close(y, F.gelu(exact, approximate="tanh" if by_tanh else "none"))


@pytest.mark.skipif(affine._LINEAR is None, reason="torch was built without oneDNN")
def test_one_call_serves_only_what_it_may():
    x, w, b = torch.randn(64, 24), torch.randn(40, 24), torch.randn(40)
    with torch.no_grad():
        assert affine._serves(x, w, b) and affine._serves(x, w, None)
        assert not any(affine._serves(m, w, b) for m in (x[:31], x[:0], x.half(), x.double(), nn.Parameter(x)))
        assert not affine._serves(x, w.bfloat16(), b)
        with FlopCounterMode(display=False) as counter:
            Linear(24, 40)(x)
        assert counter.get_total_flops() == 2 * 64 * 24 * 40
        assert torch.func.vmap(lambda row: affine.affine(row, w, b))(x[None]).shape == (1, 64, 40)
    assert affine.gelu_affine(x, w, b, by_tanh=True) is None
    assert affine.affine(x, w.requires_grad_(), b).requires_grad


@pytest.mark.parametrize("activation", ["gelu", "gelu-tanh"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_network_says_the_same_without_a_gradient(activation, bias):
    """Also one whose layer is listened to, or was put in another's place."""
    torch.manual_seed(0)
    mlp, x = MLP(24, activation=activation, bias=bias), torch.randn(3, 40, 24)
    taught = mlp(x)
    heard: list[torch.Size] = []
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), taught, rtol=0, atol=1e-6)
        handle = mlp.up.register_forward_hook(lambda m, x, y: heard.append(y.shape))
        torch.testing.assert_close(mlp(x), taught, rtol=0, atol=1e-6)
        handle.remove()
        assert heard == [(3, 40, 96)]
        mlp.up = nn.Sequential(mlp.up)  # type: ignore[assignment]
        torch.testing.assert_close(mlp(x), taught, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- norms and conditions


@kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["rms", "layer"])
@given(b=st.integers(1, 3), f=st.integers(1, 4), run=st.integers(1, 9), d=st.sampled_from([1, 7, 16, 33, 100]))
def test_a_modulated_norm_equals_torchs_operations(dtype, kind, b, f, run, d):
    generator = torch.Generator().manual_seed(d)
    norm = norm_of(kind, d, 1e-6, affine=False)
    if kind == "rms":
        norm.weight.data = torch.randn(d, generator=generator)
    x = (1 + 3 * torch.randn(b, f * run, d, generator=generator)).to(dtype)
    shift, scale = torch.randn(b, f, 1, 6 * d, generator=generator).to(dtype).chunk(6, -1)[2:4]
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(modulate, "FEW", 0)
        assert modulate._serves(norm, x, shift, scale)
        got = modulate.modulated_norm(norm, x, shift, scale)
        spread = modulate.modulated_norm(
            norm, x, shift.expand(-1, -1, -1, d), scale.transpose(0, 1).contiguous().transpose(0, 1)
        )
    exact = modulate.modulated(norm.double()(x.double()), shift.double(), scale.double())
    close(got, exact, single=1e-5, half=2**-6)
    assert torch.equal(spread, got)


@torch.no_grad()
def test_a_norm_that_is_watched_or_taught_is_left_alone():
    norm, x, told = norm_of("layer", 600, 1e-6, affine=False), torch.randn(2, 12, 600), torch.randn(2, 1, 1, 600)
    assert modulate._serves(norm, x, told, told) == _cpu.BUILT
    with torch.enable_grad():
        assert not modulate._serves(norm, x, told, told)
    for other in (norm_of("layer", 600, 1e-6), nn.LayerNorm(600)):
        assert not modulate._serves(other, x, told, told)
    norm.register_forward_hook(lambda m, x, y: y + 1)
    assert not modulate._serves(norm, x, told, told)


# ---------------------------------------------------------------- attention of a few tokens


@multiplies
@given(
    b=st.integers(1, 2), h=st.integers(1, 3), t=st.integers(1, 9), s=st.sampled_from([1, 5, 64]), e=st.sampled_from([4, 8, 24])
)
def test_attention_of_few_tokens_and_its_gradients(b, h, t, s, e):
    generator = torch.Generator().manual_seed(t + s)
    q, k, v = (torch.randn(b, n, h, e, generator=generator).to(HALF).requires_grad_() for n in (t, s, s))
    dy = torch.randn(b, t, h, e, generator=generator).to(HALF)
    y = attention.read_whole(q, k, v, None)
    assert "_Short" in str(y.grad_fn.next_functions)  # type: ignore[union-attr]
    wide = [m.detach().double().requires_grad_() for m in (q, k, v)]
    exact = attention.read_whole(*wide, None)
    close(y, exact)
    for got, wanted in zip(torch.autograd.grad(y, (q, k, v), dy), torch.autograd.grad(exact, wide, dy.double()), strict=True):
        close(got, wanted, half=2**-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_transforms_of_torch_func_take_torchs_own(dtype):
    q = torch.randn(1, 64, 2, 64).to(dtype)
    for f in (lambda x: attention.read_whole(x, x, x, None), gelu.gelu_tanh):
        leaf = q.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(f(leaf).sum(), leaf)
        close(torch.func.grad(lambda x, f=f: f(x).sum())(q), wanted.double(), half=2**-5)


@multiplies
def test_torchs_attention_serves_the_rest():
    q = torch.randn(1, 8, 2, 4).to(HALF).requires_grad_()
    many = torch.randn(1, attention.SHORT + 1, 2, 4).to(HALF)
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    for y in (
        attention.read_whole(q, many, many, None),
        attention.read_whole(q, q, q, mask),
        attention.read_whole(q.float(), q.float(), q.float(), None),
    ):
        assert "_Short" not in str(y.grad_fn.next_functions)  # type: ignore[union-attr]
    with torch.no_grad():
        assert attention.read_whole(q, q, q, None).grad_fn is None
