"""A network in several behaviours, whose front runs once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmemloc import evaluation, graph, models
from tfmemloc.behaviours import Behaviours
from tfmemloc.configs import ModelConfig

NAMES = ("tied", "expected", "drop")


def _late_tied(**tying):
    """LeNet, tied behind its last hidden layer alone."""
    keras.utils.set_random_seed(1)
    plain = models.build(ModelConfig("lenet", dropout="none"), (8, 8, 1), 10)
    hidden = [
        layer.name
        for layer in plain.layers
        if isinstance(layer, keras.layers.Dense)
    ][-2]
    return graph.tie_dropout(plain, after=[hidden], **tying)


def _with_own_statistics():
    config = ModelConfig(width=0.25, expand=0.5, own_statistics=True)
    model = models.build(config, (8, 8, 1), 10)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        # A fresh memory is without effect.
        weight.assign(weight + 0.1 * rng.random(weight.shape))
    return model


@pytest.mark.parametrize(
    ("make", "has_front"),
    (
        (lambda: _late_tied(p_gen=0.5), True),
        (lambda: models.build(ModelConfig(width=0.25), (8, 8, 1), 10), True),
        (_with_own_statistics, True),
    ),
)
def test_it_is_the_evaluation_of_each_behaviour(make, has_front, small_digits):
    model = make()
    behaviours = Behaviours(model, NAMES)
    assert behaviours.has_front == has_front
    found = behaviours.evaluate(small_digits, batch_size=50)
    for name, expected in evaluation.inference_models(model).items():
        metrics = evaluation.evaluate(expected, small_digits, batch_size=50)
        np.testing.assert_array_equal(found[name].accuracy, metrics.accuracy)
        np.testing.assert_allclose(found[name].loss, metrics.loss, rtol=1e-5)
    assert any(
        not np.array_equal(found["tied"].loss, found[name].loss)
        for name in ("drop", "expected")
    )


def test_a_network_without_tied_layers_has_one(small_digits):
    model = models.build(ModelConfig("lenet", dropout="none"), (8, 8, 1), 10)
    found = Behaviours(model).evaluate(small_digits)
    assert list(found) == ["plain"]
    expected = evaluation.evaluate(model, small_digits)
    np.testing.assert_array_equal(found["plain"].loss, expected.loss)


def test_the_front_runs_once(small_digits):
    """Counted by the layer itself, in the graph."""
    calls = tf.Variable(0, trainable=False)

    class Counted(keras.layers.Layer):
        def call(self, x):
            calls.assign_add(1)
            return x

    image = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(Counted()(image))
    x = keras.layers.Dense(8, activation="relu", name="hidden")(x)
    plain = keras.Model(image, keras.layers.Dense(10)(x))
    tied = graph.tie_dropout(plain, after=["hidden"], p_gen=0.5)
    behaviours = Behaviours(tied, NAMES)
    calls.assign(0)
    behaviours.evaluate(small_digits, batch_size=60)
    assert int(calls) == -(-len(small_digits) // 60)


def test_weights_that_change_are_seen(small_digits):
    model = _late_tied(p_gen=0.5)
    behaviours = Behaviours(model)
    behaviours.evaluate(small_digits)
    for weight in model.weights:
        weight.assign(weight * 0.5)
    found = behaviours.evaluate(small_digits)["drop"]
    dropped = graph.with_inference(model, "drop")
    np.testing.assert_allclose(
        found.loss, evaluation.evaluate(dropped, small_digits).loss, rtol=1e-5
    )
