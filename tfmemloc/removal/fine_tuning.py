"""Fine-tuning: the network is trained on without the examples to forget.

The control of every other removal: whatever fine-tuning forgets as well was not
forgotten by the method.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tfmemloc.data.examples import Examples
from tfmemloc.removal.forgetting import ForgettingConfig, train_to_forget
from tfmemloc.removal.outcome import Removal
from tfmemloc.snapshots import Source


def fine_tune(
    source: Source,
    examples: Examples,
    config: ForgettingConfig = ForgettingConfig(),
    *,
    forget: Sequence[int],
) -> tuple[keras.Model, Removal]:
    """Minimizes the cross-entropy of the retained examples alone.

    Args:
        source: a run or a functional model; it is not changed.
        examples: those that it was trained on.
        config: how.
        forget: ids of the training examples to forget.

    Raises:
        ValueError: an id is not a training example's.

    Example:
        >>> ids = examples.of_subset("noisy").example_id
        >>> tuned, result = fine_tune(model, examples, forget=ids)
        >>> result.method
        'fine-tuning'
    """
    return train_to_forget(
        source,
        examples,
        forget,
        config,
        method="fine-tuning",
        objectives=[lambda forgotten, retained: tf.reduce_mean(retained.loss)],
    )
