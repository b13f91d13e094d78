"""Repeatable augmentation, drawn at random by (seed, step, example id)."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from tfmemloc.layers import masks

_PADDING = 4

# (images [B, H, W, C], ids [B], step) -> images
Augmenter = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def make_augmenter(kind: str, shape: tuple[int, ...], seed: int) -> Augmenter:
    """Makes the function that augments the images of a training batch.

    Args:
        kind: `none`; `crop` (pad an eighth of the sides, random crop), for
            pictures that must not be flipped; `standard` (pad 4, random crop,
            horizontal flip); or `strong` (Keras's RandAugment on colour
            images, then standard).
        shape: of one image, (height, width, channels).
        seed: what happens to an example at a step depends on (seed, step, id).

    Returns:
        A function (images [B, H, W, C] in [-1, 1], ids [B], step) -> images.
    """
    seed = masks.fold_seed(seed, "augmentation")
    if kind == "none":
        return lambda image, ids, step: image
    if kind == "crop":
        padding = tuple(max(1, side // 8) for side in shape[:2])
        return lambda image, ids, step: _crop(
            image, _augment_bits(seed, ids, step), padding
        )
    if kind == "standard":
        return lambda image, ids, step: _crop_and_flip(
            image, _augment_bits(seed, ids, step)
        )
    if kind == "strong":
        _check_strong(shape)
        strong = _RandAugment()
        strong.build(shape)

        def augment(image, ids, step):
            bits = _augment_bits(seed, ids, step)
            return _crop_and_flip(strong.augment(image, bits), bits)

        return augment
    raise ValueError(
        "`augment` must be 'none', 'crop', 'standard' or 'strong'. Received: "
        f"augment={kind!r}."
    )


def _augment_bits(seed: int, ids: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Four random words per example: int64 [B, 4]."""
    high = masks.hash_bits(seed, tf.reshape(step, [1]), 2)[0]
    step_seed = high[0] * 2**31 + high[1]
    return masks.hash_bits(step_seed, ids, 4)


def _crop_and_flip(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Pads by 4, crops at a random place, and flips half of the images."""
    flip = bits[:, 2] % 2 == 1
    return _crop(image, bits, (_PADDING, _PADDING), flip)


def _crop(
    image: tf.Tensor,
    bits: tf.Tensor,
    padding: tuple[int, int],
    flip: tf.Tensor | None = None,
) -> tf.Tensor:
    """Pads, crops at a random place, and flips some of the images.

    Args:
        image: [B, H, W, C].
        bits: random words [B, 4]; two of them say where.
        padding: pixels above and below, left and right.
        flip: which are flipped, [B]; None flips none.
    """
    down, across = padding
    padded = tf.pad(
        image,
        [[0, 0], [down, down], [across, across], [0, 0]],
        constant_values=-1.0,
    )
    places = tf.constant([2 * down + 1, 2 * across + 1], tf.int64)
    offsets = bits[:, :2] * places // 2**32
    height, width = image.shape[1], image.shape[2]
    rows = offsets[:, :1] + tf.range(height, dtype=tf.int64)
    columns = tf.range(width, dtype=tf.int64)
    if flip is not None:
        columns = tf.where(flip[:, tf.newaxis], columns[::-1], columns)
    columns = offsets[:, 1:] + columns
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)


def _check_strong(shape: tuple[int, ...]) -> None:
    if not hasattr(keras.layers, "RandAugment"):
        raise ValueError(
            "augment='strong' needs Keras 3.9 or newer (RandAugment). "
            f"Received: Keras {keras.__version__}. Upgrade, or use 'standard'."
        )
    if shape[-1] != 3:
        raise ValueError(
            "augment='strong' works on colour images. Expected 3 channels. "
            f"Received: {shape[-1]}. Use 'standard'."
        )


class _ExampleSeed(keras.random.SeedGenerator):
    """Gives seeds that depend on one example's random word alone."""

    def bind(self, word: tf.Tensor) -> None:
        """Starts over for an example with this word."""
        self._word, self._draws = word, 0

    def next(self, ordered=True):
        """The next seed of the bound example."""
        del ordered
        self._draws += 1
        seed = tf.stack([self._word, self._draws + tf.zeros_like(self._word)])
        return tf.cast(seed, tf.uint32)


class _RandAugment(keras.layers.RandAugment):
    """Keras's RandAugment, drawn anew and repeatably for each example."""

    def __init__(self):
        super().__init__(value_range=(-1, 1), seed=0)
        self._example_seed = _ExampleSeed(0)

    def _get_seed_generator(self, backend=None):
        return self._example_seed

    def augment(self, image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
        """Augments a batch by the last of each example's words."""

        def augment_one(image_and_word):
            image, word = image_and_word
            self._example_seed.bind(word)
            return self(image, training=True)

        return tf.map_fn(
            augment_one, (image, bits[:, 3]), fn_output_signature=tf.float32
        )
