"""The interval of a share, for whoever counts. Imports no torch."""

import math
from statistics import NormalDist


def wilson(right: int, asked: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of right / asked (Wilson 1927); 0 to 1 where nothing was asked."""
    if not asked:
        return 0.0, 1.0
    z, p = NormalDist().inv_cdf((1 + level) / 2), right / asked
    centre = (p + z * z / (2 * asked)) / (1 + z * z / asked)
    half = z * math.sqrt(p * (1 - p) / asked + z * z / (4 * asked * asked)) / (1 + z * z / asked)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def told_share(right: int, asked: int) -> str:
    """A share of what was asked, with its interval."""
    low, high = wilson(right, asked)
    return f"{100 * right / asked:.1f}% (95% interval {100 * low:.1f} to {100 * high:.1f}, {right:,} of {asked:,})"
