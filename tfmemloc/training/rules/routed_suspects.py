"""Gradient routing of suspects: memory alone learns what is not believed.

Three kinds of examples, as in SGTM ("Beyond data filtering", 2025):

    forget      memory on; its gradient reaches the memory's weights only
    retain      memory off; the other weights learn
    unlabeled   memory on; all weights learn

An example is *forget* where the dropped network until now
(`tfmemloc.training.beliefs`) found another label more probable by a margin,
whether its memory is on or off: off, it teaches nothing, but the dropped
network is asked about it again. The margin grows while more than a fifth of
the examples are suspected: a network that leaves out all that it does not
believe stays with the little that it knew. Of all others the share
`TrainConfig.memory_off` is *retain* in a step, a function of (seed, step, id).
Early in the training (`TrainConfig.early`) nobody is suspected.

The gradients are masked on the weights' entries, not stopped on the way.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph
from tfmemloc.configs import TrainConfig
from tfmemloc.data.batches import without_memory
from tfmemloc.data.examples import IDS, Examples
from tfmemloc.training.beliefs import Beliefs
from tfmemloc.training.drop_pass import MemoryOff
from tfmemloc.training.early import Early
from tfmemloc.training.rules import cross_entropy
from tfmemloc.training.rules.routed import memory_learns_from_all
from tfmemloc.training.tables import one_of_all_replicas

# Fields of `TrainConfig` that are of this rule.
READS = ("memory_off", "early")

_MOST = 0.2  # Share of the examples that are suspected, in the long run.
_PACE = 0.05  # How fast the margin follows.


class RoutedSuspects:
    """The rule; knows what is believed, and which weights are memory's.

    Attributes:
        early: when nobody is suspected.
        passes_without_memory: whether some examples do.
        tables: what is believed.
        variables: what a run saves to go on where it was killed.
    """

    def __init__(
        self, model: keras.Model, examples: Examples, training: TrainConfig
    ):
        self._entries = graph.memory_entries(model)
        self._beliefs = Beliefs(examples, training)
        self._memory_off = MemoryOff(training)
        self.passes_without_memory = self._memory_off.is_used
        self.early = Early(model, examples, training)
        self._is_trusted: tf.Tensor | None = None
        self._margin = one_of_all_replicas(np.float32(0))
        self.tables = [self._beliefs.table]
        self.variables = [
            self._memory_off.step,
            *self._beliefs.table.variables,
            self._margin,
            *self.early.variables,
        ]

    def __call__(
        self,
        model: keras.Model,
        inputs: Mapping[str, tf.Tensor],
        label: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of each example [B], and the logits."""
        ids = inputs[IDS]
        off = self._memory_off.drawn(ids)
        entropy, logits = cross_entropy.rule(
            model, without_memory(inputs, off), label
        )
        believed = self._beliefs.updated(ids, logits, off)
        is_early = self.early.has(self._memory_off.step)
        self._is_trusted = is_early | ~self._suspected(believed, label)
        return entropy, logits

    def _suspected(self, believed: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """Whose label is believed less than another by the margin: [B]."""
        own = tf.one_hot(
            label, believed.shape[1], on_value=True, off_value=False
        )
        of_label = tf.reduce_sum(tf.where(own, believed, 0.0), axis=1)
        of_another = tf.reduce_max(tf.where(own, 0.0, believed), axis=1)
        suspected = of_another - of_label > self._margin
        counts = tf.stack(
            [
                tf.reduce_sum(tf.cast(suspected, tf.float32)),
                tf.cast(tf.size(label), tf.float32),
            ]
        )
        replica = tf.distribute.get_replica_context()
        count, size = tf.unstack(replica.all_reduce("sum", counts))
        wider = self._margin + _PACE * (count / size - _MOST)
        self._margin.assign(tf.maximum(wider, 0.0))
        return suspected

    def routes(
        self, inputs: Mapping[str, tf.Tensor]
    ) -> list[tuple[tf.Tensor, list[np.ndarray]]]:
        """(weight of each example [B], which entries learn from them).

        Of the inputs with which the rule was called last.
        """
        del inputs
        return memory_learns_from_all(self._is_trusted, self._entries)


def make(
    model: keras.Model, examples: Examples, training: TrainConfig
) -> RoutedSuspects:
    """The rule for a training of this network on these examples.

    Raises:
        ValueError: the labels are next tokens, or the network's memory has no
            weights of its own.
    """
    return RoutedSuspects(model, examples, training)
