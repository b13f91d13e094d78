"""The size of an example's critical set as a score."""

from __future__ import annotations

import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.probes.critical_units import CriticalUnits


def critical_set_score(result: CriticalUnits, examples: Examples) -> np.ndarray:
    """Minus the size of each critical set, for `extra_scores`: [N].

    0 for an example that was misclassified from the start.

    Raises:
        ValueError: an example was not searched.
    """
    size = dict(
        zip(result.example_id.tolist(), result.size.tolist(), strict=True)
    )
    size |= dict.fromkeys(result.skipped.tolist(), 0)
    missing = [i for i in examples.example_id.tolist() if i not in size]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(examples)} examples were not "
            f"searched, for instance id {missing[:5]}. Search them all: "
            "SearchConfig(ids=tuple(examples.example_id.tolist()))."
        )
    return -np.array([size[i] for i in examples.example_id.tolist()], float)
