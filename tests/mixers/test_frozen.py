"""A memory that does not write: reading leaves the weights of the state as they are, and answers with them."""

import pytest
import torch

from postformer.mixers.delta import GatedDelta
from postformer.mixers.mamba2 import Mamba2
from postformer.mixers.titans import LMM
from postformer.mixers.titans_attention import MAC, MAG
from postformer.models.writing import frozen
from postformer.ops.packing import Packing

MEMORY = {"kind": "lmm", "heads": 2, "chunk": 4}


def alike(a, b):
    return all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def weights(state):
    return state.now, state.surprise


@pytest.mark.parametrize("read", [2, 3])
@torch.inference_mode()
def test_the_first_weights_of_a_chunk_are_those_with_which_it_began(read):
    torch.manual_seed(0)
    mixer, x = LMM(16, heads=2, chunk=4), torch.randn(1, 9, 16)
    _, written = mixer(x[:, :6], mixer.init_state(1))
    with frozen(mixer):
        _, state = mixer(x[:, 6 : 6 + read], written)
    begun = read == 3  # at the eighth token
    assert alike([state.start], [written.now if begun else written.start]) and not alike([written.start], [written.now])


@pytest.mark.parametrize("preset", ["titans", "titans-linear", "moneta", "memora", "lact", "atlas"])
@torch.inference_mode()
def test_reading_leaves_the_weights(preset):
    torch.manual_seed(0)
    mixer, x = LMM(16, heads=2, preset=preset, chunk=4, persistent=2), torch.randn(2, 30, 16)
    _, fresh = mixer(x[:, :0], mixer.init_state(2))
    with frozen(mixer):
        y, untouched = mixer(x[:, :9], mixer.init_state(2))
        parts = [mixer(x[:, :4], mixer.init_state(2))]
        parts.append(mixer(x[:, 4:9], parts[0][1]))
    assert alike([untouched.now], [mixer._fresh(x.dtype, 2).now])
    torch.testing.assert_close(torch.cat([p[0] for p in parts], 1), y)
    written, learned = mixer(x[:, :9], fresh)
    assert not torch.allclose(written, y) and not alike([learned.now], [untouched.now])
    with frozen(mixer):
        _, after = mixer(x[:, 9:], learned)
    assert alike((*weights(after), after.recent), (*weights(learned), learned.recent))
    assert alike([after.start], [after.now])  # chunks have begun, with these weights
    assert after.seen.tolist() == [30, 30]
    assert mixer.writes


@pytest.mark.parametrize("mixer", [GatedDelta(16, heads=2), Mamba2(16, state=4, head_dim=8)])
@torch.inference_mode()
def test_rivals_stand_still_too(mixer):
    x = torch.randn(2, 30, 16)
    _, written = mixer(x[:, :9], mixer.init_state(2))
    with frozen(mixer):
        still, after = mixer(x[:, 9:], written)
    moved, further = mixer(x[:, 9:], written)
    assert torch.equal(after[1], written[1]) and not torch.equal(further[1], written[1])
    assert not torch.allclose(still, moved)


@torch.inference_mode()
def test_a_document_that_begins_finds_the_learned_weights():
    torch.manual_seed(0)
    mixer, x = LMM(16, heads=2, chunk=4, conv=1), torch.randn(1, 12, 16)
    _, learned = mixer(x, mixer.init_state(1))
    starts = torch.zeros(1, 12, dtype=torch.bool)
    starts[0, 5] = True
    with frozen(mixer):
        whole, after = mixer(x, learned, Packing(starts))
        before, _ = mixer(x[:, :5], learned)
        alone, fresh = mixer(x[:, 5:], mixer.init_state(1))
    torch.testing.assert_close(whole, torch.cat([before, alone], 1))
    assert alike([after.now], [fresh.now])


@pytest.mark.parametrize("whole", [MAC, MAG])
@torch.inference_mode()
def test_a_memory_inside_of_another_mixer(whole):
    torch.manual_seed(0)
    mixer, x = whole(16, memory=MEMORY, attention={"heads": 2}), torch.randn(1, 20, 16)
    _, state = mixer(x, mixer.init_state(1))
    with pytest.raises(ZeroDivisionError), frozen(mixer):
        _, after = mixer(x, state)
        assert alike(weights(after.memory), weights(state.memory))
        1 / 0  # noqa: B018
    _, after = mixer(x, state)
    assert not alike(weights(after.memory), weights(state.memory))
