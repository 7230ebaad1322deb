"""Attention among positions against a dense softmax; rotation against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer.ops import attention as A


def dense(q, k, v, allowed):
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    score = torch.einsum("bthe,bshe->bhts", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhts,bshe->bthe", score.masked_fill(~allowed[:, None], -torch.inf).softmax(-1), v)


@given(
    t=st.integers(1, 20),
    past=st.integers(0, 7),
    window=st.one_of(st.none(), st.integers(1, 9)),
    prefix=st.integers(0, 3),
    block=st.integers(1, 6),
)
def test_equals_a_dense_softmax(t, past, window, prefix, block):
    g = torch.Generator().manual_seed(t)
    s = prefix + past + t
    q = torch.randn(2, t, 4, 6, generator=g, dtype=torch.double)
    k, v = (torch.randn(2, s, 2, 6, generator=g, dtype=torch.double) for _ in "kv")
    position = past + torch.arange(t).expand(2, -1)
    key_position = torch.cat([torch.zeros(prefix, dtype=torch.long), torch.arange(past + t)]).expand(2, -1)
    age = position[:, :, None] - key_position[:, None]
    allowed = (age >= 0) & (age < (window or s))
    allowed[..., :prefix] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(A, "QUERY_BLOCK", block)
        for fresh in (0, t):
            y = A.attention(q, k, v, position, key_position, window=window, prefix=prefix, fresh=fresh)
            torch.testing.assert_close(y, dense(q, k, v, allowed), rtol=1e-10, atol=1e-10)


def test_rotation_turns_each_pair_by_position_times_frequency():
    x = torch.randn(1, 3, 2, 8, dtype=torch.double)
    position = torch.tensor([[0, 5, 1_000_000]])
    y = A.rotate(x, position, base=100.0)
    for i in range(4):
        angle = position[0].double() * 100.0 ** (-2 * i / 8)
        turned = torch.complex(x[0, ..., i], x[0, ..., i + 4]) * torch.polar(torch.ones(3).double(), angle)[:, None]
        torch.testing.assert_close(torch.complex(y[0, ..., i], y[0, ..., i + 4]), turned)


def test_scores_depend_on_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.double)
    near = A.rotate(q, torch.tensor([[7]])) * A.rotate(k, torch.tensor([[3]]))
    far = A.rotate(q, torch.tensor([[90_007]])) * A.rotate(k, torch.tensor([[90_003]]))
    torch.testing.assert_close(near.sum(), far.sum(), rtol=0, atol=1e-9)
