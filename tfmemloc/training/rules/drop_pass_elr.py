"""A drop-mode pass with early-learning regularization.

    examples with their memory on     cross-entropy
    examples with their memory off    cross-entropy + 3 log(1 - <p, t>)

with p the probabilities of the dropped network and t what it believed of that
example until now (`tfmemloc.training.beliefs`). The second term pulls towards
what was learned early, before wrong labels were.

Reference: Liu et al., "Early-Learning Regularization Prevents Memorization of
Noisy Labels", NeurIPS 2020, equation 6.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from tfmemloc.configs import TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.training.beliefs import Beliefs
from tfmemloc.training.drop_pass import DropPass

# Fields of `TrainConfig` that are of this rule.
READS = ("memory_off",)

_WEIGHT = 3.0
# Keeps log(1 - <p, t>) finite where both are sure of the same class.
_SURE = 1 - 1e-4


def make(
    model: keras.Model, examples: Examples, training: TrainConfig
) -> DropPass:
    """The rule for a training of this network on these examples."""
    del model
    beliefs = Beliefs(examples, training)

    def drop_loss(ids, label, logits, entropy, off) -> tf.Tensor:
        del label
        believed = beliefs.updated(ids, logits, off)
        p = tf.nn.softmax(tf.cast(logits, tf.float32))
        agreed = tf.reduce_sum(p * believed, axis=1)
        return entropy + _WEIGHT * tf.math.log(1 - _SURE * agreed)

    return DropPass(training, drop_loss, beliefs)
