"""What results of removing units have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class OfUnits:
    """Base class of results of removing units of L layers.

    Units are numbered through all layers, input to output.
    """

    layers: tuple[str, ...]  # L names.
    sizes: np.ndarray  # [L] units of each.
    subsets: tuple[str, ...]  # S names.
    bystanders: np.ndarray  # [S] other examples on which harm is measured.
    baseline: np.ndarray  # [S] accuracy on them, nothing removed.

    def label_of(self, unit: int) -> str:
        """`<layer>[<channel>]` of a unit."""
        layer = int(self.layer_of(np.array(unit)))
        return f"{self.layers[layer]}[{unit - self.sizes[:layer].sum()}]"

    def layer_of(self, units: np.ndarray) -> np.ndarray:
        """The place of units' layers in `layers`."""
        return np.searchsorted(np.cumsum(self.sizes), units, side="right")

    def harm_in_words(self, row: Mapping[str, Any]) -> str:
        """The accuracies `<subset>_after` of a row, and those before."""
        return ", ".join(
            f"{row[f'{subset}_after']:.1%} of {count} {subset} (before: "
            f"{before:.1%})"
            for subset, count, before in zip(
                self.subsets, self.bystanders, self.baseline, strict=True
            )
        )
