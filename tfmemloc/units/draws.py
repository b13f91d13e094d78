"""Which examples stand for all others: drawn by (seed, id)."""

from __future__ import annotations

import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.layers import masks
from tfmemloc.units.config import SearchConfig


def drawn(ids: np.ndarray, count: int, seed: int, what: str) -> np.ndarray:
    """At most `count` of the ids, drawn by the seed, in rising order."""
    stream = masks.fold_seed(seed, what)
    hashes = masks.hash_bits_numpy(stream, ids, 1)[:, 0]
    return np.sort(ids[np.argsort(hashes, kind="stable")[:count]])


def draw_bystanders(examples: Examples, config: SearchConfig) -> Examples:
    """The examples on which accuracy after a removal is measured."""
    if config.bystanders is None:
        return examples
    ids = [
        drawn(
            examples.of_subset(subset).example_id,
            config.bystanders,
            config.seed,
            "others",
        )
        for subset in examples.subsets
    ]
    return examples.of_ids(np.concatenate(ids))
