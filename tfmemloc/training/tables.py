"""What rules and recorders keep while training: tables by example, a count."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import tensorflow as tf


def shared_variable(value: np.ndarray) -> tf.Variable:
    """One variable for all replicas, which see different examples.

    In a strategy's scope a variable would be one for each; scopes are of the
    thread, and this one has none. Whole numbers are int64: TensorFlow keeps
    int32 variables on the host, where a step that XLA has compiled for a GPU
    cannot reach them.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as outside:
        return outside.submit(tf.Variable, value, trainable=False).result()


def row_of(sorted_ids: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """The row of each id in a table sorted by id; N for an unknown one: [B]."""
    ids = tf.reshape(tf.cast(ids, tf.int64), [-1])
    count = sorted_ids.shape[0]
    row = tf.searchsorted(sorted_ids, ids)
    found = tf.gather(sorted_ids, tf.minimum(row, count - 1))
    return tf.where(found == ids, row, count)


def step_counter() -> tf.Variable:
    """Counts steps: each replica adds one, and one counts."""
    return tf.Variable(
        0,
        trainable=False,
        dtype=tf.int64,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
