"""BatchNorm layers that share variables, and models that do not share them."""

from __future__ import annotations

import keras

from tfmemloc.graph.nodes import is_functional
from tfmemloc.graph.rebuild import cloned, flat_layers
from tfmemloc.layers.switchable_batch_norm import SwitchableBatchNormalization

_SHARED = ("gamma", "beta", "moving_mean", "moving_variance")
_TIED = ("tied_mean", "tied_variance")


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNorm layers of a model and of the models nested in it."""
    return [
        layer
        for layer in flat_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def keeps_own_statistics(model: keras.Model) -> bool:
    """Whether BatchNorm keeps statistics of its own for the drop."""
    return any(
        isinstance(layer, SwitchableBatchNormalization)
        for layer in batch_norms(model)
    )


def switchable(
    layer: keras.layers.BatchNormalization, inference: str = "drop"
) -> SwitchableBatchNormalization:
    """A layer with the same variables that keeps two sets of statistics.

    Where the given one keeps a single set, both begin with it.
    """
    config = {**layer.get_config(), "inference": inference}
    made = SwitchableBatchNormalization.from_config(config)
    if not isinstance(layer, SwitchableBatchNormalization):
        made.add_tied_statistics(layer.moving_mean.shape)
        made.tied_mean.assign(layer.moving_mean)
        made.tied_variance.assign(layer.moving_variance)
    return _sharing(made, layer, _SHARED + _TIED)


def ordinary(
    layer: SwitchableBatchNormalization,
) -> keras.layers.BatchNormalization:
    """BatchNorm with the same variables, and the statistics of the drop."""
    config = layer.get_config()
    del config["inference"]
    made = keras.layers.BatchNormalization.from_config(config)
    return _sharing(made, layer, _SHARED)


def _sharing(made, layer, names):
    """Gives a new layer the variables of an old one; it needs no build."""
    for name in names:
        if getattr(layer, name, None) is not None:
            setattr(made, name, getattr(layer, name))
    made.input_spec = layer.input_spec
    made._reduction_axes = layer._reduction_axes
    shape = next(iter(layer._build_shapes_dict.values()))
    made._build_shapes_dict = {"input_shape": shape}
    made.built = True
    return made


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
