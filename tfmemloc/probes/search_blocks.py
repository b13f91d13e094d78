"""Chooses the examples to search, and searches them block by block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import auto as tqdm

from tfmemloc import storage
from tfmemloc.checks import as_array, check_range
from tfmemloc.data.examples import Examples
from tfmemloc.units import GatedModel, SearchConfig, drawn, rankings
from tfmemloc.units import search as searching
from tfmemloc.units.sought import Sought

_BLOCK = 256


def choose_ids(
    examples: Examples, *, count: int | None = None, seed: int = 0
) -> np.ndarray:
    """Draws equal numbers of ordinary and memorized examples; gives their ids.

    Args:
        examples: with noisy or atypical ones.
        count: of each subset; None takes all memorized ones.
        seed: of the draw: it hashes the ids, and the smallest hashes are taken.

    Returns:
        int64, the ordinary (clean or typical) examples first.

    Raises:
        ValueError: there are no noisy or atypical examples.

    Example:
        >>> len(choose_ids(examples, count=5))
        10
    """
    if examples.memorized is None:
        raise ValueError(
            f"{examples.name} has no noisy or atypical examples. Expected "
            "some, or `ids` that say which examples to search; received the "
            f"subsets {', '.join(examples.subsets)}."
        )
    if count is not None:
        check_range("count", count, 1, None)
    else:
        count = len(examples.of_subset(examples.memorized))
    return np.concatenate(
        [
            drawn(examples.of_subset(subset).example_id, count, seed, "search")
            for subset in (examples.ordinary, examples.memorized)
            if subset is not None
        ]
    )


def checked_examples(examples: Examples, ids) -> Examples:
    """The examples with these ids; each once, and at least one."""
    ids = as_array(ids)
    if ids.ndim != 1 or not ids.size:
        raise ValueError(
            "`ids` expected a list of at least one example id. Received: "
            f"shape {ids.shape}."
        )
    values, count = np.unique(ids, return_counts=True)
    if np.any(count > 1):
        raise ValueError(
            "`ids` expected each id once. Received more than once: "
            f"{', '.join(map(str, values[count > 1][:5]))}."
        )
    return examples.of_ids(ids)


def search_blocks(
    gated: GatedModel,
    searched: Examples,
    config: SearchConfig,
    finished: storage.Parts,
    progress: bool,
) -> dict[str, np.ndarray]:
    """The columns of `CriticalUnits` for all blocks; finished ones are read.

    Args:
        gated: the model.
        searched: examples that are predicted as labelled.
        config: of the search.
        finished: where blocks are kept.
        progress: show a progress bar.
    """
    ranking = rankings.named(config.ranking)
    controls = {
        "random_size": rankings.named("random"),
        "activation_size": rankings.named("activations"),
    }
    parts = [
        searching.nothing_found(len(gated.bystanders.subsets))
        | dict.fromkeys(controls, np.zeros(0))
    ]
    with tqdm.tqdm(
        total=len(searched), desc="critical units", disable=not progress
    ) as bar:
        for b in range(-(-len(searched) // _BLOCK)):
            rows = np.arange(len(searched))[b * _BLOCK : (b + 1) * _BLOCK]
            block = Sought.single(searched.take(rows))
            part = finished.read(f"block_{b:04d}")
            if part is None:
                part = searching.search(gated, block, ranking)
                for name, control in controls.items():
                    part[name] = searching.sizes_in_order(gated, block, control)
                finished.write(f"block_{b:04d}", part)
            parts.append(part)
            bar.update(len(block))
    return _joined(parts)


def _joined(parts: Sequence[dict]) -> dict[str, np.ndarray]:
    """The columns of blocks, whose longest sets differ, one below the other."""
    longest = max(part["units"].shape[1] for part in parts)
    padding = {"units": -1, "gate": 1.0, "critical": False}

    def padded(name, value):
        if name not in padding:
            return value
        width = ((0, 0), (0, longest - value.shape[1]))
        return np.pad(value, width, constant_values=padding[name])

    return {
        name: np.concatenate([padded(name, part[name]) for part in parts])
        for name in parts[0]
    }
