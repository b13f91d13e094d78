"""An example's gradient at the outgoing weights of each unit."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfmemloc import graph, losses
from tfmemloc.evaluation import as_logits
from tfmemloc.gradients.calls import dense_gradients
from tfmemloc.units.gates import UnitGates

# A batch of one crashes some kernels of some CPUs; the mean is the same.
_COPIES = 2


class OutgoingWeights:
    """The outgoing weights of a model's gated units.

    Args:
        model: functional.
        gates: of its units.
    """

    def __init__(self, model: keras.Model, gates: UnitGates):
        self._model = model
        self._units = gates.units
        starts = dict(zip(gates.names, gates.starts.tolist(), strict=True))
        # (kernel, for each of its input rows the unit that it reads, or -1).
        self._readers: list[graph.Reader] = []
        for site in graph.unit_sites(model, after=True):
            for kernel, rows in graph.readers_of(model, site) or ():
                if site.name in starts:
                    units = tf.where(rows >= 0, rows + starts[site.name], -1)
                    self._readers.append((kernel, units))
        kernels = {id(kernel): kernel for kernel, _ in self._readers}
        self._kernels = list(kernels.values())

    def of(self, x, label) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """<W, g>, |W|^2 and |g|^2 of each unit and example, [B, U] each.

        Args:
            x: (inputs of the model [B, ...], ids).
            label: [B].
        """

        def of_one(place):
            given = tf.nest.map_structure(
                lambda t: tf.repeat(t[place][tf.newaxis], _COPIES, axis=0),
                (x[0], label),
            )
            return self._sums(*given)

        found = tf.map_fn(
            of_one,
            tf.range(tf.shape(label)[0]),
            fn_output_signature=tf.TensorSpec([3, self._units], tf.float32),
            parallel_iterations=1,
        )
        return tuple(tf.unstack(found, axis=1))

    def _sums(self, inputs, label) -> tf.Tensor:
        """The three sums of one example: [3, U]."""
        with tf.GradientTape() as tape:
            outputs = self._model(inputs, training=False)
            logits = as_logits(self._model, outputs)
            loss = tf.reduce_mean(losses.cross_entropy(label, logits))
        gradients = {
            id(kernel): g
            for kernel, g in zip(
                self._kernels,
                dense_gradients(tape, loss, self._kernels),
                strict=True,
            )
        }
        total = tf.zeros([3, self._units])
        for kernel, units in self._readers:
            weight = tf.cast(tf.convert_to_tensor(kernel), tf.float32)
            gradient = tf.cast(gradients[id(kernel)], tf.float32)
            rank = len(kernel.shape)
            others = [axis for axis in range(rank) if axis != rank - 2]
            by_row = tf.stack(
                [
                    tf.reduce_sum(a * b, axis=others)
                    for a, b in (
                        (weight, gradient),
                        (weight, weight),
                        (gradient, gradient),
                    )
                ],
                axis=1,
            )
            # Rows of -1 are dropped.
            total += tf.transpose(
                tf.math.unsorted_segment_sum(by_row, units, self._units)
            )
        return total
