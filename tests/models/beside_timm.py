"""Run as a process of its own with the folder that holds timm: our ViT beside timm's, the same weights; outputs and gradients to 1e-5 in
fp32. Prints "same" for each configuration."""

import importlib.abc
import importlib.machinery
import sys
import types

import torch

from postformer.models.convert_pictures import timm_tensors
from postformer.models.vision import ViT


class Word(type):
    """A class whose every attribute is its own name: enough for what timm takes of torchvision when it is imported."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class StandIn(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Word(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        """There is nothing to run."""


CASES = (
    {},
    {"reg_tokens": 3, "no_embed_class": True},
    {"reg_tokens": 2, "init_values": 0.1},
    {"class_token": False, "global_pool": "avg", "fc_norm": False},
)


def main() -> None:
    sys.meta_path.insert(0, Finder())
    sys.path.insert(0, sys.argv[1])
    from timm.models.vision_transformer import VisionTransformer

    for seed, words in enumerate(CASES):
        torch.manual_seed(seed)
        heads, depth = 2 + seed % 2, 1 + seed
        size, patch, dim = (16, 24), (4, 8)[seed % 2], 24 * heads
        theirs = VisionTransformer(
            img_size=size,
            patch_size=patch,
            in_chans=2,
            num_classes=5,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            mlp_ratio=2,
            **words,
        ).eval()
        with torch.no_grad():
            for p in theirs.parameters():
                p.copy_(torch.randn_like(p) * (0.5 if p.ndim == 1 else p[0].numel() ** -0.5))
        ours = ViT(
            5,
            size,
            channels=2,
            patch=(patch, patch),
            dim=dim,
            depth=depth,
            mixers=({"kind": "spacetime", "heads": heads, "rope": False, "bias": True},),
            ffns=({"kind": "mlp", "hidden": 2 * dim, "activation": "gelu", "bias": True},),
            pool="class" if words.get("class_token", True) else "mean",
            registers=words.get("reg_tokens", 0),
            layer_scale=words.get("init_values", 0.0),
        ).eval()
        ours.load_state_dict(timm_tensors(theirs.state_dict(), (size[0] // patch, size[1] // patch)))
        x = torch.randn(2, 2, *size, requires_grad=True)
        mine, their = ours(x), theirs(x)
        weights = torch.randn_like(mine)
        pairs = [(mine, their)]
        pairs += [tuple(torch.autograd.grad((y * weights).sum(), x)[0] for y in (mine, their))]
        worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        print("same" if worst <= 1e-5 else f"off by {worst:.3g} with {words}")


if __name__ == "__main__":
    main()
