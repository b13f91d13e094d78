"""A control: the most active units first, by the mean |output| of a unit."""

from __future__ import annotations

import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.units.gated_model import GatedModel
from tfmemloc.units.rankings import Ranked

ADAPTIVE = False


def rank(gated: GatedModel, examples: Examples, gate: np.ndarray) -> Ranked:
    """Ranks units by their mean |output| for the example, none removed."""
    del gate
    return Ranked(gated.activity(examples))
