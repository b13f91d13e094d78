"""Batches that carry example ids, in an order that can be resumed anywhere.

The batch of a step is a function of (seed, step) alone: each epoch is a
permutation of the examples by (seed, epoch), computed index by index and never
stored. What augmentation does to an example is a function of (seed, step, id).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfmemloc import masks
from tfmemloc.augmentation import make_augmenter
from tfmemloc.data import Examples


def make_batches(
    examples: Examples,
    batch_size: int,
    *,
    seed: int,
    augment: str = "none",
    start_step: int = 0,
    stop_step: int | None = None,
) -> tf.data.Dataset:
    """Batches for training: ({"image", "example_id"}, label).

    Each epoch is a permutation of the examples by (seed, epoch); its last
    batch may be short. The batch of a step depends on nothing but the seed and
    the step, so that a run can go on at any `start_step`.

    Args:
        examples: what to train on; all of it is given out.
        batch_size: examples in a batch.
        seed: of the order and the augmentation.
        augment: `none`, `standard` (pad 4, crop, flip) or `strong`
            (RandAugment, then `standard`), drawn by (seed, step, id).
        start_step: the first step to give out.
        stop_step: the step before which to end; None never ends.

    Returns:
        A dataset of float32 images in [-1, 1] [batch, height, width,
        channels], int64 ids [batch] and int64 labels [batch]; prefetched.
    """
    count = len(examples)
    if count == 0:
        raise ValueError("Expected at least one example. Received: none.")
    images = tf.constant(examples.image)
    ids = tf.constant(examples.example_id)
    labels = tf.constant(examples.label)
    order_seed = tf.constant(masks.fold_seed(seed, "order"), tf.int64)
    per_epoch = steps_per_epoch(count, batch_size)
    augmenter = make_augmenter(augment, examples.image.shape[1:], seed)

    def batch_of_step(step: tf.Tensor):
        epoch, position = step // per_epoch, (step % per_epoch) * batch_size
        places = tf.range(position, tf.minimum(position + batch_size, count))
        places = tf.random.experimental.index_shuffle(
            places, tf.stack([order_seed, epoch]), count - 1
        )
        batch_ids = tf.gather(ids, places)
        image = scale_pixels(tf.gather(images, places))
        image = augmenter(image, batch_ids, step)
        return (
            {"image": image, "example_id": batch_ids},
            tf.gather(labels, places),
        )

    stop = np.iinfo(np.int64).max if stop_step is None else stop_step
    return (
        tf.data.Dataset.range(start_step, stop)
        .map(batch_of_step, num_parallel_calls=2, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def steps_per_epoch(count: int, batch_size: int) -> int:
    """The number of batches that hold `count` examples once."""
    return -(-count // batch_size)


def scale_pixels(image):
    """Brings uint8 pixels to float32 in [-1, 1]; leaves floats alone.

    Takes and gives NumPy arrays or tensors.
    """
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8:
            return image.astype(np.float32) / np.float32(127.5) - 1
        return image.astype(np.float32)
    if image.dtype == tf.uint8:
        return tf.cast(image, tf.float32) / 127.5 - 1
    return tf.cast(image, tf.float32)


def attach_ids(
    dataset: tf.data.Dataset, *, batched: bool = False
) -> tf.data.Dataset:
    """Adds example ids to a dataset of (x, y): ({"image", "example_id"}, y).

    The id is the place in `dataset`, so attach ids *before* any shuffling or
    augmentation that changes the order, and read the files in a fixed order.
    Works on a stream of any size.

    Args:
        dataset: elements (x, y), or batches of them.
        batched: elements are batches.

    Example:
        >>> pairs = tf.data.Dataset.from_tensor_slices((x, y))
        >>> batches = attach_ids(pairs).shuffle(1000, seed=0).batch(32)
    """
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(
            f"Expected a dataset of (x, y). Received elements: {spec}."
        )
    if not batched:
        return dataset.enumerate().map(
            lambda index, xy: ({"image": xy[0], "example_id": index}, xy[1])
        )

    def attach(start, xy):
        size = tf.shape(xy[0], out_type=tf.int64)[0]
        ids = start + tf.range(size)
        return start + size, ({"image": xy[0], "example_id": ids}, xy[1])

    return dataset.scan(tf.constant(0, tf.int64), attach)
