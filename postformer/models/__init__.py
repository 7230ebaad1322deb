"""Models: forward and step, no loss."""

from typing import Any

from postformer.models.language import LanguageModel

MODELS: dict[str, Any] = {"language": LanguageModel}
