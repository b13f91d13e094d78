"""The first units of each layer in the order of a ranking."""

from __future__ import annotations

import numpy as np

from tfmemloc.units.gates import UnitGates


def first_of_layers(
    score: np.ndarray, gates: UnitGates, share: float
) -> np.ndarray:
    """Which units are among the first share of their layer: bool [N, U].

    At least one of each layer is.

    Args:
        score: [N, U]; the largest goes first.
        gates: of the units.
        share: of each layer.
    """
    size = gates.sizes[gates.layer_of]
    allowed = np.maximum(1, np.round(share * size))
    places = np.stack([ranks_within(row, gates.layer_of) for row in score])
    return places < allowed


def ranks_within(score: np.ndarray, part: np.ndarray) -> np.ndarray:
    """The place of each unit in its part, 0 for the largest score: [U]."""
    order = np.lexsort((-score, part))
    start = np.searchsorted(part[order], part[order])
    ranks = np.empty(len(score), int)
    ranks[order] = np.arange(len(score)) - start
    return ranks
