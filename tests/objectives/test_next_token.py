"""The training loss against its definition."""

import pytest
import small
import torch

from postformer.objectives.next_token import NextToken


def test_the_loss_is_the_mean_of_each_tokens_surprise():
    model = small.model("attention").double()
    ids = torch.randint(257, (3, 9), generator=torch.Generator().manual_seed(0))
    out = NextToken(model)({"ids": ids, "rows": ["a", "b", "c"]})
    logp = model(ids[:, :-1])[0].log_softmax(-1)
    expected = -sum(logp[b, t, ids[b, t + 1]] for b in range(3) for t in range(8)) / 24
    torch.testing.assert_close(out["loss"].double(), expected, rtol=1e-6, atol=0.0)
    assert int(out["tokens"]) == 24


@pytest.mark.parametrize("mixer", sorted(small.MIXERS))
def test_bf16_activations_give_fp32_loss_and_gradients(mixer):
    model = small.model(mixer)
    ids = torch.randint(257, (2, 17), generator=torch.Generator().manual_seed(0))
    objective = NextToken(model)
    exact = objective({"ids": ids})["loss"].detach()
    model.compute_dtype = torch.bfloat16
    out = objective({"ids": ids})
    out["loss"].backward()
    assert out["loss"].dtype == torch.float32
    assert abs(float(out["loss"].detach() - exact)) < 0.05 * float(exact)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_every_parameter_is_trained_by_the_model_that_it_belongs_to():
    objective = NextToken(small.model("mamba"))
    assert {n.removeprefix("model.") for n, _ in objective.named_parameters()} == dict(
        objective.model.named_parameters()
    ).keys()
    assert objective.after_step(0) is None


@pytest.mark.parametrize("mixer", sorted(small.MIXERS))
def test_documents_of_a_packed_row_are_predicted_as_if_alone(mixer):
    objective = NextToken(small.model(mixer).double())
    ids = torch.randint(256, (1, 18), generator=torch.Generator().manual_seed(0))
    ids[0, [0, 5, 11]] = 256  # the end token stands before each document
    packed = objective({"ids": ids, "starts": ids[:, :-1] == 256})["loss"]
    alone = [objective({"ids": part})["loss"] * (part.shape[1] - 1) for part in (ids[:, :6], ids[:, 5:12], ids[:, 11:])]
    torch.testing.assert_close(packed.double(), sum(alone).double() / 17, rtol=1e-6, atol=0.0)
    assert abs(float((packed - objective({"ids": ids})["loss"]).detach())) > 1e-4
