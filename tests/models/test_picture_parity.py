"""ViT and DiT beside transformers, timm and diffusers: random configurations, the same weights; outputs and gradients to 1e-5 in fp32."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from postformer.config import ConfigError
from postformer.models.convert_pictures import dit_options, dit_tensors, vit_options, vit_tensors
from postformer.models.diffusion import DiT
from postformer.models.hub import load_model, save_model
from postformer.models.vision import ViT

transformers = pytest.importorskip("transformers")


def randomised(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 if p.ndim == 1 else p[0].numel() ** -0.5))
    return model.eval()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("seed", range(4))
def test_vit_is_that_of_transformers(seed):
    heads, patch = [(2, 4), (4, 8), (3, 4), (1, 2)][seed]
    config = transformers.ViTConfig(
        hidden_size=24 * heads,
        num_hidden_layers=1 + seed,
        num_attention_heads=heads,
        intermediate_size=40 + 8 * seed,
        image_size=16,
        patch_size=patch,
        num_channels=1 + seed % 3,
        num_labels=5,
    )
    theirs = randomised(transformers.ViTForImageClassification(config), seed)
    ours = ViT(**vit_options(config.to_dict())).eval()
    ours.load_state_dict(vit_tensors(theirs.state_dict(), (16 // patch, 16 // patch)))
    x = torch.randn(2, config.num_channels, 16, 16, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    logits = ours(x)
    expected = theirs(x).logits
    close(logits, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    mine, their = (torch.autograd.grad((out * weights).sum(), x)[0] for out in (logits, expected))
    close(mine, their)


def test_vit_reads_the_names_of_files():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, image_size=8, patch_size=4
    )
    theirs = randomised(transformers.ViTModel(config, add_pooling_layer=False), 0).state_dict()
    names = {"attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key"}
    names |= {"attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense"}
    names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "layers.": "encoder.layer."}
    renamed = {}
    for name, value in theirs.items():
        for new, old in names.items():
            name = name.replace(new, old)
        renamed[f"vit.{name}"] = value
    assert vit_tensors(renamed, (2, 2)).keys() == vit_tensors(theirs, (2, 2)).keys()


def test_a_folder_of_transformers_opens(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        image_size=(8, 12),
        patch_size=4,
        num_labels=3,
    )
    theirs = randomised(transformers.ViTForImageClassification(config), 0)
    theirs.save_pretrained(tmp_path)
    x = torch.randn(2, 3, 8, 12)
    close(load_model(tmp_path)(x), theirs(x).logits)
    save_model(load_model(tmp_path), tmp_path / "own")
    close(load_model(tmp_path / "own")(x), theirs(x).logits)


def test_a_folder_of_another_picture_model_says_what_is_read(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, hidden_act="relu"
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="hidden_act='relu'"):
        load_model(tmp_path)


APART = Path(__file__).parents[2] / ".venv/apart"
"""Where `tools/setup.sh` puts timm, which does not load without torchvision."""


@pytest.mark.skipif(not (APART / "timm").exists(), reason="timm is not installed apart")
def test_vit_is_that_of_timm():
    """In a process of its own, with a stand-in for torchvision: beside it transformers would no longer load."""
    script = Path(__file__).with_name("beside_timm.py")
    done = subprocess.run([sys.executable, str(script), str(APART)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["same"] * 4


@pytest.mark.parametrize("seed", range(3))
def test_dit_is_that_of_diffusers(seed):
    diffusers = pytest.importorskip("diffusers")
    heads, patch, outputs = [(2, 2, 4), (3, 4, 8), (4, 2, 3)][seed]
    config = {
        "num_attention_heads": heads,
        "attention_head_dim": 12,
        "in_channels": 3 + seed % 2,
        "out_channels": outputs,
        "num_layers": 1 + seed,
        "sample_size": 8 * patch // 2,
        "patch_size": patch,
        "num_embeds_ada_norm": 7,
        "norm_eps": 1e-6,
    }
    theirs = randomised(diffusers.DiTTransformer2DModel(**config), seed)
    first = theirs.transformer_blocks[0].norm1.emb
    for block in theirs.transformer_blocks:
        block.norm1.emb = first
        # DiT's own code, and ours, have no shift: its frequencies end one step before 1/10,000
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    ours = DiT(**dit_options(dict(theirs.config))).eval()
    ours.load_state_dict(dit_tensors(theirs.state_dict(), outputs))
    generator = torch.Generator().manual_seed(seed)
    side = config["sample_size"]
    x = torch.randn(3, config["in_channels"], side, side, generator=generator, requires_grad=True)
    step, label = torch.tensor([0, 421, 999]), torch.tensor([0, 6, 7])
    expected = theirs(x, timestep=step, class_labels=label).sample
    said, _ = ours(x[:, :, None], step.double() / 1000, label=label)
    close(said[:, :, 0], expected)
    weights = torch.randn(expected.shape, generator=generator)
    mine, their = (torch.autograd.grad((out * weights).sum(), x)[0] for out in (said[:, :, 0], expected))
    close(mine, their)


PAPER = {  # depth, width, heads; parameters in millions, Gflops at patch 2, 4, 8: Peebles & Xie 2023, tables 1 and 4
    "S": ((12, 384, 6), 33, (6.06, 1.41, 0.36)),
    "B": ((12, 768, 12), 130, (23.01, 5.56, 1.42)),
    "L": ((24, 1024, 16), 458, (80.71, 19.70, 5.01)),
    "XL": ((28, 1152, 16), 675, (118.64, 29.05, 7.39)),
}


@pytest.mark.parametrize("size", PAPER)
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_dit_costs_what_the_paper_says(size, patch):
    (depth, dim, heads), millions, gflops = PAPER[size]
    config = {
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": depth,
        "patch_size": patch,
        "num_embeds_ada_norm": 1000,
    }
    with torch.device("meta"):
        model = DiT(**dit_options(config))
    tokens = (32 // patch) ** 2
    cost = model.cost(tokens)
    assert cost.parameters / 1e6 == pytest.approx(millions, rel=0.01)
    expected = gflops[int(math.log2(patch)) - 1]
    assert cost.prefill_flops * tokens / 2e9 == pytest.approx(expected, rel=0.01)  # the paper's are multiply-adds


def test_an_image_of_256_pixels_in_patches_of_16_is_256_tokens():
    from postformer.tokens.patches import patchify

    assert patchify(torch.zeros(1, 3, 1, 256, 256), (1, 16, 16)).shape == (1, 256, 768)
