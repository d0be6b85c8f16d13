from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.common import stats
from nanogpt_edit.common.stats import (
    Interval,
    bootstrap_mean,
    mcnemar_exact,
    paired_difference,
    sign_flip_p,
    smallest_detectable,
    wilson,
)
from nanogpt_edit.errors import UserError

# --- intervals ---------------------------------------------------------------------------------------------------


def test_the_bootstrap_of_two_problems_by_hand() -> None:
    # Means of resamples of (0, 1) are 0, 1/2, 1 with chances 1/4, 1/2, 1/4: 2.5% and 97.5% lie at the ends.
    assert bootstrap_mean([0, 1]) == Interval(value=0.5, low=0.0, high=1.0, n=2)


def test_the_bootstrap_of_a_coin_equals_the_binomial() -> None:
    # Resampled sums of 40 ones and 60 zeros are Binomial(100, 0.4), whose 2.5% and 97.5% quantiles are 31 and 50.
    interval = bootstrap_mean([1] * 40 + [0] * 60)
    assert (interval.value, interval.low, interval.high, interval.n) == (0.4, 0.31, 0.5, 100)


def test_the_bootstrap_narrows_like_one_over_root_n_and_covers() -> None:
    values = np.random.default_rng(1).normal(size=1600)
    wide, narrow = bootstrap_mean(values[:400]), bootstrap_mean(values)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2, rel=0.1)
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * values.std() / 40, rel=0.03)
    sets = np.random.default_rng(2).normal(size=(300, 60))
    covered = sum(interval.low <= 0 <= interval.high for interval in (bootstrap_mean(s, resamples=500) for s in sets))
    assert 0.91 < covered / 300 < 0.98


def test_the_seed_fixes_the_interval_and_memory_chunks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_mean(values, resamples=1000, seed=3)
    assert whole == bootstrap_mean(values, resamples=1000, seed=3)
    assert whole != bootstrap_mean(values, resamples=1000, seed=4)
    monkeypatch.setattr(stats, "CHUNK_NUMBERS", 1_700)
    assert whole == bootstrap_mean(values, resamples=1000, seed=3)


def test_certainty_is_never_claimed_from_a_clean_sweep() -> None:
    # Wilson for 50 of 50: n / (n + z²) = 50 / 53.8415
    sweep = bootstrap_mean([1.0] * 50)
    assert (sweep.value, sweep.high, sweep.n) == (1.0, 1.0, 50)
    assert sweep.low == pytest.approx(50 / (50 + 1.959964**2), abs=1e-6)
    assert bootstrap_mean([0.0] * 50).high == pytest.approx(1 - sweep.low)
    assert bootstrap_mean([7.0] * 3) == Interval(value=7.0, low=7.0, high=7.0, n=3)


def test_a_count_that_is_always_zero_has_no_share_s_interval() -> None:
    assert bootstrap_mean([0] * 6, are_shares=False) == Interval(value=0.0, low=0.0, high=0.0, n=6)


def test_wilson_worked_example() -> None:
    # 15 of 50 (Newcombe 1998 gives such tables): centre (0.3 + 3.8415/100) / 1.07683 = 0.31427, half 0.12355
    interval = wilson(15, 50)
    assert (interval.low, interval.high) == (pytest.approx(0.1910, abs=1e-4), pytest.approx(0.4375, abs=2e-4))
    for successes, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(UserError, match="no proportion"):
            wilson(successes, n)


@pytest.mark.parametrize("values", [[], [float("nan"), 1.0], [[1.0, 2.0]]])
def test_statistics_of_nothing_or_of_nan_are_refused(values: list[float]) -> None:
    with pytest.raises(UserError, match="one finite number per problem"):
        bootstrap_mean(values)


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
    assert paired_difference(before, before - 0.1 - before / 10, good="neither").verdict == "changed"


def test_three_problems_prove_nothing_however_alike() -> None:
    difference = paired_difference([0, 0, 0], [1, 1, 1])
    assert (difference.delta, difference.low, difference.p_value) == (1.0, 1.0, 0.25)
    assert difference.verdict == "inconclusive"


def test_the_same_checkpoint_twice_differs_by_nothing() -> None:
    difference = paired_difference([0.1, 0.9, 0.4], [0.1, 0.9, 0.4])
    assert (difference.delta, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)
    assert difference.verdict == "inconclusive"


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


def test_mcnemar_takes_thousands_and_refuses_odd_pairs() -> None:
    before = [False] * 3000 + [True] * 2800
    p = mcnemar_exact(before, [not b for b in before])
    z = (200 - 1) / math.sqrt(5800)  # the usual approximation, continuity corrected
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)
    with pytest.raises(UserError, match="needs pairs"):
        mcnemar_exact([True], [])


# --- how many problems -------------------------------------------------------------------------------------------


def test_the_smallest_detectable_difference_by_hand() -> None:
    # sd of (-1, 1) is √2; (1.95996 + 0.84162) · √2 / √2
    assert smallest_detectable([-1, 1]) == pytest.approx(2.80159, abs=1e-4)
    assert smallest_detectable([0.2, 0.2, 0.2]) == pytest.approx(0, abs=1e-12)
    with pytest.raises(UserError, match="at least two"):
        smallest_detectable([1.0])


def test_the_smallest_detectable_difference_is_detected_four_times_in_five() -> None:
    generator = np.random.default_rng(3)
    noise = generator.normal(0, 0.3, size=(400, 100))
    shown = 0
    for differences in noise + 2.8016 * 0.3 / 10:
        low = differences.mean() - 1.96 * differences.std(ddof=1) / 10
        shown += low > 0
    assert shown / 400 == pytest.approx(0.8, abs=0.05)
