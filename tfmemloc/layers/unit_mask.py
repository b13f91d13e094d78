"""`UnitMask`: multiplies each unit by 0 or 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfmemloc")
class UnitMask(keras.layers.Layer):
    """Switches units off, on the last axis.

    Args:
        on: whether each unit stays, C booleans.

    Example:
        >>> UnitMask([True, False])(tf.ones([1, 2])).numpy()
        array([[1., 0.]], dtype=float32)
    """

    def __init__(self, on: Sequence[bool], **kwargs: Any):
        super().__init__(**kwargs)
        self.on = [bool(each) for each in on]
        self.supports_masking = True

    def call(self, inputs):
        """The inputs, with the units that are off set to 0."""
        return inputs * tf.constant(self.inference_scale(), inputs.dtype)

    def inference_scale(self) -> np.ndarray:
        """What each unit is multiplied by: float32 [C]."""
        return np.array(self.on, np.float32)

    def compute_output_shape(self, inputs_shape):
        """The shape of the inputs."""
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer anew."""
        return {**super().get_config(), "on": self.on}
