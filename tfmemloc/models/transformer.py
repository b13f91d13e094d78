"""A small decoder for text: pre-norm, causal attention, GELU.

Takes tokens [batch, T] and gives, at each position, logits of the next token
[batch, T, vocabulary]. Memory is tied at the hidden layer of each MLP, the
units that work on the localization of text agrees on. Where the network is
expanded, the hidden layer has that many more units for memory, so that the drop
and pruning give back the MLP of the standard network.

Written out of Dense, Embedding and LayerNormalization layers, so that every
probe sees its parts; attention itself has no weights.
"""

from __future__ import annotations

import keras

from tfmemloc.layers.decoding import AddPositions, CausalAttention, tanh_gelu
from tfmemloc.models import blocks
from tfmemloc.models.factory import LayerFactory

_UNITS, _HEADS = 128, 4


def transformer(tokens, classes: int, make: LayerFactory):
    """Logits of the decoder; `embedding`, a group for each block, `head`."""
    units = _HEADS * max(1, make.width(_UNITS) // _HEADS)
    x = keras.layers.Embedding(
        classes,
        units,
        embeddings_initializer=keras.initializers.RandomNormal(
            stddev=0.02, seed=make.next_seed()
        ),
        dtype=make.dtype,
        name="embedding.tokens",
    )(tokens)
    x = make.apply(
        AddPositions, x, "embedding.positions", seed=make.next_seed()
    )
    for index in range(1, make.config.depth + 1):
        group = f"block{index}"
        x = blocks.attention(x, group, units, make, CausalAttention, _HEADS)
        x = blocks.feed_forward(
            x,
            group,
            units,
            make,
            hidden=make.hidden_units(4 * units),
            activation=tanh_gelu,
            behind=lambda hidden, group=group: make.tie_hidden(
                hidden, group, 4 * units
            ),
        )
    x = make.apply(
        keras.layers.LayerNormalization, x, "head.norm", epsilon=1e-5
    )
    return make.dense(x, "head.dense", classes)
