"""Memory that is used again: the same block for the next tensor of its size, no more than was in use at once, nothing old in a gradient."""

import gc
import mmap
import sys
import threading

import pytest
import torch

from postformer.ops import pages
from postformer.ops.experts import grouped_product
from postformer.ops.pages import LEAST, Blocks, fresh
from postformer.train import process

pytestmark = pytest.mark.skipif(not pages.HERE, reason="blocks are asked for on Linux alone")


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Blocks:
    monkeypatch.setattr(pages, "BLOCKS", Blocks())
    return pages.BLOCKS


def sized(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return fresh(torch.zeros(1, dtype=dtype), size // torch.zeros(1, dtype=dtype).element_size())


def test_a_block_comes_back_and_is_used_again(blocks):
    x = sized(LEAST)
    x.fill_(3)
    place = x.data_ptr()
    view = x[1:]
    del x
    gc.collect()
    assert (blocks.leased, blocks.kept) == (LEAST, 0)  # a view keeps it
    assert bool((view == 3).all())
    del view
    gc.collect()
    assert (blocks.leased, blocks.kept) == (0, LEAST)
    y = sized(LEAST, torch.bfloat16)
    assert y.data_ptr() == place
    assert y.shape == (LEAST // 2,)
    other = sized(LEAST)
    assert other.data_ptr() != place


def test_no_more_is_kept_than_was_in_use_at_once(blocks):
    for size in (4, 6, 5, 7, 4, 9, 6):
        held = [sized(size * LEAST), sized(size * LEAST)]
        assert blocks.leased + blocks.kept <= blocks.most
        del held
        gc.collect()
        assert blocks.leased == 0
        assert blocks.kept == sum(len(block) for block in blocks.free) <= blocks.most == max(blocks.most, 2 * size * LEAST)
    assert blocks.most == 18 * LEAST


def test_what_was_not_written_is_nan(blocks):
    for _ in range(2):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            assert sized(LEAST, dtype).isnan().all()
            gc.collect()


def test_what_is_kept_is_released(blocks):
    held, gone = sized(LEAST), sized(2 * LEAST)
    del gone
    assert (blocks.leased, blocks.kept, blocks.most) == (LEAST, 2 * LEAST, 3 * LEAST)
    blocks.release()
    assert (blocks.leased, blocks.kept, blocks.most, len(blocks.free)) == (LEAST, 0, LEAST, 0)
    del held
    assert (blocks.leased, blocks.kept) == (0, LEAST)


def test_training_s_end_releases(blocks, monkeypatch):
    monkeypatch.setattr(process, "BLOCKS", blocks)
    with process.freed_memory_kept(), process.freed_memory_kept():
        sized(LEAST)
    assert (blocks.kept, blocks.most) == (0, 0)


def test_without_memory_torch_says_so_and_nothing_is_counted(blocks, monkeypatch):
    sized(LEAST)

    def none(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", none)
    assert sized(2 * LEAST).shape == (LEAST // 2,)
    assert (blocks.leased, blocks.kept, blocks.most) == (0, 0, 0)
    with pytest.raises(RuntimeError, match=r"memory|overflow"):
        fresh(torch.zeros(1), 1 << 62)


def test_huge_pages_are_no_must(blocks, monkeypatch):
    class Plain(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Plain)
    assert sized(LEAST).shape == (LEAST // 4,)
    assert (blocks.leased, blocks.kept) == (0, LEAST)


def test_an_array_may_go_while_another_is_leased(blocks, monkeypatch):
    held, make = [sized(LEAST), sized(2 * LEAST)], mmap.mmap
    monkeypatch.setattr(mmap, "mmap", lambda *words, **named: held.clear() or make(*words, **named))
    third = sized(3 * LEAST)
    assert (blocks.leased, blocks.kept, blocks.most) == (3 * LEAST, 3 * LEAST, 6 * LEAST)
    assert third.shape == (3 * LEAST // 4,)


def test_threads_share_them(blocks):
    failed = []

    def work(seed: int) -> None:
        try:
            for i in range(200):
                held = [sized((1 + (seed + i + j) % 3) * LEAST) for j in range(2)]
                del held
        except Exception as e:
            failed.append(e)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    gc.collect()
    assert not failed
    assert blocks.leased == 0
    assert blocks.kept == sum(len(block) for block in blocks.free) <= blocks.most


def test_small_tensors_are_torch_s_own(blocks):
    assert sized(LEAST - 4).shape == (LEAST // 4 - 1,)
    assert blocks.most == 0
    assert fresh(torch.zeros(2, dtype=torch.float64), 0, 5).shape == (0, 5)


def test_an_expert_without_tokens_has_zeros_in_memory_that_held_others(blocks):
    w = torch.randn(4, 512, 1024, requires_grad=True)
    for sizes in ([3, 2, 4, 1], [5, 0, 0, 2]):
        x = torch.randn(sum(sizes), 1024)
        y = grouped_product(x, w, torch.tensor(sizes))
        dy = torch.randn_like(y)
        (gradient,) = torch.autograd.grad(y, w, dy)
        expected = torch.stack([g.T @ r for g, r in zip(dy.split(sizes), x.split(sizes), strict=True)])
        assert torch.allclose(gradient, expected, atol=1e-4)
        if 0 in sizes:
            assert gradient[1:3].abs().max() == 0
        del gradient
        gc.collect()
    assert blocks.most > 0
    assert len(blocks.free) == 1
