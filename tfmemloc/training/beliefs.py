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

from tfmemloc.configs import TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.training.by_example import ByExample

_KEPT = 0.7


class Beliefs:
    """Probabilities [N, classes] by example id, in half precision.

    Args:
        examples: the training examples.
        training: how they are trained on.

    Attributes:
        table: where they are kept.

    Raises:
        ValueError: their labels are next tokens.
    """

    def __init__(self, examples: Examples, training: TrainConfig):
        if examples.label.ndim != 1:
            raise ValueError(
                "This rule keeps the probabilities of each class by example. "
                f"Expected labels [N]. Received: shape {examples.label.shape}; "
                'for next tokens use rule="drop_pass_gce".'
            )
        self.table = ByExample(
            "beliefs",
            examples,
            training,
            width=examples.classes,
            start=1 / examples.classes,
            dtype=np.float16,
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
        rows = self.table.rows(ids)
        before = tf.cast(self.table.read(rows), tf.float32)
        seen = tf.nn.softmax(tf.cast(logits, tf.float32))
        after = _KEPT * before + (1 - _KEPT) * tf.stop_gradient(seen)
        after = tf.where(off[:, tf.newaxis], after, before)
        self.table.write(rows, after)
        return after
