"""Wilson's interval; its published figures: tests/claims/test_stats.py."""

from postformer.interval import wilson


def test_wilson():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(20, 20)
    assert (round(low, 3), high) == (0.839, 1.0)
    assert wilson(0, 20)[0] == 0.0
