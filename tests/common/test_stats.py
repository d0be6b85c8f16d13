from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.common import stats
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.stats import (
    Interval,
    change_of_share,
    harmonic_mean,
    mcnemar_exact,
    paired_difference,
    quantity,
    share,
    sign_flip_p,
    smallest_detectable,
)

# --- intervals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(15, 50), (0, 50), (50, 50), (49, 50), (1, 1), (390, 400), (3, 7)])
def test_yes_or_no_outcomes_have_scipys_wilson_interval(successes: int, n: int) -> None:
    found = share([1.0] * successes + [0.0] * (n - successes))
    right = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((right.low, right.high), abs=1e-9)
    assert (found.value, found.n) == (pytest.approx(successes / n), n)


def test_problems_that_spread_less_than_coins_count_for_more() -> None:
    # Values 0.4 and 0.6: variance 0.01 of at most 0.25, so 99 of them and one coin count as 100 / (99 · 0.04 + 1) coins
    # each: 99 · 100 / 4.96 = 1995.97 in all.
    n = 99 * 100 / (99 * np.var([0.4, 0.6] * 49 + [0.5]) / 0.25 + 1)
    assert n == pytest.approx(1995.97, rel=0.01)
    found, coins = share([0.4, 0.6] * 49 + [0.5]), share([0.0, 1.0] * round(n / 2))
    assert (found.low, found.high) == pytest.approx((coins.low, coins.high), abs=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        [1.0] * 50,
        [0.0] * 50,
        [0.9] * 50,
        [1.0] * 49 + [0.5],
        [0.25] * 49 + [0.0],
        [1.0] * 399 + [0.9375],
        [1.0, 1.0],
        [0.5],
    ],
)
def test_certainty_is_never_claimed_from_a_clean_sweep(values: list[float]) -> None:
    found = share(values)
    assert 0 <= found.low < found.high <= 1
    assert found.low < found.value or found.value == 0
    assert found.high > found.value or found.value == 1
    changed = change_of_share([-value for value in values])
    assert changed.low < changed.value < changed.high or changed.value == -1 == changed.low < changed.high
    if 0 < found.value < 1:
        assert found.low < found.value < found.high


@pytest.mark.parametrize("seed", range(4))
def test_a_quantity_has_the_ends_of_scipys_bootstrap_of_the_studentised_mean(seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(3, 0.4, size=36)
    mean, error = values.mean(), values.std(ddof=1) / 6

    def studentised(drawn: np.ndarray, axis: int) -> np.ndarray:
        return (drawn.mean(axis) - mean) / (drawn.std(axis, ddof=1) / 6)

    right = scipy.stats.bootstrap(
        (values,), studentised, n_resamples=20_000, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    found = quantity(values, resamples=20_000)
    assert found.low == pytest.approx(mean - right.high * error, abs=0.15 * error)
    assert found.high == pytest.approx(mean - right.low * error, abs=0.15 * error)


def test_where_a_share_is_far_from_its_ends_it_agrees_with_scipys_bootstrap() -> None:
    values = np.random.default_rng(1).beta(2, 3, size=400)
    right = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, rng=np.random.default_rng(0))
    found = share(values)
    assert (found.low, found.high) == pytest.approx(tuple(right.confidence_interval), abs=0.002)
    difference = paired_difference(values, np.clip(values + np.random.default_rng(2).normal(0, 0.2, 400), 0, 1))
    again = np.clip(values + np.random.default_rng(2).normal(0, 0.2, 400), 0, 1) - values
    right = scipy.stats.bootstrap((again,), np.mean, n_resamples=4000, rng=np.random.default_rng(0))
    assert (difference.low, difference.high) == pytest.approx(tuple(right.confidence_interval), abs=0.003)


def test_the_seed_fixes_the_interval_and_memory_chunks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = quantity(values, resamples=1000, seed=3)
    assert whole == quantity(values, resamples=1000, seed=3)
    assert whole != quantity(values, resamples=1000, seed=4)
    monkeypatch.setattr(stats, "CHUNK_NUMBERS", 1_700)
    again = quantity(values, resamples=1000, seed=3)
    assert (again.low, again.high) == pytest.approx((whole.low, whole.high))


@pytest.mark.parametrize("values", [[4.0, 9.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 7.0]])
def test_where_resampling_has_no_ends_students_t_takes_their_place(values: list[float]) -> None:
    found = quantity(values)
    n, error = len(values), np.std(values, ddof=1) / math.sqrt(len(values))
    half = scipy.stats.t.ppf(0.975, n - 1) * error
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.12 if n == 2 else 0.01)


@pytest.mark.parametrize("values", [[7.0] * 3, [0.0] * 6, [12.5]])
def test_a_quantity_without_spread_is_its_own_interval(values: list[float]) -> None:
    assert quantity(values) == Interval(value=values[0], low=values[0], high=values[0], n=len(values))


def test_the_harmonic_mean_by_hand() -> None:
    even = harmonic_mean([[1.0] * 30, [0.5] * 30, [1.0] * 30])
    assert even is not None
    assert (even.value, even.n) == (pytest.approx(0.75), 30)
    assert even.low < even.value < even.high, "no spread is no certainty"
    some = harmonic_mean([[1.0, 0.0] * 20, [1.0, None] * 20, [0.5] * 40])
    assert some is not None
    assert some.value == pytest.approx(3 / (1 / 0.5 + 1 / 1.0 + 1 / 0.5))
    assert harmonic_mean([[1.0, 0.0], [None, None]]) is None
    assert harmonic_mean([[0.0] * 50, [1.0] * 50]) == share([0.0] * 50)
    alone = harmonic_mean([[0.2, 0.9, 0.4]])
    assert alone is not None
    assert (alone.low, alone.high) == pytest.approx((share([0.2, 0.9, 0.4]).low, share([0.2, 0.9, 0.4]).high))


@pytest.mark.parametrize("values", [[0.5, 1.1], [-0.1], [27.0] * 3])
def test_what_is_no_share_is_refused(values: list[float]) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        share(values)
    with pytest.raises(UserError, match="between -1 and 1"):
        change_of_share([2 * value for value in [*values, 1.0]])


@pytest.mark.parametrize("values", [[], [float("nan"), 1.0], [[1.0, 2.0]]])
def test_statistics_of_nothing_or_of_nan_are_refused(values: list[float]) -> None:
    with pytest.raises(UserError, match="one finite number per problem"):
        share(values)
    with pytest.raises(UserError, match="one finite number per problem"):
        quantity(values)


# --- paired differences ------------------------------------------------------------------------------------------


def test_sign_flips_by_hand() -> None:
    # (1, 2, 3): only +++ and --- reach a sum of 6, of 8 flips. (1, 2, -3) sums to 0: every flip reaches it.
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    assert sign_flip_p([1, 2, -3]) == 1.0
    assert sign_flip_p([0, 0, 1, 1, 1, 1, 1, 1]) == 2 / 64, "problems that did not move say nothing"
    assert sign_flip_p([0.0, 0.0]) == 1.0


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_exact_sign_flips_equal_brute_force(differences: list[int]) -> None:
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = sum(total >= abs(sum(differences)) for total in sums) / len(sums)
    assert sign_flip_p([d / 10 for d in differences]) == pytest.approx(expected)


def test_sampled_sign_flips_agree_with_the_exact_ones() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1, size=16)
    exact, sampled = sign_flip_p(differences, resamples=2**16), sign_flip_p(differences, resamples=20_000)
    assert sampled == pytest.approx(exact, abs=0.01)
    assert sign_flip_p([1.0] * 200, resamples=999) == 1 / 1000, "never zero"


def test_a_clear_gain_is_better_and_a_small_one_inconclusive() -> None:
    generator = np.random.default_rng(0)
    before = generator.random(400)
    gain = paired_difference(before, before + generator.normal(0.05, 0.1, 400))
    assert gain.verdict == "better"
    assert gain.low > 0
    assert gain.p_value < 0.001
    assert gain.n == 400
    assert gain.low < gain.delta < gain.high
    assert gain.delta == pytest.approx(0.05, abs=0.015)
    assert gain.smallest_detectable == pytest.approx(2.8016 * 0.1 / 20, rel=0.1)
    loss = paired_difference(before + 0.0, before - generator.normal(0.05, 0.1, 400))
    assert loss.verdict == "worse"
    assert loss.high < 0
    unclear = paired_difference(before, before + generator.normal(0.0, 0.1, 400))
    assert unclear.verdict == "inconclusive"
    assert unclear.low < 0 < unclear.high
    shorter = paired_difference(before, before - 0.1 - before / 10, good="less")
    assert shorter.verdict == "better"
    assert shorter.delta < 0
    assert paired_difference(before, before - 0.1 - before / 10, good="neither", are_shares=False).verdict == "changed"


def test_three_problems_prove_nothing_however_alike() -> None:
    difference = paired_difference([0, 0, 0], [1, 1, 1])
    assert (difference.delta, difference.p_value) == (1.0, 0.25)
    assert difference.verdict == "inconclusive"


def test_the_same_checkpoint_twice_differs_by_nothing_as_far_as_n_can_tell() -> None:
    difference = paired_difference([0.1, 0.9, 0.4] * 20, [0.1, 0.9, 0.4] * 20)
    assert (difference.delta, difference.p_value, difference.verdict) == (0, 1, "inconclusive")
    assert difference.low == -difference.high < 0
    assert difference.smallest_detectable > 0.05, "sixty equal problems are not all problems"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([-0.1] * 5 + [0.0] * 45, "inconclusive"),  # p is 2/32
        ([-0.1] * 50, "worse"),
        ([-1.0] * 5 + [0.0] * 45, "inconclusive"),  # p is 2/32
        ([-1.0] * 6 + [0.0] * 44, "worse"),  # p is 2/64
        ([0.0625] * 4 + [0.0] * 396, "inconclusive"),
        ([0.5] * 3, "inconclusive"),
    ],
)
def test_few_equal_changes_are_no_proof(changes: list[float], verdict: str) -> None:
    before = np.full(len(changes), 1.0) if min(changes) < 0 else np.zeros(len(changes))
    assert paired_difference(before, before + changes).verdict == verdict


@pytest.mark.parametrize("seed", range(3))
def test_sign_flips_have_scipys_p_value(seed: int) -> None:
    for n in (5, 9, 12):
        differences = np.random.default_rng([seed, n]).normal(0.4, 1, size=n)
        right = scipy.stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
        )
        assert sign_flip_p(differences) == pytest.approx(right.pvalue)


def test_false_alarms_stay_at_five_percent() -> None:
    pairs = np.random.default_rng(5).random((400, 2, 40))
    alarms = sum(paired_difference(a, b, resamples=400).verdict != "inconclusive" for a, b in pairs)
    assert 0.01 < alarms / 400 < 0.08


@pytest.mark.parametrize(("before", "after"), [([1.0, 2.0], [1.0]), ([1.0], [1.0])])
def test_pairs_must_match(before: list[float], after: list[float]) -> None:
    with pytest.raises(UserError, match="same problems on both sides"):
        paired_difference(before, after)


# --- McNemar -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (6, 0, 2 / 64),
        (0, 6, 2 / 64),
        (5, 1, 2 * 7 / 64),
        (4, 4, 1.0),
        (9, 1, 2 * 11 / 1024),
    ],
)
def test_mcnemar_by_hand(gained: int, lost: int, p: float) -> None:
    before = [False] * gained + [True] * lost + [True, False, True]
    after = [True] * gained + [False] * lost + [True, False, True]
    assert mcnemar_exact(before, after) == p
    assert p == pytest.approx(scipy.stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0)


def test_mcnemar_takes_thousands_and_refuses_odd_pairs() -> None:
    before = [False] * 3000 + [True] * 2800
    p = mcnemar_exact(before, [not b for b in before])
    z = (200 - 1) / math.sqrt(5800)  # the usual approximation, continuity corrected
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)
    with pytest.raises(UserError, match="needs pairs"):
        mcnemar_exact([True], [])


# --- how many problems -------------------------------------------------------------------------------------------


def test_the_smallest_detectable_difference_by_hand() -> None:
    # A half-width of 1.95996 standard errors; (1.95996 + 0.84162) of them can be shown.
    assert smallest_detectable(Interval(0.3, 0.3 - 1.959964, 0.3 + 1.959964, 9)) == pytest.approx(2.80159, abs=1e-4)
    noise = np.random.default_rng(0).normal(0, 0.1, 400)
    found = paired_difference(np.zeros(400), noise, are_shares=False)
    assert found.smallest_detectable == pytest.approx(2.8016 * noise.std() / 20, rel=0.03)


def test_the_smallest_detectable_difference_is_detected_four_times_in_five() -> None:
    generator = np.random.default_rng(3)
    noise = generator.normal(0, 0.3, size=(400, 100))
    shown = 0
    for differences in noise + 2.8016 * 0.3 / 10:
        low = differences.mean() - 1.96 * differences.std(ddof=1) / 10
        shown += low > 0
    assert shown / 400 == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (30, 2.0423)])
def test_students_t_is_as_tables_have_it(freedom: int, quantile: float) -> None:
    assert stats.student_t(freedom) == pytest.approx(quantile, rel=2e-3)
