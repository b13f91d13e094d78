"""The fields of configs: their types, and the check that values are of them.

A config is a frozen dataclass, and its annotations say what its fields are: an
integer, a number, a name, some of these, one of a few choices, perhaps None.
`check_fields` holds each value to that when the config is made, so that no
`epochs=1.5` or `layers="conv1"` is found out an hour later, or never.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from tfmemloc.checks import check_choice, is_integer, is_number


@functools.cache
def hints(cls: type) -> Mapping[str, Any]:
    """The types of the fields of a config."""
    found = typing.get_type_hints(cls)
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


def without_none(hint: Any) -> tuple[Any, bool]:
    """A type without `| None`, and whether it had that."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [m for m in typing.get_args(hint) if m is not type(None)]
        return members[0], True
    return hint, False


def check_fields(config: Any) -> None:
    """Refuses a field whose value is not of its type, and gives it one form.

    Lists, ranges and arrays of one axis become tuples, numbers of NumPy those
    of Python, and paths strings.

    Raises:
        ValueError: says what the field must be.
    """
    for name, hint in hints(type(config)).items():
        value = getattr(config, name)
        wanted, may_be_none = without_none(hint)
        if value is None and may_be_none:
            continue
        if typing.get_origin(wanted) is Literal:
            check_choice(name, value, typing.get_args(wanted))
            continue
        try:
            value = _of(wanted, value)
        except TypeError:
            words = _words(wanted) + (" or None" if may_be_none else "")
            raise ValueError(
                f"`{name}` must be {words}. Received: {name}={value!r} of type "
                f"{type(value).__name__}."
            ) from None
        object.__setattr__(config, name, value)


_WORDS = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "truth values"),
    str: ("a string", "strings"),
}


def _words(wanted: Any) -> str:
    if typing.get_origin(wanted) is tuple:
        return f"a tuple of {_WORDS[typing.get_args(wanted)[0]][1]}"
    return _WORDS[wanted][0]


def _of(wanted: Any, value: Any) -> Any:
    """The value in the form of a type, or a TypeError."""
    if typing.get_origin(wanted) is tuple:
        return _tuple_of(typing.get_args(wanted)[0], value)
    if wanted is bool and isinstance(value, bool | np.bool_):
        return bool(value)
    if wanted is int and is_integer(value):
        return int(value)
    if wanted is float and is_number(value) and math.isfinite(value):
        return int(value) if is_integer(value) else float(value)
    if wanted is str and isinstance(value, str | os.PathLike):
        return str(os.fspath(value))  # Of NumPy's strings too.
    raise TypeError


def _tuple_of(member: Any, value: Any) -> tuple:
    is_row = isinstance(value, np.ndarray) and value.ndim == 1
    if not (is_row or isinstance(value, tuple | list | range)):
        raise TypeError
    return tuple(_of(member, item) for item in value)
