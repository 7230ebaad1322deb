"""What training asks of its process, apart from a run."""

import ctypes
import resource
from pathlib import Path

import pytest
import torch

from postformer.train.process import freed_memory_kept


def pages_of_a_block() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="only glibc is told")
@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="huge pages leave few faults to count")
def test_what_a_step_frees_serves_the_next_one():
    with freed_memory_kept():
        with freed_memory_kept():
            pages_of_a_block()
        again = [pages_of_a_block() for _ in range(6)]  # the first ones find the heap's shape
    after = pages_of_a_block()
    assert max(again[3:]) < 100
    assert after > 1000  # what was kept has gone back
