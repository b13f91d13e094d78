"""Output-vector editing: critical units write another answer.

For each example to forget, the units that are critical for it are searched for.
What such a unit writes is its output vector, its outgoing weights: a unit is
not silenced, as where it becomes 0, but made to write towards another answer.
Only the outgoing weights of those units are trained:

    minimize  E_F CE(other answer)  +  w E_D CE

The other answer is the one that the network holds next likely, so that no true
label is needed.

Reference: output-vector editing in 2606.18767, for the MLPs of language models,
one rank-one edit for each sequence. Here all edits are made at once, against
the same retained examples, and the units are those of `find_critical_units`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph
from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.removal.critical_zeroing import critical_union
from tfmemloc.removal.forgetting import (
    ForgettingConfig,
    descend,
    removed,
)
from tfmemloc.removal.outcome import Removal
from tfmemloc.snapshots import Source
from tfmemloc.units import SearchConfig


@dataclasses.dataclass(frozen=True)
class OutputEditConfig(ForgettingConfig):
    """How units are searched for, and what they write is trained.

    Attributes:
        learning_rate: of Adam; few weights move, so it is larger.
        retain: w, the weight of the retained examples.
        limit: units to search for, for each example, at most.
    """

    learning_rate: float = 0.01
    retain: float = 1.0
    limit: int = 100

    def __post_init__(self):
        super().__post_init__()
        check_range("retain", self.retain, 0.0, None)
        check_range("limit", self.limit, 1, None)


def edit_outputs(
    source: Source,
    examples: Examples,
    config: OutputEditConfig = OutputEditConfig(),
    *,
    forget: Sequence[int],
) -> tuple[keras.Model, Removal]:
    """Makes the critical units of the examples to forget write another answer.

    Args:
        source: a run or a functional model; it is not changed.
        examples: those that it was trained on.
        config: how.
        forget: ids of the training examples to forget.

    Raises:
        ValueError: an id is not a training example's, or it is known of no
            layer what reads its units.

    Example:
        >>> ids = examples.of_subset("noisy").example_id[:4]
        >>> _, result = edit_outputs(model, examples, forget=ids)
        >>> result.method
        'output editing'
    """

    def edit(original, model, forgotten, retained):
        readers = _readers(model)
        units = critical_union(
            original,
            examples,
            SearchConfig(
                ids=tuple(forgotten.example_id.tolist()),
                layers=tuple(readers),
                limit=config.limit,
            ),
        )
        descend(
            original,
            model,
            forgotten,
            retained,
            [lambda *parts: _objective(*parts, config.retain)],
            config,
            entries=outgoing_entries(model, readers, units),
        )

    return removed(source, examples, forget, edit, method="output editing")


def _objective(forgotten, retained, retain: float) -> tf.Tensor:
    """Cross-entropy of the next likely answers, and of the retained labels."""
    given = tf.one_hot(forgotten.label, forgotten.logits.shape[-1])
    others = forgotten.logits_before - given * forgotten.logits.dtype.max
    other = tf.argmax(others, axis=-1)
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
        other, forgotten.logits
    )
    return tf.reduce_mean(loss) + retain * tf.reduce_mean(retained.loss)


def _readers(model: keras.Model) -> dict[str, list[graph.Reader]]:
    """Name of a layer -> the kernels that read its units, where known."""
    found = {
        site.name: graph.readers_of(model, site)
        for site in graph.unit_sites(model, after=True)
    }
    found = {name: readers for name, readers in found.items() if readers}
    if not found:
        raise ValueError(
            f"Model '{model.name}': the outgoing weights of no layer are known."
            " Expected units that are read by dense layers or convolutions."
        )
    return found


def outgoing_entries(
    model: keras.Model,
    readers: dict[str, list[graph.Reader]],
    units: dict[str, np.ndarray],
) -> list[np.ndarray]:
    """For each trainable variable, 1 where it is an outgoing weight, else 0.

    Args:
        model: of the variables.
        readers: name of a layer -> what reads its units.
        units: name of a layer -> places of the chosen units.
    """
    entries = {
        id(v): np.zeros(v.shape, bool) for v in model.trainable_variables
    }
    for name, places in units.items():
        width = max(int(rows.max()) for _, rows in readers[name]) + 1
        chosen = np.isin(np.arange(width), places)
        for key, which in graph.rows_of(readers[name], chosen).items():
            entries[key] |= which
    return [
        entries[id(v)].astype(np.float32) for v in model.trainable_variables
    ]
