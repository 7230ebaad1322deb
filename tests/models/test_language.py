"""The language model: logits, state, chunks, dtype and the cost formulas."""

import inspect

import pytest
import small
import torch

from postformer import state as states
from postformer.config import ConfigError, build
from postformer.models import MODELS
from postformer.models.language import LanguageModel

IDS = torch.arange(40).view(2, 20)


def test_the_configuration_is_complete_and_builds_the_same_model():
    for mixer in small.MIXERS:
        model = small.model(mixer)
        again = build(model.config, MODELS, "model")
        assert again.config == model.config
        assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


@pytest.mark.parametrize("mixer", sorted(small.MIXERS))
@pytest.mark.parametrize("chunk", [1, 7, 20, 99])
def test_reading_in_chunks(mixer, chunk):
    model = small.model(mixer).double()
    with torch.no_grad():
        whole, end = model(IDS, model.init_state(2))
        last, state = model.read(IDS, model.init_state(2), chunk)
    torch.testing.assert_close(last, whole[:, -1], rtol=0.0, atol=1e-9)
    for (_, a), (_, b) in zip(states.leaves(state), states.leaves(end), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-9)


def test_nothing_to_read():
    model = small.model()
    with pytest.raises(ValueError, match="nothing to read"):
        model.read(IDS[:, :0], model.init_state(2))


def test_tied_and_untied_heads():
    tied = LanguageModel(31, dim=16, depth=1)
    untied = LanguageModel(31, dim=16, depth=1, tied=False)
    assert tied.head is None
    assert {n for n, _ in untied.named_parameters()} - {n for n, _ in tied.named_parameters()} == {"head.weight"}
    x, _ = tied.hidden(IDS[:, :3] % 31)
    torch.testing.assert_close(tied.logits(x), x @ tied.embed.weight.T)
    assert float(tied.embed.weight.detach().std()) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("mixer", sorted(small.MIXERS))
def test_bf16_is_what_activations_are_computed_in(mixer):
    model = small.model(mixer)
    with torch.no_grad():
        exact = model(IDS)[0]
        model.compute_dtype = torch.bfloat16
        logits, state = model(IDS, model.init_state(2))
        again, _ = model(IDS[:, :1], state)
    assert logits.dtype == again.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (logits.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize("tied", [True, False])
def test_costs(tied):
    model = LanguageModel(31, dim=16, depth=2, mixers=(small.MIXERS["mamba"], small.MIXERS["attention"]), tied=tied)
    cost = model.cost(100)
    parameters = sum(p.numel() for p in model.parameters())
    assert cost.parameters == parameters
    assert cost.active_parameters == parameters - (0 if tied else 31 * 16)
    assert cost.prefill_flops == pytest.approx(model.backbone.flops(100) / 100 + 2 * 31 * 16)
    assert cost.decode_flops == model.backbone.flops(1, 100) + 2 * 31 * 16
    with torch.no_grad():
        _, state = model(torch.zeros(1, 100, dtype=torch.long), model.init_state(1))
    assert cost.state_bytes == states.nbytes(state)
    half = model.to(torch.bfloat16)
    with torch.no_grad():
        _, state = half(torch.zeros(1, 100, dtype=torch.long), half.init_state(1))
    assert half.cost(100).state_bytes == states.nbytes(state)


def test_what_is_refused():
    for words in ({"vocab": 0}, {"vocab": 3, "dim": 0}, {"vocab": 3, "depth": 0}, {"vocab": 3, "mixers": ()}):
        with pytest.raises(ConfigError, match=r"^model[.:]"):
            LanguageModel(**words)


def packed_model() -> LanguageModel:
    torch.manual_seed(0)
    kinds = ({"kind": "mamba", "state": 3}, {"kind": "mamba3", "state": 6, "head_dim": 8}, {"kind": "attention", "heads": 2})
    return LanguageModel(31, dim=16, depth=3, mixers=kinds).double().requires_grad_(False)


def test_a_start_at_padding_is_one_of_the_next_real_token():
    model = packed_model()
    ids = torch.randint(31, (2, 12), generator=torch.Generator().manual_seed(1))
    _, old = model(ids[:, :3], model.init_state(2))
    mask, starts = torch.ones(2, 12, dtype=torch.bool), torch.zeros(2, 12, dtype=torch.bool)
    mask[0, 4:7] = mask[1, :2] = mask[1, 10:] = False
    starts[0, [5, 6]] = starts[1, 0] = starts[1, 11] = True
    y, after = model(ids, states.clone(old), starts=starts, mask=mask)
    first, _ = model(ids[:1, :4], states.take(old, [0]))
    second, end = model(ids[:1, 7:], model.init_state(1))
    torch.testing.assert_close(y[:1, :4], first)
    torch.testing.assert_close(y[:1, 7:], second)
    alone, _ = model(ids[1:, 2:10], model.init_state(1))
    torch.testing.assert_close(y[1:, 2:10], alone)
    more = ids[:, :2]
    torch.testing.assert_close(
        model(more, after)[0], torch.cat([model(more[:1], end)[0], model(more[1:], model.init_state(1))[0]])
    )


@pytest.mark.parametrize(
    "given",
    [torch.ones(2, 5, dtype=torch.bool), torch.ones(1, 6, dtype=torch.bool), torch.ones(6, dtype=torch.bool), torch.ones(2, 6)],
)
@pytest.mark.parametrize("name", ["mask", "starts"])
def test_a_mask_that_is_not_one_of_the_ids_is_refused(name: str, given: torch.Tensor):
    with pytest.raises(ValueError, match=rf"{name}: expected bool \(2, 6\), as the ids, got"):
        inspect.unwrap(LanguageModel.hidden)(packed_model(), torch.zeros(2, 6, dtype=torch.long), **{name: given})


def test_a_state_of_another_number_of_rows_is_refused():
    model = packed_model()
    with pytest.raises(ValueError, match="state: it has 1 rows, and the ids have 3"):
        model(torch.zeros(3, 2, dtype=torch.long), model.init_state(1))


def test_a_start_at_padding_at_a_pieces_end_begins_the_next_piece():
    model = packed_model()
    ids = torch.randint(31, (2, 5), generator=torch.Generator().manual_seed(1))
    mask, starts = torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 2] = mask[1, :3] = False
    starts[0, 2] = starts[1, 1] = True
    _, old = model(ids, model.init_state(2))
    whole, end = model(ids, states.clone(old), starts=starts, mask=mask)
    _, middle = model(ids[:, :3], states.clone(old), starts=starts[:, :3], mask=mask[:, :3])
    rest, last = model(ids[:, 3:], middle, starts=starts[:, 3:], mask=mask[:, 3:])
    torch.testing.assert_close(rest, whole[:, 3:])
    more = ids[:, :2]
    torch.testing.assert_close(model(more, last)[0], model(more, end)[0])


@pytest.mark.parametrize("ids", [torch.zeros(3, dtype=torch.long), torch.zeros(1, 3)], ids=["no rows", "numbers"])
def test_ids_that_are_none_are_refused(ids: torch.Tensor):
    with pytest.raises(ValueError, match=r"ids: expected whole numbers \[rows, tokens\], got"):
        inspect.unwrap(LanguageModel.hidden)(packed_model(), ids)


def test_a_state_of_another_number_of_layers_is_refused():
    model = packed_model()
    state = model.init_state(1)
    with pytest.raises(ValueError, match=f"state: it is of {len(state) - 1} layers, and the model has {len(state)}"):
        model(torch.zeros(1, 2, dtype=torch.long), state[:-1])
