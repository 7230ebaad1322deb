"""One layer of Mamba-1 or Mamba-2, ours and each peer's, with the same weights.

Every library gets the same parameters and inputs; one whose output, gradient or steps are not ours is not timed.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from postformer.config import ConfigError, UserError, build
from postformer.mixers import MIXERS
from postformer.models.convert import language_options, language_tensors

OURS = "postformer"
PEERS: dict[str, tuple[str, str]] = {
    "transformers": ("transformers", "pip install 'postformer[peers]'"),
    "mambapy": ("mambapy", "pip install 'postformer[peers]'"),
    "llama.cpp": ("llama_cpp", "pip install llama-cpp-python (docs/benchmarks.md)"),
}
"""The module that each peer is imported from, and how to install it."""
NOWHERE = {"mamba-minimal": "is in no package registry, and its code is not copied here"}
LAYERS = ("mamba", "mamba2")
AGREE = 1e-3
"""Largest difference from ours, as a share of the largest value, with which a peer is timed."""
CHECKED = 40
"""Tokens that outputs and gradients are compared over."""
STEPS = 4
"""One-token steps that are compared."""


class Missing(UserError):
    """A peer or a layer that cannot be measured here, with the reason."""


def require(peer: str) -> None:
    """Raises Missing where the peer is not installed."""
    module, how = PEERS[peer]
    if importlib.util.find_spec(module) is None:
        raise Missing(f"not installed: {how}")


class Layer:
    """A layer of some library: `module`, its parallel pass, and one-token steps that go on from a memory."""

    def __init__(
        self, module: nn.Module, forward: Callable[[Tensor], Tensor], stepper: Callable[[], Callable[[Tensor], Tensor]]
    ):
        self.module, self.forward, self.stepper = module.eval(), forward, stepper

    def train(self, x: Tensor, dy: Tensor) -> None:
        """Forward and backward to the input and every parameter."""
        self.module.zero_grad(set_to_none=True)
        x.grad = None
        self.forward(x).backward(dy)

    @torch.inference_mode()
    def infer(self, x: Tensor) -> Tensor:
        return self.forward(x)


def config(layer: str, dim: int) -> Any:
    """The layer's configuration in transformers: what its paper uses, at width `dim`."""
    import transformers

    options: dict[str, Any] = {"hidden_size": dim, "num_hidden_layers": 1, "expand": 2, "conv_kernel": 4}
    if layer == "mamba":
        return transformers.MambaConfig(**options, state_size=16)
    return transformers.Mamba2Config(
        **options, state_size=128, head_dim=64, num_heads=2 * dim // 64, n_groups=1, chunk_size=256
    )


def ours(layer: str, dim: int, theirs: nn.Module | None = None) -> Layer:
    """Our layer with the weights of `theirs`, if given. Raises Missing for one that is not built or not converted."""
    if layer not in MIXERS:
        raise Missing(f"postformer.mixers has no '{layer}'")
    if theirs is None:
        return wrap_ours(build(ours_alone(layer), MIXERS, layer, dim=dim))
    try:
        options = language_options(config(layer, dim).to_dict())
        named = {f"backbone.layers.0.mixer.{name}": p.detach().clone() for name, p in theirs.state_dict().items()}
        tensors = language_tensors(named, tied=True)
    except ConfigError as e:
        raise Missing(f"postformer.models.convert takes no '{layer}': {e}") from e
    mixer = build(options["mixers"][0], MIXERS, layer, dim=dim)
    mixer.load_state_dict({name.removeprefix("backbone.blocks.0.mixer."): value for name, value in tensors.items()})
    return wrap_ours(mixer)


def ours_alone(layer: str) -> dict[str, Any]:
    """Our configuration of the same shape, for when there is no peer to take it from."""
    more = {} if layer == "mamba" else {"state": 128, "head_dim": 64, "groups": 1}
    return {"kind": layer, **more}


def wrap_ours(mixer: nn.Module) -> Layer:
    """One of `postformer.mixers` as a Layer."""
    mixer_: Any = mixer

    def stepper() -> Callable[[Tensor], Tensor]:
        state = mixer_.init_state(1)

        def step(x: Tensor) -> Tensor:
            nonlocal state
            y, state = mixer_(x, state)
            return y

        return step

    return Layer(mixer, lambda x: mixer_(x)[0], stepper)


def transformers_layer(layer: str, dim: int) -> Layer:
    """`MambaMixer` or `Mamba2Mixer`, without optional kernels. Raises Missing."""
    require("transformers")
    from transformers import DynamicCache
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    options = config(layer, dim)
    mixer = (MambaMixer if layer == "mamba" else Mamba2Mixer)(options, 0)

    def stepper() -> Callable[[Tensor], Tensor]:
        cache = DynamicCache(config=options)
        return lambda x: mixer(x, cache=cache)

    return Layer(mixer, mixer, stepper)


def mambapy_layer(dim: int) -> Layer:
    """`MambaBlock` with its default, the parallel scan. Raises Missing."""
    require("mambapy")
    from mambapy.mamba import MambaBlock, MambaConfig

    block = MambaBlock(MambaConfig(d_model=dim, n_layers=1))

    def stepper() -> Callable[[Tensor], Tensor]:
        memory = None, torch.zeros(1, block.config.d_inner, block.config.d_conv - 1)

        def step(x: Tensor) -> Tensor:
            nonlocal memory
            y, memory = block.step(x[:, 0], memory)
            return y[:, None]

        return step

    return Layer(block, block, stepper)


def peer_layer(peer: str, layer: str, dim: int) -> Layer:
    """A peer's layer. Raises Missing."""
    if peer == "mambapy" and layer != "mamba":
        raise Missing("has Mamba-2 only through mamba_ssm, which needs CUDA")
    return mambapy_layer(dim) if peer == "mambapy" else transformers_layer(layer, dim)


def opened(dim: int) -> tuple[dict[str, dict[str, Layer]], list[tuple[str, str, str]]]:
    """Every layer of `LAYERS` that we have, with its peers; and what is missing, as (peer, layer, why)."""
    found, gaps = {}, []
    for name in LAYERS:
        try:
            found[name], missing = layers(name, dim)
            gaps += [(peer, name, why) for peer, why in missing.items()]
        except Missing as e:
            gaps.append((OURS, name, str(e)))
    return found, gaps


def layers(layer: str, dim: int) -> tuple[dict[str, Layer], dict[str, str]]:
    """Ours first and each peer that is here, all with the weights of the first peer; and why others are missing.

    Raises Missing where we have no such layer.
    """
    torch.manual_seed(0)
    found, missing = {}, dict(NOWHERE) if layer == "mamba" else {}
    for peer in ("transformers", "mambapy"):
        try:
            found[peer] = peer_layer(peer, layer, dim)
        except Missing as e:
            missing[peer] = str(e)
    first = next(iter(found.values()), None)
    own = ours(layer, dim, None if first is None else first.module)
    for peer, theirs in list(found.items()):
        assert first is not None
        theirs.module.load_state_dict(first.module.state_dict())
        if (off := difference(own, theirs, dim)) > AGREE:
            missing[peer] = f"disagrees with ours by {off:.1e} of the largest value"
            del found[peer]
    return {OURS: own, **found}, missing


def difference(a: Layer, b: Layer, dim: int) -> float:
    """The largest difference between two layers in outputs, the input's gradient and one-token steps."""
    x, dy = inputs(dim, CHECKED)
    seen: list[Mapping[str, Tensor]] = []
    for layer in (a, b):
        layer.train(x, dy)
        assert x.grad is not None
        gradient = x.grad.clone()
        with torch.inference_mode():
            step = layer.stepper()
            steps = torch.cat([step(x[:, i : i + 1]) for i in range(STEPS)], 1)
        seen.append({"output": layer.infer(x), "gradient": gradient, "steps": steps})
        layer.module.zero_grad(set_to_none=True)
    return max(relative(seen[0][name], seen[1][name]) for name in seen[0])


def relative(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|."""
    return float((a - b).abs().max() / b.abs().max())


def inputs(dim: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A random input [1, tokens, dim] that takes a gradient, and a random gradient of the output."""
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(1, tokens, dim, generator=generator) for _ in "xy")
    return x.requires_grad_(), dy
