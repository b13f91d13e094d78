"""Adds a little noise to inputs, always the same noise for an example."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfmemloc.data.examples import Examples, input_kinds
from tfmemloc.layers import masks


def perturbed(image, example_id, copies: int, noise: float, seed: int):
    """Copies of an input with Gaussian noise of a given relative norm.

    Args:
        image: [B, ...], an input of any kind but tokens.
        example_id: [B]; the noise is a function of it and of the seed.
        copies: number of copies of each example.
        noise: norm of the noise relative to the input's.
        seed: of the noise.

    Returns:
        [B, copies, ...].
    """
    shape = image.shape[1:]
    pixels = int(np.prod(shape))
    stream = masks.fold_seed(seed, "perturbation")
    bits = masks.hash_bits(stream, example_id, 2 * copies * pixels)
    uniform = (tf.cast(bits, tf.float32) + 0.5) / 2**32
    first, second = tf.split(uniform, 2, axis=1)
    # Box and Muller; clipped, as 1 - 2**-33 rounds to 1 and 2**-33 is tiny.
    radius = tf.sqrt(-2 * tf.math.log(tf.clip_by_value(first, 1e-9, 1.0)))
    normal = radius * tf.cos(2 * np.pi * second)
    normal = tf.reshape(normal, [-1, copies, pixels])
    flat = tf.reshape(image, [-1, 1, pixels])
    scale = tf.norm(flat, axis=-1, keepdims=True) / tf.norm(
        normal, axis=-1, keepdims=True
    )
    return tf.reshape(flat + noise * scale * normal, [-1, copies, *shape])


def check_perturbable(examples: Examples) -> None:
    """Refuses examples to which no noise can be added.

    Raises:
        ValueError: they have tokens.
    """
    kinds = input_kinds(examples)
    if "tokens" in kinds.values():
        raise ValueError(
            f"{examples.name} has tokens, which cannot be perturbed. Expected "
            "perturbations=0 for them."
        )
