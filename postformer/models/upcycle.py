"""Dense models to mixtures of experts, without a change of what they compute.

- Copies (Komatsuzaki et al. 2022, arXiv 2212.05055): every expert is the dense network. Whichever are chosen, weights that add up to 1 give
  its answer.
- A granular split (He et al. 2024, arXiv 2410.07524, section 4.2): the network's channels are dealt to `split` shards, each of which is an
  expert, and all of that is copied. The shards of a copy begin with one router row, so they are chosen together; `scale` = split makes the
  sum of their shares the network's answer.
- Several models of one shape, fine-tuned apart, each become an expert; what is no expert is their mean. The router's rows are drawn, or the
  mean activation that each model's own text has there (mergekit's `hidden`).
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from postformer.config import UserError, build
from postformer.ffn.mlp import MLP
from postformer.ffn.moe import MoE
from postformer.models.language import LanguageModel

ROUTER_STD = 0.02
"""Of router rows that are drawn."""


def upcycle(
    models: Sequence[LanguageModel],
    *,
    experts: int | None = None,
    top: int = 2,
    split: int = 1,
    texts: Sequence[Int[Tensor, " t"]] = (),
    seed: int = 0,
) -> LanguageModel:
    """One model whose every per-token network holds `experts` networks, copies of those of `models` in turn (default: 8 copies of a single
    one, each of several once), of which a token goes to `top`; times `split` where each network is split.

    `texts`: token ids for each model, from which the router's rows are made. It is made in fp32 or wider and then of the first one's dtype.
    Raises UserError where the models have not one shape, a network is no `mlp`, or a number does not fit.
    """
    first = models[0]
    experts = (8 if len(models) == 1 else len(models)) if experts is None else experts
    _check(models, experts, top, split, texts)
    config = copy.deepcopy(first.config)
    hidden = {i: block.ffn.out.in_features for i, block in enumerate(first.backbone.blocks) if isinstance(block.ffn, MLP)}
    config["ffns"] = tuple(
        _spec(block.ffn, hidden.get(i, 0), experts, top, split) for i, block in enumerate(first.backbone.blocks)
    )
    wide = at_least_fp32(first)
    made: LanguageModel = build(config, {"language": LanguageModel}, "model").to(wide)
    made.tokens = first.tokens
    with torch.no_grad():
        common = {name: torch.stack([m.state_dict()[name].to(wide) for m in models]).mean(0) for name in _outside(first)}
        made.load_state_dict(common, strict=False)
        rows = _router_rows(models, texts, experts, seed)
        for i in hidden:
            _fill(made.backbone.blocks[i].ffn, [m.backbone.blocks[i].ffn for m in models], rows[i], split)
    return made.eval().to(first.embed.weight.dtype)


def at_least_fp32(model: LanguageModel) -> torch.dtype:
    """The model's dtype, or fp32 where that is narrower."""
    return torch.promote_types(model.embed.weight.dtype, torch.float32)


def furthest(one: LanguageModel, other: LanguageModel, seed: int = 0, length: int = 64) -> float:
    """The largest difference of two models' logits on random tokens, as a share of the largest logit."""
    ids = torch.randint(one.vocab, (2, length), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        a, b = one(ids)[0], other(ids)[0]
    return float((a - b).abs().max() / a.abs().max())


def _check(models: Sequence[LanguageModel], experts: int, top: int, split: int, texts: Sequence[Tensor]) -> None:
    first = models[0]
    for i, model in enumerate(models):
        if model.config != first.config:
            odd = next(k for k in first.config if model.config.get(k) != first.config[k])
            raise UserError(
                f"model {i + 1}: its {odd} is another than the first one's; experts are merged of models of one shape"
            )
        if _pieces(model) != _pieces(first):
            raise UserError(f"model {i + 1}: its tokenizer is another than the first one's")
    networks = [block.ffn for block in first.backbone.blocks if block.ffn is not None]
    if not networks or not all(isinstance(ffn, MLP) for ffn in networks):
        raise UserError("upcycling takes models whose per-token networks are of kind 'mlp'")
    if not 1 <= top <= experts:
        raise UserError(f"top={top} must be at least 1 and at most experts={experts}")
    if experts < len(models):
        raise UserError(f"experts={experts} must be at least one for each of the {len(models)} models")
    for ffn in networks:
        if split < 1 or ffn.out.in_features % split:
            raise UserError(f"split={split} must be at least 1 and divide the networks' {ffn.out.in_features} channels")
    if texts and len(texts) != len(models):
        raise UserError(f"texts: expected one for each of the {len(models)} models, got {len(texts)}")


def _pieces(model: LanguageModel) -> list[bytes] | None:
    """What each token id stands for."""
    return None if model.tokens is None else [model.tokens.decode_bytes([i]) for i in range(model.tokens.vocab)]


def _spec(ffn: MLP | None, hidden: int, experts: int, top: int, split: int) -> dict[str, object]:
    if ffn is None:
        return {"kind": "none"}
    sizes = {"experts": experts * split, "top": top * split, "hidden": hidden // split, "scale": float(split)}
    return {"kind": "moe", "preset": "mixtral", "activation": ffn.activation, **sizes}


def _outside(model: LanguageModel) -> list[str]:
    """Names of what is in no per-token network."""
    return [name for name in model.state_dict() if ".ffn." not in name]


def _router_rows(
    models: Sequence[LanguageModel], texts: Sequence[Tensor], experts: int, seed: int
) -> dict[int, Float[Tensor, "e d"]]:
    """Of every layer with a network a row for each expert: drawn, and added to the direction in which its model's text lies there."""
    generator = torch.Generator().manual_seed(seed)
    layers = [i for i, block in enumerate(models[0].backbone.blocks) if block.ffn is not None]
    drawn = {i: torch.randn(experts, models[0].backbone.dim, generator=generator) * ROUTER_STD for i in layers}
    if not texts:
        return drawn
    means = [_mean_inputs(model, ids) for model, ids in zip(models, texts, strict=True)]
    of = [i % len(models) for i in range(experts)]
    found = {}
    for i in layers:
        rows = torch.stack([mean[i] for mean in means])
        found[i] = F.normalize(rows - rows.mean(0), dim=-1)[of] + drawn[i]
    return found


@torch.inference_mode()
def _mean_inputs(model: LanguageModel, ids: Int[Tensor, " t"]) -> dict[int, Float[Tensor, " d"]]:
    """What the network of each layer sees on average on a text."""
    found: dict[int, Tensor] = {}

    def keep(i: int) -> Any:
        return lambda _, __, out: found.update({i: out[0].float().mean(0)})

    hooks = [b.ffn_norm.register_forward_hook(keep(i)) for i, b in enumerate(model.backbone.blocks) if b.ffn_norm is not None]
    try:
        model.hidden(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _fill(moe: MoE, networks: Sequence[MLP], rows: Float[Tensor, "e d"], split: int) -> None:
    """Each copy's shards follow each other."""
    shards = [_shards(network, split) for network in networks]
    for copied in range(len(rows)):
        up, out = shards[copied % len(shards)]
        moe.up.weight[copied * split : (copied + 1) * split] = up
        moe.out.weight[copied * split : (copied + 1) * split] = out
    moe.router.weight.copy_(rows.repeat_interleave(split, 0))


def _shards(network: MLP, split: int) -> tuple[Float[Tensor, "s w d"], Float[Tensor, "s d f"]]:
    """The network's channels, dealt out in order: up matrices with the gate's rows first, and those of the output."""
    parts = [network.up] if network.gate is None else [network.gate, network.up]
    up = torch.cat([part.weight.unflatten(0, (split, -1)) for part in parts], 1)
    return up, network.out.weight.unflatten(1, (split, -1)).transpose(0, 1)
