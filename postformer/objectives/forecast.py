"""Forecasts: the mean squared error of the steps that follow a window."""

from typing import Literal

from torch import Tensor, nn

from postformer.models.routing import after_step, routed


class Forecast(nn.Module):
    """Teaches a model from windows [b, t, c] to what follows them, such as `Forecaster`. `loss` is the error that is made small."""

    def __init__(self, model: nn.Module, *, loss: Literal["mse", "mae"] = "mse"):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: dict[str, object]) -> dict[str, Tensor]:
        """`batch["past"]` is Float [b, t, c] and `batch["future"]` Float [b, h, c].

        Returns the loss, the mean squared and the mean absolute error, and the values read; of mixtures of experts also what
        `Routing.taught` tells.
        """
        past, future = batch["past"], batch["future"]
        assert isinstance(past, Tensor) and isinstance(future, Tensor)
        with routed(self.model) as routing:
            error = self.model(past) - future
        errors = {"mse": error.square().mean(), "mae": error.abs().mean()}
        outputs = {"loss": errors[self.loss], **errors, "tokens": error.new_tensor(past.numel()).long()}
        return routing.taught(outputs, self.training)

    def after_step(self, step: int) -> None:
        """Mixtures of experts are corrected by where tokens were sent."""
        after_step(self.model)
