"""The two halves of a pre-norm transformer block.

Named and seeded as all layers of a network are; written out of Dense and
LayerNormalization layers, so that every probe sees their parts.
"""

from __future__ import annotations

from collections.abc import Callable

import keras

from tfmemloc.models.factory import LayerFactory


def attention(
    x, group, units, make: LayerFactory, layer, heads: int, rate: float = 0.0
):
    """x plus what its positions say to each other.

    Args:
        x: [batch, T, units].
        group: of the layers' names.
        units: of x.
        make: the layers.
        layer: class that attends, from [batch, T, 3 units] to x's shape.
        heads: of it.
        rate: of the dropout before the sum; 0 puts none.
    """
    inner = _normalized(x, f"{group}.attention_norm", make)
    inner = make.dense(inner, f"{group}.qkv", 3 * units, use_bias=False)
    inner = make.apply(layer, inner, f"{group}.attention", heads=heads)
    inner = make.dense(inner, f"{group}.projection", units)
    return _added(x, inner, f"{group}.attention", make, rate)


def feed_forward(
    x,
    group,
    units,
    make: LayerFactory,
    *,
    hidden: int,
    activation,
    behind: Callable,
    rate: float = 0.0,
):
    """x plus what two dense layers make of each position.

    Args:
        x: [batch, T, units].
        group: of the layers' names.
        units: of x.
        make: the layers.
        hidden: units of the hidden layer.
        activation: of the hidden layer.
        behind: what its dropout does to the hidden layer.
        rate: of the dropout before the sum; 0 puts none.
    """
    inner = _normalized(x, f"{group}.mlp_norm", make)
    inner = make.dense(inner, f"{group}.mlp1", hidden)
    inner = make.apply(
        keras.layers.Activation, inner, f"{group}.gelu", activation=activation
    )
    inner = make.dense(behind(inner), f"{group}.mlp2", units)
    dropout = f"{group}.mlp2_dropout"
    return _added(x, inner, f"{group}.mlp", make, rate, dropout)


def _normalized(x, name, make):
    return make.apply(keras.layers.LayerNormalization, x, name, epsilon=1e-5)


def _added(x, inner, name, make, rate, dropout=None):
    if rate:
        inner = make.plain_dropout(inner, dropout or f"{name}_dropout", rate)
    add = keras.layers.Add(dtype=inner.dtype, name=f"{name}_add")
    return add([x, inner])
