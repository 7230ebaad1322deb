"""What a model is taught: an objective turns a batch into `{"loss": scalar, **metrics}`."""

from typing import Any

from postformer.objectives.answers import Answers
from postformer.objectives.classify import Classify
from postformer.objectives.denoise import Denoise
from postformer.objectives.forecast import Forecast
from postformer.objectives.latent import Latent
from postformer.objectives.masked import Masked
from postformer.objectives.next_token import NextToken

OBJECTIVES: dict[str, Any] = {
    "next_token": NextToken,
    "answers": Answers,
    "forecast": Forecast,
    "classify": Classify,
    "denoise": Denoise,
    "latent": Latent,
    "masked": Masked,
}
