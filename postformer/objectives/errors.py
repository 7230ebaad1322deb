"""How far a forecaster is from what came, over every window of a part of a series."""

from typing import NamedTuple

import torch
from torch import nn

from postformer.data.series import Series


class Errors(NamedTuple):
    """Mean squared and mean absolute error of standardised values, over all windows, steps and channels."""

    mse: float
    mae: float
    windows: int
    channels: int


@torch.inference_mode()
def errors(model: nn.Module, series: Series, split: str = "test", batch: int = 256) -> Errors:
    """The errors of a model in evaluation mode over all windows of the split, `batch` of them at a time.

    Raises DataError when the split is shorter than one window, and ValueError for a model of other windows.
    """
    if (model.look_back, model.horizon) != (series.look_back, series.horizon):
        raise ValueError(
            f"errors: the model takes {model.look_back} steps to {model.horizon}, the series is asked for {series.sizes}"
        )
    batches = series.batches(batch, 0, split)
    device = next(model.parameters()).device
    squared = absolute = 0.0
    for start in range(0, batches.windows, batch):
        drawn = batches.at(list(range(start, min(start + batch, batches.windows))))
        error = (model(drawn["past"].to(device)) - drawn["future"].to(device)).double()
        squared += float(error.square().sum())
        absolute += float(error.abs().sum())
    channels = len(series.table.channels)
    values = batches.windows * series.horizon * channels
    return Errors(squared / values, absolute / values, batches.windows, channels)
