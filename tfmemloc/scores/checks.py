"""Predictions and scores checked before they are used."""

from __future__ import annotations

import math
import warnings

import numpy as np

from tfmemloc import losses
from tfmemloc.checks import as_array
from tfmemloc.data.examples import Examples
from tfmemloc.scores.example_scores import ExampleScores

# Keeps the logarithm of a probability of 0 finite.
TINY = 1e-12
# From this agreement on, predictions of so many labels may be in-sample.
_REPEATS, _FEW = 0.995, 50


def check_classes(examples: Examples) -> None:
    """Refuses labels that cannot be ranked.

    Raises:
        ValueError: there is only one class, or a label for each position.
    """
    if examples.label.ndim > 1:
        raise ValueError(
            f"{examples.name} has a label for each position. Expected one "
            "class for each example, which may be wrong."
        )
    if len(np.unique(examples.label)) < 2:
        raise ValueError(
            f"All {len(examples)} labels of {examples.name} are "
            f"{examples.label[:1].tolist()}. Expected at least two classes: "
            "among one, none can be wrong."
        )


def log_probabilities(name, value, examples: Examples, ranks) -> np.ndarray:
    """Predictions of the examples as log-probabilities: [(J,) N, classes]."""
    value = as_array(value)
    expected = (len(examples), examples.classes)
    if (
        value.ndim not in ranks
        or value.shape[-2:] != expected
        or not len(value)
    ):
        rows = "one row for each example and one column for each class"
        if 3 in ranks:
            epochs = ", for each epoch" if 2 not in ranks else ", or a stack"
            rows += epochs
        raise ValueError(
            f"`{name}` expected logits of shape {expected}, {rows}. Received: "
            f"shape {value.shape}. Where a class has no label, say how many "
            "there are: `from_arrays(..., classes=...)`."
        )
    _check_numbers(name, value)
    bad = ~np.isfinite(value).all(axis=-1).reshape(-1, len(examples))
    if bad.any():
        ids = examples.example_id[bad.any(axis=0)][:5].tolist()
        raise ValueError(
            f"`{name}` has logits that are not finite, of the examples "
            f"{ids}. Expected predictions of all examples in each epoch."
        )
    return _normalized(value)


def _check_numbers(name: str, value: np.ndarray) -> None:
    """Refuses predictions that are text or objects."""
    if value.dtype.kind not in "fiu":
        raise ValueError(
            f"`{name}` expected predictions that are numbers. Received: dtype "
            f"{value.dtype}."
        )


def _normalized(value: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits, or of probabilities."""
    value = value.astype(np.float64)
    if (value >= 0).all() and (np.abs(value.sum(axis=-1) - 1) < 1e-3).all():
        value = np.log(np.maximum(value, TINY))
    return losses.log_softmax(value)


def checked_held_out(held_out, examples: Examples, dropped: np.ndarray):
    """Log-probabilities [J, M, classes] and labels [M]."""
    if not isinstance(held_out, tuple | list) or len(held_out) != 2:
        raise ValueError(
            "`held_out` expected a pair, (predictions, labels). Received: "
            f"{type(held_out).__name__}."
        )
    value, label = (as_array(part) for part in held_out)
    count = label.shape[:1] or ("M",)
    expected = (*dropped.shape[:-2], *count, examples.classes)
    if value.shape != expected or label.ndim != 1:
        raise ValueError(
            "`held_out` expected predictions, in the form of `dropped`, and "
            f"one label for each: shapes {expected} and {count}. "
            f"Received: shapes {value.shape} and {label.shape}."
        )
    is_class = label.dtype.kind in "iu" and np.isin(
        label, np.arange(examples.classes)
    )
    _check_numbers("held_out", value)
    if not np.all(is_class) or not np.isfinite(value).all():
        raise ValueError(
            "`held_out` expected finite predictions, and integer labels from 0 "
            f"to {examples.classes - 1}. Received: labels of dtype "
            f"{label.dtype}, for instance {label[:5].tolist()}, and "
            f"{int((~np.isfinite(value)).sum())} predictions not finite."
        )
    judges = math.prod(dropped.shape[:-2])
    return _normalized(value).reshape(judges, *expected[-2:]), label


def warn_of_in_sample(judges, label, held_out) -> None:
    """Warns of predictions that look as if they repeat what was learned.

    A network that was trained on labels and remembers them agrees with all of
    them, the wrong ones among them, and more often than with other labels.

    Args:
        judges: [J, N, classes] log-probabilities.
        label: [N] as given.
        held_out: ([J, M, classes], [M]), or None.
    """
    agrees = (judges[-1].argmax(axis=1) == label).mean()
    if len(label) < _FEW or agrees < _REPEATS:
        return
    others = ""
    if held_out is not None and len(held_out[1]) >= _FEW:
        known = (held_out[0][-1].argmax(axis=1) == held_out[1]).mean()
        error = math.sqrt(max(known * (1 - known), 1e-4) / len(held_out[1]))
        if known + 3 * error >= agrees:
            return
        others = f", and with {known:.1%} of the held-out ones"
    warnings.warn(
        f"`dropped` agrees with {agrees:.1%} of the {len(label)} labels"
        f"{others}: as a network does that was trained on them and remembers "
        "the wrong ones, too. Expected predictions of networks that were not "
        "trained on these labels (cross-validation), or of one without its "
        "memory (tied dropout dropped; `find_label_errors(model, examples)` "
        "takes it out).",
        stacklevel=3,
    )


def checked_score(name: str, value, examples: Examples, taken) -> np.ndarray:
    """A score that the caller passed, checked: [N]."""
    if name in taken or name in ExampleScores.COLUMNS:
        raise ValueError(
            f"A score of `extra_scores` is called {name!r}, as a column of "
            "the result already is. Give it another name."
        )
    value = np.asarray(value, float)
    if value.shape != (len(examples),):
        raise ValueError(
            f"The score {name!r} expected {len(examples)} numbers, one for "
            f"each example. Received: shape {value.shape}."
        )
    if not np.isfinite(value).all():
        ids = examples.example_id[~np.isfinite(value)]
        raise ValueError(
            f"The score {name!r} is not finite for {len(ids)} examples, for "
            f"instance id {ids[:5].tolist()}. Expected a number for each. For "
            "memorization estimates add runs with further subset_seeds, until "
            "each example is in some and left out of others."
        )
    return value
