"""Models of images and videos: packed clips, orders of scanning, states, U-Nets, and what they refuse."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from postformer.config import build
from postformer.models import MODELS
from postformer.models.conditioned import hinted
from postformer.models.diffusion import DiT
from postformer.models.unet import UNet
from postformer.models.vision import ViT

PATCH = (2, 4, 4)


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Layers that begin at zero say something too."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def dit(**words) -> DiT:
    return shaken(DiT(2, **{"patch": PATCH, "dim": 24, "depth": 2, "mixers": (attention(),), **words}))


def attention(**words) -> dict:
    return {"kind": "spacetime", "heads": 2, "qk_norm": True, **words}


MIXERS = {
    "all": attention(),
    "frame": attention(reach="frame"),
    "place": attention(reach="place"),
    "past": attention(reach="past"),
    "window": attention(reach="past", window=2),
    "grouped": attention(kv_heads=1),
    "mamba": {"kind": "mamba"},
    "scan": {"kind": "scan", "mixer": {"kind": "mamba"}},
    "backward": {"kind": "scan", "mixer": {"kind": "gated_delta", "heads": 2}, "direction": "backward"},
}
SIZES = [(4, 8, 8), (2, 4, 16), (8, 4, 4), (2, 12, 8)]


@pytest.mark.parametrize("mixer", MIXERS)
def test_clips_of_any_sizes_in_one_row_are_as_each_alone(mixer):
    model = dit(mixers=(MIXERS[mixer],), classes=3, ffns=({"kind": "mlp"}, {"kind": "moe", "experts": 4, "top": 2}))
    clips = [torch.randn(2, *size) for size in SIZES]
    times = [torch.rand(()), torch.rand(()), torch.rand(4).repeat_interleave(2), torch.rand(())]
    labels = torch.tensor([0, 3, 1, 2])
    with torch.no_grad():
        together = model.packed(clips, times, labels, length=32)
        for clip, time, label, mine in zip(clips, times, labels, together, strict=True):
            alone, _ = model(clip[None], time[None], label=label[None])
            assert (alone[0] - mine).abs().max() < 1e-5


@pytest.mark.parametrize("positions", ["sincos", "none"])
def test_clips_in_one_row_follow_each_its_text(positions):
    model = dit(vocab=5, positions=positions)
    clips, times = [torch.randn(2, *size) for size in SIZES], [torch.rand(()) for _ in SIZES]
    text = torch.randint(6, (4, 3))
    with torch.no_grad():
        together = model.packed(clips, times, text=text, length=40)
        for clip, time, words, mine in zip(clips, times, text, together, strict=True):
            alone, _ = model(clip[None], time[None], text=words[None])
            assert (alone[0] - mine).abs().max() < 1e-5
        other = model.packed(clips, times, text=(text + 1) % 6, length=40)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(together, other, strict=True))


@pytest.mark.parametrize("pool", ["class", "mean"])
@pytest.mark.parametrize("positions", ["learned", "sincos", "none"])
def test_images_of_any_sizes_in_one_row_are_as_each_alone(pool, positions):
    model = shaken(
        ViT(
            5,
            (16, 16),
            channels=1,
            dim=24,
            depth=2,
            mixers=(attention(rope=positions == "none"),),
            pool=pool,
            positions=positions,
            registers=2,
        )
    )
    images = [torch.randn(1, *size) for size in ((16, 16), (8, 24), (4, 4))]
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    assert (together - alone).abs().max() < 1e-5


@pytest.mark.parametrize("mixer", ["past", "window"])
@pytest.mark.parametrize("cuts", [(2,), (4, 6), (2, 4, 6)])
def test_frames_that_come_in_pieces_are_those_of_the_whole(mixer, cuts):
    model = dit(mixers=(MIXERS[mixer],))
    clip, time = torch.randn(3, 2, 8, 8, 8), torch.rand(3, 4).repeat_interleave(2, 1)
    whole, _ = model(clip, time)
    state, pieces = model.init_state(3), []
    _, after = model(clip, time, state=model.init_state(3))
    for i, j in zip((0, *cuts), (*cuts, 8), strict=True):
        kept = [x.clone() for layer in state for x in layer]
        made, later = model(clip[:, :, i:j], time[:, i:j], state=state, first=i)
        assert all(torch.equal(x, y) for x, y in zip(kept, [x for layer in state for x in layer], strict=True))
        pieces.append(made)
        state = later
    assert (torch.cat(pieces, 2) - whole).abs().max() < 1e-5
    assert all((x - y).abs().max() < 1e-5 for a, b in zip(state, after, strict=True) for x, y in zip(a, b, strict=True))


def test_a_window_holds_as_much_after_long_as_after_little():
    model, state, sizes = dit(mixers=(MIXERS["window"],)), None, []
    state = model.init_state(1)
    with torch.no_grad():
        for frame in range(0, 40, 2):
            _, state = model(torch.randn(1, 2, 2, 8, 8), torch.rand(1), state=state, first=frame)
            sizes.append(sum(x.numel() for layer in state for x in layer))
    assert len(set(sizes[1:])) == 1


@pytest.mark.parametrize("mixer", ["past", "window"])
def test_a_frame_does_not_see_what_comes_later(mixer):
    model = dit(mixers=(MIXERS[mixer],))
    clip, time = torch.randn(1, 2, 8, 8, 8), torch.rand(1)
    other = clip.clone()
    other[:, :, 4:] = torch.randn(1, 2, 4, 8, 8)
    with torch.no_grad():
        a, b = (model(x, time)[0] for x in (clip, other))
    assert torch.equal(a[:, :, :4], b[:, :, :4])
    assert (a[:, :, 4:] - b[:, :, 4:]).abs().max() > 1e-3


@pytest.mark.parametrize(("reach", "inside"), [("frame", (slice(None), 0)), ("place", (0, slice(None)))])
def test_what_one_layer_of_factorised_attention_sees(reach, inside):
    model = dit(mixers=(attention(reach=reach),), depth=1, patch=(1, 4, 4))
    clip = torch.randn(1, 2, 3, 8, 8, requires_grad=True)
    made, _ = model(clip, torch.rand(1))
    gradient = torch.autograd.grad(made[0, :, 0, :4, :4].sum(), clip)[0]
    touched = gradient.unflatten(3, (2, 4)).unflatten(5, (2, 4)).abs().sum((0, 1, 4, 6)) > 0  # frames, rows, columns of patches
    expected = torch.zeros(3, 2, 2, dtype=torch.bool)
    if reach == "frame":
        expected[0] = True
    else:
        expected[:, 0, 0] = True
    assert torch.equal(touched, expected)


def test_text_stands_before_the_patches_and_counts():
    model = dit(vocab=10, mixers=(attention(), attention(reach="frame")))
    clip, time = torch.randn(2, 2, 4, 8, 8), torch.rand(2)
    texts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        told, other = model(clip, time, text=texts)[0], model(clip, time, text=texts.flip(0))[0]
        by_frame = model(clip, time[:, None].expand(2, 4), text=texts)[0]
    assert (told - other).abs().max() > 1e-3
    assert (told - by_frame).abs().max() < 1e-5


@pytest.mark.parametrize("order", ["rows", "columns", "frames"])
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_a_scan_reads_in_its_order(order, direction):
    """The token that is read last sees all, and where it is read one way the first sees itself alone."""
    model = dit(
        mixers=({"kind": "scan", "mixer": {"kind": "mamba"}, "order": order, "direction": direction},),
        depth=1,
        patch=(1, 4, 4),
        positions="sincos",
    )
    clip = torch.randn(1, 2, 2, 8, 8, requires_grad=True)
    made, _ = model(clip, torch.rand(1))
    corner = {"rows": (0, 0, 1), "columns": (0, 1, 0), "frames": (1, 0, 0)}[order]  # read second
    f, r, s = corner
    gradient = torch.autograd.grad(made[0, :, f, 4 * r : 4 * r + 4, 4 * s : 4 * s + 4].sum(), clip)[0]
    touched = gradient.unflatten(3, (2, 4)).unflatten(5, (2, 4)).abs().sum((0, 1, 4, 6)) > 0
    count = {"forward": 2, "backward": 7, "both": 8}[direction]
    assert int(touched.sum()) == count
    assert touched[corner]


def test_a_unet_sees_each_frame_of_a_clip_at_its_time():
    model = shaken(UNet(2, widths=(8, 16), frames=3, classes=3))
    clip, label = torch.randn(2, 2, 4, 8, 8), torch.tensor([0, 3])
    time = torch.rand(2)
    with torch.no_grad():
        one, _ = model(clip, time, label=label)
        each, _ = model(clip, time[:, None].expand(2, 4), label=label)
        later, _ = model(clip, torch.cat([time[:, None].expand(2, 3), torch.rand(2, 1)], 1), label=label)
    assert (one - each).abs().max() < 1e-5
    assert (one - later).abs().max() > 1e-3


def test_a_unet_over_one_frame_is_that_over_its_clip():
    """Without a convolution over time a frame is by itself but for attention."""
    model = shaken(UNet(2, widths=(8, 16), frames=1, attention=0))
    clip, time = torch.randn(1, 2, 3, 8, 8), torch.rand(1)
    with torch.no_grad():
        whole, _ = model(clip, time)
        single, _ = model(clip[:, :, 1:2], time)
    assert (whole[:, :, 1:2] - single).abs().max() < 1e-5


def test_a_unet_s_stem_gathers_squares_of_pixels_and_spreads_them_again():
    from postformer.models.unet import _gathered, _spread

    clip = torch.randn(2, 3, 4, 8, 8)
    assert torch.equal(_spread(_gathered(clip, 2), 2), clip)
    assert _gathered(clip, 2).shape == (2, 12, 4, 4, 4)
    assert torch.equal(_gathered(clip, 2)[0, 4:8, 1, 2, 3].view(2, 2), clip[0, 1, 1, 4:6, 6:8])
    made, _ = shaken(UNet(3, widths=(8, 16), stem=2))(clip, torch.rand(2))
    assert made.shape == clip.shape


@pytest.mark.parametrize(
    ("times", "labels", "says"),
    [
        ([0.5], None, "2 clips with 1 times; expected as many"),
        ([0.5, 0.5], [1], "2 clips with 1 labels; expected as many"),
        ([0.5, 0.5], [1, 2], "the model takes no label"),
        ([0.5, [0.1, 0.2, 0.3, 0.3]], None, "the 2 frames of a patch must have one time"),
        ([0.5, [0.1, 0.1]], None, "one for each of 4 frames, got 2"),
    ],
)
def test_clips_that_cannot_be_packed_are_told(times, labels, says):
    clips = [torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 8)]
    with pytest.raises(ValueError, match=says):
        dit().packed(clips, [torch.tensor(t) for t in times], None if labels is None else torch.tensor(labels))


@pytest.mark.parametrize("name", ["all", "frame", "place", "past"])
def test_a_transformer_counts_what_torch_counts(name):
    """Of attention by frame and by place the pairs of its parts alone."""
    model = dit(mixers=(MIXERS[name],), hints=1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 2, 4, 12, 8), torch.zeros(1))
    assert counter.get_total_flops() == model.flops((4, 12, 8))


def test_a_unet_counts_its_operations():
    """A first convolution by hand: 27 taps of 3 channels to 8, for 4 x 8 x 8 places."""
    with_two, with_one = (UNet(3, widths=(8,), blocks=1, attention=0, frames=3, outputs=o).flops((4, 8, 8)) for o in (2, 1))
    assert with_two - with_one == 2 * 27 * 8 * 4 * 64


@pytest.mark.parametrize(
    ("make", "call", "says"),
    [
        (
            lambda: dit(),
            lambda m: m(torch.zeros(1, 2, 3, 8, 8), torch.zeros(1)),
            "3 frames are not a multiple of the patch's 2: crop to 2 or pad to 4",
        ),
        (lambda: dit(), lambda m: m(torch.zeros(1, 3, 2, 8, 8), torch.zeros(1)), "3 channels, and the model takes 2"),
        (
            lambda: dit(),
            lambda m: m(torch.zeros(1, 2, 2, 8, 8), torch.tensor([[0.0, 0.5]])),
            "the 2 frames of a patch must have one time",
        ),
        (
            lambda: dit(),
            lambda m: m(torch.zeros(1, 2, 2, 8, 8), torch.zeros(1), label=torch.zeros(1, dtype=torch.long)),
            "takes no label",
        ),
        (lambda: dit(), lambda m: m.init_state(1), "reach='all' sees what comes later and has no state"),
        (
            lambda: UNet(2, widths=(8, 8), stem=4),
            lambda m: m(torch.zeros(1, 2, 1, 16, 12), torch.zeros(1)),
            "crop to 8 or pad to 16",
        ),
        (lambda: UNet(2, widths=(8, 8, 8)), lambda m: m(torch.zeros(1, 2, 1, 10, 8), torch.zeros(1)), "crop to 8 or pad to 12"),
        (lambda: ViT(2, (8, 8)), lambda m: m(torch.zeros(1, 1, 8, 8)), "1 channels, and the model takes 3"),
        (lambda: ViT(2, (9, 8)), lambda m: m, "9 rows are not a multiple"),
    ],
)
def test_what_does_not_fit_is_told(make, call, says):
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        call(make())


@pytest.mark.parametrize("make", [lambda: dit(strides=True), lambda: shaken(UNet(2, widths=(8, 16), strides=True))])
def test_a_step_that_is_not_told_is_none(make):
    model, clip, time = make(), torch.randn(2, 2, 4, 8, 8), torch.rand(2)
    with torch.no_grad():
        untold, none, long = (
            model(clip, time, **words)[0] for words in ({}, {"stride": torch.zeros(2)}, {"stride": torch.ones(2)})
        )
    assert torch.equal(untold, none)
    assert (untold - long).abs().max() > 1e-3


# ---------------------------------------------------------------- known frames beside others


def test_each_frame_is_shown_the_known_ones_nearest_to_it():
    clips = torch.arange(1.0, 6.0)[None, None, :, None, None].expand(2, 1, 5, 2, 2).contiguous()
    time = torch.tensor([[1.0, 0.3, 0.3, 0.3, 1.0], [0.3, 0.3, 1.0, 0.3, 0.3]])
    shown = hinted(clips, time, 2)
    assert shown.shape == (2, 1 + 2 * 2, 5, 2, 2)
    values = shown[..., 0, 0]
    assert torch.equal(values[:, 0], clips[:, 0, :, 0, 0])
    assert values[0, 1].tolist() == [1, 1, 1, 5, 5]  # the earlier of two as near
    assert (8 * values[0, 2]).tolist() == [0, -1, -2, 1, 0]
    assert values[0, 3].tolist() == [5, 5, 5, 1, 1]
    assert (8 * values[0, 4]).tolist() == [4, 3, 2, -3, -4]
    assert values[1, 1].tolist() == [3] * 5
    assert (8 * values[1, 2]).tolist() == [2, 1, 0, -1, -2]
    assert not values[1, 3:].any()
    for none in (torch.tensor([0.5, 0.5]), torch.full((2, 5), 0.5)):
        assert not hinted(clips, none, 2)[:, 1:].any()


@pytest.mark.parametrize("make", [lambda: dit(hints=2), lambda: shaken(UNet(2, widths=(8, 8), stem=2, hints=2))])
def test_what_is_known_is_seen_beside_what_is_not(make):
    model = make()
    clips, time = torch.randn(2, 2, 4, 8, 8), torch.tensor([[1.0, 1.0, 0.4, 0.4], [0.4, 0.4, 0.4, 0.4]])
    made, _ = model(clips, time)
    alone, _ = model(clips[1:], time[1:])
    assert (made[1:] - alone).abs().max() < 1e-5
    one, _ = model(clips[1:], torch.tensor([0.4]))
    assert (one - alone).abs().max() < 1e-5  # one time a clip says that nothing is known
    assert model.config["hints"] == 2
    again = build(model.config, MODELS, "model")
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(clips, time)[0], made)


def test_hints_in_one_row_are_as_alone_and_go_with_no_state():
    model = dit(hints=1)
    clips = [torch.randn(2, *size) for size in SIZES]
    times = [
        torch.tensor([1.0, 1.0, 0.2, 0.2]),
        torch.tensor(0.3),
        torch.ones(8).masked_fill(torch.arange(8) > 3, 0.1),
        torch.tensor(0.5),
    ]
    with torch.no_grad():
        for clip, time, mine in zip(clips, times, model.packed(clips, times), strict=True):
            assert (model(clip[None], time[None])[0][0] - mine).abs().max() < 1e-5
    causal = dit(mixers=(attention(reach="past"),), hints=1)
    with pytest.raises(ValueError, match="hints=1: known frames may lie in earlier pieces"):
        causal.init_state(1)
    state = dit(mixers=(attention(reach="past"),)).init_state(1)
    with pytest.raises(ValueError, match="state: with hints=1 there is none"):
        causal(torch.zeros(1, 2, 2, 8, 8), torch.tensor([0.5]), state=state)
