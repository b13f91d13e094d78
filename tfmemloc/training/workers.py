"""Workers: processes, on one machine or several, that train one network.

Every worker holds the network and the data and takes its share of each batch;
their gradients are added up, so that they stay equal. The first one writes the
run. It is TensorFlow's multi-worker strategy, which Keras's `fit` does not
support; a step of one's own, by `strategy.run`, it does.

A worker has one device: start one for each GPU.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import tensorflow as tf

from tfmemloc import storage, tracing

T = TypeVar("T")


def are_used(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy is that of workers."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def check(strategy: tf.distribute.Strategy) -> None:
    """Refuses a worker with several devices.

    Raises:
        ValueError: it has more than one.
    """
    local = len(strategy.extended.worker_devices) if are_used(strategy) else 1
    if local > 1:
        raise ValueError(
            "Expected workers with one device each. Received: one with "
            f"{local} GPUs. Start a worker for each GPU, with "
            "CUDA_VISIBLE_DEVICES set to its number."
        )


def check_batches(
    strategy: tf.distribute.Strategy, examples: int, batch_size: int
) -> None:
    """Refuses batches of which a replica would get nothing.

    BatchNorm has no statistics of nothing, and not every kernel takes it.

    Args:
        strategy: of the training.
        examples: how many are trained on.
        batch_size: of a step.

    Raises:
        ValueError: the smallest batch is too small.
    """
    replicas = strategy.num_replicas_in_sync
    full = min(batch_size, examples)
    for size in {full, examples % full or full}:
        # The first ones get the larger parts.
        part = -(-size // replicas)
        if part * (replicas - 1) >= size:
            raise ValueError(
                f"{examples} examples in batches of {batch_size} leave one of "
                f"{size}, of which {replicas} replicas cannot each get some. "
                "Expected another batch_size. Received: "
                f"batch_size={batch_size}."
            )


def place(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """(number of this worker, how many there are); (0, 1) without workers."""
    if not are_used(strategy):
        return 0, 1
    number = number_of(strategy.cluster_resolver)
    return number, strategy.num_replicas_in_sync


def number_of(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> int:
    """The number of the worker that a resolver speaks of; a chief is first."""
    if resolver.task_type == "chief":
        return resolver.task_id
    chiefs = resolver.cluster_spec().as_dict().get("chief", [])
    # A strategy without TF_CONFIG is one worker that has no number.
    return len(chiefs) + (resolver.task_id or 0)


def is_first(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run."""
    return place(strategy)[0] == 0


def any_says(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether a flag is set in any worker; waits for all of them."""
    if not are_used(strategy):
        return flag

    return bool(_total_of(strategy)(tf.constant(float(flag))) > 0)


@functools.lru_cache(maxsize=1)
def _total_of(strategy: tf.distribute.Strategy):
    """A function that adds a number up over the workers; one trace."""

    @tracing.function
    def total(value):
        each = strategy.run(tf.identity, (value,))
        return strategy.reduce("sum", each, axis=None)

    return total


def first_says(
    strategy: tf.distribute.Strategy, question: Callable[[], bool]
) -> bool:
    """What the first worker answers; the others do not ask."""
    return any_says(strategy, is_first(strategy) and question())


@contextlib.contextmanager
def in_turn(
    strategy: tf.distribute.Strategy, directory
) -> Iterator[Callable[[Callable[[], T]], T]]:
    """Locks a folder for the first worker, on behalf of all.

    Yields:
        A function that calls another in the first worker, and then in the
        others, which find what the first has written.
    """

    def call(make: Callable[[], T]) -> T:
        if is_first(strategy):
            made = make()
            any_says(strategy, False)
            return made
        any_says(strategy, False)
        return make()

    if not is_first(strategy):
        yield call
        return
    with storage.lock_directory(directory):
        yield call


def share_batches(
    strategy: tf.distribute.Strategy,
    make: Callable[[tuple[int, int]], tf.data.Dataset],
) -> tf.data.Dataset:
    """The batches of a training, split between replicas or workers.

    Args:
        strategy: of the training.
        make: gives the dataset of a share (k, n) of each batch.
    """
    if not are_used(strategy):
        return strategy.experimental_distribute_dataset(make((0, 1)))
    share = place(strategy)
    return strategy.distribute_datasets_from_function(lambda _: make(share))
