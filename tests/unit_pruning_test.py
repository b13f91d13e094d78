"""Any units out of any functional model, and the outputs of the masked one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import oracles
from tfmemloc import graph, prune_units
from tfmemloc.configs import ModelConfig
from tfmemloc.models import build
from tfmemloc.units import UnitGates


def _resnet():
    model = build(ModelConfig(width=0.125, dropout="none"), (8, 8, 1), 10)
    return graph.untie(model) if graph.tied_layers(model) else model


def _mobile():
    return keras.applications.MobileNetV3Small(
        weights=None, input_shape=(32, 32, 3), classes=4
    )


def _table():
    x = image = keras.Input((6,), name="row")
    for units in (16, 12):
        x = keras.layers.Dense(units, "relu", name=f"dense{units}")(x)
    return keras.Model(image, keras.layers.Dense(3)(x))


def _feed(model, rng):
    return {
        tensor.name: tf.range(3, dtype=tf.int64)
        if "int" in tensor.dtype
        else tf.constant(rng.normal(size=(3, *tensor.shape[1:])), tf.float32)
        for tensor in keras.tree.flatten(model.inputs)
    }


def _of(model, feed):
    """Only the inputs that a model has, as it takes them."""
    if len(model.inputs) == 1:
        (name,) = (name for name in feed if name != "example_id")
        return feed[name]
    return feed


@pytest.mark.parametrize("make", [_resnet, _mobile, _table])
def test_the_outputs_are_those_of_the_masked_network(make, rng):
    model = make()
    oracles.randomize(model)
    gates = UnitGates(model)
    keep = {
        name: rng.random(size) < 0.5
        for name, size in zip(gates.names, gates.sizes, strict=True)
    }
    for mask in keep.values():
        mask[0] = True
    feed = _feed(model, rng)
    gate = np.concatenate([keep[name] for name in gates.names])[np.newaxis]
    with gates.applied(tf.constant(gate, tf.float32)):
        expected = model(_of(model, feed), training=False).numpy()
    pruned = prune_units(model, keep)
    found = pruned(_of(pruned, feed), training=False)
    # float32 sums in another order; logits of size one.
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert pruned.count_params() < 0.8 * model.count_params()


def test_the_sliced_layers_have_the_kept_units_and_no_masks_are_left():
    model = _table()
    mask = np.arange(16) % 4 == 0
    pruned = prune_units(model, {"dense16": mask})
    assert pruned.get_layer("dense16").units == 4
    assert pruned.get_layer("dense12").kernel.shape == (4, 12)
    kinds = {type(layer).__name__ for layer in pruned.layers}
    assert kinds == {"InputLayer", "Dense"}
    np.testing.assert_array_equal(
        pruned.get_layer("dense12").kernel,
        model.get_layer("dense12").kernel.numpy()[mask],
    )


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"dense7": [True]}, "no layer 'dense7' with units. Expected some of"),
        ({"dense16": [True] * 3}, "expected a mask of 16 booleans"),
        ({"dense16": [1] * 16}, "expected a mask of 16 booleans"),
        ({"dense16": [False] * 16}, "keeps none of 16"),
    ],
)
def test_bad_masks_are_refused(keep, words):
    with pytest.raises(ValueError, match=words):
        prune_units(_table(), keep)


def test_tied_networks_are_refused():
    tied = build(ModelConfig(width=0.25), (8, 8, 1), 10)
    with pytest.raises(ValueError, match="has tied layers. Expected one with"):
        prune_units(tied, {})
