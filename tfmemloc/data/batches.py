"""Batches that carry example ids, in an order that can be resumed anywhere.

The batch of a step is a function of (seed, step) alone: each epoch is a
permutation of the examples by (seed, epoch), computed index by index and never
stored. What augmentation does to an example is a function of (seed, step, id).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from tfmemloc.checks import check_count, check_range
from tfmemloc.data import rows as rows_
from tfmemloc.data.augmentation import make_augmenter
from tfmemloc.data.examples import (
    IDS,
    TIE_IDS,
    Examples,
    input_kinds,
    pictures_of,
    require_examples,
)
from tfmemloc.data.kinds import as_fed
from tfmemloc.layers import masks
from tfmemloc.layers.tied_dropout import MEMORY_OFF


def make_batches(
    examples: Examples,
    batch_size: int,
    *,
    seed: int,
    augment: str = "none",
    start_step: int = 0,
    stop_step: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Batches for training: ({<inputs by name>, "example_id"}, label).

    Each epoch is a permutation of the examples by (seed, epoch); its last
    batch may be short. The batch of a step depends on nothing but the seed and
    the step, so that a run can go on at any `start_step`.

    Args:
        examples: what to train on; the batches hold all of them.
        batch_size: examples in a batch.
        seed: of the order and the augmentation.
        augment: `none`, `crop`, `standard` (pad 4, crop, flip) or `strong`
            (RandAugment, then `standard`), drawn by (seed, step, id).
        start_step: the first step to give out.
        stop_step: the step before which to end; None never ends.
        share: (k, n) gives the k-th of n shares of each batch, whose union is
            the batch. A share of a short batch may be empty.

    Returns:
        A dataset of inputs as networks take them (pictures float32 in [-1, 1],
        tokens int64, features float32), int64 ids [batch] and int64 labels
        [batch] or [batch, time]; prefetched. Inputs are read from where they
        lie, a batch at a time.

    Example:
        >>> batches = make_batches(examples.train, 32, seed=0, stop_step=3)
        >>> [len(label) for _, label in batches]
        [32, 32, 16]
    """
    require_examples(examples)
    check_count("batch_size", batch_size)
    last = np.iinfo(np.int64).max
    check_count("start_step", start_step, 0, last)
    if stop_step is not None:
        check_count("stop_step", stop_step, 0, last)
    check_count("shares", share[1])
    check_count("share", share[0], 0, share[1] - 1)
    count = len(examples)
    if count == 0:
        raise ValueError("Expected at least one example. Received: none.")
    # A larger batch is all examples; its size need not fit into an int64.
    batch_size = min(int(batch_size), count)
    ids = {IDS: tf.constant(examples.example_id)}
    if examples.tie_id is not None:
        ids[TIE_IDS] = tf.constant(examples.tie_id)
    labels = tf.constant(examples.label)
    order_seed = tf.constant(masks.fold_seed(seed, "order"), tf.int64)
    per_epoch = steps_per_epoch(count, batch_size)
    first, shares = share
    read_inputs = _reader(examples)
    augmented = _augmented(examples, augment, seed)

    def batch_of_step(step: tf.Tensor):
        epoch, position = step // per_epoch, (step % per_epoch) * batch_size
        places = tf.range(position, tf.minimum(position + batch_size, count))
        places = tf.random.experimental.index_shuffle(
            places, tf.stack([order_seed, epoch]), count - 1
        )[first::shares]
        of_batch = {name: tf.gather(each, places) for name, each in ids.items()}
        inputs = augmented(read_inputs(places), of_batch[IDS], step)
        return {**inputs, **of_batch}, tf.gather(labels, places)

    stop = last if stop_step is None else stop_step
    return (
        tf.data.Dataset.range(start_step, stop)
        .map(batch_of_step, num_parallel_calls=2, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def steps_per_epoch(count: int, batch_size: int) -> int:
    """The number of batches that hold `count` examples once."""
    return -(-count // batch_size)


def _reader(
    examples: Examples,
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Makes a function that reads the inputs at given indices alone."""
    rows, kinds = examples.inputs, input_kinds(examples)

    def read_all(places):
        return [rows_.read(each, places) for each in rows.values()]

    def read_inputs(places):
        found = tf.numpy_function(
            read_all,
            [places],
            [tf.as_dtype(each.dtype) for each in rows.values()],
            stateful=False,
        )
        inputs = {}
        for name, values in zip(rows, found, strict=True):
            values = tf.ensure_shape(values, [None, *rows[name].shape[1:]])
            inputs[name] = as_fed(values, kinds[name])
        return inputs

    return read_inputs


def check_augmentable(examples: Examples, augment: str) -> None:
    """Refuses to augment what cannot be, before anything that takes long.

    Raises:
        ValueError: no input is a picture, or they are of another kind than the
            augmentation is for.
    """
    _augmenters(examples, augment, seed=0)


def _augmenters(examples: Examples, augment: str, seed: int):
    """Name of an input -> what augments it."""
    if augment == "none":
        return {}
    if not pictures_of(examples):
        kinds = input_kinds(examples)
        found = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise ValueError(
            f"{examples.name} has no pictures to augment. Expected "
            f'`augment="none"`. Received: {augment!r}, and the inputs '
            f"{found}."
        )
    return {
        name: make_augmenter(augment, examples.inputs[name].shape[1:], seed)
        for name in pictures_of(examples)
    }


def _augmented(examples: Examples, augment: str, seed: int):
    """A function (inputs, ids, step) -> inputs with augmented pictures."""
    augmenters = _augmenters(examples, augment, seed)

    def augmented(inputs, ids, step):
        return inputs | {
            name: augmenter(inputs[name], ids, step)
            for name, augmenter in augmenters.items()
        }

    return augmented


def attach_ids(
    dataset: tf.data.Dataset, *, batched: bool = False, name: str = "image"
) -> tf.data.Dataset:
    """Adds example ids to a dataset of (x, y) or (x, y, sample weight).

    x becomes {name: x, "example_id": ids}; if x is a dict, the ids are added
    to it. The id is the example's position in `dataset`, so attach ids
    *before* any shuffling or augmentation that changes the order, and read the
    files in a fixed order. Works on a stream of any size.

    Args:
        dataset: elements (x, y) or (x, y, weight), or batches of them.
        batched: elements are batches.
        name: of the model's input that gets x.

    Raises:
        ValueError: elements are of another form, or have ids already.

    Example:
        >>> pairs = tf.data.Dataset.from_tensor_slices((x, y))
        >>> batches = attach_ids(pairs).shuffle(1000, seed=0).batch(32)
    """
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(
            "Expected a dataset of (x, y) or (x, y, sample weight). Received "
            f"elements: {spec}."
        )
    if isinstance(spec[0], dict) and IDS in spec[0]:
        raise ValueError(
            f'Expected examples without ids. Received: x with "{IDS}" in it.'
        )

    def with_ids(x, ids):
        return {**(x if isinstance(x, dict) else {name: x}), IDS: ids}

    if not batched:
        return dataset.enumerate().map(
            lambda index, element: (with_ids(element[0], index), *element[1:])
        )

    def attach(start, element):
        first = tf.nest.flatten(element[0])[0]
        size = tf.shape(first, out_type=tf.int64)[0]
        ids = start + tf.range(size)
        return start + size, (with_ids(element[0], ids), *element[1:])

    return dataset.scan(tf.constant(0, tf.int64), attach)


def switch_memory_off(
    dataset: tf.data.Dataset,
    share: float = 0.25,
    *,
    seed: int = 0,
    first_epoch: int = 0,
) -> tf.data.Dataset:
    """Lets a share of the examples pass with their memorization units off.

    For Keras's `fit`: replaces the ids of some examples of each batch by
    `MEMORY_OFF`, others in each epoch, so that the dropped network is trained
    beside the tied one. `train` has rules for it instead, with losses that do
    not insist on labels (`tfmemloc.training.rules`).

    Args:
        dataset: batches of (x, y) or (x, y, weight) with
            x["example_id"] int64 [batch], as from `attach_ids`.
        share: probability with which an example passes without memory.
        seed: decides which, with the epoch, the step and the id. An epoch is
            a pass over the dataset, or the beginning of one.
        first_epoch: the number of the first pass, to go on where a training
            was stopped: the `initial_epoch` of `fit`.

    Raises:
        ValueError: there are no ids, or the share is not in [0, 1].

    Example:
        >>> pairs = tf.data.Dataset.from_tensor_slices((x, y))
        >>> batches = attach_ids(pairs).batch(32)
        >>> inputs, _ = next(iter(switch_memory_off(batches, share=1.0)))
        >>> set(inputs["example_id"].numpy()) == {MEMORY_OFF}
        True
    """
    check_range("share", share, 0.0, 1.0)
    spec = getattr(dataset, "element_spec", None)
    if not isinstance(spec, tuple) or not (
        isinstance(spec[0], dict) and IDS in spec[0]
    ):
        raise ValueError(
            f'Expected batches of ({{"{IDS}": ..., ...}}, y), as `attach_ids` '
            f"makes them. Received elements: {spec}, of {type(dataset)}."
        )
    if spec[0][IDS].shape.rank == 0:
        raise ValueError(
            "Expected batches, whose examples are switched off one by one. "
            "Received single examples; call `dataset.batch(...)` before."
        )
    check_count("first_epoch", first_epoch, 0)
    folded = masks.fold_seed(seed, "memory off")
    passes = itertools.count(first_epoch)
    # Called once for each pass over the dataset.
    epochs = tf.data.Dataset.from_generator(
        lambda: [next(passes)], output_signature=tf.TensorSpec((), tf.int64)
    )

    def of_epoch(epoch):
        def switched(step, element):
            inputs, *rest = element
            ids = tf.cast(inputs[IDS], tf.int64)
            off = masks.drawn(folded, epoch * 2**32 + step, ids, share)
            return (without_memory({**inputs, IDS: ids}, off), *rest)

        return dataset.enumerate().map(switched)

    switched, size = epochs.flat_map(of_epoch), dataset.cardinality()
    if size < 0:  # Not known, or without end.
        return switched
    return switched.apply(tf.data.experimental.assert_cardinality(size))


def without_memory(
    inputs: Mapping[str, tf.Tensor], off: tf.Tensor
) -> dict[str, tf.Tensor]:
    """The inputs by name, some examples of which pass without their memory.

    Args:
        inputs: with int64 ids [batch].
        off: whose memory is off, bool [batch].
    """
    switched = {
        name: tf.where(off, MEMORY_OFF, inputs[name])
        for name in (IDS, TIE_IDS)
        if name in inputs
    }
    return {**inputs, **switched}
