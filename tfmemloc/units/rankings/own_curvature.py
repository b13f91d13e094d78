"""Units that the example uses and that others do not: ours.

    score_u  =  - (d l_i / d m_u) / sqrt(E_j (d l_j / d m_u)^2 + e)

over a population of examples j. The denominator is the curvature (the diagonal
of the empirical Fisher matrix) of the loss along the gate of unit u: what many
examples use has much of it, what one example was given has little. So the
ranking is the first-order one in units of what is usual for the unit, with e a
hundredth of the mean over units.

It costs one backward pass for the example, and one over the population for all
examples together.
"""

from __future__ import annotations

import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.units.gated_model import GatedModel
from tfmemloc.units.rankings import Ranked

ADAPTIVE = False
_SHARE = 0.01


def rank(gated: GatedModel, examples: Examples, gate: np.ndarray) -> Ranked:
    """Ranks units by the gradient of the loss over what is usual."""
    predicted, own = gated.own_gradient(examples, gate)
    usual = gated.population_squares
    return Ranked(
        -own / np.sqrt(usual + _SHARE * usual.mean()), None, predicted
    )
