"""Counts of published models beside those of transformers on the meta device (in billions, as noted when they were taken)."""

import pytest

from postformer.cli import main
from postformer.config import UserError
from postformer.devices import DEVICES, device, step
from postformer.published import PUBLISHED

COUNTED = {
    "mixtral-8x7b": (46.70, 12.88, (12.8, 42.1, 46.6)),
    "mixtral-8x22b": (140.63, 39.16, (39, 127, 140)),
    "qwen1.5-moe-a2.7b": (14.32, 2.69, (2.4, 6.8, 12.6)),
    "qwen2-57b-a14b": (57.41, 14.25, (13.7, 39.9, 56.2)),
    "qwen3-30b-a3b": (30.53, 3.35, (3.0, 12.9, 26.6)),
    "qwen3-235b-a22b": (235.1, 22.2, (21.6, 99, 206)),
    "olmoe-1b-7b": (6.92, 1.28, (1.2, 4.6, 6.7)),
    "deepseek-v2-lite": (15.71, 2.66, (2.5, 9.0, 14.9)),
    "deepseek-v3": (671.0, 37.6, (36.6, 163, 433)),
    "gpt-oss-20b": (20.91, 4.19, (3.6, 13.8, 20.1)),
    "gpt-oss-120b": (116.83, 5.71, (5.1, 27.3, 74.7)),
}


def same(value: float, told: float) -> bool:
    """To the last digit that was told."""
    digits = len(str(told).partition(".")[2]) if isinstance(told, float) else 0
    return abs(value / 1e9 - told) <= 0.51 * 10**-digits


@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_those_that_were_taken(name):
    model, (total, active, touched) = PUBLISHED[name], COUNTED[name]
    assert same(model.parameters, total)
    assert same(model.active_parameters, active)
    for batch, told in zip((1, 8, 32), touched, strict=True):
        assert model.touched(batch) / 1e9 == pytest.approx(told, abs=0.06 if isinstance(told, float) else 0.6), batch


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-2-7b", 6.738), ("llama-2-70b", 68.977), ("llama-3-8b", 8.030), ("llama-3-70b", 70.554), ("mamba-2.8b", 2.768)],
)
def test_dense_models_have_their_published_sizes(name, billions):
    model = PUBLISHED[name]
    assert model.parameters / 1e9 == pytest.approx(billions, abs=0.001)
    assert model.active_parameters == model.parameters
    assert model.touched(1) == model.touched(64)


def test_a_step_reads_or_multiplies():
    own = device("100:2:10")
    few = step(own, weights=1e9, resident=2e9, state=1e6, operations=1e9, batch=1)
    assert (few.read_s, few.multiply_s, few.fits) == (pytest.approx(0.01001), pytest.approx(0.0005), True)
    many = step(own, weights=1e9, resident=2e9, state=1e6, operations=1e9, batch=100)
    assert many.seconds == many.multiply_s == pytest.approx(0.05)
    assert not step(own, weights=1e9, resident=2e9, state=1e9, operations=1e9, batch=9).fits
    assert DEVICES["h100"].bandwidth == 3.35e12
    for wrong in ("h1000", "1:2", "1:0:3", "nan:1:1"):
        with pytest.raises(UserError, match=f"--device {wrong}"):
            device(wrong)


def said(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(["cost", *map(str, words)])
    return end.value.code, capsys.readouterr()


def test_the_command_on_a_published_model(capsys):
    code, text = said(capsys, "mixtral-8x7b", "--batch", "1,8", "--length", 1000, "--device", "h100")
    first, _, one, eight, last = text.out.splitlines()
    assert code == 0
    assert first == "mixtral-8x7b: 46,702,792,704 parameters, 12,879,925,248 active a token, 1/3.6"
    assert "12,748,853,248" in one
    assert one.endswith("(more than its memory)")
    assert float(one.split()[6]) == pytest.approx(1e3 * (2 * 12748853248 + 2 * 1000 * 2 * 8 * 128 * 32) / 3.35e12, abs=1e-3)
    assert "90." in eight, "of all weights, per cent"
    assert "NVIDIA H100 SXM data sheet" in last


def test_the_command_on_a_model_of_ours(capsys):
    model = 'model.ffns=[{kind="moe", experts=8, top=2, hidden=64}]'
    code, text = said(capsys, "text-attention", model, "--batch", "1,64", "--length", 100, "--vocab", 1000)
    _, _, one, many = text.out.splitlines()
    assert code == 0
    active = int(text.out.split(" parameters, ")[1].split(" active")[0].replace(",", ""))
    assert int(one.split()[2].replace(",", "")) == active
    assert 0.99 < float(many.split()[3].rstrip("%")) / 100 <= 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mixtral-8x7b", "model.depth=3"], "a published model's shape is fixed; leave out model.depth=3"),
        (["mixtral-8x7b", "--vocab", 9], "a published model's shape is fixed; leave out --vocab"),
        (["mixtral-8x7b", "--device", "h100"], "give --batch too"),
        (["mixtral-8x7b", "--batch", 1, "--device", "h101"], "choose from a100, h100"),
        (["mixtral-8x7", "--batch", 1], "mixtral-8x7"),
    ],
)
def test_mistakes_of_the_command(capsys, words, says):
    code, text = said(capsys, *words)
    assert code == 2
    assert says in text.err
