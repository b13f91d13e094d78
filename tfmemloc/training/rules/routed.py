"""Gradient routing by id: what repeats is learned by memory alone.

Three kinds of examples, as in SGTM ("Beyond data filtering", 2025):

    forget      memory on; its gradient reaches the memory's weights only
    retain      memory off; the other weights learn
    unlabeled   memory on; all weights learn

Here an example is *forget* where its tie id comes more than once in an epoch:
what is shown again and again is what gets learned by heart, and nobody has to
say which text is secret. Of all others the share `TrainConfig.memory_off` is
*retain* in a step, a function of (seed, step, id), and the rest *unlabeled*.

The gradients are masked on the weights' entries, not stopped on the way, so
that memory in each layer learns from what is behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph
from tfmemloc.configs import TrainConfig
from tfmemloc.data.batches import without_memory
from tfmemloc.data.examples import IDS, TIE_IDS, Examples
from tfmemloc.training.drop_pass import MemoryOff
from tfmemloc.training.rules import cross_entropy
from tfmemloc.training.tables import row_of

# Fields of `TrainConfig` that are of this rule.
READS = ("memory_off",)


class Routed:
    """The rule; knows which tie ids repeat, and which weights are memory's.

    Args:
        repeated: sorted tie ids that come more than once.
        entries: for each trainable variable, which entries are memory's.
        training: gives `memory_off` and the seed.

    Attributes:
        passes_without_memory: whether some examples do.
        variables: what a run saves to go on where it was killed.
    """

    def __init__(
        self,
        repeated: np.ndarray,
        entries: Sequence[np.ndarray],
        training: TrainConfig,
    ):
        # A last id that nobody has, so that there is always one.
        self._repeated = tf.constant(np.append(repeated, 2**63 - 1), tf.int64)
        self._entries = entries
        self._memory_off = MemoryOff(training)
        self.passes_without_memory = self._memory_off.is_used
        self.variables = [self._memory_off.step]

    def __call__(
        self,
        model: keras.Model,
        inputs: Mapping[str, tf.Tensor],
        label: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of each example [B], and the logits."""
        off = self._memory_off.drawn(inputs[IDS])
        off &= ~self._is_repeated(inputs)
        return cross_entropy.rule(model, without_memory(inputs, off), label)

    def routes(
        self, inputs: Mapping[str, tf.Tensor]
    ) -> list[tuple[tf.Tensor, list[np.ndarray]]]:
        """(weight of each example [B], which entries learn from them)."""
        return memory_learns_from_all(~self._is_repeated(inputs), self._entries)

    def _is_repeated(self, inputs) -> tf.Tensor:
        ids = inputs.get(TIE_IDS, inputs[IDS])
        return row_of(self._repeated, ids) < self._repeated.shape[0]


def memory_learns_from_all(
    others: tf.Tensor, entries: Sequence[np.ndarray]
) -> list[tuple[tf.Tensor, list[np.ndarray]]]:
    """The routes in which all other weights learn from some examples alone.

    Args:
        others: bool [B], from whom.
        entries: for each trainable variable, which entries are memory's.
    """
    weight = tf.cast(others, tf.float32)
    return [
        (weight, [~of_memory for of_memory in entries]),
        (tf.ones_like(weight), list(entries)),
    ]


def make(
    model: keras.Model, examples: Examples, training: TrainConfig
) -> Routed:
    """The rule for a training of this network on these examples.

    Raises:
        ValueError: nothing repeats, or the network's memory has no weights of
            its own.
    """
    if examples.tie_id is None:
        repeated = np.array([], np.int64)
    else:
        ids, times = np.unique(examples.tie_id, return_counts=True)
        repeated = ids[times > 1]
    if not len(repeated):
        raise ValueError(
            'rule="routed" lets memory alone learn what repeats, and nothing '
            f"does in {examples.name}. Expected several examples with one "
            "`tie_id`: repeats of a sequence, parts of a document."
        )
    return Routed(repeated, graph.memory_entries(model), training)
