"""The columns of examples, checked at the door."""

from __future__ import annotations

import typing

import numpy as np

from tfmemloc.checks import as_array, as_names, few

if typing.TYPE_CHECKING:
    from tfmemloc.data.examples import Examples


def integers(examples: Examples, field: str, count: int) -> np.ndarray:
    """A column of integers, read-only: [count], or a row each of labels."""
    array = as_array(getattr(examples, field))
    is_label = field not in ("example_id", "tie_id")
    fits = array.shape == (count,) or (
        is_label and array.ndim == 2 and len(array) == count
    )
    if not fits:
        raise ValueError(
            f"{examples.name}: expected {field} of shape ({count},), one for "
            f"each example. Received: shape {array.shape}."
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{examples.name}: expected {field} to be integers. Received: "
            f"dtype {array.dtype}."
        )
    array = array.astype(np.int64, copy=False).view()
    array.flags.writeable = False
    return array


def names(examples: Examples, field: str, count: int) -> np.ndarray:
    """A column of names, read-only: [count]."""
    given = as_array(getattr(examples, field))
    array = as_names(given)
    if array is None or array.shape != (count,):
        raise ValueError(
            f"{examples.name}: expected {field} of shape ({count},), a name "
            f"for each example. Received: shape {given.shape}, dtype "
            f"{given.dtype}."
        )
    array.flags.writeable = False
    return array


def check_labels(examples: Examples) -> None:
    """Refuses labels that are no classes."""
    if examples.classes < 1:
        raise ValueError(
            f"{examples.name}: expected at least one class. Received: "
            f"classes={examples.classes}."
        )
    for field in ("label", "true_label"):
        label = getattr(examples, field)
        if label.shape != examples.label.shape:
            raise ValueError(
                f"{examples.name}: expected {field} of the shape of label, "
                f"{examples.label.shape}. Received: shape {label.shape}."
            )
        wrong = label[label >= examples.classes]
        if label.ndim == 1:
            wrong = label[(label < 0) | (label >= examples.classes)]
        if wrong.size:
            raise ValueError(
                f"{examples.name}: expected {field} from 0 to "
                f"{examples.classes - 1}. Received: {few(np.unique(wrong))}."
            )


def check_unique_ids(examples: Examples) -> None:
    """Refuses ids that come twice or are negative."""
    ids = examples.example_id
    for given in (ids, examples.tie_id):
        if given is not None and given.size and given.min() < 0:
            raise ValueError(
                f"{examples.name}: ids of examples must not be negative. "
                f"Received: {given.min()}."
            )
    values, counts = np.unique(ids, return_counts=True)
    if np.any(counts > 1):
        raise ValueError(
            f"{examples.name}: expected each example id once. Received more "
            f"often: {few(values[counts > 1])}."
        )
