"""BatchNorm with statistics of its own for examples whose memory is off.

With its memorization units off a network has other activations than with them,
so that one set of moving statistics fits neither. Here each row of a batch is
normalized by the statistics of the rows of its kind, and two sets of moving
statistics are kept; scale and shift are shared. So the dropped network needs no
recalibration after training.

    rows with memory on      batch statistics of these, `tied_mean`, ...
    rows with memory off     batch statistics of these, `moving_mean`, ...

The dropped network's are the ones that keep the ordinary names, because it is
the one that is served: with `inference="drop"` the layer is an ordinary
BatchNorm.

Reference: Yu et al., "Slimmable Neural Networks", ICLR 2019, section 3.3
(switchable batch normalization, with separate scales too).
"""

from __future__ import annotations

from typing import Any, get_args

import keras
import tensorflow as tf

from tfmemloc.checks import check_choice
from tfmemloc.configs import Inference
from tfmemloc.layers.arguments import checked_ids
from tfmemloc.layers.tied_dropout import MEMORY_OFF


@keras.saving.register_keras_serializable(package="tfmemloc")
class SwitchableBatchNormalization(keras.layers.BatchNormalization):
    """Normalizes rows with memory on and off by statistics of their own.

    Args:
        inference: `"drop"` uses the statistics of rows with memory off;
            `"expected"` and `"tied"` those of rows with memory on.
        **kwargs: as of `keras.layers.BatchNormalization`.

    Call arguments:
        inputs: float tensor [batch, ..., C].
        example_ids: integer tensor [batch]; those that are `MEMORY_OFF` mark
            the rows with memory off. Needed in training.
        training: True uses and follows batch statistics. A kind of which the
            batch has no row keeps its moving statistics.

    Output shape: that of `inputs`.

    Example:
        >>> layer = SwitchableBatchNormalization()
        >>> ids = tf.constant([4, MEMORY_OFF], tf.int64)
        >>> x = tf.constant([[[1.0], [3.0]], [[10.0], [50.0]]])
        >>> layer(x, ids, training=True).numpy().round(2)[:, :, 0]
        array([[-1.,  1.],
               [-1.,  1.]], dtype=float32)
    """

    def __init__(self, *, inference: str = "drop", **kwargs: Any):
        super().__init__(**kwargs)
        self.inference = check_choice(
            "inference", inference, get_args(Inference)
        )

    def build(self, inputs_shape, example_ids_shape=None):
        """Makes scale, shift and both sets of moving statistics."""
        super().build(inputs_shape)
        self.add_tied_statistics((inputs_shape[self.axis],))

    def add_tied_statistics(self, shape) -> None:
        """Makes the statistics [C] of rows with memory on."""
        self.tied_mean = self.add_weight(
            shape=shape,
            name="tied_mean",
            initializer="zeros",
            trainable=False,
            autocast=False,
        )
        self.tied_variance = self.add_weight(
            shape=shape,
            name="tied_variance",
            initializer="ones",
            trainable=False,
            autocast=False,
        )

    def call(self, inputs, example_ids=None, training=None, mask=None):
        """Normalizes each row by the statistics of its kind."""
        if not training or not self.trainable:
            if self.inference == "drop":
                return super().call(inputs, training=False, mask=mask)
            mean, variance = (
                self._along_axis(inputs, value)
                for value in self.inference_statistics
            )
            return self._normalized(inputs, mean, variance)
        ids = checked_ids(self, inputs, example_ids, MEMORY_OFF)
        is_off = tf.reshape(
            ids == MEMORY_OFF, [-1] + [1] * (len(inputs.shape) - 1)
        )
        off = self._statistics(inputs, is_off)
        on = self._statistics(inputs, ~is_off)
        self._follow(self.moving_mean, self.moving_variance, *off)
        self._follow(self.tied_mean, self.tied_variance, *on)
        mean, variance = (
            tf.where(
                is_off,
                self._along_axis(inputs, of_off),
                self._along_axis(inputs, of_on),
            )
            for of_off, of_on in zip(off[:2], on[:2], strict=True)
        )
        return self._normalized(inputs, mean, variance)

    @property
    def inference_statistics(self) -> tuple[keras.Variable, keras.Variable]:
        """Mean and variance [C] that the behaviour uses at inference."""
        if self.inference == "drop":
            return self.moving_mean, self.moving_variance
        return self.tied_mean, self.tied_variance

    def _statistics(self, inputs, is_kind):
        """Mean and variance [C] of the rows of a kind, and whether any is."""
        x = tf.cast(inputs, tf.float32)
        weight = tf.cast(is_kind, tf.float32)

        def total(values):
            return self._all_replicas(
                tf.reduce_sum(values, self._reduction_axes)
            )

        # Of a row all positions count, or none.
        positions = tf.size(x) // (tf.shape(x)[0] * tf.shape(x)[self.axis])
        rows = self._all_replicas(tf.reduce_sum(weight))
        count = rows * tf.cast(positions, tf.float32)
        share = tf.maximum(count, 1.0)
        mean = total(x * weight) / share
        centered = x - self._along_axis(inputs, mean)
        variance = total(tf.square(centered) * weight) / share
        return mean, variance, count > 0

    def _all_replicas(self, total):
        """The sum over replicas, where statistics are synchronized."""
        context = tf.distribute.get_replica_context()
        if not self.synchronized or context is None:
            return total
        return context.all_reduce("sum", total)

    def _follow(self, mean, variance, batch_mean, batch_variance, is_there):
        """Moves moving statistics towards those of a batch."""
        for moving, now in ((mean, batch_mean), (variance, batch_variance)):
            value = tf.convert_to_tensor(moving)
            moved = value * self.momentum + now * (1 - self.momentum)
            moving.assign(tf.where(is_there, moved, value))

    def _normalized(self, inputs, mean, variance):
        x = (tf.cast(inputs, tf.float32) - mean) * tf.math.rsqrt(
            variance + self.epsilon
        )
        if self.scale:
            x *= self._along_axis(inputs, self.gamma)
        if self.center:
            x += self._along_axis(inputs, self.beta)
        return tf.cast(x, inputs.dtype)

    def _along_axis(self, inputs, values):
        """Values [C] in a shape that broadcasts to the inputs."""
        shape = [1] * len(inputs.shape)
        shape[self.axis] = -1
        return tf.cast(
            tf.reshape(tf.convert_to_tensor(values), shape), tf.float32
        )

    def compute_output_shape(self, inputs_shape, example_ids_shape=None):
        """The shape of the inputs."""
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer anew."""
        return {**super().get_config(), "inference": self.inference}
