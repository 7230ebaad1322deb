"""Models: forward and step, no loss."""

from typing import Any

from postformer.models.convnet import ConvNet
from postformer.models.diffusion import DiT
from postformer.models.forecast import DLinear, Forecaster
from postformer.models.jepa import Jepa
from postformer.models.language import LanguageModel
from postformer.models.unet import UNet
from postformer.models.vision import ViT
from postformer.models.world import World

FORECASTERS: dict[str, Any] = {"forecast": Forecaster, "dlinear": DLinear}
"""Models of series, which the objective `forecast` takes."""
CLASSIFIERS: dict[str, Any] = {"vit": ViT, "convnet": ConvNet}
"""Models of images, which the objective `classify` takes."""
DENOISERS: dict[str, Any] = {"dit": DiT, "unet": UNet}
"""Models that draw images and videos, which the objective `denoise` takes."""
WORLDS: dict[str, Any] = {"world": World}
"""Models of what actions lead to, which the objective `latent` takes."""
EMBEDDERS: dict[str, Any] = {"jepa": Jepa}
"""Models that embed images and videos and predict embeddings of what they do not see, which the objective `masked` takes."""
MODELS: dict[str, Any] = {"language": LanguageModel, **FORECASTERS, **CLASSIFIERS, **DENOISERS, **WORLDS, **EMBEDDERS}
