"""Weights lent to a model, and given back bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np


@contextlib.contextmanager
def swapped_weights(
    variables: Sequence[keras.Variable], values: Sequence[np.ndarray]
) -> Iterator[None]:
    """Lends `values` to `variables`; the old values come back bit for bit.

    They also come back if the body raises an error. Functions that were traced
    before see the lent values.

    Raises:
        ValueError: the numbers or the shapes of variables and values differ;
            nothing is changed then.

    Example:
        >>> zeros = [np.zeros(w.shape) for w in model.get_weights()]
        >>> with swapped_weights(model.weights, zeros):
        ...     float(np.abs(predict_logits(model, examples.test)).max())
        0.0
    """
    shapes = [tuple(variable.shape) for variable in variables]
    given = [np.shape(value) for value in values]
    if shapes != given:
        raise ValueError(
            f"Expected values of shapes {shapes}. Received: {given}."
        )
    kept = [variable.numpy() for variable in variables]
    try:
        assign_weights(variables, values)
        yield
    finally:
        assign_weights(variables, kept)


def assign_weights(
    variables: Sequence[keras.Variable], values: Sequence[np.ndarray]
) -> None:
    """Sets variables, one by one; nothing is traced again."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
