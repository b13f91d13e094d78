"""How well a score finds the labels that are known to be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmemloc.statistics import bootstrap_interval

if TYPE_CHECKING:
    from tfmemloc.scores.example_scores import ExampleScores

# What `evaluate_scores` says of each score.
MEASURES = ("auroc", "average_precision", "precision_at_n")

_RESAMPLES = 200

# How many numbers a pass over resamples holds at once.
_RESAMPLED_NUMBERS = 4_000_000


def evaluate_scores(scores: ExampleScores) -> list[dict[str, Any]]:
    """How well each score finds the wrong labels, where they are known.

    Returns:
        A row for each score: area under the ROC curve, average precision, and
        precision at the true number of wrong labels, each with a 95 %
        bootstrap interval. Empty where no label is known to be wrong.

    Example:
        >>> off = predict_logits(with_inference(model, "drop"), examples.train)
        >>> scores = scores_of_logits(examples.train, dropped=off)
        >>> evaluate_scores(scores)[0]["score"]
        'combined'
    """
    wrong = scores.label != scores.true_label
    if not wrong.any() or wrong.all():
        return []
    parts = [[] for _ in scores.names]
    for weights in _resamples(len(wrong)):
        for part, value in zip(parts, scores.values.T, strict=True):
            part.append(_retrieval(wrong, value, weights))
    rows = []
    for name, part in zip(scores.names, parts, strict=True):
        row: dict[str, Any] = {"score": name}
        for measure in MEASURES:
            values = np.concatenate([found[measure] for found in part])
            low, high = np.nanquantile(values[1:], [0.025, 0.975])
            row |= {
                measure: float(values[0]),
                f"{measure}_low": float(low),
                f"{measure}_high": float(high),
            }
        rows.append(row)
    return rows


def _resamples(count: int) -> Iterator[np.ndarray]:
    """How often each example counts: [B, N], first once each, then drawn."""
    rng = np.random.default_rng(0)
    yield np.ones((1, count), np.int32)
    step = max(1, _RESAMPLED_NUMBERS // count)
    for start in range(0, _RESAMPLES, step):
        yield rng.multinomial(
            count,
            np.full(count, 1 / count),
            min(step, _RESAMPLES - start),
        ).astype(np.int32)


def _retrieval(wrong, value, weights) -> dict[str, np.ndarray]:
    """Three measures of a ranking for each row of weights: [B] each.

    Equal values are one step of the curve, as in scikit-learn; where the last
    place is among equal ones, the precision is the mean over their orders.
    """
    order = np.argsort(-value, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(value[order])), len(value) - 1)
    weights = weights[:, order]
    hits = np.cumsum(weights * wrong[order], axis=1, dtype=np.int32)
    seen = np.cumsum(weights, axis=1, dtype=np.int32)
    # As floats: a product of two counts may not fit their integers.
    total, count = (part[:, -1].astype(np.float64) for part in (hits, seen))
    true, all_ = hits[:, ends], seen[:, ends]
    false = all_ - true
    zero = np.zeros((len(weights), 1), true.dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(all_ > 0, true / all_, 0.0)
        steps = np.diff(true, axis=1, prepend=zero)
        falls = np.diff(false, axis=1, prepend=zero)
        area = (falls * (true - steps / 2)).sum(axis=1)
        step = (all_ < total[:, np.newaxis]).sum(axis=1)[:, np.newaxis]
        here, fall, hit, reached = (
            np.take_along_axis(part, step, axis=1)[:, 0]
            for part in (steps, falls, true, all_)
        )
        # The last step may go past the place: so many are taken of it.
        taken = total - (reached - here - fall)
        expected = hit - here + taken * here / (here + fall)
        return {
            "auroc": area / (total * (count - total)),
            "average_precision": (steps * precision).sum(axis=1) / total,
            "precision_at_n": expected / total,
        }


def calibration_error(scores: ExampleScores, bins: int = 10) -> float:
    """Mean gap between suspicion and share of wrong labels, bin by bin.

    The expected calibration error of `suspicion`, in [0, 1]; NaN where no
    label is known to be wrong.
    """
    wrong = scores.label != scores.true_label
    if not wrong.any():
        return float("nan")
    place = np.minimum((scores.suspicion * bins).astype(int), bins - 1)
    gaps = np.bincount(place, wrong - scores.suspicion, minlength=bins)
    return float(np.abs(gaps).sum() / len(wrong))


def suggestions_right(scores: ExampleScores) -> tuple[float, float, float]:
    """Share of wrong labels whose suggestion is the true one, and interval."""
    wrong = scores.label != scores.true_label
    if not wrong.any():
        return float("nan"), float("nan"), float("nan")
    right = (scores.suggested == scores.true_label)[wrong].astype(float)
    return float(right.mean()), *bootstrap_interval(right, np.mean)
