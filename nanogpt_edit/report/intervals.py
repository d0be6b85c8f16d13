"""Changes over the edited facts, measured in pairs: the same facts before and after.

The evaluation writes its own intervals; the only ones made here are those of quantities that no file holds because
they join two columns of the edit's records (neighbours lost, edited facts newly at rank 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from nanogpt_edit.report.records import Change, Interval

RESAMPLES = 10_000


def mean_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean with its 95% percentile-bootstrap interval over the values. Raises ValueError when there are none."""
    data = numpy.asarray(values, dtype=numpy.float64)
    if data.size == 0:
        raise ValueError("no values")
    low, high = numpy.percentile(_resampled_means(data, seed), (2.5, 97.5))
    return Interval(value=float(data.mean()), low=float(low), high=float(high), n=int(data.size))


def paired_change(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Change:
    """Mean of after - before over the same units; p is the two-sided bootstrap share on the far side of zero."""
    delta = numpy.asarray(after, dtype=numpy.float64) - numpy.asarray(before, dtype=numpy.float64)
    if delta.size == 0:
        raise ValueError("no values")
    means = _resampled_means(delta, seed)
    low, high = numpy.percentile(means, (2.5, 97.5))
    far = min(float((means <= 0).mean()), float((means >= 0).mean()))
    return Change(
        delta=float(delta.mean()),
        low=float(low),
        high=float(high),
        p_value=min(1.0, 2 * far),
        n=int(delta.size),
        smallest_detectable=None,
    )


def _resampled_means(data: numpy.ndarray, seed: int) -> numpy.ndarray:
    draws = numpy.random.default_rng(seed).integers(0, data.size, size=(RESAMPLES, data.size))
    return data[draws].mean(axis=1)
