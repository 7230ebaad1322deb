"""What of a text a memory writes: the threshold below which a token leaves no trace, and the shares that can be watched."""

import math

import pytest
import torch

from postformer.mixers.delta import GatedDelta
from postformer.mixers.mamba2 import Mamba2
from postformer.mixers.titans import LMM
from postformer.mixers.titans_attention import MAC, MAG
from postformer.models.writing import observed
from postformer.ops.packing import WHOLE

SHUT = 3
"""The input channel that shuts the gates."""


def guarded(**words) -> LMM:
    """A memory whose gate is shut, far below the threshold, where channel SHUT is on, and half open elsewhere."""
    torch.manual_seed(0)
    m = LMM(16, heads=2, chunk=4, conv=1, threshold=0.2, **words)
    with torch.no_grad():
        m.gates.weight[:2] = 0.0
        m.gates.weight[:2, SHUT] = -10.0
    return m


def text(length: int, shut: bool, seed: int = 1) -> torch.Tensor:
    x = torch.randn(2, length, 16, generator=torch.Generator().manual_seed(seed))
    x[..., SHUT] = 5.0 * shut
    return x


@torch.inference_mode()
def test_what_is_below_the_threshold_leaves_no_trace():
    m = guarded(momentum=False)
    _, learned = m(text(9, shut=False), m.init_state(2))
    _, after = m(text(1000, shut=True), learned)
    assert all(torch.equal(a, b) for a, b in zip(learned.now, after.now, strict=True))
    _, wrote = m(text(1, shut=False), learned)
    assert not any(torch.equal(a, b) for a, b in zip(learned.now, wrote.now, strict=True))


@torch.inference_mode()
def test_with_momentum_only_the_surprise_of_before_comes_to_its_end():
    m = guarded()
    _, learned = m(text(9, shut=False), m.init_state(2))
    _, ended = m(text(2000, shut=True), learned)
    _, after = m(text(2000, shut=True, seed=2), ended)
    assert all(torch.equal(a, b) for a, b in zip(ended.now, after.now, strict=True))
    assert all(float(s.abs().max()) < 1e-6 for s in after.surprise)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_the_gates_are_their_formula(threshold):
    torch.manual_seed(0)
    m, x = LMM(16, heads=2, chunk=4, threshold=threshold).double(), torch.randn(1, 50, 16, dtype=torch.double)
    with torch.no_grad():
        m.gates.weight.mul_(30)
    got = m._gates(m._gate(x))
    theta, eta, alpha = m.gates(x).split(2, -1)
    share = [[max(0.0, 1 / (1 + math.exp(-g)) - threshold) / (1 - threshold) for g in row] for row in theta[0].tolist()]
    share = torch.tensor([share], dtype=torch.double)
    assert threshold == 0 or 0 < int((share == 0).sum()) < share.numel()
    torch.testing.assert_close(got.rate, m.rate * share * (1 - eta.sigmoid()))
    forgets = alpha.sigmoid() * (share if threshold else 1.0)
    torch.testing.assert_close(got.keep.exp(), 1 - forgets)


@torch.inference_mode()
def test_gates_read_off_the_convolution_see_the_tokens_before():
    x = torch.randn(1, 8, 16)
    other = x.clone()
    other[:, 4] += 1
    for gates, touched in (("token", [4]), ("conv", [4, 5, 6])):
        torch.manual_seed(0)
        m = LMM(16, heads=2, conv=3, gates=gates)
        with observed(m) as found:
            m(x), m(other)
        one, two = found[""]
        assert (one != two).any(-1)[0].nonzero().flatten().tolist() == touched


def test_an_open_gate_that_forgets_all_stays_finite():
    m = LMM(16, heads=2, threshold=0.5)
    with torch.no_grad():
        m.gates.bias.fill_(90.0)
    gates = m._gates(m._gate(torch.zeros(1, 3, 16)))
    gates.keep.sum().backward()
    assert bool(gates.keep.isfinite().all()) and bool(m.gates.bias.grad.isfinite().all())


@pytest.mark.parametrize(
    ("mixer", "name", "calls"),
    [(LMM(16, heads=2, persistent=3), "", 1), (MAG(16, memory={"heads": 2}), "memory", 1), (MAC(16, segment=4), "memory", 2)],
)
def test_the_shares_of_writing_are_observed(mixer, name, calls):
    x = torch.randn(2, 8, 16)
    with observed(mixer) as found:
        y, _ = mixer(x)
    shares = torch.cat(found[name], 1)
    assert found.keys() == {name} and len(found[name]) == calls
    memory = mixer.get_submodule(name)
    assert shares.shape == (2, 8, memory.heads)
    assert float(shares.detach().min()) >= 0 and float(shares.detach().max()) <= 1
    shares.mean().backward()
    assert float(memory.gates.bias.grad[: memory.heads].abs().min()) > 0
    torch.testing.assert_close(mixer(x)[0], y, rtol=0, atol=0)
    assert len(found[name]) == calls


RIVALS = {
    "gated delta": (lambda **words: GatedDelta(16, heads=2, conv=3, **words), 0.5),
    "mamba2": (lambda **words: Mamba2(16, state=4, head_dim=8, conv=3, dt_min=0.05, **words), 0.05),
}


@pytest.mark.parametrize("gates", ["token", "conv"])
@pytest.mark.parametrize("rival", RIVALS)
@torch.inference_mode()
def test_rivals_write_and_forget_nothing_below_the_threshold(rival, gates):
    make, threshold = RIVALS[rival]
    torch.manual_seed(0)
    m = make(threshold=threshold, gates=gates)
    written = []
    _, before = m(torch.randn(2, 9, 16), m.init_state(2))
    for _ in range(40):
        with observed(m) as found:
            _, after = m(torch.randn(2, 1, 16), before)
        share = found[""][0][:, 0]
        changed = (after[1] != before[1]).flatten(2).any(-1)
        assert torch.equal(changed, share > 0)
        written.append(share > 0)
        before = after
    assert 0.1 < torch.stack(written).float().mean() < 0.9


@pytest.mark.parametrize("rival", RIVALS)
def test_the_gates_of_rivals_are_their_formula(rival):
    make, threshold = RIVALS[rival]
    torch.manual_seed(0)
    m = make(threshold=threshold).double()
    logits = torch.linspace(-3, 3, 40, dtype=torch.double).view(1, 10, -1).repeat(1, 1, 2)[..., : m.heads]
    with observed(m) as found:
        if rival == "gated delta":
            a, beta = m._written(logits, logits, WHOLE)
            share = (logits.sigmoid() - threshold).clamp(min=0) / (1 - threshold)
            torch.testing.assert_close(beta, 2 * share)
            torch.testing.assert_close(a, -m.A_log.exp() * torch.log1p(torch.exp(logits + m.dt_bias)) * share)
        else:
            dt = m._step(logits)
            torch.testing.assert_close(dt, (torch.log1p(torch.exp(logits + m.dt_bias)) - threshold).clamp(min=0))
            share = 1 - torch.exp(-dt)
    torch.testing.assert_close(found[""][0], share)
    assert 0 < int((share == 0).sum()) < share.numel()


def test_nothing_is_observed_after_an_error():
    m = LMM(16)
    with observed(m) as outer, pytest.raises(ZeroDivisionError), observed(m) as inner:
        m(torch.randn(1, 3, 16))
        _ = 1 / 0
    assert m.observers == [] and len(outer[""]) == len(inner[""]) == 1


@pytest.mark.parametrize("preset", ["titans", "atlas"])
@torch.inference_mode()
def test_what_is_below_the_threshold_moves_nothing(preset):
    torch.manual_seed(0)
    m = LMM(8, preset=preset, heads=2, chunk=4, threshold=0.6)
    _, before = m(torch.randn(1, 9, 8), m.init_state(1))
    gates = m.gates.bias.view(-1, 2)
    gates[0], gates[1] = -9.0, -60.0  # theta below the threshold; eta, so that no surprise is left
    _, emptied = m(torch.randn(1, 1, 8), before)
    _, after = m(torch.randn(1, 20, 8), emptied)
    for a, b in zip(after.now, emptied.now, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
