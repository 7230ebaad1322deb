"""What training asks of its process, apart from a run."""

import ctypes
import resource

import pytest
import torch

from postformer.train.process import freed_memory_kept


def pages_of_a_block() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="only glibc is told")
def test_what_a_step_frees_serves_the_next_one():
    with freed_memory_kept():
        pages_of_a_block()
        again = pages_of_a_block()
    after = pages_of_a_block()
    assert again < 100
    assert after > 10 * (again + 1)  # huge pages may make it few; and what was kept has gone back
