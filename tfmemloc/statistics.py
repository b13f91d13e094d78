"""Intervals and ranks; the statistics themselves are SciPy's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

_RESAMPLES = 1000
# How many numbers are resampled at once.
_RESAMPLED_NUMBERS = 4_000_000


def bootstrap_interval(
    values: np.ndarray,
    statistic: Callable[..., np.ndarray],
    *,
    level: float = 0.95,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic, with a fixed seed.

    Args:
        values: [N].
        statistic: takes `axis`, as np.median does.
        level: of confidence.

    Example:
        >>> bootstrap_interval(np.arange(9), np.median)
        (1.0, 7.0)
    """
    values = np.asarray(values, float)
    if len(values) < 2 or np.ptp(values) == 0:
        value = float(statistic(values, axis=0))
        return value, value
    interval = stats.bootstrap(
        (values,),
        statistic,
        confidence_level=level,
        n_resamples=_RESAMPLES,
        batch=max(1, min(_RESAMPLES, _RESAMPLED_NUMBERS // len(values))),
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean of a few values; NaN for one value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float("nan"), float("nan")
    error = stats.sem(values)
    if error == 0:
        return float(values.mean()), float(values.mean())
    low, high = stats.t.interval(
        level, len(values) - 1, loc=values.mean(), scale=error
    )
    return float(low), float(high)


def share_interval(
    hits: int, count: int, level: float = 0.95
) -> tuple[float, float]:
    """Clopper and Pearson's interval for a share."""
    interval = stats.binomtest(hits, count).proportion_ci(level, "exact")
    return float(interval.low), float(interval.high)


def median_or_none(values: np.ndarray) -> float | None:
    """The median, NaN counting as larger than all; None where it is NaN."""
    value = np.median(np.where(np.isfinite(values), values, np.inf))
    return float(value) if np.isfinite(value) else None


def shared_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks in (0, 1]; equal values share the mean of theirs: [N]."""
    return stats.rankdata(values) / len(values)


def row_ranks(keys: np.ndarray) -> np.ndarray:
    """The rank of each key in its row's rising order, from 0: [N, U]."""
    order = np.argsort(keys, axis=1, kind="stable")
    ranks = np.empty_like(order)
    places = np.broadcast_to(np.arange(keys.shape[1]), order.shape)
    np.put_along_axis(ranks, order, places, axis=1)
    return ranks
