"""What processes tell each other: rows and their gradients, means, the experts' room."""

import pytest
import torch
import torch.distributed as dist
from two_processes import pair

from postformer.ops.exchange import counts_for, exchange, gathered, mean_over, total
from postformer.ops.routing import within_capacity


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    with pair(str(tmp_path_factory.mktemp("group"))) as processes:
        yield processes


def rows_go_and_gradients_come_back(counts):
    """counts[r][s]: how many rows process r sends to process s."""
    me, group = dist.get_rank(), dist.group.WORLD
    everyone = [torch.arange(sum(of) * 3.0).view(-1, 3) + 100 * r for r, of in enumerate(counts)]
    mine = everyone[me].requires_grad_()
    got = exchange(mine, counts[me], [of[me] for of in counts], group)
    torch.testing.assert_close(got, torch.cat([x.split(of)[me] for x, of in zip(everyone, counts, strict=True)]))
    (got.square() * (me + 1)).sum().backward()
    factor = torch.arange(1.0, 3).repeat_interleave(torch.tensor(counts[me]))[:, None]
    torch.testing.assert_close(mine.grad, 2 * mine.detach() * factor)


@pytest.mark.parametrize("counts", [[[1, 2], [3, 1]], [[0, 4], [0, 2]], [[0, 0], [3, 0]], [[0, 0], [0, 0]]])
def test_rows_go_and_gradients_come_back(both, counts):
    both(rows_go_and_gradients_come_back, counts)


def numbers():
    me, group = dist.get_rank(), dist.group.WORLD
    assert counts_for(torch.tensor([[10, 11], [20, 21]]) + 100 * me, group).tolist() == [
        [10 + 10 * me, 11 + 10 * me],
        [110 + 10 * me, 111 + 10 * me],
    ]
    assert total(torch.tensor([1, me]), group).tolist() == [2, 1]
    assert gathered(torch.tensor([me, 7]), group).tolist() == [[0, 7], [1, 7]]
    values = (torch.arange(5.0)[2 * me :][: 2 + me]).requires_grad_()  # 0 1, and 2 3 4
    mean = mean_over(values, group)
    mean.backward()
    assert float(total(mean, group)) / 2 == 2.0 and values.grad is not None and values.grad.eq(2 / 5).all()
    assert mean_over(torch.arange(2.0)[: 2 * me], group) == 1.0 * me


def test_sums_and_means(both):
    both(numbers)


def room(factor):
    experts = torch.rand(21, 5, generator=torch.Generator().manual_seed(0)).topk(3, -1).indices
    expected = within_capacity(experts, 5, factor)
    parts = [8, 13]
    mine = within_capacity(experts.split(parts)[dist.get_rank()], 5, factor, dist.group.WORLD)
    assert torch.equal(mine, expected.split(parts)[dist.get_rank()]) and (factor > 1.6 or not expected.all())


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.2, 5.0])
def test_room_is_that_of_the_whole_batch(both, factor):
    both(room, factor)


def test_alone_a_group_is_nothing():
    values = torch.randn(7, 2)
    assert torch.equal(mean_over(values, None), values.mean(0)) and total(values, None) is values
