"""Names of subsets, their order, and what they are for.

A subset has any name. Some names mean something:

- `noisy` (label replaced by a wrong one), `atypical` and `canary` (a secret)
  have to be memorized;
- `clean` and `typical` are the rest of the training examples;
- `heldout`, `validation` and `test` are not trained on.

Every other name is a training subset like any other: it is trained on,
measured and shown.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

MEMORIZED = ("noisy", "atypical", "canary")
ORDINARY = ("clean", "typical")
NOT_TRAINED_ON = ("heldout", "validation", "test")
_FIRST = ("clean", "noisy", "typical", "atypical")


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """The names once each: known training subsets, others, not trained on."""
    names = set(names)
    others = sorted(names.difference(_FIRST, NOT_TRAINED_ON))
    return tuple(
        name for name in (*_FIRST, *others, *NOT_TRAINED_ON) if name in names
    )


def is_trained_on(subset: np.ndarray) -> np.ndarray:
    """[N] bool: whether examples of these subsets are trained on."""
    return ~np.isin(subset, NOT_TRAINED_ON)


def training(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the subsets that are trained on."""
    return tuple(name for name in names if name not in NOT_TRAINED_ON)


class OfSubsets:
    """Base class of what has subsets: which of them has a special meaning."""

    subsets: tuple[str, ...]

    @property
    def memorized(self) -> str | None:
        """The subset that has to be memorized: noisy or atypical."""
        return _first_of(MEMORIZED, self.subsets)

    @property
    def ordinary(self) -> str | None:
        """The rest of the training examples: clean or typical."""
        return _first_of(ORDINARY, self.subsets)

    @property
    def focus(self) -> str:
        """The subset that a table is about: the memorized one, or the first."""
        return self.memorized or self.subsets[0]


def _first_of(names: tuple[str, ...], found: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in found), None)
