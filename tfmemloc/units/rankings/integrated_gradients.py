"""What a unit contributes on the way from nothing to its output.

    score_u  =  integral over m from 0 to 1 of  d p_i(label) / d m_u

with the gates of one layer at m, all other layers whole; 20 steps (midpoints).

Reference: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep
Networks", 2017; as a localization method in Dai et al., "Knowledge Neurons in
Pretrained Transformers", 2022.
"""

from __future__ import annotations

import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.units.gated_model import GatedModel
from tfmemloc.units.rankings import Ranked

ADAPTIVE = False
_STEPS = 20


def rank(gated: GatedModel, examples: Examples, gate: np.ndarray) -> Ranked:
    """Ranks units by the integrated gradient of the label's probability."""
    del gate
    score = np.zeros((len(examples), gated.gates.units))
    whole = np.ones((1, gated.gates.units), np.float32)
    for layer in range(len(gated.gates.names)):
        here = gated.gates.layer_of == layer
        for step in range(_STEPS):
            scaled = gated.open_gates(len(examples))
            scaled[:, here] = (step + 0.5) / _STEPS
            _, own = gated.own_gradient(examples, scaled)
            chance = np.exp(-gated.losses(examples, scaled, whole))
            score[:, here] -= (chance * own / _STEPS)[:, here]
    return Ranked(score)
