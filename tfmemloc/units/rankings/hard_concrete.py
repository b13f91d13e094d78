"""Random gates whose chance to be open is learned: few stay open.

With v uniform and s = sigmoid((log v - log(1 - v) + a) / b), b = 2 / 3,

    m = clip(1.2 s - 0.1, 0, 1)
    minimize over a   l_i(m) + c * mean_u sigmoid(a_u - b log(0.1 / 1.1))

for each example by itself, by 100 steps of Adam (rate 0.1, c = 10, from
a = 2); score_u = sigmoid(a_u). The draws are a function of (seed, step, id).

Reference: Louizos, Welling and Kingma, "Learning Sparse Neural Networks through
L0 Regularization", 2018; the best method of the INJ benchmark (Chang, Thomason
and Jia, NAACL 2024).
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from tfmemloc.data.examples import Examples
from tfmemloc.layers import masks
from tfmemloc.units.descent import Adam
from tfmemloc.units.gated_model import GatedModel
from tfmemloc.units.rankings import Ranked

ADAPTIVE = False
PENALTY, STEPS, RATE = 10.0, 100, 0.1
_HEAT, _LOW, _HIGH = 2 / 3, -0.1, 1.1
_START = 2.0


def rank(gated: GatedModel, examples: Examples, gate: np.ndarray) -> Ranked:
    """Ranks units by how probably their gate is open in the end."""
    del gate
    units = gated.gates.units
    adam = Adam(RATE)
    alpha = np.full((len(examples), units), _START)
    shift = _HEAT * np.log(-_LOW / _HIGH)
    for step in range(STEPS):
        stream = masks.fold_seed(gated.config.seed, "hard concrete", step)
        bits = masks.hash_bits_numpy(stream, examples.example_id, units)
        v = (bits.astype(np.float64) + 0.5) / 2**32
        s = expit((np.log(v) - np.log1p(-v) + alpha) / _HEAT)
        stretched = (_HIGH - _LOW) * s + _LOW
        open_ = (stretched > 0) & (stretched < 1)
        _, own = gated.own_gradient(
            examples, np.clip(stretched, 0, 1).astype(np.float32)
        )
        inner = own * open_ * (_HIGH - _LOW) * s * (1 - s) / _HEAT
        chance = expit(alpha - shift)
        alpha -= adam.step(inner + PENALTY / units * chance * (1 - chance))
    return Ranked(expit(alpha))
