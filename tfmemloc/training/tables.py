"""What rules and recorders keep while training: tables by example, a count."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import tensorflow as tf

from tfmemloc.training import workers


def shared_variable(value: np.ndarray) -> tf.Variable:
    """One variable for all replicas, which see different examples.

    In a strategy's scope a variable would be one for each; scopes are of the
    thread, and this one has none. Whole numbers are int64: TensorFlow keeps
    int32 variables on the host, where a step that XLA has compiled for a GPU
    cannot reach them.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as outside:
        return outside.submit(tf.Variable, value, trainable=False).result()


def of_all_workers(*rows: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The rows that all workers saw in this step, for the table that each has.

    Replicas of one process share its table; workers have one each, and every
    one of them is to be told of the examples of the others.

    Args:
        *rows: [B, ...] of this replica, to be called in the training step.

    Returns:
        The same of all workers, [sum of B, ...]; without workers, as given.
    """
    if not workers.are_used(tf.distribute.get_strategy()):
        return rows
    context = tf.distribute.get_replica_context()
    return tuple(_gathered(context, each) for each in rows)


def _gathered(context, rows: tf.Tensor) -> tf.Tensor:
    """Gathers rows of any type; collectives take no booleans."""
    if rows.dtype == tf.bool:
        return context.all_gather(tf.cast(rows, tf.int32), axis=0) == 1
    return context.all_gather(rows, axis=0)


def row_of(sorted_ids: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """The row of each id in a table sorted by id; N for an unknown one: [B]."""
    ids = tf.reshape(tf.cast(ids, tf.int64), [-1])
    count = sorted_ids.shape[0]
    row = tf.searchsorted(sorted_ids, ids)
    found = tf.gather(sorted_ids, tf.minimum(row, count - 1))
    return tf.where(found == ids, row, count)


def step_counter() -> tf.Variable:
    """Counts steps: each replica adds one, and one counts."""
    return one_of_all_replicas(np.int64(0))


def one_of_all_replicas(value: np.generic) -> tf.Variable:
    """A number that all replicas compute alike, and one of them writes."""
    return tf.Variable(
        value,
        trainable=False,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
