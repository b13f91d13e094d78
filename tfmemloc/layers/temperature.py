"""A learned temperature, as a layer of its own.

So that its per-example gradient has a closed form, and nothing around it is
computed again (see `tfmemloc.gradients.closed_forms`).
"""

from __future__ import annotations

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfmemloc")
class Temperature(keras.layers.Layer):
    """Multiplies by exp(temperature); any shape.

    Args:
        start: what it multiplies by at first, above 0.
    """

    def __init__(self, start: float, **kwargs):
        super().__init__(**kwargs)
        self.start = start

    def build(self, x_shape):
        """Makes the temperature."""
        del x_shape
        self.temperature = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(
                float(tf.math.log(self.start))
            ),
            name="temperature",
        )
        self.built = True

    def call(self, x):
        """The input, times exp(temperature)."""
        temperature = tf.convert_to_tensor(self.temperature)
        return x * tf.exp(tf.cast(temperature, x.dtype))

    def compute_output_shape(self, x_shape):
        """The shape of the input."""
        return x_shape

    def get_config(self):
        """The arguments that make this layer anew."""
        return {**super().get_config(), "start": self.start}
