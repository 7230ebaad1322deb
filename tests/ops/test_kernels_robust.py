"""Kernels at the edges: no rows, no time, one channel, any number of threads, and in a child of a process that used them."""

import subprocess
import sys

import pytest
import torch

from postformer.ops import _cpu
from postformer.ops.conv import causal_conv
from postformer.ops.scan import selective_scan

pytestmark = pytest.mark.skipif(not _cpu.BUILT, reason="installed without the kernels")
SIZES = [
    (0, 5, 3, 2),
    (2, 0, 3, 2),
    (0, 0, 1, 1),
    (1, 1, 1, 1),
    (3, 1, 17, 1),
    (1, 2, 15, 16),
    (2, 17, 129, 3),
    (1, 257, 33, 5),
]
"""b, t, c, n: next to the sizes of blocks (16), strips (128), chunks (16) and tiles (256)."""


def everything(b, t, c, n, dtype, seed=0):
    """All that scan and convolution give, with gradients, for one seed."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, of=torch.float32):
        return torch.randn(*shape, generator=g).to(of).requires_grad_()

    u, z, B, C = (normal(b, t, k, of=dtype) for k in (c, c, n, n))
    dt, A, h = normal(b, t, c), (-normal(c, n).abs()).detach().requires_grad_(), normal(b, c, n)
    bias, D = normal(c), normal(c)
    starts = torch.rand(b, t, generator=g) < 0.2
    y, last = selective_scan(u, dt, A, B, C, h, starts, dt_bias=bias, D=D, z=z)
    x, weight, past = normal(b, t, c, of=dtype), normal(c, 4), normal(b, 3, c, of=dtype)
    v, kept = causal_conv(x, weight, bias, past, starts, silu=True)
    outputs = y, last, v, kept
    leaves = u, dt, A, B, C, h, bias, D, z, x, weight, past
    return [*outputs, *torch.autograd.grad(sum(o.float().sum() for o in outputs), leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_next_to_those_of_blocks(size, dtype, monkeypatch):
    mine = everything(*size, dtype)
    assert all(x.isfinite().all() for x in mine), "memory that nobody wrote is NaN here"
    monkeypatch.setattr(_cpu, "BUILT", False)
    for x, other in zip(mine, everything(*size, dtype), strict=True):
        assert (x.shape, x.dtype) == (other.shape, other.dtype)
        scale = float(other.detach().abs().max()) if other.numel() else 1.0
        atol = (1e-5 if dtype == torch.float32 else 2**-6) * (scale + 1)
        torch.testing.assert_close(x.float(), other.float(), rtol=0, atol=atol)


def test_nothing_read_leaves_the_state_alone():
    h, past = torch.randn(2, 3, 4), torch.randn(2, 3, 3)
    empty = torch.empty(2, 0, 3), torch.empty(2, 0, 4)
    y, last = selective_scan(empty[0], empty[0], -torch.ones(3, 4), empty[1], empty[1], h)
    v, kept = causal_conv(empty[0], torch.ones(3, 4), None, past)
    assert y.shape == v.shape == (2, 0, 3)
    assert torch.equal(last, h)
    assert torch.equal(kept, past)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_with_any_number_of_threads(dtype):
    found = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(everything(2, 300, 200, 16, dtype))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


FORK = """
import os, signal, torch
from postformer.mixers.mamba import Mamba
from postformer.ops.scan import selective_scan
torch.set_num_threads({threads})
torch.manual_seed(0)
mixer = Mamba(64)
x = torch.randn(2, 40, 64)

def work():
    y, state = mixer(x, mixer.init_state(2))
    y.square().sum().backward()
    grads = [p.grad.clone() for p in mixer.parameters()]
    mixer.zero_grad()
    with torch.inference_mode():
        last, _ = mixer(x[:, :1], state)
    return [y.detach(), last, *grads]

def scan():
    with torch.no_grad():
        return selective_scan(x, x.abs(), -torch.ones(64, 2), x[..., :2], x[..., :2], torch.zeros(2, 64, 2))

before, scanned = work(), scan()
child = os.fork()
if not child:
    signal.alarm(60)
    if not all(map(torch.equal, scanned, scan())):
        os._exit(2)
    torch.set_num_threads(1)  # for torch's own operations, which wait for the parent's threads otherwise
    os._exit(0 if all(map(torch.equal, before, work())) else 3)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert all(map(torch.equal, before, work()))
raise SystemExit(code)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_computes_the_same_and_ends(threads):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK.format(threads=threads)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
