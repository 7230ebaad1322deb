"""Measurement: interleaved timing with a noise floor, intervals, growth exponents and crossovers. Needs numpy alone.

Intervals are at 95% unless `level` says otherwise. Bootstraps are the percentile kind with a fixed seed, so that a page can
be made again from the same samples to the same digit.
"""

import dataclasses
import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from postformer import interval
from postformer.claims.ledger import Number, Real, Tag

Samples = Sequence[Real] | np.ndarray
DRAWS = 2000
"""Bootstrap replicates."""
REACH = 100.0
"""How far beyond the last length, as a factor, a crossover is looked for."""


class Estimate(NamedTuple):
    """A value and its interval; `low` and `high` are None where the data set no bound."""

    value: float
    low: float | None
    high: float | None
    n: int

    def number(self, unit: str = "", tag: Tag = "measured", *, seeds: Sequence[int] = (), note: str = "") -> Number:
        """The same as an entry of the ledger."""
        return Number(self.value, unit, tag, self.low, self.high, self.n, tuple(seeds), note)


# ---------------------------------------------------------------- timing


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call, one per round, so that round `i` of every function was taken under the same conditions."""

    samples: dict[str, list[float]]
    control: tuple[float, ...]
    """The first function run a second time in each round: what differs from it in no way but chance."""
    complete: bool
    """False when the budget ended before all rounds were taken."""

    @property
    def rounds(self) -> int:
        return len(self.control)

    @property
    def floor(self) -> Estimate:
        """The noise floor (see `noise_floor`)."""
        return noise_floor(next(iter(self.samples.values())), self.control)


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    repeats: int = 20,
    *,
    warmup: int = 1,
    budget_s: Real = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time functions against each other in rounds A B A', then A' B A, ..., so that drift of the machine cancels.

    A' is the first function again, as a control. A round is begun only while it is expected to end within the budget
    (seconds, warm-up included), but one is always taken. The garbage collector is off meanwhile.
    """
    names = list(functions)
    order = [(name, functions[name]) for name in names] + [("", functions[names[0]])]
    taken: dict[str, list[float]] = {name: [] for name, _ in order}
    start, collecting = clock(), gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for f in functions.values():
            for _ in range(warmup):
                f()
        for i in range(repeats):
            per_round = sum(map(sum, taken.values())) / max(i, 1)
            if i and clock() - start + per_round > budget_s:
                break
            for name, f in order if i % 2 == 0 else reversed(order):
                began = clock()
                f()
                taken[name].append(clock() - began)
    finally:
        if collecting:
            gc.enable()
    return Timing({name: taken[name] for name in names}, tuple(taken[""]), len(taken[""]) == repeats)


def noise_floor(first: Samples, again: Samples) -> Estimate:
    """Relative difference between two series of the same function, with its interval: 0.01 is one per cent."""
    ratio, low, high, n = ratio_interval(again, first)
    return Estimate(ratio - 1, None if low is None else low - 1, None if high is None else high - 1, n)


def rank(a: Samples, b: Samples, floor: Estimate) -> Literal["a", "b", "no ranking"]:
    """Which of two paired series is smaller; no ranking where their ratio's interval holds 1 or lies within the noise floor."""
    ratio, low, high, _ = ratio_interval(a, b)
    if low is None or high is None or floor.low is None or floor.high is None or low <= 1 <= high:
        return "no ranking"
    if abs(math.log(ratio)) <= max(abs(math.log1p(floor.low)), abs(math.log1p(floor.high))):
        return "no ranking"
    return "a" if ratio < 1 else "b"


# ---------------------------------------------------------------- intervals


def _bounds(draws: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)


def median_interval(samples: Samples, level: float = 0.95, seed: int = 0) -> Estimate:
    """Median with its bootstrap interval; a single sample has none."""
    x = np.asarray(samples, float)
    if len(x) < 2:
        return Estimate(float(np.median(x)), None, None, len(x))
    draws = np.median(x[_resample(len(x), seed)], axis=1)
    return Estimate(float(np.median(x)), *_bounds(draws, level), len(x))


def ratio_interval(a: Samples, b: Samples, level: float = 0.95, seed: int = 0) -> Estimate:
    """Ratio of the medians a / b with its bootstrap interval over rounds; the series are paired by round."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    value = float(np.median(x) / np.median(y))
    if len(x) < 2:
        return Estimate(value, None, None, len(x))
    rows = _resample(len(x), seed)
    draws = np.median(x[rows], axis=1) / np.median(y[rows], axis=1)
    return Estimate(value, *_bounds(draws, level), len(x))


def mean_interval(values: Samples, level: float = 0.95) -> Estimate:
    """Mean with Student's interval, as over seeds; a single value has none. For paired values pass their differences."""
    x = np.asarray(values, float)
    n, mean = len(x), float(x.mean())
    if n < 2:
        return Estimate(mean, None, None, n)
    half = student_quantile((1 + level) / 2, n - 1) * float(x.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def wilson(k: int, n: int, level: float = 0.95) -> Estimate:
    """Share k of n with Wilson's score interval."""
    low, high = interval.wilson(k, n, level)
    return Estimate(k / n if n else math.nan, low, high, n)


def share_over(counts: Sequence[tuple[int, int]], level: float = 0.95) -> Estimate:
    """Share of (k, n) of one model, or of several that were trained alike: Wilson's interval over all n, or where it is wider Student's
    over the models' shares, within 0 and 1."""
    pooled = wilson(sum(k for k, _ in counts), sum(n for _, n in counts), level)
    between = mean_interval([k / n for k, n in counts], level)
    if between.low is None or between.high is None or pooled.low is None or pooled.high is None:
        return pooled
    return pooled._replace(low=max(0.0, min(pooled.low, between.low)), high=min(1.0, max(pooled.high, between.high)))


def mean_over(seeds: Sequence[Sequence[Real | None]], level: float = 0.95) -> Estimate | None:
    """Mean over seeds and items, the same items for each seed, of which None tells nothing: the interval over items, each the mean of its
    seeds, or Student's over the seeds' means where that is wider. None where nothing is told."""
    table = np.array(seeds, float)
    told = ~np.isnan(table)
    if not told.any():
        return None
    items = mean_interval(np.nanmean(table[:, told.any(0)], 0), level)
    between = mean_interval(np.nanmean(table[told.any(1)], 1), level)
    low, high = items.low, items.high
    if low is not None and high is not None and between.low is not None and between.high is not None:
        low, high = min(low, between.low), max(high, between.high)
    return Estimate(float(np.nanmean(table)), low, high, items.n)


def student_quantile(p: float, df: int) -> float:
    """Quantile p > 1/2 of Student's t, from the finite series of its distribution (Abramowitz & Stegun 26.7.3-4)."""

    def inside(t: float) -> float:
        """P(|T| < t)."""
        theta = math.atan(t / math.sqrt(df))
        sin, cos = math.sin(theta), math.cos(theta)
        term, total = (cos if df % 2 else 1.0), 0.0
        for k in range(1 + df % 2, df, 2):
            total += term
            term *= cos * cos * k / (k + 1)
        return 2 / math.pi * (theta + sin * total) if df % 2 else sin * total

    low, high = 0.0, 1.0
    while inside(high) < 2 * p - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 2 * p - 1 else (low, middle)
    return high


def _resample(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n, (DRAWS, n))


def _medians(samples: Sequence[Samples], seed: int) -> np.ndarray:
    """Medians per length: row 0 of the data, the others of bootstrap replicates, [1 + DRAWS, lengths]."""
    columns = [np.asarray(s, float) for s in samples]
    drawn = [np.median(c[_resample(len(c), seed + i)], axis=1) for i, c in enumerate(columns)]
    return np.vstack([[np.median(c) for c in columns], np.stack(drawn, axis=1)])


# ---------------------------------------------------------------- growth with length


class Fit(NamedTuple):
    """`coefficient · n ** exponent`; the interval is the exponent's."""

    exponent: float
    low: float | None
    high: float | None
    coefficient: float
    r2: float
    n: int
    """Lengths."""


def fit_exponent(
    lengths: Sequence[Real], samples: Sequence[Samples], *, level: float = 0.95, departure: bool = True, seed: int = 0
) -> Fit:
    """Exponent of growth by least squares on the logarithms of the medians; `samples` has one series per length.

    The interval is the bootstrap's over repeats (noise of the clock) or, where that is wider and `departure` is set,
    Student's over the residuals (departure from a power law). A fixed cost makes the exponent too small at short lengths:
    see `local_exponent` and `fit_terms`.
    """
    x, y = np.log(np.asarray(lengths, float)), np.log(_medians(samples, seed))
    dx = x - x.mean()
    slopes = y @ dx / (dx @ dx)
    exponent, low, high = float(slopes[0]), *_bounds(slopes[1:], level)
    intercept = float(y[0].mean() - exponent * x.mean())
    residual = y[0] - intercept - exponent * x
    total = float(((y[0] - y[0].mean()) ** 2).sum())
    if (df := len(x) - 2) > 0 and departure:
        half = student_quantile((1 + level) / 2, df) * math.sqrt(float(residual @ residual) / df / float(dx @ dx))
        low, high = min(low, exponent - half), max(high, exponent + half)
    r2 = 1 - float(residual @ residual) / total if total else 1.0
    unknown = (df <= 0 or not departure) and all(len(s) < 2 for s in samples)
    return Fit(exponent, None if unknown else low, None if unknown else high, math.exp(intercept), r2, len(x))


def local_exponent(lengths: Sequence[Real], samples: Sequence[Samples], last: int = 3, seed: int = 0) -> Fit:
    """The slope at the last few lengths only, where a fixed cost weighs least; its interval holds the clock's noise alone."""
    return fit_exponent(lengths[-last:], samples[-last:], departure=False, seed=seed)


class Terms(NamedTuple):
    """`sum(c · n ** p)` with coefficients not below zero; `draws` holds them for each bootstrap replicate."""

    powers: tuple[float, ...]
    coefficients: np.ndarray
    draws: np.ndarray
    n: int
    """Lengths."""

    def at(self, length: Real, level: float = 0.95) -> Estimate:
        """The fitted value at a length, an extrapolation beyond the data.

        The interval holds the noise of the repeats, not the chance that the law itself changes further out.
        """
        basis = np.asarray(length, float) ** np.asarray(self.powers)
        return Estimate(float(self.coefficients @ basis), *_bounds(self.draws @ basis, level), self.n)


def fit_terms(lengths: Sequence[Real], samples: Sequence[Samples], powers: Sequence[Real] = (0, 1, 2), seed: int = 0) -> Terms:
    """Fit a cost as a sum of powers of the length: a fixed cost, a linear and a quadratic part, each not below zero.

    Least squares of relative errors. Because every part is physical, this extrapolates better than one power law does.
    """
    if len(lengths) < len(powers):
        raise ValueError(f"{len(powers)} terms need at least as many lengths, got {len(lengths)}")
    y = _medians(samples, seed)
    basis = np.asarray(lengths, float)[:, None] ** np.asarray(powers, float)
    scale = basis.max(axis=0)
    a = basis / scale / y[:, :, None]
    best, best_cost = np.zeros((len(y), len(powers))), np.full(len(y), np.inf)
    for size in range(1, len(powers) + 1):
        for chosen in map(list, itertools.combinations(range(len(powers)), size)):
            c = np.linalg.pinv(a[:, :, chosen]).sum(axis=2)
            cost = ((a[:, :, chosen] @ c[:, :, None])[..., 0] - 1) ** 2
            better = (c >= 0).all(axis=1) & (cost.sum(axis=1) < best_cost)
            best[better] = 0.0
            best[np.ix_(better, chosen)] = c[better]
            best_cost[better] = cost.sum(axis=1)[better]
    return Terms(tuple(float(p) for p in powers), best[0] / scale, best[1:] / scale, len(lengths))


class Crossover(NamedTuple):
    """The length beyond which one curve stays below the other; `high` is None when no upper bound is set."""

    value: float
    low: float | None
    high: float | None
    tag: Literal["measured", "extrapolated"]
    n: int

    def number(self, unit: str = "", note: str = "") -> Number:
        return Number(self.value, unit, self.tag, self.low, self.high, self.n, note=note)


def crossover(lengths: Sequence[Real], a: Sequence[Samples], b: Sequence[Samples], seed: int = 0) -> Crossover | None:
    """Where curve `a` passes below curve `b` for good; None if it starts below, or gets there nowhere within reach.

    Between two measured lengths it is interpolated in the logarithms; beyond the last it is carried on from the last three
    lengths, up to `REACH` times the last one, and tagged as extrapolated.
    """
    x = np.log(np.asarray(lengths, float))
    gap = np.log(_medians(a, seed)) - np.log(_medians(b, seed + len(lengths)))
    points = np.array([_crossing(x, row) for row in gap])
    if not math.isfinite(points[0]):
        return None
    low, high = (v if math.isfinite(v) else None for v in np.exp(_bounds(points[1:], 0.95)).tolist())
    tag = "measured" if points[0] <= x[-1] else "extrapolated"
    return Crossover(math.exp(points[0]), low or None, high, tag, min(len(s) for s in (*a, *b)))


def _crossing(x: np.ndarray, gap: np.ndarray) -> float:
    """Logarithm of the length at which the gap falls below zero for good; -inf if it is below from the start, else inf."""
    above = np.flatnonzero(gap >= 0)
    if len(above) == 0:
        return -math.inf
    if (i := int(above[-1])) < len(x) - 1:
        return float(x[i] + gap[i] / (gap[i] - gap[i + 1]) * (x[i + 1] - x[i]))
    slope, intercept = np.polyfit(x[-3:], gap[-3:], 1)
    end = float(-intercept / slope) if slope < 0 else math.inf
    return max(end, float(x[-1])) if end <= x[-1] + math.log(REACH) else math.inf
