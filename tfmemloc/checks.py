"""Checks of single values at the door: of configs, layers and functions."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """Whether it is a real number, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Whether it is an integer, NumPy's too, and no truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def as_array(value: Any) -> np.ndarray:
    """The value as an array; of text where it cannot be one.

    So rows of different lengths, or of text and bytes that is not ASCII. No
    check for numbers lets text pass, and each says what it wanted.
    """
    try:
        return np.asarray(value)
    except ValueError:
        return np.asarray("rows of different lengths or kinds")


def as_names(value: Any) -> np.ndarray | None:
    """Names as an array of text, or None where some are no names.

    Names are text (a table's column of objects too), bytes in UTF-8, whole
    numbers or truth values; other bytes become \\x.. codes.
    """
    array = as_array(value)
    if array.dtype.kind == "O":
        is_text = all(isinstance(name, str) for name in array.ravel())
        return array.astype(str) if is_text else None
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8", "backslashreplace")
    return array.astype(str) if array.dtype.kind in "Uiub" else None


def few(values: Any) -> str:
    """The first five values as text."""
    values = [str(value) for value in list(values)[:6]]
    return ", ".join(values[:5]) + (", ..." if len(values) > 5 else "")


def as_ids(owner: str, value: Any) -> np.ndarray:
    """Ids of examples as int64 [N].

    Args:
        owner: whose they are, for the message.
        value: a row of integers; an id may come more than once.

    Raises:
        ValueError: they are none.
    """
    ids = as_array(value)
    if ids.size and ids.dtype.kind not in "iu":
        raise ValueError(
            f"{owner}: expected ids that are integers. Received: dtype "
            f"{ids.dtype}, {few(ids.ravel())}."
        )
    if ids.ndim != 1:
        raise ValueError(
            f"{owner}: expected ids in a row, [N]. Received: shape {ids.shape}."
        )
    return ids.astype(np.int64)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    """The value, refused if it is not one of the choices.

    Raises:
        ValueError: says which ones there are.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}. "
            f"Received: {name}={value!r}."
        )
    return value


def check_count(
    name: str, value: Any, low: int = 1, high: int | None = None
) -> None:
    """Refuses what is no integer in [low, high]; `high` may be None.

    Raises:
        ValueError: says the limits.
    """
    inside = (
        is_integer(value) and value >= low and (high is None or value <= high)
    )
    if not inside:
        raise ValueError(
            f"`{name}` must be an integer, {_limits(low, high)}. Received: "
            f"{name}={value!r}."
        )


def check_range(name: str, value: Any, low: Any, high: Any) -> None:
    """Refuses a number outside of [low, high]; `high` may be None.

    Raises:
        ValueError: says the limits.
    """
    is_real = is_number(value)
    inside = is_real and value >= low and (high is None or value <= high)
    if not inside:  # Also refuses NaN.
        raise ValueError(
            f"`{name}` must be {'' if is_real else 'a number, '}"
            f"{_limits(low, high)}. Received: {name}={value!r}."
        )


def _limits(low: Any, high: Any) -> str:
    return f"at least {low}" + ("" if high is None else f", at most {high}")
