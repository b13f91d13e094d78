"""The names of units, which are numbered through all layers."""

from __future__ import annotations

import numpy as np


class OfUnits:
    """Base class of what numbers the units of L layers, input to output."""

    layers: tuple[str, ...]  # L names.
    sizes: np.ndarray  # [L] units of each.

    def label_of(self, unit: int) -> str:
        """`<layer>[<channel>]` of a unit."""
        layer = int(self.layer_of(np.array(unit)))
        return f"{self.layers[layer]}[{unit - self.sizes[:layer].sum()}]"

    def layer_of(self, units: np.ndarray) -> np.ndarray:
        """The place of units' layers in `layers`."""
        return np.searchsorted(np.cumsum(self.sizes), units, side="right")
