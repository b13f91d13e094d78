"""A control: units in a random order, another one for each example.

The order is a function of (seed, example id).
"""

from __future__ import annotations

import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.units.gated_model import GatedModel
from tfmemloc.units.rankings import Ranked

ADAPTIVE = False


def rank(gated: GatedModel, examples: Examples, gate: np.ndarray) -> Ranked:
    """Ranks units by a hash."""
    del gate
    return Ranked(-gated.hashes(examples))
