"""What a decoder needs beside Keras's layers: positions, causal attention.

Both can be called for a part of a sequence, so that text is continued token by
token (see `tfmemloc.models.generation`).
"""

from __future__ import annotations

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfmemloc")
def tanh_gelu(x):
    """GELU by its usual approximation: a step is a quarter faster."""
    return tf.nn.gelu(x, approximate=True)


@keras.saving.register_keras_serializable(package="tfmemloc")
class AddPositions(keras.layers.Layer):
    """Adds a learned vector to each position: [batch, T, D] -> the same.

    Takes shorter sequences than the one it was built for as well, which then
    have the first positions.
    """

    def __init__(self, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed

    def build(self, tokens_shape):
        """Makes the positions."""
        _, count, units = tokens_shape
        self.position = self.add_weight(
            shape=(count, units),
            initializer=keras.initializers.RandomNormal(
                stddev=0.02, seed=self.seed
            ),
            name="position",
        )
        self.built = True

    def call(self, tokens, start=0):
        """The tokens, the first of which is at position `start`."""
        position = tf.cast(tf.convert_to_tensor(self.position), tokens.dtype)
        stop = start + tf.shape(tokens)[1]
        return tokens + position[start:stop]

    def get_config(self):
        """The arguments that make this layer anew."""
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable(package="tfmemloc")
class CausalAttention(keras.layers.Layer):
    """Self-attention of each position to itself and those before it.

    Input [batch, T, 3 D] of queries, keys and values; output [batch, T, D].
    """

    def __init__(self, heads: int, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads

    def call(self, qkv):
        """Attends within each head."""
        query, key, value = self.split(qkv)
        count = tf.shape(qkv)[1]
        seen = tf.linalg.band_part(tf.ones([count, count], tf.bool), -1, 0)
        return self.attended(query, key, value, seen)

    def split(self, qkv):
        """Queries, keys and values, each [batch, heads, T, D / heads]."""
        per_head = qkv.shape[-1] // (3 * self.heads)
        length = tf.shape(qkv)[1]
        parts = tf.reshape(qkv, [-1, length, 3, self.heads, per_head])
        return tf.unstack(tf.transpose(parts, [2, 0, 3, 1, 4]))

    def attended(self, query, key, value, seen):
        """The mean of the values that each query sees, [batch, T, D].

        Args:
            query: [batch, heads, T, D / heads].
            key: [batch, heads, S, D / heads].
            value: like `key`.
            seen: bool [T, S], whether a query sees a position.
        """
        per_head = query.shape[-1]
        product = tf.matmul(query, key, transpose_b=True) * per_head**-0.5
        product = tf.where(seen, product, product.dtype.min)
        mixed = tf.matmul(tf.nn.softmax(product), value)
        mixed = tf.transpose(mixed, [0, 2, 1, 3])
        shape = tf.shape(mixed)
        return tf.reshape(mixed, [shape[0], shape[1], self.heads * per_head])

    def compute_output_shape(self, qkv_shape):
        """A third of the channels."""
        return (*qkv_shape[:-1], qkv_shape[-1] // 3)

    def get_config(self):
        """The arguments that make this layer anew."""
        return {**super().get_config(), "heads": self.heads}
