"""Rankings: in which order units are removed. One file each, called by name.

A ranking is a module with

- `ADAPTIVE`: whether units are ranked anew after each removal;
- `rank(gated, examples, gate)`: a `Ranked` for B examples under the gates
  [B, U] that they have now. The unit with the largest score goes first.

The name of the module is the value of `SearchConfig.ranking`. A new ranking is
a new file in this folder, and nothing else.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np


class Ranked(NamedTuple):
    """What a ranking says of B examples.

    Attributes:
        score: [B, U], the largest goes first. Rows of examples whose
            prediction has changed already are not looked at.
        value: [B, U] what the gate of a unit becomes; None: 0, removed.
        predicted: [B] the classes that are predicted now, where the ranking
            has them at hand.
    """

    score: np.ndarray
    value: np.ndarray | None = None
    predicted: np.ndarray | None = None


def names() -> tuple[str, ...]:
    """The names of the rankings that there are."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def named(name: str) -> ModuleType:
    """The ranking of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in names():
        raise ValueError(
            f"`ranking` must be one of {', '.join(map(repr, names()))}. "
            f"Received: ranking={name!r}."
        )
    return importlib.import_module(f"{__name__}.{name}")


def shared(wanted: Sequence[str]) -> str:
    """The ranking to make one `GatedModel` with, for several of them.

    Of all rankings only first_order has something computed beforehand.
    """
    return "first_order" if "first_order" in wanted else wanted[0]
