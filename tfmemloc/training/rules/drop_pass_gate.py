"""A drop-mode pass that leaves out the labels the network does not believe.

    examples with their memory on     cross-entropy
    examples with their memory off    cross-entropy where argmax t = y, else 0

with t what the dropped network believed of that example until now
(`tfmemloc.training.beliefs`). Early in the training (`TrainConfig.early`) all
labels count.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from tfmemloc.configs import TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.training.beliefs import Beliefs
from tfmemloc.training.drop_pass import DropPass
from tfmemloc.training.early import Early

# Fields of `TrainConfig` that are of this rule.
READS = ("memory_off", "early")


def make(
    model: keras.Model, examples: Examples, training: TrainConfig
) -> DropPass:
    """The rule for a training of this network on these examples."""
    beliefs = Beliefs(examples, training)
    early = Early(model, examples, training)

    def drop_loss(ids, label, logits, entropy, off) -> tf.Tensor:
        believed = beliefs.updated(ids, logits, off)
        is_believed = tf.argmax(believed, axis=1) == tf.cast(label, tf.int64)
        counts = is_believed | early.has(rule.step)
        return entropy * tf.cast(counts, entropy.dtype)

    rule = DropPass(training, drop_loss, beliefs, early)
    return rule
