"""Folders of mixtures of experts as the transformers library writes them, and as hubs keep them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import postformer
from postformer.config import UserError
from postformer.models.convert import language_options
from postformer.models.hub import load_model, save_model
from postformer.models.language import LanguageModel

transformers = pytest.importorskip("transformers", reason="the extra 'peers' is not installed")
SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
QWEN = {"moe_intermediate_size": 16, "num_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 40}
KINDS = {
    "mixtral": ("MixtralConfig", {"intermediate_size": 24, "num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", {**QWEN, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("Qwen3MoeConfig", {**QWEN, "head_dim": 16, "norm_topk_prob": True, "mlp_only_layers": [0]}),
    "olmoe": ("OlmoeConfig", {"intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3}),
}
IDS = torch.randint(61, (2, 19), generator=torch.Generator().manual_seed(1))


def theirs(kind, folder, dtype=torch.float32, **options):
    torch.manual_seed(0)
    name, words = KINDS[kind]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**SIZES, **words)).float().eval()
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    model = model.to(dtype)
    model.save_pretrained(folder, **options)
    return model


def same_logits(folder, other):
    ours = postformer.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS)[0], other(IDS).logits, rtol=1e-5, atol=1e-5)
    return ours


def change(folder, **words):
    config = json.loads((folder / "config.json").read_text()) | words
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_opens_with_equal_logits_and_stays_ours(kind, tmp_path):
    other = theirs(kind, tmp_path / "m")
    assert any(".experts.3." in name for name in load_file(tmp_path / "m" / "model.safetensors"))
    ours = same_logits(tmp_path / "m", other)
    save_model(ours, tmp_path / "ours")
    same_logits(tmp_path / "ours", other)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_in_one_tensor(kind, tmp_path):
    other = theirs(kind, tmp_path)
    save_file({name: value.contiguous() for name, value in other.state_dict().items()}, tmp_path / "model.safetensors")
    same_logits(tmp_path, other)


@pytest.mark.parametrize("kind", ["mixtral", "olmoe"])
def test_shards(kind, tmp_path):
    other = theirs(kind, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and not (tmp_path / "model.safetensors").exists()
    same_logits(tmp_path, other)


def test_a_configuration_as_it_lies_on_the_hub(tmp_path):
    """Written by an older version: the base of the rotary positions by itself, the number of experts under its older name."""
    other = theirs("qwen3_moe", tmp_path)
    change(tmp_path, rope_parameters="absent", rope_theta=1e4, num_local_experts="absent", num_experts=6, rope_scaling=None)
    same_logits(tmp_path, other)


def test_mixtral_has_a_rotary_base_of_its_own(tmp_path):
    other = theirs("mixtral", tmp_path)
    change(tmp_path, rope_parameters="absent")
    assert same_logits(tmp_path, other).backbone.blocks[0].mixer.rope_base == 1e6


def test_bf16_stays_bf16(tmp_path):
    other = theirs("mixtral", tmp_path, torch.bfloat16)
    ours = load_model(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS)[0].float(), other(IDS).logits.float(), rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("kind", "words", "billions", "active"),
    [
        ("MixtralConfig", {}, 46.70, 12.88),
        ("OlmoeConfig", {"intermediate_size": 1024}, 6.92, 1.28),
        ("Qwen2MoeConfig", {}, 14.32, 2.69),
        ("Qwen3MoeConfig", {"num_hidden_layers": 48, "head_dim": 128}, 30.53, 3.35),
    ],
)
def test_the_published_sizes_have_the_published_parameters(kind, words, billions, active):
    with torch.device("meta"):
        model = LanguageModel(**language_options(getattr(transformers, kind)(**words).to_dict()))
    cost = model.cost(1)
    embedding = model.embed.weight.numel()
    assert round(cost.parameters / 1e9, 2) == billions
    assert round((cost.active_parameters + embedding) / 1e9, 2) == active


# ---------------------------------------------------------------- what has no equal here


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv=8.0 cannot be converted; only clip_qkv=None can"),
        ("olmoe", {"attention_bias": True}, "attention_bias=True cannot be converted"),
        ("qwen2_moe", {"use_sliding_window": True}, "use_sliding_window=True cannot be converted"),
        ("qwen3_moe", {"use_sliding_window": True}, "use_sliding_window=True cannot be converted"),
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act=gelu cannot be converted"),
        ("mixtral", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' cannot be converted"),
        ("mixtral", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_type 'linear' cannot be converted"),
        ("mixtral", {"num_experts_per_tok": "absent"}, "'num_experts_per_tok' is missing"),
        ("mixtral", {"num_experts_per_tok": 9}, "top=9 must be at most the 4 experts"),
        ("mixtral", {"num_local_experts": 5}, "'backbone.blocks.0.ffn.router.weight' has shape (4, 32)"),
        ("qwen3_moe", {"mlp_only_layers": "0"}, "mlp_only_layers='0' and num_hidden_layers=2 must be"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step=0"),
        ("mixtral", {"model_type": "deepseek_v3"}, "model_type 'deepseek_v3' cannot be converted; choose from llama, "),
    ],
)
def test_what_has_no_equal_here_is_one_line(kind, words, message, tmp_path):
    theirs(kind, tmp_path)
    change(tmp_path, **words)
    with pytest.raises(UserError) as e:
        load_model(tmp_path)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.experts.2.up_proj.weight"), "experts.2.up_proj' is missing"),
        (lambda t: t.pop("model.layers.0.mlp.shared_expert.up_proj.weight"), "shared_expert.up_proj.weight' is missing"),
        (
            lambda t: t.update({"model.layers.0.mlp.experts.900000.up_proj.weight": torch.ones(16, 32)}),
            "experts.6.gate_proj' is",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.experts.0.up_proj.weight": torch.ones(3, 32)}),
            "are not matrices of one shape",
        ),
        (lambda t: t.update({"model.layers.0.mlp.experts.0.odd.weight": torch.ones(3)}), "has no place in a converted model"),
    ],
)
def test_damaged_experts_are_one_line(spoil, message, tmp_path):
    theirs("qwen2_moe", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    spoil(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as e:
        load_model(tmp_path)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../secret.safetensors"}}, "'../secret.safetensors' is no file of the folder"),
        ({"weight_map": {"a": "/etc/x.safetensors"}}, "'/etc/x.safetensors' is no file of the folder"),
        ({"weight_map": {"a": 3}}, "'3' is no file of the folder"),
        ({"weight_map": {}}, "names no files"),
        ({}, "names no files"),
        ({"weight_map": {"a": "model-00001-of-00009.safetensors"}}, "No such file"),
    ],
)
def test_an_index_is_not_trusted(index, message, tmp_path):
    theirs("mixtral", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError) as e:
        load_model(tmp_path)
    assert message in str(e.value) and "\n" not in str(e.value)
