"""How well scores tell members from others: rates, a curve, agreement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from tfmemloc.statistics import share_interval

_POINTS = 200  # Of a curve.


def measure(
    scores: np.ndarray, member: np.ndarray, rates: Sequence[float]
) -> dict[str, np.ndarray]:
    """True-positive rates with their intervals, and the area of the curve.

    Args:
        scores: of any shape; the higher, the likelier a member.
        member: bool, of the same shape.
        rates: [F] false-positive rates. The threshold is the smallest at which
            at most this share of the others lies above it.

    Returns:
        `tpr`, `low`, `high` [F] and `auc` [].
    """
    inside, outside = scores[member], np.sort(scores[~member])[::-1]
    tpr, low, high = [], [], []
    for rate in rates:
        allowed = int(rate * len(outside))
        threshold = outside[min(allowed, len(outside) - 1)]
        hits = int(np.sum(inside > threshold))
        ends = share_interval(hits, len(inside))
        tpr.append(hits / len(inside))
        low.append(ends[0])
        high.append(ends[1])
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    area = ranks[: len(inside)].sum() - len(inside) * (len(inside) + 1) / 2
    return {
        "tpr": np.array(tpr),
        "low": np.array(low),
        "high": np.array(high),
        "auc": np.array(area / (len(inside) * len(outside))),
    }


def curve_of(scores: np.ndarray, member: np.ndarray) -> np.ndarray:
    """[2, points]: false- and true-positive rates, evenly in logarithms."""
    inside, outside = np.sort(scores[member]), np.sort(scores[~member])
    allowed = np.unique(np.geomspace(1, len(outside), _POINTS).astype(int))
    allowed = np.append(allowed, np.full(_POINTS - len(allowed), allowed[-1]))
    thresholds = outside[::-1][allowed - 1]
    true = 1 - np.searchsorted(inside, thresholds, side="left") / len(inside)
    return np.stack([allowed / len(outside), true])


def agreement(
    scores: np.ndarray, member: np.ndarray, estimate: np.ndarray
) -> float:
    """Does an attack find what is memorized? A rank correlation in [-1, 1].

    Args:
        scores: [M, N] of each target and example.
        member: bool [M, N].
        estimate: [N] of memorization; examples where it is NaN do not count.

    Returns:
        Spearman's, over examples, of the estimate and of the mean rank of the
        example's score where it is a member less that where it is not. NaN
        where all examples are alike in one of them.
    """
    ranks = stats.rankdata(scores).reshape(scores.shape)
    known = np.isfinite(estimate)
    ranks, inside = ranks[:, known], member[:, known]
    higher = np.where(inside, ranks, 0).sum(axis=0) / inside.sum(axis=0)
    higher -= np.where(inside, 0, ranks).sum(axis=0) / (~inside).sum(axis=0)
    if not len(higher) or not np.ptp(higher) or not np.ptp(estimate[known]):
        return float("nan")
    return float(stats.spearmanr(higher, estimate[known]).statistic)
