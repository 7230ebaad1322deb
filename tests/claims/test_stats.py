"""Statistics against known answers: exact values, and intervals that hold the truth as often as they say."""

import itertools
import math

import numpy as np
import pytest

from postformer.claims.ledger import Number
from postformer.claims.stats import (
    Estimate,
    Timing,
    crossover,
    fit_exponent,
    fit_terms,
    interleaved,
    local_exponent,
    mean_interval,
    mean_over,
    median_interval,
    noise_floor,
    rank,
    ratio_interval,
    student_quantile,
    wilson,
)
from postformer.config import parse, plain

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)


def noisy(values, noise: float = 0.02, repeats: int = 20, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [v * np.exp(noise * rng.standard_normal(repeats)) for v in values]


def held(truth: float, estimates: list) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in estimates]))


# ---------------------------------------------------------------- timing


class Machine:
    """A clock that only work moves, on a machine that slows down by a constant part of a second per call."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now, self.calls, self.drift, self.log = 0.0, 0, drift, ""

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: float):
        def run() -> None:
            self.now += seconds + self.drift * self.calls
            self.calls += 1
            self.log += name

        return run


def test_rounds_go_there_and_back_with_a_control():
    machine = Machine()
    timing = interleaved({"a": machine.work("a", 1.0), "b": machine.work("b", 3.0)}, 20, warmup=1, clock=machine.clock)
    assert machine.log == "ab" + "abaaba" * 10
    assert timing.complete and timing.rounds == 20
    assert timing.samples == {"a": pytest.approx([1.0] * 20), "b": pytest.approx([3.0] * 20)}
    assert timing.control == pytest.approx((1.0,) * 20)
    assert timing.floor == pytest.approx((0.0, 0.0, 0.0, 20))
    assert parse(Timing, plain(timing)) == timing


def test_drift_of_the_machine_ranks_nothing():
    machine = Machine(drift=0.01)
    timing = interleaved({"a": machine.work("a", 1.0), "b": machine.work("b", 1.0)}, clock=machine.clock)
    assert abs(ratio_interval(timing.samples["a"], timing.samples["b"]).value - 1) < 0.02
    assert rank(timing.samples["a"], timing.samples["b"], timing.floor) == "no ranking"


def test_budget_ends_the_rounds_and_is_told():
    machine = Machine()
    timing = interleaved({"a": machine.work("a", 1.0), "b": machine.work("b", 2.0)}, 20, budget_s=18, clock=machine.clock)
    assert not timing.complete and timing.rounds == 3 and machine.now <= 18
    machine = Machine()
    timing = interleaved({"a": machine.work("a", 100.0)}, 20, budget_s=1, clock=machine.clock)
    assert timing.rounds == 1 and timing.floor.low is None
    assert rank(timing.samples["a"], [50.0], timing.floor) == "no ranking"


def test_garbage_collector_comes_back_after_an_error():
    import gc

    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda: 1 / 0})
    assert gc.isenabled()


def test_rank_tells_apart_what_differs_and_nothing_else():
    wrong = 0
    for seed in range(200):
        a, again, b = noisy([1.0, 1.0, 1.0], 0.05, seed=seed)
        wrong += rank(a, b, noise_floor(a, again)) != "no ranking"
    assert wrong / 200 <= 0.05
    for seed in range(50):
        a, again, b = noisy([1.0, 1.0, 1.3], 0.05, seed=seed)
        assert rank(a, b, noise_floor(a, again)) == "a" and rank(b, a, noise_floor(a, again)) == "b"


def test_rank_stays_silent_below_a_wide_floor():
    a, b = noisy([1.0, 1.05], 0.001)
    assert rank(a, b, Estimate(0.0, -0.01, 0.01, 20)) == "a"
    assert rank(a, b, Estimate(0.0, -0.01, 0.08, 20)) == "no ranking"
    assert rank(a, b, Estimate(0.0, -0.08, 0.01, 20)) == "no ranking"


# ---------------------------------------------------------------- intervals


def test_median_interval_holds_the_median():
    estimates = [median_interval(s) for s in noisy([math.e] * 300, 0.2)]
    assert 0.90 <= held(math.e, estimates) <= 0.99
    assert median_interval([4.0]) == (4.0, None, None, 1)
    assert median_interval([1, 2, 9]).value == 2


def test_ratio_interval_is_paired():
    rng = np.random.default_rng(0)
    load = np.exp(rng.standard_normal(20))
    e = ratio_interval(3 * load, load)
    assert e.low == pytest.approx(3) and e.high == pytest.approx(3)


def test_student_quantile_agrees_with_the_tables():
    table = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058, 9: 2.26216, 30: 2.04227, 120: 1.97993}
    for df, value in table.items():
        assert student_quantile(0.975, df) == pytest.approx(value, abs=6e-6)
    assert student_quantile(0.95, 7) == pytest.approx(1.894579, abs=1e-6)


def test_mean_interval_holds_the_mean_at_three_seeds():
    rng = np.random.default_rng(1)
    assert 0.93 <= held(0.0, [mean_interval(rng.standard_normal(3)) for _ in range(2000)]) <= 0.97
    assert mean_interval([2.5]) == (2.5, None, None, 1)


def test_wilson_agrees_with_the_published_figures():
    share = wilson(81, 263)  # Newcombe 1998, table I
    assert (round(share.low, 4), round(share.high, 4)) == (0.2553, 0.3662)
    none = wilson(0, 20)
    assert none.value == none.low == 0 and none.high == pytest.approx(0.1611, abs=1e-4)
    assert wilson(20, 20).high == 1


def test_estimate_becomes_a_number_of_the_ledger():
    assert Estimate(1.0, 0.5, None, 7).number("s", "extrapolated", seeds=(3,)) == Number(
        1.0, "s", "extrapolated", 0.5, None, 7, (3,)
    )


# ---------------------------------------------------------------- growth


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.7, 2.0])
def test_exponent_is_found_and_its_interval_holds_it(exponent: float):
    fits = [fit_exponent(LENGTHS, noisy([3e-6 * n**exponent for n in LENGTHS], seed=s)) for s in range(100)]
    assert abs(np.mean([f.exponent for f in fits]) - exponent) < 0.005
    assert held(exponent, fits) >= 0.9
    assert np.median([f.high - f.low for f in fits]) < 0.06


def test_a_fixed_cost_bends_the_exponent_and_the_interval_says_so():
    samples = noisy([0.02 + 1e-5 * n for n in LENGTHS], 0.001)
    whole, end = fit_exponent(LENGTHS, samples), local_exponent(LENGTHS, samples)
    assert whole.exponent < 0.75 < 0.87 < end.exponent < 1.0
    assert whole.high - whole.low > 0.2 and end.high - end.low < 0.01 and end.n == 3


def test_two_lengths_and_one_repeat_give_no_interval():
    fit = fit_exponent((1, 10), [[1.0], [100.0]])
    assert fit.exponent == pytest.approx(2) and fit.low is None and fit.high is None and fit.coefficient == pytest.approx(1)


@pytest.mark.parametrize(
    "parts", [(0.0, 3e-5, 0.0), (0.01, 2e-5, 0.0), (0.005, 2e-5, 4e-9), (0.0, 0.0, 5e-9), (0.002, 0.0, 0.0)]
)
def test_terms_are_found_and_carry_far(parts: tuple[float, ...]):
    def cost(n: float) -> float:
        return sum(c * n**p for p, c in enumerate(parts))

    exact = fit_terms(LENGTHS, noisy([cost(n) for n in LENGTHS], 0.0))
    assert exact.coefficients == pytest.approx(parts, rel=1e-6, abs=1e-12)
    far = [fit_terms(LENGTHS, noisy([cost(n) for n in LENGTHS], 0.01, seed=s)).at(1e6) for s in range(40)]
    assert held(cost(1e6), far) >= 0.85
    assert all(np.min(fit_terms(LENGTHS, noisy([cost(n) for n in LENGTHS], 0.1, seed=s)).draws) >= 0 for s in range(3))


def test_terms_need_lengths():
    with pytest.raises(ValueError, match="3 terms need at least as many lengths, got 2"):
        fit_terms((1, 2), [[1.0], [2.0]])


def test_crossover_is_found_between_lengths():
    a, b = [0.01 + 1e-5 * n for n in LENGTHS], [2e-9 * n**2 for n in LENGTHS]
    truth = (1e-5 + math.sqrt(1e-10 + 4 * 2e-9 * 0.01)) / 4e-9
    found = [crossover(LENGTHS, noisy(a, seed=s), noisy(b, seed=1000 + s)) for s in range(60)]
    assert all(c is not None and c.tag == "measured" for c in found)
    assert abs(np.median([c.value for c in found]) / truth - 1) < 0.05
    # Straight lines between lengths in the logarithms are up to some per cent off a curve.
    assert held(truth, [c._replace(low=c.low * 0.97, high=c.high * 1.03) for c in found]) >= 0.9
    assert found[0].number("bytes").unit == "bytes"


def test_crossover_beyond_the_lengths_is_tagged_or_absent():
    a, flat = [1e-3 * n**0.5 for n in LENGTHS], [1.0] * len(LENGTHS)
    beyond = crossover(LENGTHS, noisy(flat, 0.005), noisy(a, 0.005))
    assert beyond is not None and beyond.tag == "extrapolated"
    assert beyond.value == pytest.approx(1e6, rel=0.15) and beyond.low < 1e6 < beyond.high
    assert crossover(LENGTHS, noisy(flat), noisy([2.0] * 6)) is None
    assert crossover(LENGTHS, noisy([2.0] * 6, 0.001), noisy(flat, 0.001)) is None
    assert crossover(LENGTHS, noisy([1e4] * 6), noisy(a)) is None


def test_same_samples_give_the_same_interval():
    samples = noisy([1.0])[0]
    assert len({median_interval(samples) for _ in range(3)}) == 1
    assert len({fit_exponent(LENGTHS, noisy(LENGTHS)).low for _ in itertools.repeat(None, 2)}) == 1


def test_a_mean_over_items_and_seeds_has_the_wider_interval():
    items = [1.0, 2.0, 3.0, 4.0]
    alike = mean_over([items, items])
    assert alike is not None and alike[:3] == mean_interval(items)[:3] and alike.n == 4
    apart = mean_over([[1.0, 1.0], [3.0, 3.0]])
    assert apart is not None and apart[:3] == mean_interval([1.0, 3.0])[:3]
    some = mean_over([[1.0, None, 3.0], [None, None, 5.0]])
    assert some is not None and some.value == 3.0 and some.n == 2
    assert mean_over([[None, None]]) is None
