"""The ways of remembering that are compared: of one byte budget, as their table says."""

import pytest

from postformer.config import build
from postformer.mixers import MIXERS
from postformer.recipes.memory import METHODS


@pytest.mark.parametrize("method", ["mamba2", "gated_delta", "window"])
def test_rivals_have_the_bytes_of_the_memory(method):
    kept = {name: build(METHODS[name], MIXERS, name, dim=128).state_bytes(1024) for name in ("lmm", method)}
    assert kept[method] == pytest.approx(kept["lmm"], rel=0.04)
