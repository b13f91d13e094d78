"""Gradient routing of suspects: memory alone learns what is not believed.

Three kinds of examples, as in SGTM ("Beyond data filtering", 2025):

    forget      memory on; its gradient reaches the memory's weights only
    retain      memory off; the other weights learn
    unlabeled   memory on; all weights learn

An example is *forget* where the dropped network has not believed its label
until now (`tfmemloc.training.beliefs`), whether its memory is on or off: off,
it teaches nothing, but the dropped network is asked about it again. Of all
others the share `TrainConfig.memory_off` is *retain* in a step, a function of
(seed, step, id). Early in the training (`TrainConfig.early`) nobody is
suspected.

The gradients are masked on the weights' entries, not stopped on the way.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph
from tfmemloc.configs import TrainConfig
from tfmemloc.data.batches import steps_per_epoch, without_memory
from tfmemloc.data.examples import IDS, Examples
from tfmemloc.training.beliefs import Beliefs
from tfmemloc.training.drop_pass import MemoryOff
from tfmemloc.training.rules import cross_entropy


class RoutedSuspects:
    """The rule; knows what is believed, and which weights are memory's.

    Attributes:
        variables: what a run saves to go on where it was killed.
    """

    def __init__(
        self, model: keras.Model, examples: Examples, training: TrainConfig
    ):
        self._entries = graph.memory_entries(model)
        self._beliefs = Beliefs(examples)
        self._memory_off = MemoryOff(training)
        steps = steps_per_epoch(len(examples), training.batch_size)
        self._open_until = round(training.early * steps * training.epochs)
        self._is_trusted: tf.Tensor | None = None
        self.variables = [self._memory_off.step, self._beliefs.table]

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
        believed = tf.argmax(self._beliefs.updated(ids, logits, off), axis=1)
        is_early = self._memory_off.step <= self._open_until
        self._is_trusted = (believed == tf.cast(label, tf.int64)) | is_early
        return entropy, logits

    def routes(
        self, inputs: Mapping[str, tf.Tensor]
    ) -> list[tuple[tf.Tensor, list[np.ndarray]]]:
        """(weight of each example [B], which entries learn from them).

        Of the inputs with which the rule was called last.
        """
        del inputs
        trusted = tf.cast(self._is_trusted, tf.float32)
        return [
            (trusted, [~of_memory for of_memory in self._entries]),
            (tf.ones_like(trusted), list(self._entries)),
        ]


def make(
    model: keras.Model, examples: Examples, training: TrainConfig
) -> RoutedSuspects:
    """The rule for a training of this network on these examples.

    Raises:
        ValueError: the labels are next tokens, or the network's memory has no
            weights of its own.
    """
    return RoutedSuspects(model, examples, training)
