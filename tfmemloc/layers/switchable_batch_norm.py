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
        if mask is not None:
            raise ValueError(
                f"Layer '{self.name}' keeps statistics of its own for the "
                "drop and counts all positions of an example. Expected inputs "
                "without a mask. Received: one. Tie the model with "
                "own_statistics=False."
            )
        return self._normalized_by_kind(inputs, ids == MEMORY_OFF)

    @property
    def inference_statistics(self) -> tuple[keras.Variable, keras.Variable]:
        """Mean and variance [C] that the behaviour uses at inference."""
        if self.inference == "drop":
            return self.moving_mean, self.moving_variance
        return self.tied_mean, self.tied_variance

    def _normalized_by_kind(self, inputs, is_off):
        """Normalizes rows by the statistics of their kind; follows these.

        Args:
            inputs: [B, ...].
            is_off: bool [B], the rows with memory off.
        """
        x = tf.cast(inputs, tf.float32)
        kinds = tf.cast(tf.stack([is_off, ~is_off], axis=1), tf.float32)
        places = [axis for axis in self._reduction_axes if axis != 0]
        # Of a row all positions count. Not all numbers over all rows: a
        # replica may have none of these.
        positions = tf.reduce_prod(
            tf.gather(tf.shape(x), tf.constant(places, tf.int32))
        )
        count = self._all_replicas(tf.reduce_sum(kinds, axis=0))
        count *= tf.cast(positions, tf.float32)

        def means(values):
            """Of each kind: [2, C]."""
            by_row = tf.reduce_sum(values, places)
            # No product of matrices, which a GPU may round to 10 bits.
            by_kind = tf.reduce_sum(
                by_row[:, tf.newaxis] * kinds[:, :, tf.newaxis], axis=0
            )
            share = tf.maximum(count, 1.0)[:, tf.newaxis]
            return self._all_replicas(by_kind) / share

        def of_rows(values):
            """[2, C] -> what is each row's, as it broadcasts to inputs."""
            of_row = tf.where(is_off[:, tf.newaxis], values[0], values[1])
            shape = [-1] + [1] * (len(inputs.shape) - 1)
            shape[self.axis] = values.shape[1]
            return tf.reshape(of_row, shape)

        mean = means(x)
        centered = x - of_rows(mean)
        variance = means(tf.square(centered))
        statistics = (
            (self.moving_mean, self.moving_variance),
            (self.tied_mean, self.tied_variance),
        )
        for k, pair in enumerate(statistics):
            self._follow(pair, (mean[k], variance[k]), count[k] > 0)
        scale = of_rows(tf.math.rsqrt(variance + self.epsilon))
        return self._shifted(inputs, centered * scale)

    def _all_replicas(self, total):
        """The sum over replicas, where statistics are synchronized."""
        context = tf.distribute.get_replica_context()
        if not self.synchronized or context is None:
            return total
        return context.all_reduce("sum", total)

    def _follow(self, kept, batch, is_there):
        """Moves mean and variance towards those of a batch."""
        for moving, now in zip(kept, batch, strict=True):
            value = tf.convert_to_tensor(moving)
            moved = value * self.momentum + now * (1 - self.momentum)
            moving.assign(tf.where(is_there, moved, value))

    def _normalized(self, inputs, mean, variance):
        x = (tf.cast(inputs, tf.float32) - mean) * tf.math.rsqrt(
            variance + self.epsilon
        )
        return self._shifted(inputs, x)

    def _shifted(self, inputs, x):
        """Scale and shift, in the dtype of the inputs."""
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
