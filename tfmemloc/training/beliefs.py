"""What the dropped network believed of each example, while it trains.

    t  <-  0.7 t + 0.3 p(dropped)

with p the probabilities that the network gives with the example's memory off.
A row by example id; begins as uniform.

Reference: Liu et al., "Early-Learning Regularization Prevents Memorization of
Noisy Labels", NeurIPS 2020, whose targets are those of the whole network.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfmemloc.data.examples import Examples
from tfmemloc.training import tables

_KEPT = 0.7


class Beliefs:
    """A table of probabilities [N, classes] by example id, in half precision.

    Args:
        examples: the training examples.

    Raises:
        ValueError: their labels are next tokens.
    """

    def __init__(self, examples: Examples):
        if examples.label.ndim != 1:
            raise ValueError(
                "This rule keeps the probabilities of each class by example. "
                f"Expected labels [N]. Received: shape {examples.label.shape}; "
                'for next tokens use rule="drop_pass_gce".'
            )
        self._ids = tf.constant(np.sort(examples.example_id))
        shape = (len(examples), examples.classes)
        self.table = tables.shared_variable(
            np.full(shape, 1 / examples.classes, np.float16)
        )

    def updated(
        self, ids: tf.Tensor, logits: tf.Tensor, off: tf.Tensor
    ) -> tf.Tensor:
        """Notes the probabilities of the examples whose memory is off.

        Args:
            ids: int64 [B], all among the training examples.
            logits: [B, classes].
            off: bool [B].

        Returns:
            What is believed of all of them now: float32 [B, classes], without
            a gradient.
        """
        row = tables.row_of(self._ids, ids)
        before = tf.cast(tf.gather(self.table, row), tf.float32)
        seen = tf.nn.softmax(tf.cast(logits, tf.float32))
        after = _KEPT * before + (1 - _KEPT) * tf.stop_gradient(seen)
        after = tf.where(off[:, tf.newaxis], after, before)
        rows, kept = tables.of_all_workers(
            row, tf.cast(after, self.table.dtype)
        )
        self.table.scatter_nd_update(rows[:, tf.newaxis], kept)
        return after
