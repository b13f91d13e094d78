"""How much an example's loss rises when one unit alone is removed.

    score_u  =  l_i (without unit u)  -  l_i

Exact where `first_order` is a tangent, and a forward pass for each unit where
that takes one backward pass for all of them. All units are ranked once, on the
whole network, so that units which stand in for each other score low.

Reference: the zero-out method of the INJ benchmark (Chang, Thomason and Jia,
"Do Localization Methods Actually Localize Memorized Data in LLMs?", NAACL
2024).
"""

from __future__ import annotations

import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.units.gated_model import GatedModel
from tfmemloc.units.rankings import Ranked

ADAPTIVE = False


def rank(gated: GatedModel, examples: Examples, gate: np.ndarray) -> Ranked:
    """Ranks units by the rise of the loss without each of them alone."""
    units = gated.gates.units
    # The last row changes nothing: the loss as it is.
    changes = np.ones((units + 1, units), np.float32)
    np.fill_diagonal(changes, 0.0)
    losses = gated.losses(examples, gate, changes)
    return Ranked(losses[:, :units] - losses[:, units:])
