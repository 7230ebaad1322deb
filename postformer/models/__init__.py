"""Models: forward and step, no loss."""

from typing import Any

from postformer.models.forecast import DLinear, Forecaster
from postformer.models.language import LanguageModel

FORECASTERS: dict[str, Any] = {"forecast": Forecaster, "dlinear": DLinear}
"""Models of series, which the objective `forecast` takes."""
MODELS: dict[str, Any] = {"language": LanguageModel, **FORECASTERS}
