"""What training asks of its process, apart from a run."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FAULTS = """
import resource
import torch
from postformer.train.process import freed_memory_kept

def pages_of_a_block():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with freed_memory_kept():
    with freed_memory_kept():
        pages_of_a_block()
    again = [pages_of_a_block() for _ in range(12)]
print(*again, pages_of_a_block())
"""
"""A process of its own: in the suite's the heap has the shape that hundreds of tests left."""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="only glibc is told")
@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="huge pages leave few faults to count")
def test_what_a_step_frees_serves_the_next_one():
    told = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    *again, after = map(int, told.split())
    assert max(again[-6:]) < 100  # the first ones find the heap's shape
    assert after > 1000  # what was kept has gone back
