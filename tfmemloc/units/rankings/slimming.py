"""Gates that are learned to be small: what the example cannot do without.

For each example by itself, from m = 1 and within [0, 1],

    minimize  l_i(m) + c * mean_u m_u,        score_u = m_u,  c = 10

by 50 steps of Adam (rate 0.05). Units that it needs keep their gate.

Reference: Liu et al., "Learning Efficient Convolutional Networks through
Network Slimming", 2017; as a localization method in the INJ benchmark (Chang,
Thomason and Jia, NAACL 2024).
"""

from __future__ import annotations

import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.units.descent import Adam
from tfmemloc.units.gated_model import GatedModel
from tfmemloc.units.rankings import Ranked

ADAPTIVE = False
PENALTY, STEPS, RATE = 10.0, 50, 0.05


def rank(gated: GatedModel, examples: Examples, gate: np.ndarray) -> Ranked:
    """Ranks units by the gates that the descent ends with."""
    adam, values = Adam(RATE), gate.copy()
    for _ in range(STEPS):
        _, own = gated.own_gradient(examples, values)
        change = adam.step(own + PENALTY / gated.gates.units)
        values = np.clip(values - change, 0.0, 1.0).astype(np.float32)
    return Ranked(values)
