"""What is searched side by side: examples, or groups of examples.

A search keeps one set of gates for each group. The group of a single example is
the example itself; all examples of a larger one lose the same units.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.units.gated_model import GatedModel


@dataclasses.dataclass(frozen=True, eq=False)
class Sought:
    """G groups of N examples.

    Attributes:
        examples: N examples.
        group: [N] the number of each one's group, from 0 to G - 1, rising.
        share: of a group's examples whose prediction has to change.
    """

    examples: Examples
    group: np.ndarray
    share: float = 1.0

    @classmethod
    def single(cls, examples: Examples) -> Sought:
        """Each example by itself."""
        return cls(examples, np.arange(len(examples)))

    def __len__(self) -> int:
        return int(self.group[-1]) + 1 if len(self.group) else 0

    @property
    def starts(self) -> np.ndarray:
        """[G] the row of each group's first example."""
        return np.searchsorted(self.group, np.arange(len(self)))

    def of(self, numbers: np.ndarray) -> Sought:
        """Some of the groups, in rising order, with numbers from 0 again."""
        rows = np.flatnonzero(np.isin(self.group, numbers))
        return Sought(
            self.examples.take(rows),
            np.searchsorted(numbers, self.group[rows]),
            self.share,
        )

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Means over the examples of each group: [N, ...] -> [G, ...]."""
        count = np.bincount(self.group, minlength=len(self))
        total = np.add.reduceat(values, self.starts, axis=0)
        return total / count.reshape(-1, *[1] * (values.ndim - 1))

    def has_flipped(self, is_wrong: np.ndarray) -> np.ndarray:
        """[G] bool: whether enough of each group's [N] predictions changed."""
        # One less of 10,000 examples is more than the rounding of a mean.
        return self.mean(is_wrong.astype(float)) > self.share - 1e-6

    def flips(self, gated: GatedModel, gate: np.ndarray) -> np.ndarray:
        """[G] bool: the same under gates [G, U]."""
        return self.has_flipped(
            ~gated.is_right(self.examples, gate[self.group])
        )
