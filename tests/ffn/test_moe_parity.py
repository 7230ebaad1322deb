"""Equality with the mixtures of experts of the transformers library, from random configurations, in fp32: router logits, outputs, and the
gradients of tokens and of all parameters."""

import pytest
import torch

from postformer.ffn.moe import MoE
from postformer.models.routing import routed

transformers = pytest.importorskip("transformers", reason="the extra 'peers' is not installed")

DIM, WIDE = 32, 24
COMMON = {"hidden_size": DIM, "num_hidden_layers": 1, "vocab_size": 11, "num_attention_heads": 4, "num_key_value_heads": 2}
FUSED = {"experts.gate_up_proj": "up.weight", "experts.down_proj": "out.weight", "gate.weight": "router.weight"}


def shared(prefix: str) -> dict[str, str]:
    """Their names of the shared network's matrices; the gate and the values are one of ours."""
    return {f"{prefix}.gate_proj.weight": "shared.up.weight:0", f"{prefix}.up_proj.weight": "shared.up.weight:1"} | {
        f"{prefix}.down_proj.weight": "shared.out.weight"
    }


def mixtral(top: int = 2):
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = transformers.MixtralConfig(**COMMON, intermediate_size=WIDE, num_local_experts=6, num_experts_per_tok=top)
    return MixtralSparseMoeBlock(config), MoE(DIM, experts=6, top=top, hidden=WIDE), FUSED


def qwen2(renormalise: bool = False):
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

    sizes = {"moe_intermediate_size": WIDE, "shared_expert_intermediate_size": 40, "num_experts": 10, "num_experts_per_tok": 4}
    config = transformers.Qwen2MoeConfig(**COMMON, **sizes, norm_topk_prob=renormalise)
    ours = MoE(DIM, preset="qwen2", experts=10, hidden=WIDE, shared=40, renormalise=renormalise)
    return (
        Qwen2MoeSparseMoeBlock(config),
        ours,
        {**FUSED, **shared("shared_expert"), "shared_expert_gate.weight": "shared.gate.weight"},
    )


def qwen3(renormalise: bool = True):
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    sizes = {"moe_intermediate_size": WIDE, "num_experts": 16, "num_experts_per_tok": 8}
    config = transformers.Qwen3MoeConfig(**COMMON, **sizes, norm_topk_prob=renormalise)
    return Qwen3MoeSparseMoeBlock(config), MoE(DIM, preset="qwen3", experts=16, hidden=WIDE, renormalise=renormalise), FUSED


def olmoe():
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = transformers.OlmoeConfig(**COMMON, intermediate_size=WIDE, num_experts=16, num_experts_per_tok=8)
    return OlmoeSparseMoeBlock(config), MoE(DIM, preset="olmoe", experts=16, hidden=WIDE), FUSED


def deepseek_v2():
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

    sizes = {"moe_intermediate_size": WIDE, "n_routed_experts": 16, "n_shared_experts": 2, "num_experts_per_tok": 6}
    groups = {"n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0}
    config = transformers.DeepseekV2Config(**COMMON, **sizes, **groups, norm_topk_prob=False)
    ours = MoE(DIM, preset="deepseek-v2", experts=16, hidden=WIDE)
    return DeepseekV2Moe(config), ours, {**FUSED, **shared("shared_experts")}


def deepseek_v3(groups: int = 8):
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    sizes = {"moe_intermediate_size": WIDE, "n_routed_experts": 32, "n_shared_experts": 1, "num_experts_per_tok": 8}
    config = transformers.DeepseekV3Config(**COMMON, **sizes, n_group=groups, topk_group=max(1, groups // 2))
    ours = MoE(DIM, preset="deepseek-v3", experts=32, hidden=WIDE, groups=groups, top_groups=max(1, groups // 2))
    return DeepseekV3MoE(config), ours, {**FUSED, **shared("shared_experts"), "gate.e_score_correction_bias": "correction"}


def gpt_oss():
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

    sizes = {"intermediate_size": WIDE, "num_local_experts": 8, "num_experts_per_tok": 4}
    config = transformers.GptOssConfig(**{**COMMON, **sizes})
    names = {"router.weight": "router.weight", "router.bias": "router.bias"}
    return GptOssMLP(config), MoE(DIM, preset="gpt-oss", experts=8, hidden=WIDE), names


BLOCKS = {
    "mixtral": mixtral,
    "mixtral, one expert": lambda: mixtral(1),
    "qwen2": qwen2,
    "qwen2, renormalised": lambda: qwen2(True),
    "qwen3": qwen3,
    "qwen3, as scored": lambda: qwen3(False),
    "olmoe": olmoe,
    "deepseek-v2": deepseek_v2,
    "deepseek-v3": deepseek_v3,
    "deepseek-v3, one group": lambda: deepseek_v3(1),
    "gpt-oss": gpt_oss,
}


def ours_of(ours: MoE, name: str, of: str = "") -> torch.Tensor:
    """The part of our parameter (or of its gradient) that theirs is."""
    name, _, half = name.partition(":")
    found = ours.get_parameter(name) if name in dict(ours.named_parameters()) else ours.get_buffer(name)
    found = found.grad if of == "grad" else found.detach()
    return found.chunk(2)[int(half)] if half else found


def interleaved(both: torch.Tensor) -> torch.Tensor:
    """Ours, the gate's rows first, as gpt-oss has them: in turns."""
    gate, up = both.chunk(2, 1)
    return torch.stack([gate, up], 2).flatten(1, 2)


def close(ours: torch.Tensor, theirs: torch.Tensor, least: float = 0.0) -> None:
    """To 1e-5 of the largest value, or of `least`."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(least, theirs.detach().abs().max().item()))


@pytest.mark.parametrize("case", BLOCKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_block_is_the_published_one(case, seed):
    torch.manual_seed(seed)
    theirs, ours, names = BLOCKS[case]()
    theirs = theirs.float()
    with torch.no_grad():
        for parameter in [*theirs.parameters(), *theirs.buffers()]:
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        for their_name, our_name in names.items():
            ours_of(ours, our_name).copy_(theirs.state_dict()[their_name])
        if case == "gpt-oss":
            e = theirs.experts
            for one, other in ((e.gate_up_proj.mT, ours.up.weight), (e.gate_up_proj_bias, ours.up.bias)):
                other.copy_(torch.cat([one[:, ::2], one[:, 1::2]], 1))
            ours.out.weight.copy_(e.down_proj.mT)
            ours.out.bias.copy_(e.down_proj_bias)
    x = torch.randn(3, 7, DIM)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    logits = []
    gate = theirs.router if case == "gpt-oss" else theirs.gate
    gate.register_forward_hook(lambda _, __, out: logits.append(out[0]))
    expected = theirs(a)
    expected = expected[0] if isinstance(expected, tuple) else expected
    with routed(ours) as routing:
        y = ours(b)
    close(routing.calls[""][0].logits.flatten(0, 1), logits[0].float())
    close(y, expected)
    dy = torch.randn_like(y)
    expected.backward(dy)
    y.backward(dy)
    close(b.grad, a.grad)
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for their_name, our_name in names.items():
        if their_name in their_gradients:
            # of one expert the weight is 1 whatever the router says: both gradients are what rounding leaves of 0
            least = 1.0 if our_name == "router.weight" and ours.top == 1 else 0.0
            close(ours_of(ours, our_name, "grad"), their_gradients[their_name], least)
    if case == "gpt-oss":
        close(interleaved(ours.up.weight.grad).mT, their_gradients["experts.gate_up_proj"])
        close(interleaved(ours.up.bias.grad), their_gradients["experts.gate_up_proj_bias"])
        close(ours.out.weight.grad.mT, their_gradients["experts.down_proj"])
        close(ours.out.bias.grad, their_gradients["experts.down_proj_bias"])
