"""The small ViT: shifted patch tokenization and locality self-attention.

Lee, Lee and Song, "Vision Transformer for Small-Size Datasets", 2021. The
network is written out of ordinary Dense and LayerNormalization layers, so that
every probe sees its parts; only what has no Keras layer is one of our own.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from tfmemloc.layers.temperature import Temperature
from tfmemloc.models import blocks
from tfmemloc.models.factory import LayerFactory

_DEPTH = 6
_HEADS = 8
_DROPOUT = 0.1


def vit(image, classes: int, make: LayerFactory):
    """Logits of the small ViT; 8 layer groups.

    The paper does not say where the tied layers of a ViT are. As in its deeper
    ResNets there are two here, at one and at two thirds of the depth (after
    blocks 2 and 4).
    """
    units = _HEADS * max(1, make.width(512) // _HEADS)
    x = make.apply(
        ShiftedPatches,
        image,
        "embedding.patches",
        patch=_patch_size(image.shape),
    )
    x = make.apply(
        keras.layers.LayerNormalization, x, "embedding.norm", epsilon=1e-5
    )
    x = make.dense(x, "embedding.dense", units)
    x = make.apply(TokenEmbedding, x, "embedding.tokens", seed=make.next_seed())
    x = make.plain_dropout(x, "embedding.plain_dropout", _DROPOUT)
    for index in range(1, _DEPTH + 1):
        group = f"block{index}"
        x = blocks.attention(
            x, group, units, make, LocalityAttention, _HEADS, _DROPOUT
        )
        x = blocks.feed_forward(
            x,
            group,
            units,
            make,
            hidden=units,
            activation="gelu",
            behind=lambda hidden, group=group: make.plain_dropout(
                hidden, f"{group}.mlp1_dropout", _DROPOUT
            ),
            rate=_DROPOUT,
        )
        if index in (2, 4):
            x = make.tie(x, group)
    x = make.apply(FirstToken, x, "head.token")
    x = make.apply(
        keras.layers.LayerNormalization, x, "head.norm", epsilon=1e-5
    )
    return make.dense(x, "head.dense", classes)


def _patch_size(shape) -> int:
    """2 as in the paper; larger for images that would give 600 patches."""
    patch = 2
    while (shape[1] // patch) * (shape[2] // patch) > 600:
        patch *= 2
    if shape[1] % patch or shape[2] % patch:
        raise ValueError(
            f"The ViT cuts these images into patches of {patch}x{patch}. "
            "Expected height and width that are multiples of it. Received: "
            f"{shape[1]}x{shape[2]}."
        )
    return patch


@keras.saving.register_keras_serializable(package="tfmemloc")
class ShiftedPatches(keras.layers.Layer):
    """Cuts an image and its four one-pixel shifts into patches.

    Input [batch, H, W, C]; output [batch, (H/p)(W/p), 5 C p p].
    """

    def __init__(self, patch: int, **kwargs):
        super().__init__(**kwargs)
        self.patch = patch

    def call(self, image):
        """Patches of the image beside those of its shifts."""
        height, width, _ = image.shape[1:]
        padded = tf.pad(image, [[0, 0], [1, 1], [1, 1], [0, 0]])
        shifted = [
            padded[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width]
            for y, x in ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
        ]
        patches = tf.nn.space_to_depth(tf.concat(shifted, -1), self.patch)
        shape = patches.shape
        return tf.reshape(patches, [-1, shape[1] * shape[2], shape[3]])

    def get_config(self):
        """The arguments that make this layer anew."""
        return {**super().get_config(), "patch": self.patch}


@keras.saving.register_keras_serializable(package="tfmemloc")
class TokenEmbedding(keras.layers.Layer):
    """Puts a class token first and adds a learned position to each token.

    Input [batch, T, D]; output [batch, T + 1, D].
    """

    def __init__(self, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed

    def build(self, tokens_shape):
        """Makes the class token and the positions."""
        _, count, units = tokens_shape
        self.class_token = self.add_weight(
            shape=(1, 1, units),
            initializer=keras.initializers.RandomNormal(
                stddev=1.0, seed=self.seed
            ),
            name="class_token",
        )
        self.position = self.add_weight(
            shape=(1, count + 1, units),
            initializer=keras.initializers.RandomNormal(
                stddev=1.0, seed=self.seed + 1
            ),
            name="position",
        )

    def call(self, tokens):
        """The class token and the tokens, each at its position."""
        class_token = tf.cast(
            tf.convert_to_tensor(self.class_token), tokens.dtype
        )
        first = tf.repeat(class_token, tf.shape(tokens)[0], axis=0)
        position = tf.cast(tf.convert_to_tensor(self.position), tokens.dtype)
        return tf.concat([first, tokens], axis=1) + position

    def get_config(self):
        """The arguments that make this layer anew."""
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable(package="tfmemloc")
class LocalityAttention(keras.layers.Layer):
    """Self-attention to the other tokens only, with a learned temperature.

    The query-key products are multiplied by exp(temperature), learned from
    log(1 / sqrt(units per head)), and a token's own product is masked.

    Input [batch, T, 3 D] of queries, keys and values; output [batch, T, D].
    """

    def __init__(self, heads: int, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads

    def build(self, qkv_shape):
        """Makes the temperature."""
        _, tokens, units = qkv_shape
        per_head = units // (3 * self.heads)
        self.temperature = Temperature(
            per_head**-0.5, dtype=self.dtype_policy, name="temperature"
        )
        self.temperature.build((None, self.heads, tokens, tokens))
        self.built = True

    def call(self, qkv):
        """Attends within each head."""
        tokens, units = qkv.shape[1], qkv.shape[2] // 3
        split = tf.reshape(
            qkv, [-1, tokens, 3, self.heads, units // self.heads]
        )
        query, key, value = tf.unstack(split, axis=2)
        product = self.temperature(tf.einsum("bqhd,bkhd->bhqk", query, key))
        own = tf.eye(tokens, dtype=tf.bool)
        product = tf.where(own, product.dtype.min, product)
        attended = tf.einsum("bhqk,bkhd->bqhd", tf.nn.softmax(product), value)
        return tf.reshape(attended, [-1, tokens, units])

    def get_config(self):
        """The arguments that make this layer anew."""
        return {**super().get_config(), "heads": self.heads}


@keras.saving.register_keras_serializable(package="tfmemloc")
class FirstToken(keras.layers.Layer):
    """The class token: [batch, T, D] -> [batch, D]."""

    def call(self, tokens):
        """The first token."""
        return tokens[:, 0]
