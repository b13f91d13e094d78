"""How far a unit's outgoing weights reach along the example's gradient: ours.

With W_u the outgoing weights of unit u and g_u = d l_i / d W_u,

    score_u  =  - <W_u, g_u> / |g_u|

Training on an example moves weights against its gradient. What W_u has learned
of *this* example is therefore its length in that one direction, and all else
in W_u, learned from others, is not counted. As a gate scales the outgoing
weights, <W_u, g_u> is the gradient at the gate: this is the first-order ranking
without the factor |g_u|, by which units win that are loud for the example and
hold nothing of it.

Costs one backward pass an example. Needs layers whose outgoing weights are
known (see `tfmemloc.graph.outgoing`); units of others score 0.
"""

from __future__ import annotations

import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.units.gated_model import GatedModel
from tfmemloc.units.rankings import Ranked

ADAPTIVE = False
_TINY = 1e-20


def rank(gated: GatedModel, examples: Examples, gate: np.ndarray) -> Ranked:
    """Ranks units by the length of their weights along the gradient."""
    del gate
    dot, _, gradient = gated.outgoing(examples)
    return Ranked(-dot / np.sqrt(gradient + _TINY))
