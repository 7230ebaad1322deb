"""The model of masked latent prediction: transformers' V-JEPA 2 to 1e-5, some patches alone, gradients, costs, and what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from postformer.config import ConfigError, build
from postformer.models import MODELS
from postformer.models.convert_pictures import vjepa2_options, vjepa2_tensors
from postformer.models.jepa import Jepa
from postformer.models.pictures import sincos
from postformer.ops.packing import Packing
from postformer.ops.spacetime import grid_places, rotate
from postformer.tokens.masks import Blocks, Tubes

HEADS = {"kind": "spacetime", "heads": 2, "bias": True}


def jepa(**words) -> Jepa:
    torch.manual_seed(0)
    words = {"dim": 24, "depth": 2, "mixers": (HEADS,), "predictor_dim": 12, "predictor_depth": 1, **words}
    return Jepa(2, **{"predictor_mixers": (HEADS,), **words}).double().eval()


def randomised(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 if p.ndim == 1 else p[0].numel() ** -0.5))
    return model.eval()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def published(seed: int):
    """A random V-JEPA 2 of transformers, and ours with its weights; widths of heads that leave 0, 2 and 4 coordinates unturned."""
    transformers = pytest.importorskip("transformers")
    heads, width, narrow, tubelet = [(2, 12, 8, 2), (4, 32, 6, 1), (3, 16, 10, 4), (1, 44, 18, 2)][seed]
    config = transformers.VJEPA2Config(
        crop_size=16,
        patch_size=[4, 2, 8, 4][seed],
        frames_per_clip=2 * tubelet,
        tubelet_size=tubelet,
        in_chans=1 + seed % 3,
        hidden_size=heads * width,
        num_attention_heads=heads,
        num_hidden_layers=1 + seed,
        mlp_ratio=[4.0, 2.5, 1.7, 3.0][seed],
        pred_hidden_size=2 * narrow,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=2,
        pred_mlp_ratio=2.0,
        pred_num_mask_tokens=1 + seed,
    )
    theirs = randomised(transformers.VJEPA2Model(config), seed)
    ours = Jepa(**vjepa2_options(config.to_dict())).eval()
    ours.load_state_dict(vjepa2_tensors(theirs.state_dict()))
    return theirs, ours, config


@pytest.mark.parametrize("seed", range(4))
def test_it_is_v_jepa_2_of_transformers(seed):
    """With a mask of each recipe: the encoder, the predictor from some of its embeddings, and gradients of the pixels."""
    theirs, ours, config = published(seed)
    x = torch.randn(2, config.frames_per_clip, config.in_chans, 16, 16, requires_grad=True)
    grid = ours.grid((config.frames_per_clip, 16, 16))
    for recipe in (Tubes(count=2, scale=0.3), Blocks(targets=1, scale=(0.3, 0.3))):
        mask = recipe.draw(2, grid, torch.Generator().manual_seed(seed))
        out = theirs(pixel_values_videos=x, context_mask=[mask.context], target_mask=[mask.targets[:, 0]])
        z = ours.encode(x.transpose(1, 2))
        seen = z.gather(1, mask.context[..., None].expand(-1, -1, z.shape[-1]))
        said = ours.predict(seen, mask.context, mask.targets[:, 0], grid, which=1)
        close(z, out.last_hidden_state)
        close(said, out.predictor_output.last_hidden_state)
        weights = torch.randn(said.shape, generator=torch.Generator().manual_seed(9))
        expected = out.predictor_output.last_hidden_state
        close(*(torch.autograd.grad((of * weights).sum(), x, retain_graph=True)[0] for of in (said, expected)))


def test_all_patches_can_be_predicted_from_all():
    """What transformers does where it is given no masks."""
    theirs, ours, config = published(0)
    x = torch.randn(2, config.frames_per_clip, config.in_chans, 16, 16)
    everything = torch.arange(32).expand(2, -1)
    said = ours.predict(ours.encode(x.transpose(1, 2)), everything, everything, (2, 4, 4), which=1)
    close(said, theirs(pixel_values_videos=x).predictor_output.last_hidden_state)


def test_an_image_fills_a_patch_as_theirs_does():
    theirs, ours, config = published(0)
    x = torch.randn(2, 1, config.in_chans, 16, 16)
    close(ours.encode(x.transpose(1, 2)), theirs(pixel_values_videos=x, skip_predictor=True).last_hidden_state)


def test_a_classifier_s_encoder_is_read():
    transformers = pytest.importorskip("transformers")
    words = {"hidden_size": 12, "num_attention_heads": 1, "num_hidden_layers": 1, "pred_hidden_size": 12}
    config = transformers.VJEPA2Config(
        **words, pred_num_attention_heads=1, pred_num_hidden_layers=1, num_pooler_layers=1, crop_size=32, frames_per_clip=2
    )
    theirs = transformers.VJEPA2ForVideoClassification(config)
    Jepa(**vjepa2_options(config.to_dict())).load_state_dict(vjepa2_tensors(theirs.state_dict()))
    with pytest.raises(ConfigError, match=r"'encoder.layer.0.extra.weight' is no tensor of a V-JEPA 2"):
        vjepa2_tensors({"encoder.layer.0.extra.weight": torch.zeros(1)})
    with pytest.raises(ConfigError, match="qkv_bias=False are not read"):
        vjepa2_options({"qkv_bias": False})


def test_tiled_pairs_are_those_of_v_jepa_2_and_no_rotation():
    """By hand: a head of 14 has 4 coordinates an axis, of which 0 and 2 turn by the place itself, 1 and 3 by a hundredth; 2 are left."""
    x, places = torch.randn(1, 1, 1, 14, dtype=torch.float64), torch.tensor([[[3.0, 1.0, 2.0]]])
    y = rotate(x, places, pairs="tiled")[0, 0, 0]
    x = x[0, 0, 0]
    for axis, place in enumerate((3.0, 1.0, 2.0)):
        angle = torch.tensor([place, place / 100, place, place / 100], dtype=torch.float64)
        a, turned = x[4 * axis : 4 * axis + 4], torch.stack([-x[4 * axis + 1], x[4 * axis], -x[4 * axis + 3], x[4 * axis + 2]])
        assert torch.allclose(y[4 * axis : 4 * axis + 4], a * angle.cos() + turned * angle.sin())
    assert torch.equal(y[12:], x[12:])
    assert (y.norm() - x.norm()).abs() > 1e-3


@pytest.mark.parametrize("positions", ["none", "sincos"])
@pytest.mark.parametrize("clip", [(4, 8, 8), (1, 8, 12)])
def test_some_patches_are_encoded_as_if_the_others_were_hidden(positions, clip):
    """As published: all are embedded and placed, the context is taken out, and only then layers mix it. No other pixel has a say."""
    model = jepa(positions=positions, mixers=({**HEADS, "rope": positions == "none"},))
    grid, x = model.grid(clip), torch.randn(2, 2, *clip, dtype=torch.float64, requires_grad=True)
    mask = Tubes(count=2, scale=0.4).draw(2, grid, torch.Generator().manual_seed(1))
    z = model.encode(x, mask.context)
    whole = x if clip[0] > 1 else x.repeat(1, 1, 2, 1, 1)
    at = grid_places(grid)
    kernel = model.embed.weight.view(24, 2, 2, 4, 4)
    tokens = nn.functional.conv3d(whole, kernel, model.embed.bias, stride=(2, 4, 4)).flatten(2).mT
    if positions == "sincos":
        tokens = tokens + sincos(at if clip[0] > 1 else at[:, 1:], 24)
    for row in range(2):
        kept = mask.context[row]
        expected, _ = model.backbone(tokens[row : row + 1, kept], None, Packing(places=at[None, kept]))
        assert torch.allclose(z[row], expected[0], atol=1e-12)
    moved = torch.autograd.grad(z.square().sum(), x)[0].detach()
    used = nn.functional.max_pool3d(moved.abs().sum(1, keepdim=True), (min(2, clip[0]), 4, 4)).flatten(1) > 0
    for row in range(2):
        assert used[row].nonzero().flatten().tolist() == mask.context[row].tolist()


def test_seeing_all_is_seeing_all():
    model, x = jepa(), torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    assert torch.allclose(model.encode(x, torch.arange(8).expand(2, -1)), model(x), atol=1e-12)


def test_a_prediction_does_not_hang_on_the_order_of_what_is_asked():
    model = jepa(masks=3)
    seen, unseen, z = torch.tensor([[6, 1, 3]]), torch.tensor([[2, 7, 0]]), torch.randn(1, 3, 24, dtype=torch.float64)
    said = model.predict(z, seen, unseen, (2, 2, 2))
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(model.predict(z, seen, unseen[:, order], (2, 2, 2)), said[:, order])
    assert torch.allclose(model.predict(z[:, order], seen[:, order], unseen, (2, 2, 2)), said)
    assert torch.allclose(model.predict(z, seen, unseen, (2, 2, 2), which=3), said)
    assert not torch.allclose(model.predict(z, seen, unseen, (2, 2, 2), which=1), said)
    by_mamba = jepa(predictor_mixers=({"kind": "mamba"},))  # reads tokens in the order of the grid, whatever the order given
    said = by_mamba.predict(z, seen, unseen, (2, 2, 2))
    assert torch.allclose(by_mamba.predict(z[:, order], seen[:, order], unseen, (2, 2, 2)), said)


def test_gradients_reach_every_parameter():
    model = jepa(masks=1)
    x = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    mask = Tubes(count=1, scale=0.3).draw(2, (2, 2, 2), torch.Generator().manual_seed(0))
    model.predict(model.encode(x, mask.context), mask.context, mask.targets[:, 0], (2, 2, 2)).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and (name.endswith("k.bias") or bool((p.grad != 0).any())), (
            name
        )  # softmax undoes a key's bias


@pytest.mark.parametrize("reach", ["all", "frame", "place"])
def test_costs_are_what_torch_counts(reach):
    model, x = jepa(mixers=({**HEADS, "reach": reach},)), torch.randn(1, 2, 4, 12, 8, dtype=torch.float64)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        z = model(x)
    assert counter.get_total_flops() == model.flops((4, 12, 8))
    cost = model.cost(12)
    assert cost.parameters == cost.active_parameters == sum(p.numel() for p in model.parameters())
    assert reach != "all" or cost.prefill_flops * 12 == model.flops((4, 12, 8))
    seen, unseen = torch.arange(5)[None], torch.arange(5, 9)[None]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.predict(z[:, :5], seen, unseen, (2, 3, 2))
    assert counter.get_total_flops() == model.predict_flops(5, 4)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode(x, seen)
    assert reach != "all" or counter.get_total_flops() == round(model.cost(5).prefill_flops * 5)


def test_v_jepa_2_has_its_published_size():
    """ViT-L of 300M (arXiv 2506.09985, table 1) and a predictor of 22M."""
    with torch.device("meta"):
        model = Jepa(**vjepa2_options({}))
    ends = ("squeeze", "mask", "predictor", "head")
    narrow = sum(p.numel() for name, p in model.named_parameters() if name.startswith(ends))
    assert narrow / 1e6 == pytest.approx(22, abs=0.5)
    assert (model.cost(2048).parameters - narrow) / 1e6 == pytest.approx(300, rel=0.02)


def test_a_config_makes_the_same_model():
    model = jepa(positions="sincos", masks=3)
    again = build(model.config, MODELS, "model").double()
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, 2, 2, 8, 8, dtype=torch.float64)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"masks": 0}, "masks=0 and patch"),
        ({"positions": "learned"}, "model.positions: 'learned' is not a choice"),
        ({"predictor_dim": 97}, r"model.predictor_mixers\[0\]: dim=97 is not divisible by heads=3"),
        ({"predictor_mixers": [{"kind": "spacetime", "head": 2}]}, r"model.predictor_mixers\[0\]: unknown 'head'"),
        ({"mixers": [{"kind": "spacetime", "rope_pairs": "odd"}]}, r"model.mixers\[0\].rope_pairs: 'odd' is not a choice"),
    ],
)
def test_mistakes_are_told(words, says):
    with pytest.raises(ConfigError, match=says):
        build({"kind": "jepa", **words}, MODELS, "model")


def test_clips_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="3 frames are not a multiple of the patch's 2"):
        jepa().encode(torch.zeros(1, 2, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="they have 3 channels, and the model takes 2"):
        jepa().encode(torch.zeros(1, 3, 2, 8, 8, dtype=torch.float64))
