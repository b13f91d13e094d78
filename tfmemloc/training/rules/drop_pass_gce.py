"""A drop-mode pass with generalized cross-entropy.

    examples with their memory on     cross-entropy
    examples with their memory off    (1 - p_y ** q) / q,  q = 0.7

See `tfmemloc.training.drop_pass` and `generalized_cross_entropy`.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from tfmemloc.configs import TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.training.drop_pass import DropPass
from tfmemloc.training.rules import generalized_cross_entropy

# Fields of `TrainConfig` that are of this rule.
READS = ("memory_off",)


def make(
    model: keras.Model, examples: Examples, training: TrainConfig
) -> DropPass:
    """The rule for a training of this network on these examples."""
    del model, examples

    def drop_loss(ids, label, logits, entropy, off) -> tf.Tensor:
        del ids, label, logits, off
        return generalized_cross_entropy.of_entropy(entropy)

    return DropPass(training, drop_loss)
