"""SCRUB: away from the network before on F, near it on the rest.

In each step first  maximize  E_F KL(before || now),  then
minimize  E_D KL(before || now) + CE.  The authors take the first kind of step
in the first epochs only; here every step has both.

Reference: Kurmanji et al. 2023 (2302.09880).
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tfmemloc.data.examples import Examples
from tfmemloc.removal.forgetting import (
    ForgettingConfig,
    Part,
    train_to_forget,
)
from tfmemloc.removal.outcome import Removal
from tfmemloc.snapshots import Source


def scrub(
    source: Source,
    examples: Examples,
    config: ForgettingConfig = ForgettingConfig(),
    *,
    forget: Sequence[int],
) -> tuple[keras.Model, Removal]:
    """Drives the predictions on the forget set away from those before.

    Args:
        source: a run or a functional model; it is not changed.
        examples: those that it was trained on.
        config: how.
        forget: ids of the training examples to forget.

    Raises:
        ValueError: an id is not a training example's.

    Example:
        >>> ids = examples.of_subset("noisy").example_id
        >>> _, result = scrub(model, examples, forget=ids)
        >>> result.method
        'SCRUB'
    """
    return train_to_forget(
        source,
        examples,
        forget,
        config,
        method="SCRUB",
        objectives=[
            lambda forgotten, retained: -divergence(forgotten),
            lambda forgotten, retained: (
                divergence(retained) + tf.reduce_mean(retained.loss)
            ),
        ],
    )


def divergence(part: Part) -> tf.Tensor:
    """Mean KL(before || now) of a part's predictions, in nats."""
    before = tf.nn.log_softmax(part.logits_before)
    now = tf.nn.log_softmax(part.logits)
    return tf.reduce_mean(
        tf.reduce_sum(tf.exp(before) * (before - now), axis=-1)
    )
