"""Settings for every test: few threads, few surprises, and memory that nobody wrote is NaN."""

import importlib
import os
from pathlib import Path

import hypothesis
import pytest
import torch
from torch.utils._device import _device_constructors

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("default")
torch.set_num_threads(1)
_device_constructors()  # it remembers torch's own functions: asked after one is replaced, meta tensors would take memory


def _poison(make):
    def poisoned(*args, **kwargs):
        out = make(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    return poisoned


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch: pytest.MonkeyPatch):
    """`torch.empty` and its kin, and blocks of `postformer.ops.pages`, hold NaN, so that a result which was never written is seen."""
    monkeypatch.setattr(torch, "empty", _poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", _poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poison(torch.Tensor.new_empty))
    pages = importlib.import_module("postformer.ops.pages")  # within a test: jaxtyping checks what is imported after it
    lease = pages.Blocks.lease

    def poisoned(self, size):
        block = lease(self, size)
        block.fill(0xFF)  # NaN in every dtype
        return block

    monkeypatch.setattr(pages.Blocks, "lease", poisoned)


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data sets named by POSTFORMER_DATA. On CI a missing one is a failure."""
    folder = os.environ.get("POSTFORMER_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    if os.environ.get("CI"):
        pytest.fail(f"POSTFORMER_DATA={folder!r} names no folder; CI needs it")
    pytest.skip("POSTFORMER_DATA names no folder of data sets")
