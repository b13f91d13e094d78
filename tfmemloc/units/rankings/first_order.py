"""The paper's ranking: what a removal changes, to first order (section 4.4).

For example i and a population of examples j, with m_u the gate of unit u:

    score_u  =  d (mean_j l_j - l_i) / d m_u

is how much the objective  mean_j l_j - l_i  falls when the unit is removed:
the example's own loss rises, the others' does not. After each removal all
units are ranked anew.
"""

from __future__ import annotations

import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.units.gated_model import GatedModel, is_right
from tfmemloc.units.rankings import Ranked

ADAPTIVE = True


def rank(gated: GatedModel, examples: Examples, gate: np.ndarray) -> Ranked:
    """Ranks units by the gradient of the objective.

    With the objective `step`, the gate with the largest |gradient| moves by 1
    against it, so that a unit may also be doubled.
    """
    predicted, own = gated.own_gradient(examples, gate)
    here = np.flatnonzero(is_right(predicted, examples.label))
    gradient = np.zeros_like(own)
    if len(here):
        of_others = gated.population_term(
            gate[here], examples.example_id[here], own[here]
        )
        gradient[here] = of_others - own[here]
    if gated.config.objective == "zero":
        return Ranked(gradient, None, predicted)
    value = np.where(gradient <= 0, 2.0, 0.0)
    return Ranked(np.abs(gradient), value, predicted)
