"""How sure a number is: intervals over problems, paired differences, and what this many problems could have shown.

The unit is always the problem, never the completion: samples of one problem are not independent. Intervals are
percentile bootstraps (Efron 1979). The p-value of a paired difference is a sign-flip randomisation test (Fisher 1935):
if the two checkpoints were the same, each problem's difference could as well have had the other sign. It is exact when
all flips are enumerated, and counts the observed one when they are sampled, so it is never 0 (Phipson & Smyth 2010).
A difference has a verdict only when interval and test agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanogpt_edit.errors import UserError

Verdict = Literal["better", "worse", "changed", "inconclusive"]
GoodSide = Literal["more", "less", "neither"]
Values = NDArray[np.float64]

CONFIDENCE = 0.95
POWER = 0.80
Z_TWO_SIDED = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)  # 1.960
Z_POWER = NormalDist().inv_cdf(POWER)  # 0.842
CHUNK_NUMBERS = 2_000_000  # resampled numbers held in memory at once (16 MB)


@dataclass(frozen=True)
class Interval:
    """A mean over problems with its 95% interval. Example: Interval(value=0.62, low=0.57, high=0.67, n=400)"""

    value: float
    low: float
    high: float
    n: int  # problems


@dataclass(frozen=True)
class Difference:
    """Mean of (after − before) over the same problems.

    Example: Difference(delta=0.04, low=0.01, high=0.07, p_value=0.012, n=400, smallest_detectable=0.043,
    verdict="better")
    """

    delta: float
    low: float
    high: float
    p_value: float  # two-sided, sign-flip
    n: int  # problems
    smallest_detectable: float  # true difference that n problems show with probability 0.8, two-sided at 0.05
    verdict: Verdict  # better, worse (changed where neither is) when the interval excludes 0 and p < 0.05


def bootstrap_mean(
    per_problem_values: ArrayLike, *, resamples: int = 10_000, seed: int = 0, are_shares: bool = True
) -> Interval:
    """Mean of one value per problem with its 95% percentile bootstrap interval over problems.

    When every value is 0, or every value is 1, resampling sees no spread at all; then the interval is Wilson's, which
    knows that 50 successes of 50 do not prove a certainty. That is for shares; counts are not
    bounded by 1. Raises UserError for no values or a value that is no number.
    """
    values = _checked(per_problem_values)
    if are_shares and (np.all(values == 0) or np.all(values == 1)):
        return wilson(int(values.sum()), len(values))
    low, high = _percentile_interval(values, resamples=resamples, seed=seed)
    return Interval(value=float(values.mean()), low=low, high=high, n=len(values))


def wilson(successes: int, n: int) -> Interval:
    """A share of `n` yes-or-no outcomes with its 95% score interval (Wilson 1927)."""
    if not 0 <= successes <= n or n == 0:
        raise UserError(f"{successes} successes of {n} is no proportion.")
    share, z2 = successes / n, Z_TWO_SIDED**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_TWO_SIDED / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends the formula gives exactly 0 and 1; rounding would not.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(value=share, low=low, high=high, n=n)


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    good: GoodSide = "more",
) -> Difference:
    """What changed from `before` to `after`, two values per problem, in the same order of problems.

    `good` says whether more or less of it is better; where neither is, a difference is only "changed".
    Raises UserError unless both have the same length, at least 2.
    """
    first, second = _checked(before), _checked(after)
    if len(first) != len(second) or len(first) < 2:
        raise UserError(
            f"A paired comparison needs the same problems on both sides, at least two; found {len(first)} and "
            f"{len(second)}."
        )
    differences = second - first
    delta = float(differences.mean())
    low, high = _percentile_interval(differences, resamples=resamples, seed=seed)
    p_value = sign_flip_p(differences, resamples=resamples, seed=seed)
    verdict: Verdict = "inconclusive"
    if (low > 0 or high < 0) and p_value < 1 - CONFIDENCE:
        verdict = "changed" if good == "neither" else "better" if (delta > 0) == (good == "more") else "worse"
    return Difference(
        delta=delta,
        low=low,
        high=high,
        p_value=p_value,
        n=len(differences),
        smallest_detectable=smallest_detectable(differences),
        verdict=verdict,
    )


def sign_flip_p(differences: ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of "each difference is as likely +d as −d"; exact when 2^(non-zero ones) ≤ `resamples`."""
    moved = _checked(differences)
    moved = moved[moved != 0]
    if len(moved) == 0:
        return 1.0
    # Equal sums must count as equal, whatever the order they were rounded in.
    observed = abs(float(moved.sum())) - 1e-12 * float(np.abs(moved).sum())
    if 2 ** min(len(moved), 62) <= resamples:
        flips = (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1  # (2^n, n)
        return float(np.mean(np.abs((1 - 2 * flips) @ moved) >= observed))
    generator = np.random.default_rng([seed, 1])
    as_far = 0
    for rows in _chunks(resamples, len(moved)):
        flips = generator.integers(0, 2, size=(rows, len(moved)), dtype=np.int8)
        as_far += int(np.count_nonzero(np.abs(moved.sum() - 2 * (flips @ moved)) >= observed))
    return (1 + as_far) / (1 + resamples)


def mcnemar_exact(before_correct: ArrayLike, after_correct: ArrayLike) -> float:
    """Two-sided exact p-value of McNemar's test (1947): do as many answers turn right as turn wrong?

    One boolean per problem on each side. Only problems whose answer changed count; under "no change" each is a fair
    coin.
    """
    before, after = np.asarray(before_correct, dtype=bool), np.asarray(after_correct, dtype=bool)
    if before.shape != after.shape or before.ndim != 1:
        raise UserError(f"McNemar's test needs pairs; found {before.shape} and {after.shape} answers.")
    gained, lost = int(np.sum(after & ~before)), int(np.sum(before & ~after))
    changed = gained + lost
    ways, tail = 1, 0  # C(changed, i), and their sum for i = 0 … min(gained, lost)
    for i in range(min(gained, lost) + 1):
        tail += ways
        ways = ways * (changed - i) // (i + 1)
    return min(1.0, 2 * tail / 2**changed)


def smallest_detectable(differences: ArrayLike) -> float:
    """The true mean difference that this many problems would show with power 0.8, two-sided at 0.05.

    (z₀.₉₇₅ + z₀.₈) · sd / √n = 2.80 · sd / √n (Cohen 1988, ch. 2); 0 when no problem differs from another.
    """
    values = _checked(differences)
    if len(values) < 2:
        raise UserError("The smallest detectable difference needs at least two problems.")
    return (Z_TWO_SIDED + Z_POWER) * float(values.std(ddof=1)) / math.sqrt(len(values))


def _checked(values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or not np.all(np.isfinite(array)):
        raise UserError(f"Statistics need one finite number per problem, at least one; found shape {array.shape}.")
    return array


def _percentile_interval(values: Values, *, resamples: int, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[generator.integers(0, len(values), size=(rows, len(values)), dtype=np.int32)].mean(axis=1)
            for rows in _chunks(resamples, len(values))
        ]
    )
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _chunks(resamples: int, width: int) -> Iterator[int]:
    """Rows per chunk, so that rows × width stays bounded; they add up to `resamples`."""
    rows = max(1, CHUNK_NUMBERS // width)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)
