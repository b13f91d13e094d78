"""Each example under its own gates: the same as zeroed channels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import oracles
from tfmemloc.configs import ModelConfig
from tfmemloc.models import build
from tfmemloc.units.gates import UnitGates


def _random_gates(gates, count, rng):
    return (rng.random((count, gates.units)) < 0.7).astype(np.float32)


@pytest.mark.parametrize("place", ["unit", "block"])
@pytest.mark.parametrize("name", ["resnet9", "resnet18", "lenet", "vit"])
def test_gates_are_layers_that_multiply(name, place, rng):
    model = build(
        ModelConfig(name=name, width=0.125, dropout="none"), (16, 16, 3), 10
    )
    gates = UnitGates(model, place=place)
    after = [slot.site.node.operation.name for _, _, s in gates._slots.values()
             for slot in s]  # fmt: skip
    copy, variables = oracles.gated_copy(model, after)
    x = rng.normal(size=(3, 16, 16, 3)).astype(np.float32)
    inputs = {"image": tf.constant(x), "example_id": tf.range(3, dtype="int64")}
    gate = _random_gates(gates, 3, rng)
    with gates.applied(tf.constant(gate)):
        together = model(inputs, training=False).numpy()
    for n in range(3):
        for variable, start in zip(variables, gates.starts, strict=True):
            variable.assign(gate[n, start : start + variable.shape[0]])
        alone = copy(inputs, training=False).numpy()[n]
        np.testing.assert_allclose(together[n], alone, atol=1e-5)
    assert "call" not in vars(model.layers[-1])


def test_the_model_is_unchanged_afterwards(rng):
    model = build(ModelConfig(width=0.125, dropout="none"), (8, 8, 1), 4)
    inputs = {
        "image": tf.constant(rng.normal(size=(2, 8, 8, 1)), tf.float32),
        "example_id": tf.range(2, dtype="int64"),
    }
    before = model(inputs, training=False).numpy()
    gates = UnitGates(model)
    with pytest.raises(RuntimeError), gates.applied(tf.zeros([1, gates.units])):
        assert not np.array_equal(before, model(inputs, training=False))
        raise RuntimeError
    np.testing.assert_array_equal(before, model(inputs, training=False))


def test_weights_are_gated_before_the_activation(rng):
    inputs = keras.Input((5,))
    x = keras.layers.Dense(4, activation="sigmoid", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    gates = UnitGates(model, place="weights")
    x = tf.constant(rng.normal(size=(3, 5)), tf.float32)
    with gates.applied(tf.constant([[1.0, 0.0, 1.0, 1.0]])):
        found = model(x)
    kernel, bias = model.get_layer("hidden").get_weights()
    kernel[:, 1] = bias[1] = 0
    model.get_layer("hidden").set_weights([kernel, bias])
    np.testing.assert_allclose(found, model(x), atol=1e-6)


def test_a_removed_unit_may_give_its_mean(rng):
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(4, name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="out")(hidden))
    gates = UnitGates(model)
    x = tf.constant(rng.normal(size=(3, 5)), tf.float32)
    fill = tf.constant([0.5, 1.5, 2.5, 3.5])
    with gates.applied(tf.constant([[1.0, 0.0, 1.0, 0.0]]), fill):
        found = model(x)
    units = model.get_layer("hidden")(x).numpy()
    units[:, 1], units[:, 3] = 1.5, 3.5
    np.testing.assert_allclose(found, model.get_layer("out")(units), atol=1e-6)


def test_one_activation_layer_shared_by_two_convolutions(rng):
    relu = keras.layers.ReLU(name="shared")
    inputs = keras.Input((5,))
    x = relu(keras.layers.Dense(4, name="first")(inputs))
    x = relu(keras.layers.Dense(4, name="second")(x))
    model = keras.Model(inputs, keras.layers.Dense(2, name="out")(x))
    gates = UnitGates(model)
    assert gates.names == ("first", "second")
    x = tf.constant(rng.normal(size=(3, 5)), tf.float32)
    gate = np.ones((1, 8), np.float32)
    gate[0, [1, 6]] = 0
    for _ in range(2):  # The count of calls starts anew in each pass.
        with gates.applied(tf.constant(gate)):
            found = model(x)
    units = np.maximum(model.get_layer("first")(x), 0) * gate[0, :4]
    units = np.maximum(model.get_layer("second")(units), 0) * gate[0, 4:]
    np.testing.assert_allclose(found, model.get_layer("out")(units), atol=1e-6)


def test_a_shared_layer_has_the_same_gates_at_each_use(rng):
    shared = keras.layers.Dense(5, activation="relu", name="shared")
    inputs = keras.Input((5,))
    model = keras.Model(
        inputs, keras.layers.Dense(2, name="out")(shared(shared(inputs)))
    )
    gates = UnitGates(model)
    assert gates.units == 5
    x = tf.constant(rng.normal(size=(3, 5)), tf.float32)
    gate = np.array([[1, 0, 1, 1, 0]], np.float32)
    with gates.applied(tf.constant(gate)):
        found = model(x)
    units = shared(shared(x) * gate) * gate
    np.testing.assert_allclose(found, model.get_layer("out")(units), atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (["hiden"], "has no layer 'hiden'. Layers with units: hidden"),
        (["out"], "'out' has no units to gate: it makes the logits"),
    ],
)
def test_layers_without_units_are_refused(layers, words):
    inputs = keras.Input((5,))
    x = keras.layers.Dense(4, name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="out")(x))
    with pytest.raises(ValueError, match=words):
        UnitGates(model, layers=layers)


def test_models_without_units_are_refused():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match="has no units to gate"):
        UnitGates(model)


def test_subclassed_models_are_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="whose graph is not known"):
        UnitGates(Own())
