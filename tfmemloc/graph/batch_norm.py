"""Models that share all layers but their BatchNormalization."""

from __future__ import annotations

import keras

from tfmemloc.graph.nodes import is_functional
from tfmemloc.graph.rebuild import cloned, flat_layers


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNorm layers of a model and of the models nested in it."""
    return [
        layer
        for layer in flat_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def with_own_batch_norm(
    model: keras.Model, *, collect: bool = False
) -> keras.Model:
    """A model that shares all layers with `model` but the BatchNorm ones.

    Args:
        model: a functional model; BatchNorm of nested ones counts.
        collect: the copies normalize by batch statistics whatever `training`
            is, and keep those of the last batch (momentum 0).
    """

    made = []

    def replace(layer):
        if isinstance(layer, keras.Model) and is_functional(layer):
            return with_own_batch_norm(layer, collect=collect)
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer
        kind = _BatchStatistics if collect else type(layer)
        config = layer.get_config() | ({"momentum": 0.0} if collect else {})
        made.append((layer, kind.from_config(config)))
        return made[-1][1]

    copy = cloned(model, replace)
    for old, new in made:
        new.set_weights(old.get_weights())
    return copy


class _BatchStatistics(keras.layers.BatchNormalization):
    """BatchNorm in training mode, whatever the model's mode is."""

    def call(self, inputs, training=None, mask=None):
        """Normalizes by the statistics of this batch, and keeps them."""
        del training
        return super().call(inputs, training=True, mask=mask)
