"""Each build of the CPU kernels in turn."""

from collections.abc import Callable

import pytest
import torch


@pytest.fixture(params=["v2", "v3", "v4", "plain"])
def turn_to_build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on kernels are those of one build; skipped where that does not run here."""
    from postformer.ops import _cpu

    level = request.param
    runs_here = (*_cpu.LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("v2",)), "plain")
    if level not in runs_here or not _cpu.path(level).exists():
        pytest.skip(f"{level} is not built for this processor")
    return lambda: monkeypatch.setattr(_cpu, "kernels", lambda: _cpu.load(level))
