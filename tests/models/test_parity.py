"""Equality with the published implementations in transformers, from random configurations, in fp32."""

import pytest
import torch

from postformer import state as S
from postformer.models.convert import language_options, language_tensors
from postformer.models.language import LanguageModel

transformers = pytest.importorskip("transformers", reason="the extra 'peers' is not installed")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

CONFIGS = {
    "mamba": lambda: transformers.MambaConfig(vocab_size=97, hidden_size=48, state_size=8, num_hidden_layers=3),
    "mamba-odd": lambda: transformers.MambaConfig(
        vocab_size=50, hidden_size=40, state_size=5, num_hidden_layers=2, expand=3, conv_kernel=3, time_step_rank=7
    ),
    "mamba2": lambda: transformers.Mamba2Config(
        vocab_size=97, hidden_size=48, state_size=16, num_hidden_layers=3, head_dim=16, num_heads=6, n_groups=2, chunk_size=16
    ),
    "mamba2-odd": lambda: transformers.Mamba2Config(
        vocab_size=50,
        hidden_size=40,
        state_size=5,
        num_hidden_layers=2,
        expand=3,
        head_dim=8,
        num_heads=15,
        n_groups=1,
        conv_kernel=3,
        chunk_size=7,
        tie_word_embeddings=True,
    ),
    "llama": lambda: transformers.LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    ),
    "llama-tied-wide-heads": lambda: transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=40,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        rope_theta=5e5,
        tie_word_embeddings=True,
    ),
    **{
        name: lambda kind=kind, words=words: getattr(transformers, kind)(
            vocab_size=61,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_experts_per_tok=2,
            pad_token_id=None,
            **words,
        )
        for name, (kind, words) in {
            "mixtral": ("MixtralConfig", {"intermediate_size": 24, "num_local_experts": 5, "head_dim": 12}),
            "mixtral-window": ("MixtralConfig", {"intermediate_size": 24, "num_local_experts": 4, "sliding_window": 7}),
            "qwen3_moe": (
                "Qwen3MoeConfig",
                {"moe_intermediate_size": 16, "num_experts": 6, "head_dim": 16, "norm_topk_prob": True, "rms_norm_eps": 1e-3},
            ),
            "qwen3_moe-dense-layers": (
                "Qwen3MoeConfig",
                {"moe_intermediate_size": 16, "intermediate_size": 40, "num_experts": 6, "head_dim": 8, "mlp_only_layers": [1]},
            ),
            "qwen2_moe": (
                "Qwen2MoeConfig",
                {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 40, "num_experts": 6, "rms_norm_eps": 1e-3},
            ),
            "qwen2_moe-every-second": (
                "Qwen2MoeConfig",
                {
                    "moe_intermediate_size": 16,
                    "shared_expert_intermediate_size": 24,
                    "num_experts": 4,
                    "decoder_sparse_step": 2,
                },
            ),
            "olmoe": ("OlmoeConfig", {"intermediate_size": 24, "num_experts": 6, "rms_norm_eps": 1e-3}),
            "olmoe-tied": ("OlmoeConfig", {"intermediate_size": 24, "num_experts": 4, "tie_word_embeddings": True}),
        }.items()
    },
}


def pair(name: str):
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).float().eval()
    for p in theirs.parameters():  # away from zeros and ones, so that every parameter counts
        p.data += 0.02 * torch.randn_like(p)
    options = language_options(theirs.config.to_dict())
    ours = LanguageModel(**options).eval()
    ours.load_state_dict(language_tensors(theirs.state_dict(), options["tied"]))
    ids = torch.randint(options["vocab"], (2, 37), generator=torch.Generator().manual_seed(1))
    return theirs, ours, ids


def cache(out) -> dict:
    """The cache of an output under the name that this version of transformers gives it."""
    return next({key: out[key]} for key in ("cache", "cache_params", "past_key_values") if key in out)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name):
    theirs, ours, ids = pair(name)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids)[0], theirs(ids).logits, **CLOSE)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_token_steps(name):
    theirs, ours, ids = pair(name)
    with torch.no_grad():
        out = theirs(ids[:, :20], use_cache=True)
        _, state = ours(ids[:, :20], ours.init_state(2))
        for t in range(20, 37):
            out = theirs(ids[:, t : t + 1], use_cache=True, **cache(out))
            y, state = ours(ids[:, t : t + 1], state)
            torch.testing.assert_close(y, out.logits, **CLOSE)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients(name):
    theirs, ours, ids = pair(name)
    loss = theirs(ids, labels=ids).loss
    loss.backward()
    logits, _ = ours(ids)
    mine = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    mine.backward()
    torch.testing.assert_close(mine, loss, **CLOSE)
    tied = ours.head is None
    grads = language_tensors({n: p.grad for n, p in theirs.named_parameters()}, tied)
    own = dict(ours.named_parameters())
    assert own.keys() == grads.keys()
    for parameter, grad in grads.items():
        torch.testing.assert_close(own[parameter].grad, grad, **CLOSE, msg=lambda m, p=parameter: f"{p}: {m}")


@pytest.mark.parametrize("name", CONFIGS)
def test_left_padded_batch_and_steps_after_it(name):
    theirs, ours, ids = pair(name)
    mask = torch.ones(2, 37, dtype=torch.bool)
    mask[1, :11] = False
    with torch.no_grad():
        out = theirs(ids[:, :30], attention_mask=mask[:, :30].long(), use_cache=True)
        y, state = ours(ids[:, :30], ours.init_state(2), mask=mask[:, :30])
        torch.testing.assert_close(y[mask[:, :30]], out.logits[mask[:, :30]], **CLOSE)
        for t in range(30, 33):
            words = (
                {"attention_mask": mask[:, : t + 1].long()} if not name.startswith("mamba") else {}
            )  # as their `generate` does
            out = theirs(ids[:, t : t + 1], use_cache=True, **words, **cache(out))
            y, state = ours(ids[:, t : t + 1], state)
            torch.testing.assert_close(y, out.logits, **CLOSE)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_right_padding_spoils_their_state_and_not_ours(name):
    theirs, ours, ids = pair(name)
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[1, 12:20] = False
    with torch.no_grad():
        alone = theirs(torch.cat([ids[1:, :12], ids[1:, 20:21]], 1)).logits[0, -1]
        out = theirs(ids[:, :20], attention_mask=mask[:, :20].long(), use_cache=True)
        their_next = theirs(ids[:, 20:21], use_cache=True, **cache(out)).logits[1, 0]
        _, state = ours(ids[:, :20], ours.init_state(2), mask=mask[:, :20])
        our_next = ours(ids[:, 20:21], state)[0][1, 0]
    torch.testing.assert_close(our_next, alone, **CLOSE)
    assert (their_next - alone).abs().max() > 1e-3, "transformers now keeps the state: say so in the documentation"


def test_chunked_prefill_of_mamba2_equals_theirs():
    theirs, ours, ids = pair("mamba2")
    with torch.no_grad():
        first = theirs(ids[:, :20], use_cache=True)
        _, state = ours(ids[:, :20], ours.init_state(2))
        theirs_second = theirs(ids[:, 20:], use_cache=True, **cache(first)).logits
        torch.testing.assert_close(ours(ids[:, 20:], state)[0], theirs_second, **CLOSE)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "llama"])
def test_packed_documents_are_read_as_if_alone(name):
    theirs, ours, ids = pair(name)
    starts = torch.zeros(2, 37, dtype=torch.bool)
    starts[:, [0, 9, 23]] = True
    with torch.no_grad():
        y, _ = ours(ids, starts=starts)
        alone = torch.cat([theirs(part).logits for part in ids.split([9, 14, 14], 1)], 1)
    torch.testing.assert_close(y, alone, **CLOSE)


def test_chunked_prefill_theirs_drops_the_state_and_ours_does_not():
    """transformers' Mamba starts the recurrence anew at a second chunk of more than one token."""
    theirs, ours, ids = pair("mamba")
    with torch.no_grad():
        whole = theirs(ids).logits[:, 20:]
        first = theirs(ids[:, :20], use_cache=True)
        their_second = theirs(ids[:, 20:], use_cache=True, **cache(first)).logits
        _, state = ours(ids[:, :20], ours.init_state(2))
        our_second, _ = ours(ids[:, 20:], state)
    torch.testing.assert_close(our_second, whole, **CLOSE)
    assert (their_second - whole).abs().max() > 1e-3, "transformers now keeps the state: say so in the documentation"


def test_state_survives_a_file_between_chunks(tmp_path):
    _, ours, ids = pair("llama")
    with torch.no_grad():
        _, state = ours(ids[:, :20], ours.init_state(2))
        S.save(state, tmp_path / "s", ours)
        again, _ = ours(ids[:, 20:], S.load(tmp_path / "s", ours)[0])
        torch.testing.assert_close(again, ours(ids)[0][:, 20:], **CLOSE)
