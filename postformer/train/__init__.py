"""Training: the loop, the optimizer, checkpoints and logs."""

from postformer.train.checkpoint import latest
from postformer.train.log import JsonLog, Log, LogError, Progress, TrackioLog, console_progress
from postformer.train.loop import Summary, evaluate, train
from postformer.train.manifest import CheckpointError, verify
from postformer.train.optim import learning_rate, make_optimizer
from postformer.train.process import TrainingError

__all__ = [
    "CheckpointError",
    "JsonLog",
    "Log",
    "LogError",
    "Progress",
    "Summary",
    "TrackioLog",
    "TrainingError",
    "console_progress",
    "evaluate",
    "latest",
    "learning_rate",
    "make_optimizer",
    "train",
    "verify",
]
