"""`SparseDropout`: the paper's control, with one mask for all examples."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmemloc.layers.arguments import check_axis, check_seed, unit_count
from tfmemloc.layers.masks import hash_bits_numpy


@keras.saving.register_keras_serializable(package="tfmemloc")
class SparseDropout(keras.layers.Layer):
    """Switches the same units off for every example, also at inference.

    The paper's *sparse* control: a narrower network. Exactly
    `round(rate * C)` units (but never all of them), chosen by the seed, are
    off, and the others are multiplied by C / (number of units on), which is
    1 / (1 - rate) up to that rounding.

    Args:
        rate: fraction of units that are off, in [0, 1).
        seed: chooses the units, in [0, 2**63).
        axis: the axis of the units; -1 is channels last.

    Call arguments:
        inputs: float tensor of rank 2 or more.

    Output shape: that of `inputs`.

    Example:
        >>> float(tf.reduce_sum(SparseDropout(0.5, seed=1)(tf.ones([1, 8]))))
        8.0
    """

    def __init__(
        self, rate: float, *, seed: int = 0, axis: int = -1, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(
                "`rate` must be at least 0 and below 1. Received: "
                f"rate={rate!r}."
            )
        self.rate = float(rate)
        self.seed = check_seed(seed)
        self.axis = check_axis(axis)
        self.supports_masking = True

    def build(self, inputs_shape):
        """Chooses the units that stay on."""
        self.units = unit_count(self, inputs_shape)
        on = max(1, self.units - round(self.rate * self.units))
        order = np.argsort(
            hash_bits_numpy(self.seed, np.zeros(1, np.int64), self.units),
            kind="stable",
        )[0]
        self._scale = np.zeros(self.units, np.float32)
        self._scale[order[:on]] = self.units / on
        self.built = True

    def call(self, inputs):
        """Multiplies each unit by 0 or by C / (number of units on)."""
        shape = [1] * inputs.shape.rank
        shape[self.axis] = self.units
        return inputs * tf.constant(self._scale.reshape(shape), inputs.dtype)

    def compute_output_shape(self, inputs_shape):
        """The shape of the inputs."""
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer anew."""
        return {
            **super().get_config(),
            "rate": self.rate,
            "seed": self.seed,
            "axis": self.axis,
        }
