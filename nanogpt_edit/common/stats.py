"""How sure a number is: the only intervals, p-values and verdicts there are.

The unit is always the problem, never the completion: samples of one problem are not independent. Three kinds of means
have three intervals, chosen by their measured coverage (docs/statistics.md):

- a share, one value from 0 to 1 per problem: Wilson's score interval (1927) with the problems counted by their design
  effect (Kish 1965, §8.2; Korn & Graubard 1998): how much less the values spread than yes-or-no outcomes of the same
  mean. The spread is known only from the problems off the end of the scale (of 50 problems of which 45 are always
  solved, 5); they are joined by one yes-or-no problem that was never seen, so that no clean sweep proves a certainty.
- a change of a share, from −1 to 1 per problem: what was gained less what was lost, two shares whose intervals are put
  together (Newcombe 1998, method 10; Zou & Donner 2008).
- a quantity without bounds (tokens, nats): the studentised bootstrap (Efron & Tibshirani 1993, §12.5), for it knows
  skew.

The p-value of a paired difference is a sign-flip randomisation test (Fisher 1935): if the two checkpoints were equal,
each problem's difference could as well have had the other sign. It is exact when all flips are enumerated, and counts
the observed one when they are sampled, so it is never 0 (Phipson & Smyth 2010). A difference has a verdict only when
interval and test agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanogpt_edit.common.errors import UserError

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


def share(per_problem_values: ArrayLike) -> Interval:
    """The mean of one share (0 to 1) per problem with its 95% interval.

    Raises UserError for no values, or one that is no share.
    """
    values = _checked(per_problem_values)
    if values.min() < 0 or values.max() > 1:
        raise UserError(f"A share lies between 0 and 1; found {values.min():g} to {values.max():g}.")
    telling = int(min(np.count_nonzero(values < 1), np.count_nonzero(values > 0)))
    return score_interval(float(values.mean()), float(values.var()), n=len(values), telling=telling)


def score_interval(value: float, variance: float, *, n: int, telling: int) -> Interval:
    """Wilson's 95% interval of a share whose values over `n` problems have this variance.

    n divided by the design effect takes the place of n: variance / (value · (1 − value)), which is 1 for yes-or-no
    outcomes (then this is Wilson's interval itself), over the `telling` problems off the end and one of effect 1.
    """
    most = value * (1 - value)
    effect = (telling * min(1.0, variance / most) + 1) / (telling + 1) if most > 0 else 1.0
    n_effective, z2 = n / effect, Z_TWO_SIDED**2
    centre = (value + z2 / (2 * n_effective)) / (1 + z2 / n_effective)
    half = Z_TWO_SIDED / (1 + z2 / n_effective) * math.sqrt(most / n_effective + z2 / (4 * n_effective**2))
    # At the ends the formula gives exactly 0 and 1; rounding would not.
    low = 0.0 if value == 0 else centre - half
    high = 1.0 if value == 1 else centre + half
    return Interval(value=value, low=low, high=high, n=n)


def change_of_share(per_problem_changes: ArrayLike) -> Interval:
    """The mean of one change (−1 to 1) per problem with its 95% interval: the share gained less the share lost.

    Each end takes the distances of the two shares to their own ends; gains and losses exclude each other, so they are
    correlated negatively. Raises UserError for no values, or one that is no change of a share.
    """
    values = _checked(per_problem_changes)
    if np.abs(values).max() > 1:
        raise UserError(f"A change of a share lies between -1 and 1; found {values.min():g} to {values.max():g}.")
    gains, losses = np.maximum(values, 0), np.maximum(-values, 0)
    gained, lost = share(gains), share(losses)
    spread = float(gains.std() * losses.std())
    correlation = -gained.value * lost.value / spread if spread > 0 else 0.0

    def together(first: float, second: float) -> float:
        return math.sqrt(max(0.0, first**2 + second**2 - 2 * correlation * first * second))

    value = float(values.mean())
    return Interval(
        value=value,
        low=max(-1.0, value - together(gained.value - gained.low, lost.high - lost.value)),
        high=min(1.0, value + together(gained.high - gained.value, lost.value - lost.low)),
        n=len(values),
    )


def harmonic_mean(columns: Sequence[Sequence[float | None]]) -> Interval | None:
    """The harmonic mean of several shares over the same problems, with its 95% interval.

    One column per share, None where a problem lacks it; None where a whole column does. The variance is that of the
    mean's linear part in each problem's values (the delta method).
    """
    values = np.array([[math.nan if value is None else value for value in column] for column in columns])  # (C, n)
    present = ~np.isnan(values)
    if not present.any(axis=1).all():
        return None
    means, n = np.nanmean(values, axis=1), values.shape[1]
    if means.min() == 0:
        return score_interval(0.0, 0.0, n=n, telling=0)
    mean = float(len(means) / (1 / means).sum())
    slopes = mean**2 / (len(means) * means**2) * n / present.sum(axis=1)
    linear = np.where(present, values - means[:, None], 0.0).T @ slopes  # (n,)
    off = [int(np.count_nonzero((present & (values != end)).any(axis=0))) for end in (0, 1)]
    return score_interval(mean, float(np.mean(linear**2)), n=n, telling=min(off))


def quantity(per_problem_values: ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of one number without bounds per problem (tokens, nats) with its 95% interval.

    The ends are those of (resampled mean − mean) / its own standard error; where so few values are resampled that these
    have no ends, Student's t takes their place. One value, or values that are all the same, show nothing of their
    spread: then the interval is the value. Raises UserError for no values, or one that is not finite.
    """
    values = _checked(per_problem_values)
    mean, n = float(values.mean()), len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if error <= 1e-12 * abs(mean):
        return Interval(value=mean, low=mean, high=mean, n=n)
    far_low, far_high = _studentised_ends(values, resamples=resamples, seed=seed)
    if not math.isfinite(far_low) or not math.isfinite(far_high):
        far_high = student_t(n - 1)
        far_low = -far_high
    return Interval(value=mean, low=mean - far_high * error, high=mean - far_low * error, n=n)


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    good: GoodSide = "more",
    are_shares: bool = True,
) -> Difference:
    """What changed from `before` to `after`, two values per problem, in the same order of problems.

    `good` says whether more or less of it is better; where neither is, a difference is only "changed". `are_shares`:
    the values lie between 0 and 1. Raises UserError unless both have the same length, at least 2.
    """
    first, second = _checked(before), _checked(after)
    if len(first) != len(second) or len(first) < 2:
        raise UserError(
            f"A paired comparison needs the same problems on both sides, at least two; found {len(first)} and "
            f"{len(second)}."
        )
    differences = second - first
    mean = change_of_share(differences) if are_shares else quantity(differences, resamples=resamples, seed=seed)
    p_value = sign_flip_p(differences, resamples=resamples, seed=seed)
    verdict: Verdict = "inconclusive"
    if (mean.low > 0 or mean.high < 0) and p_value < 1 - CONFIDENCE:
        verdict = "changed" if good == "neither" else "better" if (mean.value > 0) == (good == "more") else "worse"
    return Difference(
        delta=mean.value,
        low=mean.low,
        high=mean.high,
        p_value=p_value,
        n=mean.n,
        smallest_detectable=smallest_detectable(mean),
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


def smallest_detectable(mean: Interval) -> float:
    """The true mean difference that this many problems would show with power 0.8, two-sided at 0.05.

    (z₀.₉₇₅ + z₀.₈) standard errors (Cohen 1988, ch. 2), of which half the interval's width is z₀.₉₇₅.
    """
    return (1 + Z_POWER / Z_TWO_SIDED) * (mean.high - mean.low) / 2


def _checked(values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or not np.all(np.isfinite(array)):
        raise UserError(f"Statistics need one finite number per problem, at least one; found shape {array.shape}.")
    return array


def _studentised_ends(values: Values, *, resamples: int, seed: int) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of t* = (mean* − mean) / standard error*, over resamples of the values."""
    generator, n = np.random.default_rng(seed), len(values)
    centred, statistics = values - values.mean(), []
    for rows in _chunks(resamples, n):
        drawn = centred[generator.integers(0, n, size=(rows, n), dtype=np.int32)]  # (rows, n)
        distance = drawn.mean(axis=1)
        variance = np.maximum(0.0, np.einsum("ij,ij->i", drawn, drawn) / n - distance**2)
        error = np.sqrt(variance / (n - 1))
        flat = error <= 1e-7 * np.abs(centred).max()  # a resample of equal values lies infinitely many errors away
        statistics.append(np.where(flat, np.copysign(np.inf, distance), distance / np.where(flat, 1.0, error)))
    low, high = np.quantile(
        np.concatenate(statistics), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf"
    )
    return float(low), float(high)


def student_t(freedom: int) -> float:
    """The 97.5% quantile of Student's t, by the expansion in 1 / freedom (Abramowitz & Stegun 1964, 26.7.5).

    That is too low by 1% at a freedom of 2, where, as at 1, the distribution has an inverse in closed form.
    """
    z = Z_TWO_SIDED
    if freedom == 1:
        return math.tan(math.pi * CONFIDENCE / 2)
    if freedom == 2:
        return CONFIDENCE * math.sqrt(2 / (1 - CONFIDENCE**2))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def _chunks(resamples: int, width: int) -> Iterator[int]:
    """Rows per chunk, so that rows × width stays bounded; they add up to `resamples`."""
    rows = max(1, CHUNK_NUMBERS // width)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)
